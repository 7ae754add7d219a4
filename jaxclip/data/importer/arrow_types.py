"""Types of Arrow by what is made of their values."""

from __future__ import annotations

from typing import Any


def plain_type(kind: Any) -> Any:
    """A type of Arrow, of a dictionary that of its values, of a view that of what it shows."""
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if pyarrow.types.is_binary_view(kind):
        return pyarrow.large_binary()
    return pyarrow.large_string() if pyarrow.types.is_string_view(kind) else kind


def is_list(kind: Any) -> bool:
    """Whether it is a type of lists, of whatever length."""
    import pyarrow

    return (
        pyarrow.types.is_list(kind)
        or pyarrow.types.is_large_list(kind)
        or pyarrow.types.is_fixed_size_list(kind)
    )


def may_be_text(kind: Any) -> bool:
    """Whether values of a type can be captions: no numbers, times or truth values."""
    import pyarrow

    kind = plain_type(kind)
    return not (pyarrow.types.is_primitive(kind) or pyarrow.types.is_decimal(kind))


def is_number(kind: Any) -> bool:
    """Whether it is a type of numbers, with fractions or without."""
    import pyarrow

    return pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)


def with_bytes(kind: Any) -> Any:
    """A type of Arrow with bytes in the place of texts."""
    import pyarrow

    types = pyarrow.types
    if types.is_string(kind):
        return pyarrow.binary()
    if types.is_large_string(kind):
        return pyarrow.large_binary()
    if types.is_list(kind):
        return pyarrow.list_(with_bytes(kind.value_type))
    if types.is_large_list(kind):
        return pyarrow.large_list(with_bytes(kind.value_type))
    if types.is_struct(kind):
        return pyarrow.struct([(field.name, with_bytes(field.type)) for field in kind])
    return kind
