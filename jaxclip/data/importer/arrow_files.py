"""Files of Arrow and Feather, and what Hugging Face ``datasets`` keeps in them."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxclip.data import file_kinds
from jaxclip.data.importer import arrow_types
from jaxclip.data.naming import is_hidden, splits_of_files

ENDINGS = (".arrow", ".feather")
_ARROW_FILE, _FEATHER_1 = b"ARROW1", b"FEA1"


def is_saved(folder: pathlib.Path) -> bool:
    """Whether a folder is one that ``save_to_disk`` of ``datasets`` wrote."""
    if (folder / "dataset_dict.json").is_file():
        return True
    return (folder / "state.json").is_file() and any(folder.glob("*.arrow"))


def of_folder(folder: pathlib.Path) -> list[tuple[str, list[pathlib.Path]]]:
    """Splits and their files in a folder that ``datasets`` wrote, or that only has files.

    Raises:
      ValueError: it is none of ``save_to_disk``, nor has it files.
    """
    if (folder / "dataset_dict.json").is_file():
        names = _json(folder / "dataset_dict.json").get("splits")
        listed = names if isinstance(names, list) else []
        splits = {str(split): folder / str(split) for split in listed}
    else:
        splits = {"train": folder}
    return _loose(folder) or [(split, _files_of(place)) for split, place in splits.items()]


def _loose(folder: pathlib.Path) -> list[tuple[str, list[pathlib.Path]]]:
    """Splits and their files in a folder that only has files, as the cache of ``datasets``."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return []
    there = [each for each in sorted(folder.iterdir()) if not is_hidden(each.name)]
    of_kinds = ([each for each in there if each.suffix.lower() == ending] for ending in ENDINGS)
    files = next(filter(None, of_kinds), [])
    # What map and filter left there.
    files = [each for each in files if not each.name.startswith(("cache-", "tmp"))]
    found: dict[str, list[pathlib.Path]] = {}
    for file, split in zip(files, splits_of_files(files), strict=True):
        found.setdefault(split or "train", []).append(file)
    return list(found.items())


def _files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    state = _json(folder / "state.json")
    files = state.get("_data_files")
    entries = files if isinstance(files, list) else []
    named = [each.get("filename") if isinstance(each, dict) else None for each in entries]
    names = [each for each in named if isinstance(each, str)]
    if not names or len(names) < len(named):
        raise ValueError(
            f"{folder} is no data set of Dataset.save_to_disk (state.json names no files); "
            "for *.parquet use parquet:FOLDER"
        )
    if state.get("_indices_files"):
        raise ValueError(
            f"{folder} is a selection of rows; call flatten_indices() and save it again"
        )
    return [folder / pathlib.Path(each).name for each in names]


def _json(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} is no data set of Dataset.save_to_disk: it has no {path.name}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return values if isinstance(values, dict) else {}


def batches(file: pathlib.Path) -> tuple[Any, list[Any]]:
    """The schema and the ``pyarrow.RecordBatch`` s of a file, mapped into memory.

    They are not checked: see :func:`check`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is none of Arrow's, or is damaged.
    """
    import pyarrow

    if not os.path.lexists(file):
        raise FileNotFoundError(f"{file} does not exist, but state.json beside it names it")
    file_kinds.check_is_file(file)
    try:
        with pyarrow.memory_map(os.fspath(file)) as mapped:
            begin = mapped.read(len(_ARROW_FILE))
            mapped.seek(0)
            if begin.startswith(_FEATHER_1):
                raise ValueError(f"{file} is of the first version of Feather; write it as Parquet")
            if begin == _ARROW_FILE:  # with an index at its end, as Feather's
                opened = pyarrow.ipc.open_file(mapped)
                numbers = range(opened.num_record_batches)
                return opened.schema, [opened.get_batch(number) for number in numbers]
            with pyarrow.ipc.open_stream(mapped) as rows:
                return rows.schema, list(rows)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{file} is no Arrow stream, nor a file of Arrow's, or is damaged: {error}"
        ) from error


def check(batch: Any) -> None:
    """Raise ValueError if rows are damaged: a damaged offset would read from anywhere."""
    for column in batch.columns:
        sound(column)


def sound(column: Any) -> Any:
    """A column; raises ValueError if it is damaged. That a text is UTF-8 is asked of each."""
    column.view(arrow_types.with_bytes(column.type)).validate(full=True)
    return column
