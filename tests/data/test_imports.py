"""Imports within jaxclip.data go one way: no circle, not even one hidden in a function."""

import ast
import pathlib

import jaxclip

ROOT = pathlib.Path(jaxclip.__file__).parent.parent


def modules():
    """Name -> file of every module of jaxclip.data."""
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sorted((ROOT / "jaxclip" / "data").rglob("*.py"))
    }


def imported(file, known):
    """Modules of ours that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.append(inner if inner in known else node.module)
        yield from (name for name in names if name in known)


def circle(graph):
    """A way from a module back to itself, or None."""
    done, way = set(), []

    def visit(name):
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return None
        way.append(name)
        for other in sorted(graph[name]):
            found = visit(other)
            if found:
                return found
        way.pop()
        done.add(name)
        return None

    return next((found for name in sorted(graph) if (found := visit(name))), None)


def test_no_circle():
    known = modules()
    graph = {name: set(imported(file, known)) - {name} for name, file in known.items()}
    assert graph["jaxclip.data.sources"] >= {"jaxclip.data.webdataset", "jaxclip.data.dataset"}
    found = circle(graph)
    assert found is None, " -> ".join(found)


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
