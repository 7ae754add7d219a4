"""What can be wrong with a folder that a run writes to, said in words that help."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

# Beside a staging folder (:mod:`jaxclip.train.staging_folder`): the address it is of.
STAGED = "address.txt"
# What is written for an address and is none: one slash, three, blanks around it, capital letters.
_NEARLY = re.compile(r"\s*(gs|gcs|s3|s3a|az|abfss?)(:/*|//+)\s*(.*?)\s*", re.IGNORECASE | re.DOTALL)
_SCHEMES = {"gcs": "gs", "s3a": "s3"}


def is_local(path: os.PathLike[str] | str) -> bool:
    """Whether a path lies in the machine's own file system, not in an object store."""
    return "://" not in os.fspath(path)


def absolute(path: os.PathLike[str] | str) -> str:
    """A path as it is meant everywhere: ``~`` filled in, relative ones from the current folder.

    Addresses of an object store (``gs://…``) are returned as they are.

    Raises:
      ValueError: ``~name`` of a user that does not exist.
    """
    text = os.fspath(path)
    if text.startswith("file:///"):
        text = text.removeprefix("file://")
    if not text or not is_local(text):
        return text
    expanded = os.path.expanduser(text)
    if text[0] == expanded[0] == "~" and not os.path.exists(expanded):
        raise ValueError(
            f"{text}: there is no user {text.partition('/')[0][1:]!r}; for a folder of that name "
            f"give ./{text}"
        )
    return expanded if os.path.isabs(expanded) else os.path.join(_current_folder(), expanded)


def _current_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "the current folder has been removed: change to another one"
        ) from error


def check_address(path: os.PathLike[str] | str) -> None:
    """Raise ValueError for what was meant to be an address and is none: it would name a folder."""
    text = os.fspath(path)
    found = _NEARLY.fullmatch(text)
    if found is None or os.path.exists(text):
        return
    scheme = found[1].lower()
    right = f"{_SCHEMES.get(scheme, scheme)}://{found[3] or 'bucket/folder'}"
    if text != right or not found[3]:
        raise ValueError(f"{text!r} is no address of a bucket; write {right!r}")


def check_workdir(path: os.PathLike[str] | str) -> None:
    """Raise ValueError for a folder of a command that works in file systems alone."""
    text = os.fspath(path)
    if not is_local(text):
        tool = {"gs": "gcsfuse", "s3": "mount-s3"}.get(text.partition("://")[0], "rclone mount")
        raise ValueError(
            f"workdir {text!r} is an address, which this command does not take: mount the bucket "
            f"(`{tool}`, or `--mount` of launch/) and name the folder"
        )


def probe(directory: epath.Path) -> str:
    """Create a folder and try to write to it.

    Args:
      directory: the folder.

    Returns:
      What is wrong, with the way out; empty where all is well.
    """
    name = directory / f".probe-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        name.write_text("probe")
        name.unlink()
    except OSError as error:
        return f"{directory} can't be written: {reason(error, directory)}"
    return ""


def check_place(folder: os.PathLike[str] | str) -> None:
    """Refuse a folder that can't be made, or written to, before the work whose result it gets.

    Raises:
      NotADirectoryError, PermissionError: names the part of the path that is in the way.
    """
    place = pathlib.Path(os.path.abspath(folder))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def make_cache(key: str, path: str) -> None:
    """Create a folder for files that may be lost.

    Raises:
      ValueError: it can't be written; names the config key.
    """
    if not is_local(path):
        return
    try:
        os.makedirs(path, exist_ok=True)
        why = "" if os.access(path, os.W_OK) else os.strerror(errno.EACCES)
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise ValueError(f"{key}={path!r} can't be written ({why}); choose another, or '' for none")


def reason(error: BaseException, directory: os.PathLike[str] | str, setting: str = "") -> str:
    """Why writing to a folder failed and what helps, from any error on the way there.

    Args:
      error: what was raised.
      directory: the folder.
      setting: name of the environment's variable that moves it, if it is no workdir; that of a
        staging folder is known.
    """
    setting = setting or _setting_of(directory)
    another = "choose another folder"
    if setting:
        another = f"name another folder in the environment's {setting}"
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    text = " ".join(str(link) for link in chain)
    codes = {link.errno for link in chain if isinstance(link, OSError)}
    if any(map(is_full, chain)):
        return (
            f"no space left on the device ({free_space(directory)}); free some, lower "
            "checkpoint.keep_last, or "
            + (f"{another}, on another disk" if setting else "choose a workdir on another disk")
        )
    if {errno.EACCES, errno.EPERM} & codes or os.strerror(errno.EACCES) in text:
        return f"permission denied; change the folder's owner or mode, or {another}"
    if errno.EROFS in codes or os.strerror(errno.EROFS) in text:
        return f"the file system is read-only; {another}"
    if {errno.ENOTDIR, errno.EEXIST} & codes:
        return f"a part of the path is a file, not a folder; {another}"
    return f"{type(error).__name__}: {error}"


def discard(folder: pathlib.Path) -> None:
    """Remove a folder of ours that was never finished, also where Ctrl-C comes twice."""

    def remove() -> None:
        for _ in range(40):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                return
            # Whoever saves in the background may not have noticed yet: an interrupted join (up to
            # Python 3.12) takes its thread for one that has ended.
            time.sleep(0.05)

    # No KeyboardInterrupt reaches a thread, and the interpreter waits for it.
    remover = threading.Thread(target=remove)
    remover.start()
    remover.join()


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no space left on the device, or in the quota."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # Tensorstore and safetensors report the system's error by its text alone.
    return os.strerror(errno.ENOSPC) in str(error)


def _setting_of(directory: os.PathLike[str] | str) -> str:
    if is_local(directory):
        for folder in pathlib.Path(directory).parents:
            if (folder / STAGED).exists():
                return "JAXCLIP_STAGING"
    return ""


def bad_link(path: os.PathLike[str] | str) -> str:
    """Which link on the way to a folder leads nowhere, in words; empty if there is none."""
    place = pathlib.Path(path)
    for part in (place, *place.parents):
        if part.is_symlink() and not os.path.exists(part):
            return f"{part} is a link to {os.readlink(part)}, which is not there"
    return ""


def free_space(directory: os.PathLike[str] | str) -> str:
    """``"3.1 GB free"`` on the device of a local folder."""
    try:
        return f"{shutil.disk_usage(os.fspath(directory)).free / 1e9:.1f} GB free"
    except OSError:
        return "free space unknown"


def encode_floats(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinities, which JSON lacks, by the strings ``NaN``, ``Infinity``, …."""
    return {key: _encode(value) for key, value in values.items()}


def decode_floats(values: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`encode_floats`."""
    return {
        key: float(value) if value in ("NaN", "Infinity", "-Infinity") else value
        for key, value in values.items()
    }


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def write_json(path: os.PathLike[str] | str, content: Any) -> None:
    """Write a JSON file whole or not at all.

    Raises:
      TypeError: the content is not JSON-serialisable.
      ValueError: it holds NaN or infinity (see :func:`encode_floats`).
      OSError: as :func:`write_text`.
    """
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def is_device(path: os.PathLike[str] | str) -> bool:
    """Whether there is something that is neither a file nor a folder, and must not become one."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def write_text(path: os.PathLike[str] | str, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all.

    A device or a pipe, such as ``/dev/stdout``, is written to and stays what it is.

    Raises:
      OSError: it can't be written; the message says why and what helps. What was there stays.
    """
    target = epath.Path(path)
    temporary = target.with_name(target.name + ".tmp")
    try:
        if is_local(path) and is_device(path):
            pathlib.Path(path).write_bytes(text.encode())
            return
        temporary.write_bytes(text.encode())
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        message = f"{target} can't be written: {reason(error, target.parent)}"
        raise type(error)(message) from error


def read_json(path: os.PathLike[str] | str, default: Any) -> Any:
    """Read a JSON file, or return ``default`` where it is missing, no JSON, or of another type."""
    try:
        content = json.loads(epath.Path(path).read_text())
    except (OSError, ValueError):
        return default
    return content if isinstance(content, type(default)) else default
