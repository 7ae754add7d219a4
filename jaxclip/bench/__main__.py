"""``python -m jaxclip.bench NAME [OPTIONS]``: finds the benchmark and hands it the options."""

from __future__ import annotations

import ast
import importlib
import pathlib
import sys
from collections.abc import Sequence

from jaxclip.registry import hint


def benchmarks(folder: pathlib.Path = pathlib.Path(__file__).parent) -> dict[str, str]:
    """What each benchmark measures, by name: the files that define ``main(arguments) -> status``.

    Args:
      folder: where the files are. They are read, not imported: some need what is not installed
        everywhere, and one must not wait for the others.

    Returns:
      The first line of each file's docstring.
    """
    found = {}
    for path in sorted(folder.glob("[!_]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in module.body):
            found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0].rstrip(".")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns its exit status, 2 for an unknown name."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words[0] if words else "--help"
    known = benchmarks()
    if name in ("-h", "--help"):
        print("usage: python -m jaxclip.bench NAME [OPTIONS]   (NAME --help: its options)\n")
        for each, what in known.items():
            print(f"  {each:<11} {what}")
        return 0
    if name not in known:
        print(f"jaxclip.bench: error: no benchmark {name!r}{hint(name, known)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"jaxclip.bench.{name}").main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
