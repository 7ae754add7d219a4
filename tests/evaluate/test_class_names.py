"""Names of classes: tidied, from a list, a mapping, a file or the built-in set."""

import json

import pytest

from jaxclip.evaluate import class_names


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("/a/abbey", "abbey"),
        ("/a/apartment_building/outdoor", "apartment building outdoor"),
        ("american_bulldog", "american bulldog"),
        ("n02085620", "Chihuahua"),
        ("n02085620-Chihuahua", "Chihuahua"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("n99999999", "n99999999"),
        # What is a name already stays.
        ("1st place medal", "1st place medal"),
        ("707-320", "707-320"),
        ("3.5", "3.5"),
        ("100.5 oz", "100.5 oz"),
        ("a/c", "a c"),
        ("T-shirt", "T-shirt"),
        ("_", "_"),
    ],
)
def test_names_as_data_sets_store_them_are_tidied(stored, name):
    assert class_names.tidy(stored) == name


def test_tidying_leaves_the_emoji_alone():
    from jaxclip.data import sources

    names = sources.open("emoji").class_names()
    assert [class_names.tidy(name) for name in names] == names


def test_imagenet_has_a_name_for_each_id_in_the_order_of_the_labels():
    names = class_names.imagenet()
    assert len(names) == 1000 and list(names) == sorted(names)
    assert list(names.values())[:2] == ["tench", "goldfish"]
    assert list(names.values())[-1] == "toilet paper"
    assert names["n03126707"] == "construction crane" and names["n02012849"] == "crane bird"
    assert class_names.resolve("imagenet", None)[1] == "goldfish"


STORED = ["/a/abbey", "american_bulldog", "n02085620"]


def test_the_data_sets_own_names_restricted_to_the_split():
    assert class_names.resolve("", STORED) == {0: "abbey", 1: "american bulldog", 2: "Chihuahua"}
    assert class_names.resolve("", STORED, [2, 0]) == {0: "abbey", 2: "Chihuahua"}


def test_given_names_are_taken_as_they_are():
    given = ["an_abbey", "bulldog", "dog"]
    assert class_names.resolve(given, STORED) == dict(enumerate(given))
    assert class_names.resolve(given, STORED, [1]) == {1: "bulldog"}
    assert class_names.resolve(given, None) == dict(enumerate(given))


def test_only_classes_of_a_mapping_compete():
    for key in (2, "2", "n02085620"):
        assert class_names.resolve({key: "dog", 0: "abbey"}, STORED) == {0: "abbey", 2: "dog"}


def test_files(tmp_path):
    lines, listed, mapped = (tmp_path / n for n in ("lines.txt", "list.json", "map.json"))
    lines.write_text("\ufeffabbey \nbulldog\ndog\n\n", encoding="utf-8")
    assert class_names.resolve(str(lines), STORED)[0] == "abbey"
    listed.write_text(json.dumps(["a", "b", "c"]))
    assert class_names.resolve(str(listed), STORED) == {0: "a", 1: "b", 2: "c"}
    mapped.write_text(json.dumps({"american_bulldog": "dog"}))
    assert class_names.resolve(str(mapped), STORED) == {1: "dog"}


@pytest.mark.parametrize(
    ("given", "stored", "message"),
    [
        ("", None, "has no class names; take it out"),
        ("", ["n99999999"], "WordNet id 'n99999999'"),
        (["a", "b"], STORED, "has 2 names, but it has 3 classes .*abbey"),
        ("imagenet", STORED, "'imagenet' has 1000 names, but it has 3 classes"),
        ("imagenett", STORED, "did you mean 'imagenet'"),
        (["a", "", "c"], STORED, "''; a name is a string that is not empty"),
        (["a", 3, "c"], STORED, "holds 3"),
        ({}, STORED, "no class competes"),
        ({"american_buldog": "x"}, STORED, "no class of it; did you mean 'american_bulldog'"),
        ({"american_bulldog": "x"}, None, "no class of it; it has no class names"),
        ({3: "x"}, STORED, "label 3 is none of it: 3 classes"),
    ],
)
def test_mistakes(given, stored, message):
    with pytest.raises(ValueError, match=message):
        class_names.resolve(given, stored, what="it")


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        class_names.resolve(str(tmp_path / "names.txt"), STORED)
    hole = tmp_path / "hole.txt"
    hole.write_text("abbey\n\ndog\n")
    with pytest.raises(ValueError, match=r"hole.txt'.*line 2 is empty"):
        class_names.resolve(str(hole), STORED)
    hole.write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        class_names.resolve(str(hole), STORED)
