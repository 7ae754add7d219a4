"""Data sets by the names that TFDS has for them, and maps of their features."""

import json

import pytest

from jaxclip import config as config_lib
from jaxclip.data import pipeline, sources


@pytest.fixture
def prepared(tmp_path, toys, monkeypatch):
    """A folder as TFDS fills it: records of version V begin with V."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for place, count in (
        ("toys/1.9.0", 2), ("toys/1.10.0", 3), ("many/a/1.0.0", 4), ("many/b/1.0.0", 5),
        ("many/b/2.0.0", 6), ("one/x/1.0.0", 7),
    ):  # fmt: skip
        toys.write_data_set(tmp_path / place, {"train": toys.records(count)})
    return tmp_path


def size(name):
    return sources.open(name).splits["train"]


def test_the_newest_version_of_the_only_or_default_configuration(prepared):
    assert size("tfds:toys") == 3 and size("tfds:toys:1.9.0") == 2
    assert size("tfds:one") == 7 and size("tfds:many/a") == 4
    assert size("tfds:many/b") == 6 and size("tfds:many/b:1.0.0") == 5
    with pytest.raises(FileNotFoundError, match=r"configurations: a, b; versions: 1.0.0, 2.0.0"):
        size("tfds:many")
    (prepared / "many" / ".config").mkdir()
    noted = {"default_config_name": "a"}
    (prepared / "many" / ".config" / "metadata.json").write_text(json.dumps(noted))
    assert size("tfds:many") == 4
    assert size(f"tfds:{prepared}/many/b/1.0.0") == 5


def test_features_by_a_map(prepared, toys):
    plain, mapped = (
        sources.open(name).source("train")
        for name in ("tfds:toys", "tfds:toys?texts=key&key=meta&label=label&image=image")
    )
    assert mapped[1].texts == (plain[1].key,) and mapped[1].key == plain[1].meta
    assert (mapped[1].image, mapped[1].label) == (plain[1].image, plain[1].label)
    config = {"name": f"tfds:{prepared}/toys/1.9.0?texts=key"}
    assert pipeline.training_data(pipeline.complete(config)).source("train")[0].texts
    assert config_lib.absolute_paths({"data": {"name": "tfds:toys?texts=key"}})["data"] == {
        "name": "tfds:toys?texts=key"
    }


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("toyz", FileNotFoundError, r"`tfds build toyz` does that.*did you mean 'toys'"),
        ("", ValueError, "'tfds:' names nothing to read"),
        ("toys:3.0.0", FileNotFoundError, "which has versions: 1.10.0, 1.9.0"),
        ("toys/x", FileNotFoundError, "which has versions: 1.10.0, 1.9.0"),
        ("toys?texts", ValueError, "'texts' is not PART=FEATURE"),
        ("toys?text=key", ValueError, "unknown .*'text'.*did you mean 'texts'"),
        ("toys?texts=kez", ValueError, "has no feature 'kez'; did you mean 'key'"),
        ("toys?image=key", ValueError, "feature 'key' is no Image but Text"),
    ],
)
def test_mistakes_are_named(prepared, name, error, message):
    with pytest.raises(error, match=message) as raised:
        sources.open(f"tfds:{name}")
    assert "\n" not in str(raised.value)
