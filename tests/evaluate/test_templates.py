"""Prompts out of class names."""

import json

import pytest

from jaxclip.evaluate import templates


def test_templates_are_filled_class_by_class():
    assert templates.fill(["cat", "{x}"], ["a {}", "{}!"]) == ["a cat", "cat!", "a {x}", "{x}!"]
    assert templates.prompts(["cat", "dog"], ("a {}",)) == [["a cat"], ["a dog"]]


def test_templates_by_name():
    assert templates.resolve("name") == ("{}",)
    assert templates.resolve("a toy {}") == ("a toy {}",)
    assert templates.resolve(["{}", "a {c}"]) == ("{}", "a {}")
    for name in templates.TEMPLATES:
        assert all(t.count("{}") == 1 for t in templates.resolve(name))


def test_the_eighty_of_imagenet():
    eighty = templates.resolve("imagenet_80")
    assert len(set(eighty)) == 80
    assert set(templates.resolve("simple")) < set(eighty)
    # First, middle and last as in the notebook they come from.
    assert (eighty[0], eighty[44], eighty[79]) == (
        "a bad photo of a {}.",
        "a origami {}.",
        "a tattoo of the {}.",
    )


def test_templates_from_files(tmp_path):
    lines, listed, by_class = (tmp_path / n for n in ("lines.txt", "list.json", "class.json"))
    lines.write_text("a {c}\n\ta photo of {}  \n\n", encoding="utf-8")
    assert templates.resolve(str(lines)) == ("a {}", "a photo of {}")
    listed.write_text('["the {}"]')
    assert templates.resolve(str(listed)) == ("the {}",)
    by_class.write_text(json.dumps({"cat": ["a purring cat", "whiskers"], "dog": "it barks"}))
    found = templates.resolve(str(by_class))
    assert templates.prompts(["dog", "cat"], found) == [["it barks"], ["a purring cat", "whiskers"]]
    with pytest.raises(ValueError, match="no prompts of class 'cot'; did you mean 'cat'"):
        templates.prompts(["cot"], found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("photos", "did you mean 'photo'"),
        ("zzz", "known: clip_7"),
        ([], "empty"),
        (["a photo"], "exactly one"),
        (["{} and {}"], "exactly one"),
        (["{} and {c}"], "exactly one"),
        ([3], "exactly one"),
        ({"cat": []}, "no prompts of class 'cat'"),
        ({"cat": [""]}, "no text"),
    ],
)
def test_bad_templates_are_explained(given, message):
    with pytest.raises(ValueError, match=message):
        templates.resolve(given)


def test_bad_files_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        templates.resolve(str(tmp_path / "no.txt"))
    for name, text, message in (
        ("hole.txt", "a {}\n\nthe {}\n", "line 2 is empty"),
        ("bad.json", "[", "bad.json"),
        ("form.json", "3", "a list or an object"),
        ("empty.txt", "\n", "empty"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            templates.resolve(str(tmp_path / name))
