"""One image-text record and how it is read from a serialised ``tf.train.Example``.

TensorFlow is not needed for it: ``tf.train.Example`` is three small protocol buffer messages, which
are described here to the ``protobuf`` library, whose C parser then does the work.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
import json
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxclip.data.naming import said

# Why a record cannot be used; the vocabulary of every count and summary about skipped records.
REASONS = {
    "zero_bytes": "the image has no bytes",
    "undecodable": "the bytes are not an image that can be decoded",
    "truncated": "the image ends before its last row",
    "absurd_size": "the image is too large, too small or too narrow to be one",
    "empty_caption": "there is no caption, or only white space",
    "bad_utf8": "the caption is not valid UTF-8",
    "duplicate_key": "a record with this key came before",
    "missing_image": "the row has no image, or names one that cannot be read",
    "bad_row": "the row cannot be read: not valid CSV or JSON, or without the needed fields",
    "missing_label": "the record has no class, which the run needs",
    "label_out_of_range": "the record's class is none of those that the run's classifier knows",
    "bad_vector": "the stored vector is missing, of another length, or not finite",
    "bad_meta": "what the run needs of the record's `meta` is not as it should be",
    "unreachable": "the store that holds the record did not give it, after some attempts",
    "crashed": "reading it ended a data worker, and did so again",
    "corrupted": "the stored bytes of the record are damaged (checksum or format)",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """A picture and what is said about it.

    Attributes:
      image: encoded bytes (PNG, JPEG, WebP, …).
      texts: captions; several describe the same picture.
      label: class index, -1 without one.
      key: name of the record, unique in its data set.
      meta: JSON text with whatever else is known.
    """

    image: bytes
    texts: tuple[str, ...]
    label: int = -1
    key: str = ""
    meta: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class BadRecord:
    """What stands in the place of a record that cannot be used.

    Attributes:
      reason: a key of :data:`REASONS`.
      detail: what exactly was wrong, for a person.
      key: name of the record if it is known.
    """

    reason: str
    detail: str = ""
    key: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class FieldNames:
    """Under which feature names a data set keeps the parts of a record; empty = it has none."""

    image: str = "image"
    texts: str = "texts"
    label: str = "label"
    key: str = "key"
    meta: str = "meta"


def parse_example(
    serialized: bytes, names: FieldNames = FieldNames(), class_names: list[str] | None = None
) -> Record | BadRecord:
    """Read a serialised ``tf.train.Example``.

    Args:
      serialized: bytes of the message.
      names: which feature holds which part.
      class_names: stand in for captions if the data set has labels but no captions.

    Returns:
      The record; a :class:`BadRecord` if the bytes are no such message, hold no image, or none of
      the captions is valid UTF-8.
    """
    message = example_class()()
    try:
        message.ParseFromString(serialized)
    except Exception as error:  # protobuf's DecodeError; its C implementation raises others, too
        return BadRecord("corrupted", f"not a tf.train.Example: {error}")
    feature = message.features.feature
    key = _first_text(feature, names.key)
    images = _values(feature, names.image)
    if len(images) != 1:
        return BadRecord("corrupted", f"feature {names.image!r} holds {len(images)} images", key)
    if not images[0]:
        return BadRecord("zero_bytes", "", key)
    label = -1
    texts: tuple[str, ...] = ()
    if names.label and names.label in feature and feature[names.label].int64_list.value:
        label = feature[names.label].int64_list.value[0]
    if names.texts:
        raw = _values(feature, names.texts)
        texts, bad = decode_texts(raw)
        if raw and not texts:
            reason = "bad_utf8" if bad else "empty_caption"
            return BadRecord(reason, "", key)
    elif class_names is not None and 0 <= label < len(class_names):
        texts = (class_names[label],)
    return Record(images[0], texts, label, key, _first_text(feature, names.meta))


def serialize_record(record: Record) -> bytes:
    """A record as a serialised ``tf.train.Example`` with the features of :mod:`.schema`.

    The same record always gives the same bytes.
    """
    message = example_class()()
    feature = message.features.feature
    feature["image"].bytes_list.value.append(record.image)
    feature["texts"].bytes_list.value.extend(text.encode("utf-8") for text in record.texts)
    feature["label"].int64_list.value.append(record.label)
    feature["key"].bytes_list.value.append(record.key.encode("utf-8"))
    feature["meta"].bytes_list.value.append(record.meta.encode("utf-8"))
    return message.SerializeToString(deterministic=True)


# How texts in UTF-16 begin that say so.
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_texts(raw: Any) -> tuple[tuple[str, ...], int]:
    """Decode captions, leaving out what is blank or not UTF-8.

    Args:
      raw: sequence of ``bytes``.

    Returns:
      The usable captions, stripped, and how many were not valid UTF-8.
    """
    return _decode(raw, str.strip)


def decode_foreign_texts(raw: Any) -> tuple[tuple[str, ...], int]:
    """Decode captions as other people's programs write them; as :func:`decode_texts`.

    Blank, too, are characters that show nothing, and the words that programs write for a value that
    is missing (``nan``, ``None``, …). UTF-16 is read where its byte order mark stands before it.
    """
    return _decode(raw, said)


def _decode(raw: Any, strip: Callable[[str], str]) -> tuple[tuple[str, ...], int]:
    texts: list[str] = []
    bad = 0
    for item in raw:
        try:
            is_wide = strip is said and item.startswith(UTF_16)
            text = strip(item.decode("utf-16" if is_wide else "utf-8"))
        except UnicodeDecodeError:
            bad += 1
            continue
        if text:
            texts.append(text)
    return tuple(texts), bad


@functools.lru_cache(maxsize=64)  # a thread's record is looked at by several, one after the other
def meta_object(text: str) -> Mapping[str, Any]:
    """The object in a record's ``meta``, empty where it is none; not to be changed."""
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        value = None
    return types.MappingProxyType(value if isinstance(value, dict) else {})


def _values(feature: Any, name: str) -> Sequence[bytes]:
    return feature[name].bytes_list.value if name and name in feature else ()


def _first_text(feature: Any, name: str) -> str:
    values = _values(feature, name)
    return values[0].decode("utf-8", errors="replace") if values else ""


@functools.cache
def example_class() -> Any:
    """The message class of ``tf.train.Example`` (field numbers from ``example.proto``)."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="jaxclip/example.proto", package="jaxclip", syntax="proto3"
    )
    kind = descriptor_pb2.FieldDescriptorProto

    def message(name: str, *fields: tuple[str, int, int, int, str], parent: Any = None) -> Any:
        target = (parent.nested_type if parent is not None else file.message_type).add(name=name)
        for field, number, label, type_, type_name in fields:
            target.field.add(
                name=field, number=number, label=label, type=type_, type_name=type_name or None
            )
        return target

    one, many = kind.LABEL_OPTIONAL, kind.LABEL_REPEATED
    message("BytesList", ("value", 1, many, kind.TYPE_BYTES, ""))
    message("FloatList", ("value", 1, many, kind.TYPE_FLOAT, ""))
    message("Int64List", ("value", 1, many, kind.TYPE_INT64, ""))
    feature = message(
        "Feature",
        ("bytes_list", 1, one, kind.TYPE_MESSAGE, ".jaxclip.BytesList"),
        ("float_list", 2, one, kind.TYPE_MESSAGE, ".jaxclip.FloatList"),
        ("int64_list", 3, one, kind.TYPE_MESSAGE, ".jaxclip.Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message(
        "Features",
        ("feature", 1, many, kind.TYPE_MESSAGE, ".jaxclip.Features.FeatureEntry"),
    )
    entry = message(
        "FeatureEntry",
        ("key", 1, one, kind.TYPE_STRING, ""),
        ("value", 2, one, kind.TYPE_MESSAGE, ".jaxclip.Feature"),
        parent=features,
    )
    entry.options.map_entry = True
    message("Example", ("features", 1, one, kind.TYPE_MESSAGE, ".jaxclip.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file) if not hasattr(pool, "AddSerializedFile") else pool.AddSerializedFile(
        file.SerializeToString()
    )
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("jaxclip.Example"))
