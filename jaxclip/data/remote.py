"""Files in object stores (``gs://``, ``s3://``) and on web servers, read in ranges.

TensorStore does the reading, which comes with orbax: its threads are C++, it tries again where a
server is busy, and finds credentials as Google's and Amazon's own tools do. Other schemes are
fsspec's (:mod:`.fsspec_store`). A
:class:`RemotePath` has as much of ``pathlib.Path`` as data sets need.
"""

from __future__ import annotations

import functools
import logging
import os
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxclip.data.fsspec_store import FsspecStore, Now

_LOG = logging.getLogger(__name__)

# Seconds that one attempt may take, one to read a whole file, and how many there are. A store that
# has not answered before gets one attempt, of less.
_TIMEOUT, _WHOLE, _ATTEMPTS, _FIRST = 60.0, 600.0, 3, 30.0
# Seconds after which it is said what is waited for.
_PATIENCE = 5.0
# TensorStore's own attempts, some 15 seconds in all. Its default of 32 takes far longer than that.
_RETRIES = {"max_retries": 4, "initial_delay": "1s", "max_delay": "8s"}
# Stores that have answered, be it that there is no such file.
_ANSWERED: set[str] = set()
# When others were last asked, and what came of it. So long they are not asked again: opening a data
# set asks for many files, most of which need not be there.
_SILENT: dict[str, tuple[float, str]] = {}
_NOT_AGAIN = 30.0
_NO_CREDENTIALS = (
    "no valid credentials; log in (`gcloud auth application-default login`, `aws configure`), or "
    "set those of this machine"
)
_NO_BUCKET = "there is no such bucket; create it, or mend the address"
_OTHER_REGION = "the bucket is in another region; set AWS_REGION to that"
# Words of a store's error, and what they mean: the first that is found.
_REMEDIES = {
    ("not_found", "nosuchbucket", "bucket does not exist"): _NO_BUCKET,
    ("could not resolve", "could not connect"): "it can't be reached; is there a network?",
    ("requesttimetooskewed",): "the clock of this machine is wrong; set it",
    ("authorizationheadermalformed", "permanentredirect", "code='301'"): _OTHER_REGION,
    ("expiredtoken", "token has expired", "invalid_grant"): (
        "the credentials have expired; log in again, or set new ones"
    ),
    ("unauthenticated", "credential", "invalidaccesskey", "signaturedoesnotmatch", "code='401'"): (
        _NO_CREDENTIALS
    ),
    ("permission_denied", "forbidden", "access denied", "code='403'"): (
        "permission denied; log in as one who may read and write there, or give this account that "
        "right"
    ),
}
_OF_TENSORSTORE = ("gs://", "s3://", "http://", "https://")


def is_remote(path: os.PathLike[str] | str) -> bool:
    """Whether a path is an address: it has a scheme such as ``gs://``."""
    return "://" in os.fspath(path)


def hub_address(name: str) -> str:
    """How a data set of the Hugging Face hub is read, for an error; empty if a name is none."""
    found = re.fullmatch(r"(?:https://huggingface\.co/datasets/)?([\w.\-]+/[\w.\-]+)/?", name)
    return f"parquet:hf://datasets/{found[1]}" if found else ""


def path_of(path: os.PathLike[str] | str) -> Any:
    """A ``pathlib.Path``, or a :class:`RemotePath` for an address."""
    return RemotePath(os.fspath(path)) if is_remote(path) else pathlib.Path(path)


def read_range(url: str, offset: int, size: int) -> bytes:
    """``size`` bytes at ``offset``; fewer where the file ends.

    Raises:
      OSError: the file is not there, or can't be reached after some attempts.
    """
    return read_slice(url, offset, offset + size)


def read_slice(url: str, first: int, last: int | None) -> bytes:
    """Bytes from ``first`` up to ``last``, or to the end; a negative ``first`` counts from the end.

    Raises:
      OSError: the file is not there, or can't be reached after some attempts.
    """
    try:
        value = _read(url, slice(first, last)).value
    except ValueError:  # the range begins or ends beyond the file
        value = _read(url, None).value[first:last]
    return bytes(value)


def read(url: str) -> bytes | None:
    """All bytes of a file; None if there is none.

    Raises:
      OSError: it can't be reached after some attempts.
    """
    try:
        return bytes(_read(url, None).value)
    except FileNotFoundError:
        return None


def generation(url: str) -> np.ndarray:
    """int64[n] that is another one when the file is: what the store says of its version.

    Raises:
      OSError: the file is not there or can't be reached.
    """
    found = _read(url, slice(0, 0)).stamp.generation
    return np.frombuffer(found.ljust(-(-len(found) // 8) * 8, b"\0"), np.int64).copy()


def _read(url: str, byte_range: slice | None) -> Any:
    root, key = _split(url)
    store = _open(root)
    is_first = root not in _ANSWERED
    since, problem = _SILENT.get(root, (-_NOT_AGAIN, ""))
    if is_first and time.monotonic() < since + _NOT_AGAIN:
        raise OSError(f"{url} can't be read ({problem})")
    timeout = _FIRST if is_first else _TIMEOUT if byte_range is not None else _WHOLE
    attempts = 1 if is_first else _ATTEMPTS
    last: BaseException | None = None
    for _ in range(attempts):
        try:
            found = _answer(lambda: store.read(key, byte_range=byte_range), timeout, url)
        except ValueError as error:
            if "OUT_OF_RANGE" in str(error):
                _ANSWERED.add(root)
                raise
            last = error
        except Exception as error:  # TensorStore has no class of its own for errors of a store
            last = error
        else:
            _ANSWERED.add(root)
            if found.state == "missing":
                raise FileNotFoundError(f"{url}: no such file")
            return found
    problem = f"{attempts} attempts: " if attempts > 1 else ""
    problem += reason(last, timeout)
    if _is_forbidden(last):
        _ANSWERED.add(root)  # so S3 says of a file that is not there to those who may not list
    elif is_first:
        _SILENT[root] = (time.monotonic(), problem)
    raise OSError(f"{url} can't be read ({problem})") from last


def _is_forbidden(error: BaseException | None) -> bool:
    """Whether a store answered that a file is not for this account."""
    return any(word in str(error) for word in ("PERMISSION_DENIED", "code='403'"))


def reason(error: BaseException | None, timeout: float | None = None) -> str:
    """Why a store failed and what helps, in one line.

    Args:
      error: what it raised.
      timeout: seconds that it had to answer, if that is known.
    """
    if isinstance(error, TimeoutError):
        when = "in time" if timeout is None else f"within {timeout:g} seconds"
        return f"no answer {when}; is there a network?"
    text = " ".join(str(error).partition(" [http_response")[0].split()) or type(error).__name__
    low = str(error).lower()
    for words, meaning in _REMEDIES.items():
        if any(word in low for word in words):
            return f"{meaning} ({text[:160]})"
    return text[:300]


def _answer(ask: Callable[[], Any], timeout: float, url: str) -> Any:
    """What comes of a question to a store; says what it waits for if that takes long."""
    if not url.startswith(_OF_TENSORSTORE):
        # fsspec answers when it is asked.
        timer = threading.Timer(_PATIENCE, _LOG.warning, ("waiting for %s", url))
        timer.daemon = True
        timer.start()
        try:
            return ask().result(timeout=timeout)
        finally:
            timer.cancel()
    future = ask()
    try:
        return future.result(timeout=_PATIENCE)
    except TimeoutError:
        _LOG.warning("waiting for %s", url)
    return future.result(timeout=timeout - _PATIENCE)


def _split(url: str) -> tuple[str, str]:
    """The root of a store, and the key of a file in it."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}/", key


def _store_of(url: str) -> tuple[Any, str]:
    """The store of an address, and the key of the file in it."""
    root, key = _split(url)
    return _open(root), key


@functools.lru_cache(maxsize=64)
def _open(root: str) -> Any:
    if not root.startswith(_OF_TENSORSTORE):
        return open_fsspec(root)
    try:
        import tensorstore
    except ImportError as error:
        raise ValueError(f"{root} needs tensorstore, which comes with the extra 'train'") from error
    try:
        kinds = ("gcs_request_retries", "s3_request_retries", "http_request_retries")
        context = tensorstore.Context(dict.fromkeys(kinds, _RETRIES))
        opened = tensorstore.KvStore.open(spec_of(root), context=context)
        return opened.result(timeout=_TIMEOUT)
    except Exception as error:
        raise ValueError(f"{root} can't be opened: {reason(error, _TIMEOUT)}") from error


def open_fsspec(root: str, *, fresh: bool = False) -> Any:
    """The store of an address that fsspec knows; ``fresh`` trusts no listing of before.

    Raises:
      ValueError: there is no such scheme, or it can't be opened.
    """
    try:
        return FsspecStore(root, fresh=fresh)
    except Exception as error:  # file systems raise anything
        raise ValueError(
            f"{root} can't be opened: {str(error)[:300]}; known are {', '.join(_OF_TENSORSTORE)} "
            "and what fsspec knows"
        ) from error


def spec_of(root: str) -> str | dict[str, Any]:
    """What TensorStore opens; other servers of Amazon's kind are named as for Amazon's tools."""
    if not root.startswith("s3://"):
        return root
    spec: dict[str, Any] = {"driver": "s3", "bucket": root.removeprefix("s3://").rstrip("/")}
    if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
        # They come first anyway; asked for alone, nothing is looked for that is not there.
        spec["aws_credentials"] = {"type": "environment"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        spec |= {"endpoint": endpoint.rstrip("/"), "aws_region": region or "us-east-1"}
    return spec


class RemotePath(os.PathLike[str]):
    """The address of a file or folder of an object store.

    Args:
      url: with its scheme.
    """

    def __init__(self, url: str):
        self._url = url.rstrip("/")

    def __fspath__(self) -> str:
        return self._url

    __str__ = __fspath__

    def __repr__(self) -> str:
        return f"RemotePath({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and other._url == self._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __lt__(self, other: RemotePath) -> bool:
        return self._url < other._url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self._url}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self._url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its last suffix."""
        return pathlib.PurePosixPath(self.name).stem

    @property
    def parent(self) -> RemotePath:
        """The folder."""
        return RemotePath(self._url.rpartition("/")[0])

    def with_name(self, name: str) -> RemotePath:
        """Another file of the same folder."""
        return self.parent / name

    def is_file(self) -> bool:
        """Whether there is such a file."""
        try:
            _read(self._url, slice(0, 0))
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether any file is below it; on a web server, which lists nothing: always."""
        return not self._lists() or next(self._below(), None) is not None

    def iterdir(self) -> Iterator[RemotePath]:
        """What is in the folder, sorted; nothing on a web server."""
        if self._lists():
            names = {name.partition("/")[0] for name in self._below()}
            yield from (self / name for name in sorted(names))

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What is in the folder, or in folders in it for ``*/…``, and matches."""
        depth = pattern.count("/") + 1
        found = {"/".join(name.split("/")[:depth]) for name in self._below()}
        for name in sorted(found):
            if pathlib.PurePosixPath(name).match(pattern) and name.count("/") == depth - 1:
                yield self / name

    def files_below(self, suffix: str) -> Iterator[RemotePath]:
        """Files anywhere below the folder whose names end so, sorted."""
        yield from (self / name for name in self._below() if name.endswith(suffix))

    def read_bytes(self) -> bytes:
        """All bytes."""
        data = read(self._url)
        if data is None:
            raise FileNotFoundError(f"{self._url}: no such file")
        return data

    def read_text(self, encoding: str = "utf-8") -> str:
        """All text."""
        return self.read_bytes().decode(encoding)

    def _lists(self) -> bool:
        return not self._url.startswith(("http://", "https://"))

    def _below(self) -> Iterator[str]:
        """Names of the files below the folder, from it on."""
        if not self._lists():
            return
        store, key = _store_of(self._url + "/")
        try:
            names = names_below(store, key, self._url)
        except Exception as error:
            raise OSError(f"{self._url} can't be listed: {reason(error)}") from error
        yield from (name.removeprefix(key) for name in sorted(names))


def names_below(store: Any, prefix: str, url: str) -> list[str]:
    """Keys that begin with a prefix, which ends with a slash.

    Args:
      store: TensorStore's, or fsspec's.
      prefix: of the keys.
      url: the folder's address.
    """
    root = _split(url)[0]
    timeout = _TIMEOUT if root in _ANSWERED else _FIRST
    if isinstance(store, FsspecStore):
        names = _answer(lambda: Now(store.names(prefix)), timeout, url)
    else:
        import tensorstore

        every = tensorstore.KvStore.KeyRange(prefix, _after(prefix))
        found = _answer(lambda: store.list(every), timeout, url)
        names = [name.decode("utf-8", "replace") for name in found]
    _ANSWERED.add(root)
    return names


def _after(prefix: str) -> str:
    """The first key behind all that begin with a prefix; empty for all keys."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""


def cached_index(url: str) -> pathlib.Path:
    """Where the index of a file is kept on this machine that can't be kept beside it."""
    import hashlib

    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    digest = hashlib.sha256(url.encode("utf-8")).hexdigest()[:32]
    return pathlib.Path(base, "jaxclip", "indices", f"{digest}.npz")
