"""What docs/data.md says of ops, options and reasons is what the code has."""

import dataclasses
import inspect
import pathlib
import re

from jaxclip import fields
from jaxclip.data import image_ops, pipeline, text_ops
from jaxclip.data.record import REASONS

TEXT = (pathlib.Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_op_with_its_defaults():
    written = dict(re.findall(r"^\| `([a-z_]+)\(([^`]*)\)` \|", TEXT, re.MULTILINE))
    assert sorted(written) == sorted([*image_ops.names(), *text_ops.names()])
    for name, options in written.items():
        ops = text_ops if name in text_ops.names() else image_ops
        factory = ops.get(name).factory
        parameters = inspect.signature(factory).parameters.values()
        expected = ", ".join(
            f"{p.name}={round(p.default, 3) if isinstance(p.default, float) else p.default!r}"
            for p in parameters
        )
        assert options == expected, name


def test_every_field_of_a_batch():
    for name, thing in vars(fields).items():
        if isinstance(thing, type) and issubclass(thing, fields.Field) and name != "Field":
            assert f"| `{name}(" in TEXT, name


def test_every_reason_key_and_option():
    for reason, meaning in REASONS.items():
        assert f"| `{reason}` | {meaning} |" in TEXT
    for key in pipeline.DEFAULTS:
        assert f"`{key}`" in TEXT, key
    from jaxclip.data.importer import Options

    for field in dataclasses.fields(Options):
        if field.name != "name":
            assert f"`--{field.name.replace('_', '-')}`" in TEXT, field.name
