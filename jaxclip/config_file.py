"""Config files: Python that returns a configuration."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import linecache
import pathlib
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.config_defaults import defaults
from jaxclip.registry import nearest

_OURS = pathlib.Path(__file__).resolve().parent

# Command -> what its config files are called, and top-level keys that no other command's have.
_KINDS = {
    "train": ("a training run's", defaults().keys() - {"seed", "watch"}),
    "lab": ("a lab's", {"rules", "rates", "injectors"}),
    "curate": ("a curation's", {"steps"}),
}


def load_file(spec: str | pathlib.Path, command: str = "") -> dict[str, Any]:
    """Load ``get_config`` of a config file; ``path.py:arg`` passes ``arg`` to it.

    Args:
      spec: path of a Python file, optionally followed by ``:`` and an argument.
      command: refuse a file that is another command's, ``"train"``, ``"lab"`` or ``"curate"``;
        empty to take any.

    Returns:
      The partial configuration as a plain nested dict.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is a folder or no Python file, its code fails (naming file, line and what
        helps), it has no ``get_config`` that returns a mapping, or it is another command's.
    """
    path, _, arg = str(spec).partition(":")
    file = pathlib.Path(path)
    _check_path(path, file)
    module_spec = importlib.util.spec_from_file_location(f"jaxclip_config_{file.stem}", file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    # Config files share parts with their neighbours by `from common import …`.
    with _failures_in_one_line(path, file), _importing_from(file.parent.resolve()):
        module_spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ValueError(f"config file {path!r} defines no get_config(arg='') function")
    given = [arg] if arg else []
    _check_argument(get_config, given, path)
    with _failures_in_one_line(path, file), _importing_from(file.parent.resolve()):
        # Values of a ConfigDict may refer to others, and fail only when they are read.
        found = get_config(*given)
        config = to_plain(found) if _is_config(found) else None
    if config is not None:
        _check_kind(config, str(spec), command)
        return config
    kind = "nothing" if found is None else type(found).__name__
    raise ValueError(
        f"get_config of {path!r} returned {kind}; return an ml_collections.ConfigDict or a dict"
    )


def _is_config(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "to_dict")


def _check_kind(config: Mapping[str, Any], spec: str, command: str) -> None:
    """Refuse a file with keys of another command and none of its own."""
    if not command or config.keys() & _KINDS[command][1]:
        return
    for other, (called, keys) in _KINDS.items():
        if found := [repr(key) for key in config if key in keys]:
            raise ValueError(
                f"config file {spec!r} is {called} (it has {', '.join(found[:3])}), not "
                f"{_KINDS[command][0]}; it goes with: jaxclip {other} --config {spec}"
            )


def to_plain(value: Any) -> Any:
    """Turn ConfigDicts, mappings and tuples into plain dicts and lists, recursively."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``("a.b", value)`` for every leaf."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_path(path: str, file: pathlib.Path) -> None:
    if file.is_dir():
        names = sorted(name for name in _siblings(file / "any") if not name.startswith("_"))
        hint = f", such as {file / names[0]}" if names else ""
        raise ValueError(f"config file {path!r} is a folder; name a file in it{hint}")
    if not file.is_file():
        near = nearest(file.name, _siblings(file), cutoff=0.6)
        hint = f"; did you mean {file.parent / near}?" if near else ""
        if re.match(r"[\w.]+=", path):
            hint = f"; a key is set by --config.{path}"
        raise FileNotFoundError(f"config file {path!r} does not exist{hint}")
    if file.suffix != ".py":
        raise ValueError(
            f"config file {path!r} is no Python file; write one (NAME.py) with a function "
            "get_config() that returns a dict"
        )


def _check_argument(get_config: Any, given: list[str], path: str) -> None:
    try:
        signature = inspect.signature(get_config)
    except (TypeError, ValueError):
        return  # not to be known of everything that can be called
    try:
        signature.bind(*given)
    except TypeError:
        way = "leave out what is behind ':'" if given else f"write {path}:ARGUMENT"
        what = f"does not take an argument ({given[0]!r})" if given else "wants an argument"
        raise ValueError(f"get_config of {path!r} {what}; {way}") from None


@contextlib.contextmanager
def _failures_in_one_line(path: str, file: pathlib.Path) -> Iterator[None]:
    """Turn what a config's code fails with into one line that names the place in *that* code.

    A ValueError or FileNotFoundError that the code raises itself says all there is to say.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        place, code, last = _place(error, path, file)
        if isinstance(error, (ValueError, FileNotFoundError)) and code.startswith("raise "):
            raise
        message = " ".join(str(error).split())
        if isinstance(error, SyntaxError):
            message = f"{type(error).__name__}: {error.msg}; correct this line"
        elif isinstance(error, ImportError):
            message = f"{message}; {_import_help(error)}"
        elif not (isinstance(error, ValueError) and _OURS in last.parents):
            message = f"{type(error).__name__}: {message}".removesuffix(": ")
            message = f"{message}; correct it (JAXCLIP_TRACEBACK=1 shows the way there)"
        shown = f" (`{code}`)" if code else ""
        raise ValueError(f"config file {place}{shown}: {message}") from error


def _place(error: BaseException, path: str, file: pathlib.Path) -> tuple[str, str, pathlib.Path]:
    """``"bad.py, line 3"``, the code of this line, and the file of the innermost call.

    The line is the innermost one of the config or of a file in its folder.
    """
    folder = file.parent.resolve()
    frames = traceback.extract_tb(error.__traceback__)
    last = pathlib.Path(frames[-1].filename).resolve()
    where, line, code = file.resolve(), 0, ""
    if isinstance(error, SyntaxError) and error.filename:
        where, line = pathlib.Path(error.filename).resolve(), error.lineno or 0
        code = error.text or ""
    else:
        for frame in frames:
            place = pathlib.Path(frame.filename).resolve()
            if _is_of(place, folder) and not frame.filename.startswith("<"):
                where, line = place, frame.lineno or 0
        linecache.checkcache(str(where))
        code = linecache.getline(str(where), line) if line else ""
    name = path if where == file.resolve() else str(where)
    if where != file.resolve() and where.parent == folder:
        name = str(file.parent / where.name)
    return f"{name}, line {line}" if line else name, code.strip(), last


def _is_of(file: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether it is the user's: a clone of this library, or its libraries, may lie there, too."""
    if folder not in file.parents or _OURS in file.parents:
        return False
    return "site-packages" not in file.relative_to(folder).parts


def _import_help(error: ImportError) -> str:
    if "pip install" in str(error):
        return "see there"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"install it, or put {error.name.partition('.')[0]}.py beside the config"
    return "correct the name"


def _siblings(file: pathlib.Path) -> list[str]:
    return [p.name for p in file.parent.glob("*.py")] if file.parent.is_dir() else []


@contextlib.contextmanager
def _importing_from(folder: pathlib.Path) -> Iterator[None]:
    """Put a folder first on ``sys.path`` and forget the modules found there afterwards: another
    folder of configs has a ``common`` of its own."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in sys.modules.keys() - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and pathlib.Path(file).parent == folder:
                del sys.modules[name]
