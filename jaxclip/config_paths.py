"""Paths in a configuration: relative ones count from the current folder, once and for all.

So a run goes on, and is evaluated, from any other folder.
"""

from __future__ import annotations

import copy
import os
import re
from typing import Any

from jaxclip import storage

Config = dict[str, Any]

# What is made of another data set, whose name follows.
_OF_ANOTHER = "scenes:"

# Keys that name a file or folder.
PATH_KEYS = ("tokenizer.path", "compilation_cache_dir", "teacher.path", "init_from")


# What `data.sampling` has a path in.
_SAMPLING_OF_FILES = re.compile(r"\s*(file|curated)\(\s*(?:path\s*=\s*)?(['\"])(.+)\2\s*\)\s*")


def _absolute_sampling(written: str) -> str:
    found = _SAMPLING_OF_FILES.fullmatch(written)
    return f"{found[1]}({storage.absolute(found[3])!r})" if found else written


# Text ops that read a file, in a chain of ops or as an option of an objective.
_FEW_WORDS = re.compile(r"few_words\([^()]*\)")
_QUOTED = re.compile(r"(['\"])([^'\"]+)\1")


def _absolute_objective(node: Any) -> Any:
    """Options of objectives with the tables of ``few_words`` as whole paths, if there are any."""
    if isinstance(node, dict):
        found = {key: _absolute_objective(value) for key, value in node.items()}
        if isinstance(found.get("ranks"), str):
            found["ranks"] = _absolute_file(found["ranks"])
        return found
    if isinstance(node, (list, tuple)):
        return type(node)(_absolute_objective(each) for each in node)
    if isinstance(node, str) and "few_words" in node:

        def quoted(match: re.Match[str]) -> str:
            return f"{match[1]}{_absolute_file(match[2])}{match[1]}"

        return _FEW_WORDS.sub(lambda op: _QUOTED.sub(quoted, op[0]), node)
    return node


def _absolute_file(name: str) -> str:
    """The whole path of a file; a name that is none of a file as it is."""
    path = storage.absolute(name)
    return path if os.path.isfile(path) else name


def absolute_paths(config: Config) -> Config:
    """The configuration (a copy) with every relative path taken from the current folder."""
    result = copy.deepcopy(config)
    for key in PATH_KEYS:
        section, _, name = key.rpartition(".")
        node = result.get(section, {}) if section else result
        if isinstance(node, dict) and isinstance(node.get(name), str):
            node[name] = storage.absolute(node[name])
    data = result.get("data", {})
    if isinstance(data.get("name"), str):
        data["name"] = absolute_data_name(data["name"])
    for source in data.get("mixture") or ():
        if isinstance(source, dict) and isinstance(source.get("name"), str):
            source["name"] = absolute_data_name(source["name"])
    for each in (data, *(data.get("mixture") or ())):
        if isinstance(each, dict) and isinstance(each.get("sampling"), str):
            each["sampling"] = _absolute_sampling(each["sampling"])
    if "objective" in result:
        result["objective"] = _absolute_objective(result["objective"])
    if isinstance(result.get("evaluate"), dict):
        _absolute_evaluation(result["evaluate"])
    return result


def _absolute_evaluation(section: Config) -> None:
    """The data and files of evaluation, in place; a name is a path only where there is a file."""
    tasks = section.get("tasks")
    for task in [section, *(tasks if isinstance(tasks, list) else [])]:
        if not isinstance(task, dict):
            continue
        if isinstance(task.get("data"), str) and task["data"]:
            task["data"] = absolute_data_name(task["data"])
        for key in ("class_names", "templates"):
            given = task.get(key)
            if isinstance(given, str) and not _is_built_in(given):
                task[key] = _absolute_file(given)


def _is_built_in(name: str) -> bool:
    """Whether it names class names or templates that need no file."""
    from jaxclip.evaluate import class_names, templates

    return not name or name in class_names.SETS or name in templates.TEMPLATES


def _absolute_pattern(pattern: str) -> str:
    """Patterns of files with ``::`` between them, each taken from the current folder."""
    is_one = os.path.lexists(storage.absolute(pattern))
    parts = [pattern] if is_one else pattern.split("::")
    # Braces may stand for whole paths; what else has a colon is no path.
    kept = ("{/", "{~", "file:", "pipe:")
    return "::".join(p if p.startswith(kept) else storage.absolute(p) for p in parts)


def absolute_data_name(name: str) -> str:
    """The name of a data set with its path, if it has one, taken from the current folder.

    A name without a scheme (``webdataset:``) is a path only where there is such a folder.
    """
    if name.startswith(_OF_ANOTHER):
        return _OF_ANOTHER + absolute_data_name(name.removeprefix(_OF_ANOTHER))
    kind, colon, rest = name.partition(":")
    if kind == "tfds" and not rest.startswith(("/", ".", "~")):
        return name  # one that TFDS knows
    path = storage.absolute(name)
    if colon and "/" not in kind and not rest.startswith("//") and not os.path.isdir(path):
        return f"{kind}:{_absolute_pattern(rest)}"
    if not os.path.isdir(path):
        return name
    from jaxclip.data import sources  # only here: reading data needs the extra 'train'

    return name if name in sources.BUILT_IN else path
