"""``jaxclip embed``, ``classify`` and ``search``."""

from __future__ import annotations

import argparse
import logging
import pathlib
import tempfile
from typing import Any

import numpy as np

from jaxclip import storage
from jaxclip.inference import embed, reinforce, search
from jaxclip.inference.model import Model, load
from jaxclip.inference.pictures import Pictures, open_pictures

logger = logging.getLogger("jaxclip")


def run_embed(args: argparse.Namespace) -> int:
    """Embed pictures into a folder."""
    # Weights take longest: everything else that may be wrong comes first.
    part, pictures = _part(args.part), open_pictures(args.images)
    storage.check_place(args.to)
    summary = embed.embed_images(
        _model(args),
        pictures,
        args.to,
        batch_size=args.batch_size,
        shard_size=args.shard_size,
        part=part,
        report=logger.info,
    )
    bad = "".join(f", {count} {reason}" for reason, count in sorted(summary.bad.items()))
    before = f", {summary.before} were there already" if summary.before else ""
    print(f"{args.to}: {summary.embedded} pictures embedded{before}{bad}")
    return 0


def run_search(args: argparse.Namespace) -> int:
    """Print the pictures that a text describes best."""
    pictures = _pictures(args)
    model = _model(args, reads_text=True)
    ids, embeddings = _embeddings(args, pictures, model)
    for hit in search.search(model, args.text, ids, embeddings, top=args.top):
        print(f"{hit.score:.4f}\t{hit.id}")
    return 0


def run_classify(args: argparse.Namespace) -> int:
    """Print the likeliest class of each picture."""
    names = [name.strip() for name in args.classes.split(",") if name.strip()]
    search.check_classes(names)
    pictures = _pictures(args)
    model = _model(args, reads_text=True)
    ids, embeddings = _embeddings(args, pictures, model)
    found = search.class_probabilities(model, names, embeddings, templates=args.templates)
    for identity, row in zip(ids, found, strict=True):
        best = np.argsort(-row, kind="stable")[: args.top]
        print("\t".join([identity, *(f"{names[i]} {row[i]:.4f}" for i in best)]))
    return 0


def run_reinforce(args: argparse.Namespace) -> int:
    """Keep augmentations, embeddings and synthetic captions beside the records of a split."""
    given = {key: getattr(args, key) for key in reinforce.Options._fields}
    languages = [each.strip() for each in args.languages.split(",") if each.strip()]
    folder, summary = reinforce.reinforce(
        args.data,
        args.split,
        [load(path) for path in args.teacher],
        args.to,
        reinforce.Options(**{**given, "languages": languages}),
        captioner=load(args.captioner) if args.captioner else None,
        report=logger.info,
    )
    bad = "".join(f", {count} {reason}" for reason, count in sorted(summary.bad.items()))
    before = f", {summary.before} were there already" if summary.before else ""
    print(f"{folder}: {summary.records} records and {summary.texts} captions{before}{bad}")
    return 0


def _model(args: argparse.Namespace, *, reads_text: bool = False) -> Model:
    tokenizer: dict[str, Any] = {"path": args.tokenizer} if args.tokenizer else {}
    model = load(args.weights, tokenizer=tokenizer)
    # One that was given also where no text is read: a wrong one is said before hours of work.
    if tokenizer or reads_text:
        model.check_tokenizer()
    return model


def _pictures(args: argparse.Namespace) -> Pictures | None:
    """Those of ``--images``; None with ``--embeddings``, which are there then."""
    if bool(args.images) == bool(args.embeddings):
        raise ValueError("name either --images or --embeddings")
    if args.images:
        return open_pictures(args.images)
    embed.check_embeddings(args.embeddings)
    return None


def _embeddings(
    args: argparse.Namespace, pictures: Pictures | None, model: Model
) -> tuple[list[str], np.ndarray]:
    """Of pictures, made now, or of ``--embeddings``, checked against the weights."""
    if pictures is None:
        embed.check_weights(args.embeddings, model)
        return embed.read_embeddings(args.embeddings)
    with tempfile.TemporaryDirectory() as folder:
        summary = embed.embed_images(model, pictures, folder, batch_size=args.batch_size)
        for reason, count in summary.bad.items():
            logger.warning("%d pictures were left out: %s", count, reason)
        return embed.read_embeddings(pathlib.Path(folder))


def _part(text: str) -> tuple[int, int]:
    first, slash, count = text.partition("/")
    if not (slash and first.isdigit() and count.isdigit()):
        raise ValueError(f"--part {text!r} is not of the form 0/4")
    return int(first), int(count)
