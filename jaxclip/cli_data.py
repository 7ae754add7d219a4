"""Subcommands on data: ``data import``, ``data info``, ``data inspect``.

Building the parsers imports nothing that is heavy.
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxclip.cli_models import AddCommand


def add_data(commands: Any, add: AddCommand) -> None:
    """Add ``jaxclip data import|info|inspect``."""
    parser = commands.add_parser("data", help="import image-text records, look at a data set")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    importer = add(actions, "import", _data_import, "write a data set from your own files")
    info = add(actions, "info", _data_info, "show splits, sizes and examples of a data set")
    info.add_argument("name", help='"emoji", a TFDS directory, or "webdataset:PATTERN"')
    from jaxclip.data import import_cli, inspect_cli

    import_cli.add_arguments(importer)
    look = add(actions, "inspect", inspect_cli.run, "look closely at records, time the stages")
    inspect_cli.add_arguments(look)


def _data_import(args: argparse.Namespace) -> int:
    from jaxclip.data import import_cli

    return import_cli.run(args)


def _data_info(args: argparse.Namespace) -> int:
    from jaxclip.data import info

    print(info.describe(args.name))
    return 0
