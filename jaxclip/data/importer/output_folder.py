"""The folder that an import writes to: what is there, may it be replaced, and its last rename."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import sqlite3
from typing import Any

from jaxclip.data.importer.options import Options, Summary
from jaxclip.data.importer.store import STATE_FILE

SUMMARY_FILE = "import.json"
# Behind the name of the folder, while it comes into being and of what it replaces.
UNFINISHED, _REPLACED = ".importing", ".replaced"


def move(unfinished: pathlib.Path, target: pathlib.Path) -> None:
    """Give the whole data set its name; what was there under it goes."""
    old = target.with_name(target.name + _REPLACED)
    if target.exists() and any(target.iterdir()):
        if old.exists():
            shutil.rmtree(old)
        os.rename(target, old)
    os.rename(unfinished, target)
    (target / STATE_FILE).unlink()
    if old.exists():
        shutil.rmtree(old)


def request_of(folder: pathlib.Path) -> dict[str, Any] | None:
    """What an unfinished or finished import is of; None if the folder is neither."""
    try:
        if (folder / STATE_FILE).is_file():
            with contextlib.closing(sqlite3.connect(folder / STATE_FILE)) as db:
                row = db.execute("SELECT json FROM state").fetchone()
            request = None if row is None else json.loads(row[0])["request"]
        else:
            request = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))["request"]
        # Options that did not exist when it was made had their defaults.
        return None if request is None else {**dataclasses.asdict(Options()), **request}
    except (OSError, ValueError, KeyError, TypeError, sqlite3.Error):
        return None


def finished(target: pathlib.Path, request: dict[str, Any]) -> Summary | None:
    """The summary of the same import if it was finished before."""
    if not (target / SUMMARY_FILE).is_file():
        return None
    there = request_of(target)
    if there != request:
        raise FileExistsError(
            f"{target} is another import ({_difference(there, request)}); name another "
            "folder, or replace it for good with --overwrite"
        )
    (target / STATE_FILE).unlink(missing_ok=True)  # killed in the last moment
    content = json.loads((target / SUMMARY_FILE).read_text(encoding="utf-8"))
    return Summary(**{**content["summary"], "was_done": True, "directory": str(target)})


def check_unfinished(unfinished: pathlib.Path, request: dict[str, Any]) -> None:
    """Refuse to go on with an import of something else."""
    there = request_of(unfinished) if unfinished.is_dir() else None
    if there is not None and there != request:
        raise FileExistsError(
            f"{unfinished} is an unfinished import of something else "
            f"({_difference(there, request)}); name another folder, or "
            "replace it for good with --overwrite"
        )


def check_replaceable(target: pathlib.Path, overwrite: bool) -> None:
    """Only data sets are ever replaced, never a folder of something else."""
    if target.is_file():
        raise FileExistsError(f"{target} is a file; name a folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / "dataset_info.json").is_file():
        raise FileExistsError(f"{target} holds something that is no data set; name another folder")
    if not overwrite:
        raise FileExistsError(
            f"{target} is a data set already; name another folder, or replace it for good with "
            "--overwrite"
        )


def _difference(there: dict[str, Any] | None, request: dict[str, Any]) -> str:
    if there is None:
        return "it cannot be read"
    names = [name for name in request if there.get(name) != request[name]]
    return ", ".join(
        "the files have changed since"
        if name == "stamp"
        else f"{name}: {there.get(name)!r} there, {request[name]!r} now"
        for name in names
        if name != "stamp" or len(names) == 1
    )
