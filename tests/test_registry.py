"""Names to things."""

import dataclasses

import pytest

from jaxclip import registry


@dataclasses.dataclass
class Thing:
    """A thing with one option."""

    size: int = 1


def test_files_of_a_package_are_entries():
    found = registry.Registry("objective", "jaxclip.objectives")
    assert "contrastive" in found.names() and "_base" not in found.names()
    assert found.get("dcl").__name__ == "DCL"
    assert (
        "contrastive"
        not in registry.Registry("x", "jaxclip.objectives", exclude=["contrastive"]).names()
    )


def test_registered_and_imported_things():
    found = registry.Registry("thing")
    found.register("one", Thing)
    assert found.names() == ["one"] and found.get("one") is Thing
    assert found.build({"name": "one", "size": 3}) == Thing(3)
    assert found.build("one") == Thing(1)
    assert found.get("fractions:Fraction")(1, 2) == 0.5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("on", "unknown thing 'on'; did you mean 'one'"),
        ("zzz", "unknown thing 'zzz'; known: one"),
        ({"name": "one", "sise": 3}, "unknown option 'sise' of thing 'one'; did you mean 'size'"),
        ({"size": 3}, "thing without a 'name'; known: one"),
        (3, "thing 3 is neither a name nor a dict with a 'name'"),
        ({"name": 3}, "a name of thing is a string, got 3"),
        ("fractions:Fractal", "thing 'fractions:Fractal' can't be imported"),
        ("no.such.module:X", "can't be imported: No module named 'no'"),
    ],
)
def test_mistakes_name_the_nearest(config, message):
    found = registry.Registry("thing")
    found.register("one", Thing)
    with pytest.raises(ValueError, match=message):
        found.build(config)


def test_options_with_their_defaults():
    @dataclasses.dataclass
    class Several:
        needed: str
        numbers: list = dataclasses.field(default_factory=lambda: [1])
        made: int = dataclasses.field(default=0, init=False)

    assert registry.option_defaults(Several) == {"needed": registry.REQUIRED, "numbers": [1]}

    def function(rate, decay=0.9, **rest): ...

    assert registry.option_defaults(function) == {"rate": registry.REQUIRED, "decay": 0.9}


@dataclasses.dataclass
class Pooled:
    """A thing whose options depend on others."""

    pool: str = "cls"
    num_queries: int = registry.dependent(256, on="pool", values=("queries", "map"))
    num_experts: int = 0
    capacity: float = registry.dependent(0.0, on="num_experts")
    token: bool = registry.dependent(True, on="is_even", way="there is none")

    @property
    def is_even(self) -> bool:
        return self.num_experts % 2 == 0


def test_options_say_what_they_depend_on():
    names = ["token", "capacity", "num_queries", "pool", "other"]
    assert registry.option_defaults(Pooled)["num_queries"] == Pooled().num_queries == 256
    assert registry.without_effect(Pooled(num_experts=1), names, "model") == {
        "that is for model.pool='queries' or 'map'": ["num_queries"],
        "there is none": ["token"],
    }
    assert registry.without_effect(Pooled("map"), names, "model") == {
        "set model.num_experts": ["capacity"]
    }
    assert not registry.without_effect(Pooled(), ["pool", "num_experts"], "model")
