"""Batches by specification: each key by itself, nothing changed by the others."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from jaxclip import fields
from jaxclip.data import image_ops, pipeline, tokenizers
from jaxclip.data.image_op import IMAGE_OPS
from jaxclip.data.record import Record
from jaxclip.fields import Boxes, CaptionHash, Captions, Index, Label, Negatives, View

OPS = "random_crop|flip|channel_shuffle(p=0.5)|invert(p=0.5)"


@pytest.fixture(autouse=True)
def needs_tensorflow():
    pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def toy(tmp_path_factory, toys):
    """Thirty records with two captions, a class, a box and tags; ops that are exact everywhere."""
    records = []
    for i, record in enumerate(toys.records(30)):
        meta = {"caption_tags": ["alt", ["made", "long"]], "boxes": [[0.25, 0.5, 0.5, 1.0]]}
        texts = (f"thing {i}", f"item so to say number {i}")
        records.append(dataclasses.replace(record, texts=texts, meta=json.dumps(meta)))
    folder = tmp_path_factory.mktemp("toy") / "toy"
    toys.write_data_set(folder, {"train": records}, shards=3)
    return {"name": str(folder), "image_size": 8, "image_ops": OPS}


def take(config, tokenizer, steps=3, spec=fields.PAIR, **options):
    options = {"global_batch_size": 8, "seed": 5, **options}
    iterator = pipeline.train_iterator(config, tokenizer=tokenizer, spec=spec, **options)
    try:
        return [next(iterator) for _ in range(steps)]
    finally:
        iterator.close()


def joined(batches):
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def tokens(texts):
    """Bytes as ids: int32[n, 32]."""
    rows = np.zeros((len(texts), 32), np.int32)
    for row, text in zip(rows, texts, strict=True):
        data = text.encode()[:32]
        row[: len(data)] = list(data)
    return rows


def text(ids):
    return bytes(int(i) for i in ids if i).decode()


EVERYTHING = {
    "boxes": Boxes(count=2),
    "hash": CaptionHash(),
    "image": View(),
    "index": Index(),
    "label": Label(),
    "negatives": Negatives(count=2),
    "plain": View(ops="resize", size=12),
    "text": Captions(),
    "texts1/text": Captions(count=3, policy="distinct"),
    "view1/image": View(),
}


def test_the_default_is_what_it_always_was(tmp_path, toys, tokenize):
    folder = toys.write_data_set(tmp_path / "d", {"train": toys.records(30)}, shards=3)
    config = {"name": str(folder), "image_size": 8, "image_ops": OPS}
    digest = hashlib.sha256()
    for batch in take(config, tokenize, 6):
        digest.update(batch["image"].tobytes() + batch["text"].tobytes())
    # Of the pipeline before there were specifications.
    expected = "88ff35254223fb42c0011dd05a59b62b04eb6875b2b251240188505fb81e6459"
    assert digest.hexdigest() == expected


def test_shapes_are_as_promised(toy):
    (batch,) = take(toy, tokens, 1, EVERYTHING)
    expected = fields.shapes(EVERYTHING, 8, fields.Sizes(image_size=8, context_length=32))
    assert {key: (a.shape, str(a.dtype)) for key, a in batch.items()} == expected


@pytest.mark.parametrize("key", EVERYTHING)
def test_no_key_changes_another(toy, key):
    needed = {"image": View(), "text": Captions()} if key != "image" else {}
    alone = joined(take(toy, tokens, 3, {**needed, key: EVERYTHING[key]}))
    whole = joined(take(toy, tokens, 3, EVERYTHING))
    np.testing.assert_array_equal(alone[key], whole[key])


def test_a_function_of_seed_and_step_on_any_number_of_processes(toy):
    whole = take(toy, tokens, 6, EVERYTHING)
    for batch, other in zip(whole[4:], take(toy, tokens, 2, EVERYTHING, start_step=4), strict=True):
        for key in EVERYTHING:
            np.testing.assert_array_equal(batch[key], other[key])
    parts = [take(toy, tokens, 2, EVERYTHING, process_index=i, process_count=4) for i in range(4)]
    for step in range(2):
        for key in EVERYTHING:
            together = np.concatenate([part[step][key] for part in parts])
            np.testing.assert_array_equal(whole[step][key], together)


def test_views_draw_for_themselves(toy):
    batch = joined(take(toy, tokens, 4, {**EVERYTHING, "view2/image": View()}))
    first, second, third = (batch[key] for key in ("image", "view1/image", "view2/image"))
    for one, other in ((first, second), (first, third), (second, third)):
        differ = (one != other).reshape(len(one), -1).any(1)
        assert 0.8 < differ.mean() <= 1


def test_a_picture_is_decoded_once_for_all_views_and_not_without_one(toy, monkeypatch):
    from jaxclip.data import decode as decode_lib

    decoded = []
    decode = decode_lib.decode
    monkeypatch.setattr(decode_lib, "decode", lambda data: decoded.append(0) or decode(data))
    config = {**toy, "cache_decoded_mb": 0, "prefetch": 1}

    def count(spec):
        decoded.clear()
        iterator = pipeline.train_iterator(
            config, tokenizer=tokens, global_batch_size=30, seed=0, spec=spec
        )
        # One at a time, so that nothing is made ahead.
        maker = iterator._source[0]._make
        maker(0)
        iterator.close()
        return len(decoded)

    assert count(fields.PAIR) == 30
    assert count({**fields.PAIR, "view1/image": View(), "plain": View("resize", 4)}) == 30
    assert count({"text": Captions(), "label": Label()}) == 0


@pytest.mark.parametrize("cache", [0, 512])
def test_without_ops_views_are_the_records(toy, toys, cache):
    from jaxclip.data.decode import decode

    config = {**toy, "image_size": 12, "image_ops": "", "cache_decoded_mb": cache}
    spec = {"image": View(), "index": Index(), "other": View(), "small": View(size=6)}
    for batch in take(config, tokens, 8, spec):
        for row, index in enumerate(batch["index"]):
            # Written in three shards: 0 3 6 …, 1 4 …, 2 5 …
            record = int(index) // 10 + 3 * (int(index) % 10)
            pixels = np.asarray(decode(toys.picture(record)))
            np.testing.assert_array_equal(batch["image"][row], pixels)
            np.testing.assert_array_equal(batch["other"][row], pixels)
        assert batch["small"].shape == (8, 6, 6, 3)


# --- captions -----------------------------------------------------------------------------------


def captions(config, field, steps=4, **options):
    batch = joined(take(config, tokens, steps, {"text": field}, **options))["text"]
    return [[text(row) for row in np.atleast_2d(rows)] for rows in batch]


def number(caption):
    return int(caption.split()[-1])


def test_policies(toy):
    for picked in captions(toy, Captions(policy="first")):
        assert picked == [f"thing {number(picked[0])}"]
    for picked in captions(toy, Captions(policy="longest")):
        assert picked == [f"item so to say number {number(picked[0])}"]
    for picked in captions(toy, Captions(count=3, policy="shortest")):
        i = number(picked[0])
        assert picked == [f"thing {i}", f"item so to say number {i}", f"thing {i}"]
    firsts = set()
    for picked in captions(toy, Captions(count=3, policy="distinct"), 8):
        assert len(set(picked[:2])) == 2 and picked[2] in picked[:2]
        firsts.add(picked[0].split()[0])
    assert firsts == {"thing", "item"}
    drawn = captions(toy, Captions(count=2), 16)
    equal = np.mean([picked[0] == picked[1] for picked in drawn])
    assert abs(equal - 0.5) < 5 * np.sqrt(0.25 / len(drawn))  # independent draws


def test_sources_and_least_words(toy):
    for source in ("alt", "made", "long"):
        start = "thing" if source == "alt" else "item"
        assert all(p[0].startswith(start) for p in captions(toy, Captions(source=source)))
    assert all(p[0].startswith("item") for p in captions(toy, Captions(min_words=3)))
    # No caption is so long: all count.
    starts = {p[0].split()[0] for p in captions(toy, Captions(min_words=50))}
    assert starts == {"thing", "item"}


def test_shares_of_sources(toy):
    field = Captions(shares=(("alt", 0.2), ("made", 0.8)))
    made = np.mean([p[0].startswith("item") for p in captions(toy, field, 32)])
    assert abs(made - 0.8) < 5 * np.sqrt(0.16 / 256)
    # A tag that is not there gives its share to the others; one source alone is that source.
    only = Captions(shares=(("alt", 3.0),))
    assert captions(toy, only) == captions(toy, Captions(shares=(("alt", 0.1),)))
    assert all(p[0].startswith("thing") for p in captions(toy, only))
    several = captions(toy, Captions(count=3, shares=field.shares))
    assert {len(picked) for picked in several} == {3} and {len(set(p)) for p in several} == {1, 2}


def test_text_ops_run_on_captions(toy):
    for (caption,) in captions(toy, Captions(policy="longest", ops="drop_words(1.0, 'so to say')")):
        assert caption == f"item number {number(caption)}"
    swapped = {p[0] for p in captions(toy, Captions(policy="first", ops="swap_words(p=0.5)"), 8)}
    assert {each.split()[0] == "thing" for each in swapped} == {True, False}


def test_another_length_of_rows(toy):
    tokenizer = tokenizers.load({"kind": "emoji_bpe", "context_length": 16})
    spec = {"text": Captions(policy="first"), "short": Captions(length=4, policy="first")}
    (batch,) = take(toy, tokenizer, 1, spec)
    assert batch["text"].shape == (8, 16) and batch["short"].shape == (8, 4)
    assert (batch["short"][:, -1] == tokenizer.end_id).all()
    with pytest.raises(ValueError, match="makes no rows of 4 tokens"):
        take(toy, tokens, 1, spec)


def test_a_language_as_source():
    tokenizer = tokenizers.load({"kind": "emoji_bpe"})
    spec = {"text": Captions(), "german": Captions(source="de", policy="first")}
    config = {"name": "emoji"}
    (batch,) = take(config, tokenizer, 1, spec, global_batch_size=64)
    german = " ".join(tokenizer.decode(row) for row in batch["german"])
    english = " ".join(tokenizer.decode(row) for row in batch["text"])
    assert set(german) & set("äöüß") and not set(english) & set("äöüß")
    with pytest.raises(ValueError, match=r"no captions tagged 'dee'.*did you mean 'de'"):
        pipeline.check_spec(config, {"text": Captions(source="dee")})


def test_negatives(toy):
    batch = joined(take(toy, tokens, 4, {"text": Captions(), "negatives": Negatives(count=2)}))
    for row, rows in zip(batch["text"], batch["negatives"], strict=True):
        caption = text(row)
        for each in map(text, rows):
            assert each != caption and sorted(each.split()) == sorted(caption.split())


def test_negatives_of_the_record_come_first(tmp_path, toys):
    own = {"hard_negatives": ["no 1", "no 2", "no 3"]}
    records = [
        Record(toys.picture(0), ("a cat",), key="own", meta=json.dumps(own)),
        Record(toys.picture(1), ("two words",), key="made"),
        Record(toys.picture(2), ("word",), key="none"),
        Record(toys.picture(3), ("x y",), key="bad", meta='{"hard_negatives": [1]}'),
        Record(toys.picture(4), ("b a",), key="empty", meta='{"hard_negatives": ["", " "]}'),
        Record(toys.picture(5), ("bird",), key="empty too", meta='{"hard_negatives": [""]}'),
    ]
    folder = toys.write_data_set(tmp_path / "d", {"train": records})
    spec = {"text": Captions(), "negatives": Negatives(count=2), "index": Index()}
    config = {"name": str(folder), "image_size": 8}
    iterator = pipeline.train_iterator(
        config, tokenizer=tokens, global_batch_size=40, seed=0, spec=spec
    )
    batch = next(iterator)
    assert iterator.stats()["records"] == {"bad_meta": 1}
    iterator.close()
    seen = set()
    for index, rows in zip(batch["index"], batch["negatives"], strict=True):
        found = [text(row) for row in rows]
        if index == 0:
            assert len(set(found)) == 2 and set(found) <= set(own["hard_negatives"])
            seen |= set(found)
        else:
            made = {1: "words two", 4: "a b"}.get(int(index), "")  # an empty one is none
            assert found == [made] * 2
            assert made or not rows.any()  # padding only
    assert seen == set(own["hard_negatives"])


def test_caption_hash_tells_captions_apart(toy):
    batch = joined(take(toy, tokens, 12, {"text": Captions(), "hash": CaptionHash()}))
    assert batch["hash"].min() >= 0
    pairs = {(text(row), int(each)) for row, each in zip(batch["text"], batch["hash"], strict=True)}
    assert len(pairs) == len({p[0] for p in pairs}) == len({p[1] for p in pairs}) > 40


def test_what_captions_are_like_is_counted(tmp_path, toys):
    texts = [("short",), ("short",), ("x" * 32,), ("x" * 40,), ("other",)]
    records = [Record(toys.picture(i), t, key=str(i)) for i, t in enumerate(texts)]
    config = {"name": str(toys.write_data_set(tmp_path / "d", {"train": records}))}
    iterator = pipeline.train_iterator(config, tokenizer=tokens, global_batch_size=5, seed=0)
    next(iterator)
    counts = iterator.stats()["captions"]
    iterator.close()
    # Batches made ahead count as well; each has every record once.
    batches = counts["drawn"] // 5
    assert batches >= 1
    assert counts == {"drawn": 5 * batches, "fill": 2 * batches, "equal": 2 * batches}


def test_captions_that_fill_a_row_whose_padding_is_its_end(tmp_path, toys):
    """SigLIP's rows end with 1 whether or not they are full."""

    class Words:
        pad_id = end_id = 1

        def __call__(self, texts):
            rows = np.ones((len(texts), 4), np.int32)
            for row, text in zip(rows, texts, strict=True):
                row[: min(len(text), 3)] = 7
            return rows

    records = [Record(toys.picture(i), ("x" * i,), key=str(i)) for i in range(1, 6)]
    config = {"name": str(toys.write_data_set(tmp_path / "d", {"train": records}))}
    iterator = pipeline.train_iterator(config, tokenizer=Words(), global_batch_size=5, seed=0)
    next(iterator)
    counts = iterator.stats()["captions"]
    iterator.close()
    assert counts["fill"] / counts["drawn"] == 3 / 5


# --- labels and boxes ---------------------------------------------------------------------------


def test_records_without_a_label(tmp_path, toys):
    records = [dataclasses.replace(r, label=-(i % 2)) for i, r in enumerate(toys.records(8))]
    config = {"name": str(toys.write_data_set(tmp_path / "d", {"train": records}))}
    iterator = pipeline.train_iterator(
        config, tokenizer=tokens, global_batch_size=8, seed=0, spec={"label": Label()}
    )
    assert next(iterator)["label"].tolist() == [0] * 8
    assert iterator.stats()["records"] == {"missing_label": 4}
    iterator.close()
    (batch,) = take(config, tokens, 1, {"label": Label(required=False)})
    assert sorted(batch["label"]) == [-1] * 4 + [0] * 4


def test_labels_out_of_range_are_replaced_and_counted(tmp_path, toys):
    records = [dataclasses.replace(r, label=i % 4) for i, r in enumerate(toys.records(8))]
    config = {"name": str(toys.write_data_set(tmp_path / "d", {"train": records}))}
    spec = {"label": Label(num_classes=3)}  # this data set declares no classes
    iterator = pipeline.train_iterator(
        config, tokenizer=tokens, global_batch_size=8, seed=0, spec=spec
    )
    assert max(next(iterator)["label"]) == 2
    assert iterator.stats()["records"] == {"label_out_of_range": 2}
    iterator.close()


def test_a_classifier_of_fewer_classes_than_the_data_declares_is_refused(tmp_path, toys):
    records = [dataclasses.replace(record, label=0) for record in toys.records(2)]
    names = ["cat", "dog", "owl"]
    folder = toys.write_data_set(tmp_path / "d", {"train": records}, class_names=names)
    config, owners = {"name": str(folder)}, {"label": "objective 'class_head'"}
    message = (
        r"batch\['label'\], which objective 'class_head' wants: split 'train' of data set .* has "
        r"labels up to 2, but num_classes=2; set num_classes=3"
    )
    with pytest.raises(ValueError, match=message):
        pipeline.check_spec(config, {"label": Label(num_classes=2)}, owners=owners)
    pipeline.check_spec(config, {"label": Label(num_classes=3)}, owners=owners)


def test_two_terms_share_labels():
    joined = fields.union(
        [("a", {"label": Label(required=False)}), ("b", {"label": Label(True, 9)})]
    )
    assert joined == {"label": Label(True, 9)}
    with pytest.raises(ValueError, match="b wants batch"):
        fields.union([("a", {"label": Label()}), ("b", {"label": fields.Index()})])


def test_boxes_follow_what_they_are_around(tmp_path, toys):
    """A white rectangle on black, moved by every op that moves: the box stays around it."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[12:30, 20:44] = 255
    box = [20 / 64, 12 / 48, 44 / 64, 30 / 48]
    record = Record(toys.encode(pixels), ("thing",), meta=json.dumps({"boxes": [box, box]}))
    folder = toys.write_data_set(tmp_path / "d", {"train": [record]})
    for ops in (
        "resize", "resize_small(40)|center_crop(36)", "pad(0)", "flip(1.0)",
        "resize_small|random_crop", "random_resized_crop(0.4, 1.0)", "invert(p=0)|flip(0.5)",
        "affine(degrees=8, translate=0.1, scale_min=0.8, scale_max=1.2, shear=5, fill=0)|flip",
    ):  # fmt: skip
        config = {"name": str(folder), "image_size": 32, "image_ops": ops}
        batch = joined(take(config, tokens, 2, {"image": View(), "boxes": Boxes(count=3)}))
        for image, boxes in zip(batch["image"], batch["boxes"], strict=True):
            rows, columns = np.nonzero(image[..., 0] > 128)
            seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(boxes[0] * 32, seen, atol=1.2, err_msg=ops)
            np.testing.assert_array_equal(boxes[1], boxes[0])
            assert not boxes[2].any()


def test_boxes_that_leave_the_picture_are_counted_and_wrong_ones_replaced(tmp_path, toys):
    boxes = [
        [[0, 0, 0.1, 0.1], [0.3, 0.3, 0.7, 0.7]],
        [],
        [[0.5, 0.5, 1.2, 0.9]],
        [[0.9, 0, 0.1, 1]],
    ]
    boxes += [[[float("nan"), 0, 1, 1]], [[0, 0, 1]]]
    records = [
        Record(toys.picture(i), ("thing",), key=str(i), meta=json.dumps({"boxes": each}))
        for i, each in enumerate(boxes)
    ]
    folder = toys.write_data_set(tmp_path / "d", {"train": records})
    config = {"name": str(folder), "image_size": 4, "image_ops": "resize_small(8)|center_crop(4)"}
    spec = {"image": View(), "boxes": Boxes(count=3), "index": Index()}
    iterator = pipeline.train_iterator(
        config, tokenizer=tokens, global_batch_size=24, seed=0, spec=spec
    )
    batch = next(iterator)
    stats = iterator.stats()
    iterator.close()
    assert stats["records"] == {"bad_meta": 4} and set(batch["index"].tolist()) == {0, 1}
    first = batch["boxes"][batch["index"] == 0]
    assert first[:, 1].any() and not first[:, [0, 2]].any()
    assert not batch["boxes"][batch["index"] == 1].any()  # no region is no fault
    assert stats["boxes"]["boxes"] == 2 * stats["boxes"]["outside"] > 0


def test_boxes_out_of_the_picture_are_zero():
    chain = image_ops.build("center_crop(4)", 4)
    boxes = chain.boxes((8, 8), np.array([[0, 0, 0.2, 0.2], [0, 0, 1, 1]]), np.zeros(0))
    np.testing.assert_array_equal(boxes, [[0, 0, 0, 0], [0, 0, 1, 1]])


# --- what a data set can't have -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"label": Label()}, "no class labels: none of 5 records looked at has"),
        ({"image": View(), "boxes": Boxes()}, "no boxes"),
        ({"boxes": Boxes()}, "boxes are those of batch.'image'., which is not asked for"),
        ({"n": Negatives()}, "negatives are those of batch.'text'., which is not asked for"),
        ({"h": CaptionHash()}, "not asked for"),
        ({"view1/image": View(ops="flipp")}, "did you mean 'flip'"),
        ({"view1/image": View(size=-1)}, "size=-1 must not be negative"),
        ({"text": Captions(policy="shortes")}, "unknown policy 'shortes'; did you mean 'shortest'"),
        ({"text": Captions(count=0)}, "count=0 must be at least 1"),
        ({"text": Captions(ops="swop_words")}, "did you mean 'swap_words'"),
        ({"text": Captions(source="de")}, "no captions tagged 'de'"),
        ({"text": Captions(shares=(("de", 1.0),))}, "no captions tagged 'de'"),
        ({"text": Captions(shares=(("alt", 0.0),))}, "must be positive, one for each tag"),
        ({"text": Captions(shares=(("alt", 1.0),), source="alt")}, "they go with no source"),
        ({"text": Captions(), "n": Negatives(count=0)}, "count=0"),
        ({"x": fields.Field()}, "no field of jaxclip.fields"),
    ],
)
def test_mistakes_name_the_key_and_its_owner(tmp_path, toys, spec, message):
    records = [dataclasses.replace(record, label=-1) for record in toys.records(5)]
    folder = toys.write_data_set(tmp_path / "d", {"train": records})
    owners = dict.fromkeys(spec, "objective 'slip'")
    with pytest.raises(ValueError, match=message) as error:
        pipeline.check_spec({"name": str(folder)}, spec, owners=owners)
    assert "which objective 'slip' wants" in str(error.value)
    assert "\n" not in str(error.value)


def test_boxes_need_ops_that_say_where(toy):
    @image_ops.register("mirror_for_test", level="example")
    def mirror():
        return lambda image, u: image

    try:
        spec = {"image": View(ops="mirror_for_test"), "boxes": Boxes()}
        with pytest.raises(ValueError, match="'mirror_for_test' does not say where it puts a box"):
            pipeline.check_spec(toy, spec)
    finally:
        del IMAGE_OPS._registered["mirror_for_test"]


# --- classes that stand together ----------------------------------------------------------------


def test_examples_per_class(toy):
    config = {**toy, "examples_per_class": 2}
    spec = {"text": Captions(), "label": Label(), "index": Index()}
    whole = joined(take(config, tokens, 15, spec))
    # Four epochs of thirty; each record once in each.
    assert (np.sort(whole["index"].reshape(4, 30), axis=1) == np.arange(30)).all()
    pairs = whole["label"].reshape(-1, 2)
    assert (pairs[:, 0] == pairs[:, 1]).mean() > 0.9
    assert (whole["index"].reshape(-1, 2)[:, 0] != whole["index"].reshape(-1, 2)[:, 1]).all()
    again = joined(take(config, tokens, 4, spec, start_step=11))
    np.testing.assert_array_equal(again["index"], whole["index"][88:])
    with pytest.raises(ValueError, match=r"must be a multiple of data.examples_per_class=3"):
        take({**toy, "examples_per_class": 3}, tokens, 1, spec)


def test_examples_per_class_needs_classes(tmp_path, toys):
    records = [dataclasses.replace(record, label=-1) for record in toys.records(5)]
    folder = toys.write_data_set(tmp_path / "d", {"train": records})
    with pytest.raises(ValueError, match="needs class labels, but split 'train'"):
        take({"name": str(folder), "examples_per_class": 2}, tokens, 1, {"text": Captions()})
