"""``jaxclip data import``: the command line of :mod:`jaxclip.data.importer`."""

from __future__ import annotations

import argparse
import sys

_DESCRIPTION = """\
Write a TFDS data set from your own pictures and captions.

SOURCE is one of
  a folder of images with a table such as captions.csv, .tsv, .jsonl or .json (columns file,
  caption; and, if you have them, key, label, split, and more captions as further rows of the same
  file or as a list), or as COCO, Flickr or LLaVA have them, or with a .txt or .json file beside
  each image;
  WebDataset tar files: a pattern such as 'shards/{000..009}.tar', or a folder of them;
  Parquet files: one, a pattern such as 'part-*.parquet', or a folder of them;
  Arrow files, or what `datasets` saved to disk, in the same ways;
  TFRecord files of img2dataset and others, in the same ways;
  a ZIP archive of the first, a pattern of some, or a folder with archives in it: they are read as
  if they were unpacked where they are.

An import that was interrupted goes on where it stopped when the same command is run again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``jaxclip data import`` to a parser."""
    parser.description = _DESCRIPTION
    parser.add_argument("--from", dest="source", required=True, metavar="SOURCE", help="see above")
    parser.add_argument(
        "--to", required=True, metavar="DIR", help="folder to write, new or of the same import"
    )
    parser.add_argument("--name", default="", help="name of the data set (default: that of DIR)")
    parser.add_argument(
        "--format",
        choices=("auto", "folder", "webdataset", "parquet", "arrow", "tfrecord"),
        default="auto",
        help="what SOURCE is (default: auto)",
    )
    for kind in ("image", "text"):
        parser.add_argument(
            f"--{kind}-column",
            default="",
            metavar="NAME",
            help=f"the {kind} column of tables and Parquet, if it has no usual name",
        )
    parser.add_argument(
        "--encoding",
        default="utf-8",
        help="of tables that are not JSON, and of .txt files, such as cp1252 (UTF-16 and 32 are "
        "known by their start)",
    )
    parser.add_argument(
        "--languages",
        default="",
        metavar="CODES",
        help="of captions by language ({'en': …, 'de': …}), those to keep, as en,de (default: all)",
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.0,
        help="put this fraction of the records, chosen by a hash of their keys, into a split 'val'",
    )
    _add_limits(parser)
    parser.add_argument(
        "--shard-mb", type=int, default=256, help="size of a TFRecord file in MiB (default: 256)"
    )
    parser.add_argument("--threads", type=int, default=0, help="0 = one for each CPU")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a data set or another import in DIR"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Add what pictures may be like."""
    parser.add_argument(
        "--max-side",
        type=int,
        default=0,
        help="scale down images whose longer side is above this, in pixels (0 = keep all bytes)",
    )
    parser.add_argument(
        "--min-side", type=int, default=8, help="skip images whose shorter side is below this"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=100_000_000, help="skip images with more pixels than this"
    )
    parser.add_argument(
        "--max-aspect",
        type=float,
        default=20.0,
        help="skip images whose longer side is more than this many times the shorter",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out the command; prints a summary and returns the exit status."""
    from jaxclip.data import importer

    options = importer.Options(
        name=args.name,
        format=args.format,
        image_column=args.image_column,
        text_column=args.text_column,
        encoding=args.encoding,
        languages=args.languages,
        val_fraction=args.val_fraction,
        max_side=args.max_side,
        min_side=args.min_side,
        max_pixels=args.max_pixels,
        max_aspect=args.max_aspect,
        shard_mb=args.shard_mb,
    )
    summary = importer.import_records(
        args.source,
        args.to,
        options,
        num_threads=args.threads,
        overwrite=args.overwrite,
        progress=not args.quiet and sys.stderr.isatty(),
    )
    print(summary.as_text())
    if args.val_fraction and "val" not in summary.splits:
        print(f"no record fell into 'val' by --val-fraction {args.val_fraction}: use a larger one")
    return 0
