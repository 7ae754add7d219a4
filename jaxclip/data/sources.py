"""Data sets by name: built in, a directory, or a kind of files read in place.

:func:`open` takes ``"emoji"`` (built in), the directory of a TFDS data set (TFRecord or ArrayRecord
shards, with one configuration and version), ``"webdataset:/path/{000..009}.tar"``,
``"parquet:/path/*.parquet"`` or ``"arrow:/path"`` (:mod:`jaxclip.data.table_source`),
``"tfds:coco_captions"`` (:mod:`jaxclip.data.tfds_names`), or ``"scenes:emoji"``
(:mod:`jaxclip.data.scenes`). Only metadata is read on opening; neither
TensorFlow nor a network is needed.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable

from jaxclip.data import emoji, file_kinds, remote, scenes, table_source, tfds_names, webdataset
from jaxclip.data.dataset import OWN_LANGUAGE, DataSet, RecordSource
from jaxclip.data.tfds_directory import hint_beside, open_directory
from jaxclip.data.tfds_features import field_names
from jaxclip.registry import Registry, nearest

__all__ = [
    "BUILT_IN", "KINDS", "OWN_LANGUAGE", "DataSet", "RecordSource", "field_names", "open",
    "open_directory",
]  # fmt: skip

# Directories of the data sets that come with the package.
BUILT_IN: dict[str, Callable[[], pathlib.Path]] = {"emoji": emoji.directory}

# What stands before the colon of "KIND:REST" -> a function from REST to a DataSet.
KINDS = Registry("kind of data set")
KINDS.register("webdataset", webdataset.open_pattern)
KINDS.register("tfds", tfds_names.open_name)
KINDS.register("parquet", table_source.open_parquet)
KINDS.register("arrow", table_source.open_arrow)


# Kinds of files that are read in place, by their endings.
_IN_PLACE = {
    ".tar": "webdataset", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip


def _in_place(name: str) -> str:
    """How a file is read in place, for an error; empty if it is not."""
    kind = _IN_PLACE.get(pathlib.PurePath(name).suffix.lower())
    return f"it is read in place as {kind}:{name}" if kind else ""


def open(name: str | os.PathLike[str]) -> DataSet:
    """Open a data set by name.

    Args:
      name: ``"emoji"``, a directory, or ``"KIND:REST"``; see the module docstring.

    Returns:
      The data set.

    Raises:
      FileNotFoundError: a directory or shard that does not exist.
      ValueError: a directory that holds no TFDS data set, or one without the needed features.
    """
    text = os.fspath(name)
    kind, colon, rest = text.partition(":")
    if not text.strip() or (colon and kind in KINDS.names() and not rest.strip()):
        raise ValueError(
            f"data set {text!r} names nothing to read, as 'webdataset:/data/*.tar' and "
            "'tfds:coco_captions' do"
        )
    if colon and kind in KINDS.names():
        return KINDS.get(kind)(rest)
    if text in BUILT_IN:
        return open_directory(BUILT_IN[text](), name=text)
    if remote.is_remote(text):
        if hub := remote.hub_address(text):
            raise ValueError(f"data set {text!r} is on the Hugging Face hub: read {hub!r}")
        if read_as := _in_place(text):
            raise ValueError(f"data set {text!r} is a file, not a folder; {read_as}")
        return open_directory(text)
    path = pathlib.Path(text)
    if path.is_file():
        way = f"`jaxclip data import --from {text} --to DIR` makes one of a table"
        if read_as := _in_place(text):
            way = read_as
        elif path.suffix.lower() in file_kinds.ARCHIVES:
            way = "it is an archive: unpack it, and import the folder that this makes"
            if path.suffix.lower() == ".zip":
                way = (
                    "training reads no archives: `jaxclip data import --from "
                    f"{text} --to DIR` makes a data set of it"
                )
        raise ValueError(f"data set {text!r} is a file, not a folder; {way}")
    if not path.is_dir():
        built_in = BUILT_IN if "/" not in text else ()
        meant = nearest(kind, KINDS.names(), cutoff=0.6) if colon else ""
        near = f"; did you mean '{meant}:{rest}'?" if meant else hint_beside(path, built_in)
        if colon and kind in BUILT_IN:
            near = f"; did you mean {kind!r}? A split is no part of the name"
        elif not colon and remote.hub_address(text) and not path.parent.exists():
            near = f"; the Hugging Face hub's is '{remote.hub_address(text)}'"
        elif not meant and re.fullmatch(r"\w+:/[^/].*", text):
            near = f"; an address has two slashes, '{kind}://{rest.lstrip('/')}'"
        raise FileNotFoundError(
            f"data set {text!r}: no such directory, nor built in ({', '.join(BUILT_IN)}), nor one "
            f"of KIND:FILES ({', '.join(KINDS.names())}){near}"
        )
    return open_directory(text)


def check_name(name: str) -> None:
    """Refuse what can be no data set, whatever files there are; what may be elsewhere passes.

    Args:
      name: as for :func:`open`, of a resolved configuration.

    Raises:
      FileNotFoundError: a word that is not built in, or an unknown ``KIND:``; names the nearest.
    """
    kind, colon, rest = name.partition(":")
    if kind == "scenes" and colon:
        check_name(rest)
    elif "/" not in kind and kind not in KINDS.names() and not remote.is_remote(name):
        open(name)


def _open_scenes(name: str) -> DataSet:
    return scenes.of(open(name))


KINDS.register("scenes", _open_scenes)
