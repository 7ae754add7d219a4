"""Subcommands on data: ``data import``, ``data info``, ``data inspect``, ``data reinforce``.

Building the parsers imports nothing that is heavy.
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxclip.cli_models import AddCommand

_DATA = "emoji, a TFDS directory, or KIND:FILES (webdataset, parquet, arrow, tfds)"

_ABOUT = """\
Data sets of image-text records: write one from your own files, and look at it.

  jaxclip data import --from photos/ --to data/mine
  jaxclip data info data/mine
  jaxclip data inspect data/mine --to sheet.html

Training names it by --config.data.name=data/mine; docs/data.md has all forms.
"""


def add_data(commands: Any, add: AddCommand) -> None:
    """Add ``jaxclip data import|info|inspect|reinforce``."""
    parser = commands.add_parser(
        "data", help="import image-text records, look at a data set", description=_ABOUT
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    importer = add(actions, "import", _data_import, "write a data set from your own files")
    info = add(actions, "info", _data_info, "show splits, sizes and examples of a data set")
    info.add_argument("name", help=_DATA)
    from jaxclip.data import import_cli, inspect_cli

    import_cli.add_arguments(importer)
    look = add(actions, "inspect", inspect_cli.run, "look closely at records, time the stages")
    inspect_cli.add_arguments(look)
    strong = add(
        actions, "reinforce", _data_reinforce, "store augmentations and embeddings of them"
    )
    _add_reinforce(strong)


def _add_reinforce(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", required=True, help=_DATA)
    add("--split", default="train", help="of the data")
    add("--teacher", action="append", default=[], metavar="PATH",
        help="a workdir, or published weights; several times for an ensemble")  # fmt: skip
    add("--to", help="new folder; by default reinforced/SPLIT beside the records")
    add("--copies", type=int, default=10, help="augmentations of each picture")
    add("--image_ops", default="random_resized_crop(0.4, 1.0)|flip", help="what makes them")
    add("--image_size", type=int, default=64, help="side of the pictures, as in training")
    add("--image_backend", default="pillow", help="as data.image_backend in training")
    add("--languages", default="en", help="of the captions, with commas between")
    add("--captioner", help="a CoCa workdir or weights that write synthetic captions")
    add("--synthetic", type=int, default=0, help="captions that it writes for a picture")
    add("--seed", type=int, default=0, help="of the augmentations")
    add("--dtype", default="float16", help="of the vectors: float16 or float32")
    add("--shard_size", type=int, default=4096, help="records of a shard, which is done as a whole")
    add("--batch_size", type=int, default=128, help="pictures that a teacher sees at once")


def _data_import(args: argparse.Namespace) -> int:
    from jaxclip.data import import_cli

    return import_cli.run(args)


def _data_info(args: argparse.Namespace) -> int:
    from jaxclip.data import info

    print(info.describe(args.name))
    return 0


def _data_reinforce(args: argparse.Namespace) -> int:
    from jaxclip.inference import command

    return command.run_reinforce(args)
