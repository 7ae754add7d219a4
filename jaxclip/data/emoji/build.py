"""Build the built-in data set from npm packages.

    python -m jaxclip.data.emoji.build --fetch --packages DIR --to DIR

``--packages`` holds the tarballs of four npm packages at fixed versions (checked by their
SHA-512); ``--fetch`` gets the missing ones with ``npm pack``. Needs the packages of
``jaxclip[train]`` and resvg-py.

The result is a function of the packages, of this code and of the versions of resvg-py and Pillow:
built again, every record is the same (TFDS writes the features of a record in any order, so the
TFRecord files need not be). Sources and licences are in ATTRIBUTION.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxclip.data import schema
from jaxclip.data.emoji import IMAGE_SIZE, NAME, VERSION, captions, packages, pictures
from jaxclip.data.emoji.ideas import Idea, concepts, families, load, unit_hash

TRAIN_STYLES = ("noto", "twemoji")
TEST_STYLE = "fluent"
STYLES = (*TRAIN_STYLES, TEST_STYLE)
SPLITS = ("train", "test_style", "test_concept")

# Root mean square difference of two pictures below which one could pass for the other.
_ALIKE = 0.04

_DESCRIPTION = (
    "Pictures of emoji in three styles (Noto, Twemoji, Fluent) with captions made of CLDR names "
    "and keywords. train: Noto and Twemoji; test_style: Fluent pictures of ideas that are in "
    "train; test_concept: ideas that are in no other split, in all styles. Sources and licences: "
    "ATTRIBUTION.md in the package jaxclip.data.emoji."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--packages", type=pathlib.Path, required=True, help="folder of tarballs")
    parser.add_argument("--to", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--fetch", action="store_true", help="get missing tarballs with npm pack")
    parser.add_argument("--contact_sheet", type=pathlib.Path, help="PNG of all pictures to look at")
    args = parser.parse_args(argv)
    for package in packages.ALL:
        if args.fetch:
            packages.fetch(args.packages, package)
        packages.verify(args.packages, package)
    summary = build(args.packages, args.to, contact_sheet=args.contact_sheet)
    print(json.dumps(summary, indent=2))
    return 0


def build(
    folder: pathlib.Path, to: pathlib.Path, *, contact_sheet: pathlib.Path | None = None
) -> dict[str, Any]:
    """Build the data set out of tarballs, without checking what they are.

    Args:
      folder: where the tarballs of :data:`jaxclip.data.emoji.packages.ALL` are.
      to: directory of the data set; what is in it is replaced.
      contact_sheet: where to write an overview picture, if anywhere.

    Returns:
      Counts: records and ideas by split, captions, languages.
    """
    texts = packages.read(folder, packages.EMOJIBASE, _emojibase_key)
    ideas = load(json.loads(texts["en"]), json.loads(texts["groups"]))
    drawn = draw(folder, ideas)
    ideas = [idea for idea in ideas if any((style, idea.key) in drawn for style in TRAIN_STYLES)]
    in_all = {idea.key for idea in ideas if all((style, idea.key) in drawn for style in STYLES)}
    by_name = {f"{key} {style}": picture for (style, key), picture in drawn.items()}
    alike = [
        (first.split()[0], second.split()[0])
        for first, second in pictures.near_duplicates(by_name, _ALIKE)
    ]
    known = {idea.key for idea in ideas}
    held_out = concepts(families(ideas, [pair for pair in alike if known >= set(pair)]), in_all)
    said = captions.assign(
        {idea.key: captions.phrase(idea.key, idea.name, idea.keywords) for idea in ideas}, held_out
    )
    ordered, classes = _classes(
        ideas, held_out, {key for style, key in drawn if style == TEST_STYLE}
    )
    if to.exists():
        shutil.rmtree(to)
    to.mkdir(parents=True)
    counts = _write_records(to, ordered, classes, drawn, said)
    (to / schema.SPLIT_CLASSES_FILE).write_text(json.dumps(classes) + "\n", encoding="utf-8")
    languages = _write_translations(to, ordered, held_out, texts)
    if contact_sheet is not None:
        _write_contact_sheet(contact_sheet, ordered, drawn, held_out)
    return {
        "records": counts,
        "ideas": {split: len(ids) for split, ids in classes.items()},
        "captions": sum(len(each) for each in said.values()),
        "languages": languages,
        "bytes": sum(file.stat().st_size for file in to.rglob("*") if file.is_file()),
    }


def draw(folder: pathlib.Path, ideas: Sequence[Idea]) -> dict[tuple[str, str], np.ndarray]:
    """All pictures of some ideas.

    Returns:
      uint8[64, 64, 3] by (style, idea key).
    """
    keys = {idea.key for idea in ideas}
    drawn: dict[tuple[str, str], np.ndarray] = {}
    for style, package, vendor in (
        ("noto", packages.NOTO, "google"),
        ("twemoji", packages.TWEMOJI, "twitter"),
    ):

        def by_code_point(path: str, vendor: str = vendor) -> str | None:
            match = re.fullmatch(rf"img/{vendor}/{IMAGE_SIZE}/([0-9a-f-]+)\.png", path)
            key = pictures.hexcode_key(match[1]) if match else None
            return key if key in keys else None

        found = packages.read(folder, package, by_code_point)
        drawn |= {(style, key): pictures.from_png(data) for key, data in found.items()}

    def by_file(path: str) -> str | None:
        match = re.fullmatch(r"icons/modern/([a-z0-9-]+)\.svg", path)
        return match[1] if match else None

    files = packages.read(folder, packages.FLUENT, by_file)
    for idea in ideas:
        file = pictures.fluent_file(idea.name, files)
        if file is not None:
            drawn[TEST_STYLE, idea.key] = pictures.from_svg(files[file])
    return drawn


def _emojibase_key(path: str) -> str | None:
    if path == "meta/groups.json":
        return "groups"
    match = re.fullmatch(r"([a-z-]+)/data\.json", path)
    return match[1] if match else None


def _classes(
    ideas: Sequence[Idea], held_out: set[str], in_test_style: set[str]
) -> tuple[list[Idea], dict[str, list[int]]]:
    """Order ideas so that each split's class ids are one range.

    Returns:
      Ideas by class id (first those of test_style, then the rest of train, then test_concept), and
      the ids of each split.
    """
    seen = [idea for idea in ideas if idea.key not in held_out]
    both = [idea for idea in seen if idea.key in in_test_style]
    rest = [idea for idea in seen if idea.key not in in_test_style]
    ordered = [*both, *rest, *(idea for idea in ideas if idea.key in held_out)]
    return ordered, {
        "train": list(range(len(seen))),
        "test_style": list(range(len(both))),
        "test_concept": list(range(len(seen), len(ordered))),
    }


def _write_records(
    to: pathlib.Path,
    ideas: Sequence[Idea],
    classes: Mapping[str, Sequence[int]],
    drawn: Mapping[tuple[str, str], np.ndarray],
    said: Mapping[str, list[str]],
) -> dict[str, int]:
    from jaxclip.data._tfds import tensorflow_datasets

    tfds = tensorflow_datasets()
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version(VERSION), data_dir=str(to), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=_DESCRIPTION,
        features=schema.features(
            [idea.name for idea in ideas],
            image_shape=(IMAGE_SIZE, IMAGE_SIZE, 3),
            encoding="jpeg",
        ),
        disable_shuffling=True,
    )
    # One shard a split: they are small, and a package is better off with few files.
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=1 << 30)
    writer.initialize_splits(list(SPLITS))
    counts = {}
    for split, styles in (
        ("train", TRAIN_STYLES),
        ("test_style", (TEST_STYLE,)),
        ("test_concept", STYLES),
    ):
        examples = [
            schema.example(
                pictures.encode(drawn[style, ideas[label].key]),
                said[ideas[label].key],
                key=f"{style}/{ideas[label].key}",
                label=label,
                meta=_meta(style, ideas[label]),
            )
            for label in classes[split]
            for style in styles
            if (style, ideas[label].key) in drawn
        ]
        # Neighbours in Unicode's order are alike; a reader that does not shuffle should not see it.
        examples.sort(key=lambda example: unit_hash("order", example[schema.KEY]))
        writer.add_examples({split: examples})
        counts[split] = len(examples)
    writer.close_all()
    return counts


def _meta(style: str, idea: Idea) -> dict[str, str]:
    return {
        "style": style,
        "emoji": idea.emoji,
        "name": idea.name,
        "group": idea.group,
        "subgroup": idea.subgroup,
    }


def _write_translations(
    to: pathlib.Path, ideas: Sequence[Idea], held_out: set[str], texts: Mapping[str, bytes]
) -> int:
    labels = {idea.key: label for label, idea in enumerate(ideas)}
    folder = to / schema.TRANSLATIONS_DIR
    folder.mkdir()
    languages = sorted(texts.keys() - {"en", "groups"})
    for language in languages:
        candidates = {}
        for entry in json.loads(texts[language]):
            key = pictures.hexcode_key(entry["hexcode"])
            if key in labels and entry.get("label"):
                tags = [" ".join(tag.split()) for tag in entry.get("tags", [])]
                name = " ".join(entry["label"].split())
                candidates[key] = captions.phrase(key, name, tags)
        said = captions.assign(candidates, held_out)
        by_label = {str(labels[key]): each for key, each in said.items() if each}
        data = json.dumps(by_label, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        # Without a time in the header, so that the same content is the same file.
        (folder / f"{language}.json.gz").write_bytes(gzip.compress(data, 9, mtime=0))
    return len(languages)


def _write_contact_sheet(
    path: pathlib.Path,
    ideas: Sequence[Idea],
    drawn: Mapping[tuple[str, str], np.ndarray],
    held_out: set[str],
) -> None:
    """All pictures with their names; those of held-out ideas on a grey line."""
    from PIL import Image, ImageDraw

    columns, cell = 6, IMAGE_SIZE + 2
    width, rows = 3 * cell + 170, -(-len(ideas) // columns)
    sheet = Image.new("RGB", (columns * width, rows * cell), "white")
    pen = ImageDraw.Draw(sheet)
    for i, idea in enumerate(ideas):
        x, y = i % columns * width, i // columns * cell
        if idea.key in held_out:
            pen.rectangle((x + 3 * cell, y, x + width, y + cell), fill="lightgrey")
        for j, style in enumerate(STYLES):
            if (style, idea.key) in drawn:
                sheet.paste(Image.fromarray(drawn[style, idea.key]), (x + j * cell, y))
        pen.text((x + 3 * cell + 4, y + cell // 2 - 5), idea.name[:28], fill="black")
    sheet.save(path)


if __name__ == "__main__":
    raise SystemExit(main())
