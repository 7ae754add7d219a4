"""The built-in data set: what is in it, that nothing leaks, and the script that builds it."""

import json
import pathlib
import re

import numpy as np
import pytest

from jaxclip.data import emoji, schema, sources
from jaxclip.data.decode import decode
from jaxclip.data.emoji import captions, ideas, packages, pictures
from jaxclip.data.record import Record

SPLITS = ("train", "test_style", "test_concept")
SKIN_TONES = {f"1f3f{c}" for c in "bcdef"}


@pytest.fixture(scope="module")
def records():
    data_set = sources.open("emoji")
    found = {}
    for split in SPLITS:
        source = data_set.source(split)
        found[split] = [source[i] for i in range(len(source))]
        assert all(isinstance(record, Record) for record in found[split])
    return found


def style(record):
    return record.key.partition("/")[0]


def code(record):
    return record.key.partition("/")[2]


def test_sizes_and_styles(records):
    assert {split: len(found) for split, found in records.items()} == {
        "train": 3488, "test_style": 1433, "test_concept": 486,
    }  # fmt: skip
    assert {style(record) for record in records["train"]} == {"noto", "twemoji"}
    assert {style(record) for record in records["test_style"]} == {"fluent"}
    assert {style(record) for record in records["test_concept"]} == {"noto", "twemoji", "fluent"}
    keys = [record.key for found in records.values() for record in found]
    assert len(set(keys)) == len(keys)


def test_it_is_small_enough_for_a_package():
    folder = pathlib.Path(emoji.__file__).parent
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(file.stat().st_size for file in files) <= 16e6


def test_pictures_are_sound_and_of_one_size(records):
    for found in records.values():
        for record in found[::7]:
            pixels = np.asarray(decode(record.image))
            assert pixels.shape == (64, 64, 3)
            assert pixels.std() > 1  # something is to be seen


def test_no_idea_and_no_caption_of_test_concept_is_elsewhere(records):
    elsewhere = [*records["train"], *records["test_style"]]
    assert not {code(r) for r in records["test_concept"]} & {code(r) for r in elsewhere}
    assert not {r.label for r in records["test_concept"]} & {r.label for r in elsewhere}
    said = {text.casefold() for record in elsewhere for text in record.texts}
    held_out = {text.casefold() for record in records["test_concept"] for text in record.texts}
    assert not said & held_out


def test_test_style_has_ideas_of_train_only(records):
    assert {r.label for r in records["test_style"]} <= {r.label for r in records["train"]}
    words = {r.label: r.texts for r in records["train"]}
    assert all(words[record.label] == record.texts for record in records["test_style"])


def test_skin_tones_are_left_out(records):
    for found in records.values():
        for record in found:
            # By themselves they are components; as parts they make variants.
            assert not SKIN_TONES & set(code(record).split("-"))
            assert "skin tone" not in " ".join(record.texts)


def test_variants_of_one_idea_are_on_one_side(records):
    """Gender, hair and direction make no difference between train and test_concept."""

    def stem(record):
        parts = [
            "person" if p in ("1f468", "1f469", "1f9d1") else p for p in code(record).split("-")
        ]
        return "-".join(p for p in parts if p not in ("2640", "2642", "200d", "27a1"))

    train = {stem(record) for record in records["train"]}
    assert not train & {stem(record) for record in records["test_concept"]}


def test_no_picture_of_test_concept_is_nearly_one_of_train(records):
    def small(found):
        stack = np.stack([np.asarray(decode(r.image), np.float32) / 255 for r in found])
        return stack.reshape(len(found), 16, 4, 16, 4, 3).mean((2, 4)).reshape(len(found), -1)

    train = small([r for r in records["train"] if style(r) == "noto"])
    test = small([r for r in records["test_concept"] if style(r) == "noto"])
    squared = (test**2).sum(1)[:, None] + (train**2).sum(1) - 2 * test @ train.T
    assert np.sqrt(squared.clip(0).min() / train.shape[1]) > 0.03


def test_each_caption_belongs_to_one_idea(records):
    owner = {}
    for found in records.values():
        for record in found:
            assert record.texts and len(set(record.texts)) == len(record.texts)
            for text in record.texts:
                assert owner.setdefault(text.casefold(), record.label) == record.label


def test_names_classes_and_meta_agree(records):
    data_set = sources.open("emoji")
    names = data_set.class_names()
    assert len(names) == len(set(names)) == 1906
    for split, found in records.items():
        classes = data_set.split_classes(split)
        assert {record.label for record in found} == set(classes)
        for record in found:
            meta = json.loads(record.meta)
            assert record.texts[0] == names[record.label] == meta["name"]
            assert meta["style"] == style(record)
            points = [f"{ord(c):04x}" for c in meta["emoji"] if c != "\ufe0f"]
            assert "-".join(points) == code(record)


def test_translations(records):
    folder = emoji.directory()
    assert len(schema.languages(folder)) == 27
    for language in schema.languages(folder):
        table = schema.translations(folder, language)
        assert len(table) > 1500 and set(table) <= set(range(1906))
        train = {t.casefold() for r in records["train"] for t in table.get(r.label, ())}
        held = {t.casefold() for r in records["test_concept"] for t in table.get(r.label, ())}
        assert not train & held, language
    with pytest.raises(ValueError, match="no captions in language 'xx'"):
        schema.translations(folder, "xx")


def test_attribution_names_every_package_at_its_version():
    text = (pathlib.Path(emoji.__file__).parent / "ATTRIBUTION.md").read_text()
    for package in packages.ALL:
        assert re.search(rf"`{re.escape(package.name)}` {re.escape(package.version)}", text)
    for licence in ("Apache-2.0", "CC BY 4.0", "MIT", "UNICODE LICENSE V3"):
        assert licence in text
    for holder in ("Google", "Twitter", "Microsoft", "Unicode, Inc."):
        assert holder in text


# --- the script ---------------------------------------------------------------------------------


def idea(key, name="x", subgroup="s"):
    return ideas.Idea(key, "", name, (), "g", subgroup)


def test_families_join_variants_and_look_alikes():
    members = [
        idea("1f468-200d-1f9b0", "man: red hair"),
        idea("1f469-200d-1f9b3", "woman: white hair"),
        idea("1f934", "prince"),
        idea("1f478", "princess"),
        idea("1f431", "cat face"),
        idea("1f408", "cat"),
        idea("1f415", "dog"),
    ]
    found = ideas.families(members, alike=[("1f431", "1f408")])
    groups = {frozenset(each.key for each in family) for family in found}
    assert frozenset({"1f934", "1f478"}) in groups
    assert frozenset({"1f431", "1f408"}) in groups
    assert frozenset({"1f468-200d-1f9b0", "1f469-200d-1f9b3"}) in groups
    assert frozenset({"1f415"}) in groups
    assert sum(map(len, found)) == len(members)


def test_concepts_are_whole_families_with_all_pictures():
    families = [(idea(f"{i:x}"), idea(f"{i:x}-2")) for i in range(500)]
    complete = {each.key for family in families for each in family} - {"7-2"}
    chosen = ideas.concepts(families, complete)
    assert 60 <= len(chosen) <= 140  # a tenth of a thousand
    for family in families:
        assert len({each.key in chosen for each in family}) == 1
    assert not {"7", "7-2"} & chosen
    assert ideas.concepts(families[::-1], complete) == chosen  # whatever the order


def test_captions_that_fit_several_ideas_are_said_of_none():
    said = captions.assign(
        {
            "cat": captions.phrase("cat", "cat", ["pet", "meow", "whiskers"]),
            "dog": captions.phrase("dog", "dog", ["pet", "woof", "cat"]),
        },
        held_out={"dog"},
    )
    assert said["cat"][0] == "cat" and said["dog"][0] == "dog"
    assert "pet" not in said["cat"] + said["dog"] and "cat" not in said["dog"]
    assert {"meow", "whiskers"} <= set(said["cat"]) and "woof" in said["dog"]


def test_a_name_shared_with_a_held_out_idea_stays_with_that():
    same = {key: captions.phrase(key, "Same", [key + "ish"]) for key in ("a", "b")}
    said = captions.assign(same, held_out={"b"})
    assert "Same" not in said["a"] and said["b"][0] == "Same"


def test_fluent_files_by_name():
    files = {"cat-face", "keycap-hashtag", "waving-hand-default", "flag-cote-divoire", "3rd"}
    assert pictures.fluent_file("cat face", files) == "cat-face"
    assert pictures.fluent_file("keycap: #", files) == "keycap-hashtag"
    assert pictures.fluent_file("waving hand", files) == "waving-hand-default"
    assert pictures.fluent_file("dog", files) is None


def test_pictures_are_squared_on_white(toys):
    wide = np.zeros((32, 64, 3), np.uint8)
    out = pictures.from_png(toys.encode(wide))
    assert out.shape == (64, 64, 3)
    assert (out[:16] == 255).all() and (out[48:] == 255).all() and (out[16:48] == 0).all()


def test_near_duplicates_are_found_across_blocks():
    rng = np.random.default_rng(0)
    stack = {f"{i:03d}": rng.integers(0, 256, (8, 8, 3), np.uint8) for i in range(300)}
    stack["299"] = np.clip(stack["000"].astype(int) + 2, 0, 255).astype(np.uint8)
    assert pictures.near_duplicates(stack, 0.04) == [("000", "299")]
    assert pictures.near_duplicates({}, 0.04) == []


def test_packages_are_verified(tmp_path):
    package = packages.Package("thing", "1.0", "bad")
    with pytest.raises(FileNotFoundError, match=r"npm pack thing@1\.0"):
        packages.verify(tmp_path, package)
    (tmp_path / "thing-1.0.tgz").write_bytes(b"x")
    with pytest.raises(ValueError, match="expected bad; fetch into another folder"):
        packages.verify(tmp_path, package)
