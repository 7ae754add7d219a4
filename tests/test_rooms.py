"""The structure of the house: rooms import downwards, and no two of them each other."""

import ast
import graphlib
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxclip"
# What these rooms may import of the package; each shall serve in other people's code.
BELOW = {
    "optim": {"registry"},
    "losses": {"registry", "shapes"},
    "models": {"registry"},
    "parallel": {"registry"},
    "objectives": {"registry", "fields", "losses", "models"},
}
ABOVE_TRAIN = {"bench", "cli", "curate", "inference", "lab", "plan"}


def _module(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _imports(module: str) -> set[str]:
    """The package's modules that a file names in an import, wherever in the file it stands."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in FILES else node.module)
    return {name for name in found if name in FILES} - {module}


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


IMPORTS = {module: _imports(module) for module in FILES}


def test_the_files_are_read():
    assert len(FILES) > 400
    assert "jaxclip.registry" in IMPORTS["jaxclip.optim.config"]


@pytest.mark.parametrize("by", ["files", "rooms"])
def test_no_imports_run_in_a_circle(by):
    graph: dict[str, set[str]] = {}
    for module, imported in IMPORTS.items():
        if by == "files":
            graph[module] = imported
        elif module != "jaxclip":  # its lazy names reach into every room
            rooms = {_room(name) for name in imported} - {_room(module), "jaxclip"}
            graph.setdefault(_room(module), set()).update(rooms)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def _used_by(room: str) -> set[tuple[str, str]]:
    """``(module, imported module of another room)`` of all files of a room."""
    return {
        (module, name)
        for module, imported in IMPORTS.items()
        if _room(module) == room
        for name in imported
        if _room(name) not in (room, "jaxclip")
    }


@pytest.mark.parametrize("room", BELOW)
def test_rooms_import_only_what_stands_below_them(room):
    assert not {(by, name) for by, name in _used_by(room) if _room(name) not in BELOW[room]}


def test_train_imports_nothing_that_stands_above_it():
    assert not {(by, name) for by, name in _used_by("train") if _room(name) in ABOVE_TRAIN}


def _rooms_of_the_docs() -> dict[str, set[str]]:
    """The table of docs/decisions.md: which rooms a room may import."""
    page = (PACKAGE.parent / "docs" / "decisions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", page, re.MULTILINE)
    known = {room for room, _ in rows}
    return {
        room: known if cell.strip() == "all" else set(re.findall(r"`(\w+)`", cell))
        for room, cell in rows
    }


def test_the_table_of_rooms_is_what_the_files_do():
    table = _rooms_of_the_docs()
    assert set(table) == {
        path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()
    }
    for room, listed in table.items():
        used = {_room(name) for _, name in _used_by(room)} & set(table)
        assert used <= listed, f"{room} imports {used - listed}; docs/decisions.md has {listed}"
        # What nobody needs is not allowed: the table shows what a room really hangs on.
        assert room == "bench" or used == listed, f"{room} imports nothing of {listed - used}"
        if room in BELOW:
            assert listed == BELOW[room] & set(table), room
