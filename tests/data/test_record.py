"""Records in and out of tf.train.Example messages."""

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxclip.data.record import (
    BadRecord,
    FieldNames,
    Record,
    decode_texts,
    parse_example,
    serialize_record,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@hypothesis.given(
    st.builds(
        Record,
        image=st.binary(min_size=1, max_size=50),
        texts=st.lists(text.filter(str.strip).map(str.strip), min_size=1, max_size=4).map(tuple),
        label=st.integers(-1, 2**40),
        key=text,
        meta=text,
    )
)
def test_round_trip(record):
    data = serialize_record(record)
    assert parse_example(data) == record
    assert serialize_record(record) == data


def test_tensorflow_reads_it_and_writes_what_we_read():
    tf = pytest.importorskip("tensorflow")
    record = Record(b"pixels", ("a cat", "une chatte"), 3, "k\u00e9y", '{"a": 1}')
    example = tf.train.Example.FromString(serialize_record(record))
    feature = example.features.feature
    assert list(feature["texts"].bytes_list.value) == [b"a cat", b"une chatte"]
    assert feature["image"].bytes_list.value[0] == b"pixels"
    assert feature["label"].int64_list.value[0] == 3
    assert parse_example(example.SerializeToString()) == record


def test_other_field_names_and_class_names():
    data = serialize_record(Record(b"pixels", ("a cat",), 1, "k"))
    names = FieldNames(image="image", texts="", label="label", key="", meta="")
    assert parse_example(data, names, ["dog", "cat"]) == Record(b"pixels", ("cat",), 1)
    assert parse_example(data, names, ["dog"]).texts == ()
    assert parse_example(data, names).texts == ()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record(b"", ("a",), key="k"), "zero_bytes"),
        (Record(b"x", ("  ", "\n"), key="k"), "empty_caption"),
    ],
)
def test_unusable_parts(record, reason):
    bad = parse_example(serialize_record(record))
    assert (bad.reason, bad.key) == (reason, "k")


def test_bad_utf8_is_left_out_or_named():
    good = serialize_record(Record(b"x", ("caption", "other")))
    assert parse_example(good.replace(b"caption", b"capt\xffon")).texts == ("other",)
    both = good.replace(b"caption", b"capt\xffon").replace(b"other", b"oth\xc3r")
    assert parse_example(both).reason == "bad_utf8"


def test_not_a_message():
    assert parse_example(b"\xff\xff\xff").reason == "corrupted"
    assert parse_example(b"").reason == "corrupted"  # a message, but without an image


@hypothesis.given(st.binary(max_size=100))
def test_any_bytes_give_a_record_or_a_reason(data):
    assert isinstance(parse_example(data), Record | BadRecord)


@hypothesis.given(st.lists(st.binary(max_size=10)))
def test_decode_texts_counts_what_is_not_utf8(raw):
    texts, bad = decode_texts(raw)
    valid = []
    for each in raw:
        try:
            valid.append(each.decode("utf-8"))
        except UnicodeDecodeError:
            continue
    assert bad == len(raw) - len(valid)
    assert texts == tuple(each.strip() for each in valid if each.strip())
