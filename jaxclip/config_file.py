"""Config files: Python that returns a configuration."""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.registry import nearest


def load_file(spec: str | pathlib.Path) -> dict[str, Any]:
    """Load ``get_config`` of a config file; ``path.py:arg`` passes ``arg`` to it.

    Args:
      spec: path of a Python file, optionally followed by ``:`` and an argument.

    Returns:
      The partial configuration as a plain nested dict.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file has no ``get_config`` or it does not return a mapping.
    """
    path, _, arg = str(spec).partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        near = nearest(file.name, _siblings(file), cutoff=0.6)
        hint = f"; did you mean {file.parent / near}?" if near else ""
        raise FileNotFoundError(f"config file {path!r} does not exist{hint}")
    module_spec = importlib.util.spec_from_file_location(f"jaxclip_config_{file.stem}", file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    # Config files share parts with their neighbours by `from common import …`.
    with _importing_from(file.parent.resolve()):
        module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"config file {path!r} defines no get_config(arg='') function")
    config = module.get_config(arg) if arg else module.get_config()
    if not isinstance(config, Mapping) and not hasattr(config, "to_dict"):
        raise ValueError(
            f"get_config of {path!r} returned {type(config).__name__}; return an "
            "ml_collections.ConfigDict or a dict"
        )
    return to_plain(config)


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
