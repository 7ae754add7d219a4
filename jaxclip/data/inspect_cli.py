"""``jaxclip data inspect``: its options, and how they are carried out."""

from __future__ import annotations

import argparse
import os
import pathlib

_DESCRIPTION = """\
Look closely at the records of a split: sizes, formats, captions, what is cut, what is twice.

  jaxclip data inspect emoji --to sheet.html
  jaxclip data inspect 'webdataset:/data/{000..099}.tar' --tokenizer_kind clip
  jaxclip data inspect /data/mine/1.0.0 --stages --image_size 224 \\
      --image_ops 'random_resized_crop(0.9, 1.0)' --image_backend fast
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        "name", help="emoji, a TFDS directory, or KIND:FILES (webdataset, parquet, arrow, tfds)"
    )
    parser.add_argument("--split", default="", help="default: train, or the first one")
    parser.add_argument(
        "--records", type=int, default=2000, help="to look at, all over the split; 0 for all"
    )
    parser.add_argument("--to", help="HTML file for a contact sheet")
    parser.add_argument("--tokenizer_kind", default="clip", help="such as emoji_bpe")
    parser.add_argument("--tokenizer", default="", help="file or folder of its vocabulary")
    parser.add_argument("--context_length", type=int, default=0, help="default: the tokenizer's")
    parser.add_argument("--stages", action="store_true", help="time each stage of the pipeline")
    parser.add_argument("--image_size", type=int, default=224, help="of --stages: side in pixels")
    parser.add_argument(
        "--image_ops", default="random_resized_crop(0.9, 1.0)|flip", help="of --stages"
    )
    parser.add_argument(
        "--image_backend", default="pillow", help="of --stages: as data.image_backend in training"
    )


def run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status."""
    from etils import epath

    from jaxclip import storage
    from jaxclip.data import defaults, inspection, loader, pipeline, sources, tokenizers

    if args.records < 0:
        raise ValueError(f"--records={args.records} must not be negative")
    if args.to and os.path.isdir(args.to):
        raise ValueError(f"--to: {args.to} is a folder; name a file in it, as {args.to}/sheet.html")
    device = bool(args.to) and storage.is_local(args.to) and storage.is_device(args.to)
    if args.to and not device and (problem := storage.probe(epath.Path(args.to).parent)):
        raise ValueError(f"--to: {problem}")
    splits = sources.open(args.name).splits
    split = args.split or ("train" if "train" in splits else next(iter(splits)))
    length = args.context_length or defaults.context_length(args.tokenizer_kind)
    tokenizer = tokenizers.load(
        {"kind": args.tokenizer_kind, "path": args.tokenizer, "context_length": length}
    )
    found = inspection.inspect(args.name, split, tokenizer, args.records)
    text = inspection.lines(args.name, split, found, tokenizer)
    if args.stages:
        config = pipeline.complete(
            {
                "name": args.name,
                "train_split": split,
                "image_size": args.image_size,
                "image_ops": args.image_ops,
                "image_backend": args.image_backend,
            }
        )
        spent = inspection.stages(config, tokenizer, min(args.records or 500, 500))
        text += [f"a record to {args.image_size} px by {args.image_backend}, CPU time:"]
        text += inspection.stage_lines(spent, loader.num_cpus())
    print("\n".join(text))
    if args.to:
        path = pathlib.Path(args.to)
        storage.write_text(path, inspection.contact_sheet(f"{args.name}, {split}", text, found))
        print(f"contact sheet: {path}")
    return 0
