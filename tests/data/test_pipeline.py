"""The input pipeline: a step's data is a function of (seed, step), whoever makes it."""

import gc
import logging
import threading
import weakref

import numpy as np
import pytest

from jaxclip.data import pipeline
from jaxclip.data.record import Record
from tests.patience import until

AUGMENT = "random_resized_crop(0.3, 1.0)|flip|color_jitter|random_erasing"


@pytest.fixture(scope="module")
def toy(tmp_path_factory, toys):
    """A data set of 30 records, and a config that augments it."""
    folder = toys.write_data_set(
        tmp_path_factory.mktemp("toy") / "toy",
        {"train": toys.records(30), "val": toys.records(7), "none": []},
        shards=3,
    )
    return {"name": str(folder), "image_size": 8, "image_ops": AUGMENT}


@pytest.fixture(autouse=True)
def needs_tensorflow():
    pytest.importorskip("tensorflow")


def take(config, tokenize, steps, **options):
    """The batches of some steps, each as a dict of arrays."""
    options = {"global_batch_size": 8, "seed": 5, **options}
    iterator = pipeline.train_iterator(config, tokenizer=tokenize, **options)
    batches = [next(iterator) for _ in range(steps)]
    iterator.close()
    return batches


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys() == {"image", "text"}
        for name in batch:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


def test_batches_have_the_promised_shapes(toy, tokenize):
    (batch,) = take(toy, tokenize, 1)
    assert batch["image"].shape == (8, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["text"].shape == (8, 2) and batch["text"].dtype == np.int32


@pytest.mark.parametrize("start", [1, 3, 9])
def test_starting_anywhere_gives_the_same_steps(toy, tokenize, start):
    # Steps 3 and 7 run across the border of two epochs of 30.
    assert_same(take(toy, tokenize, 12)[start:], take(toy, tokenize, 12 - start, start_step=start))


@pytest.mark.parametrize("process_count", [2, 4, 8])
def test_processes_together_make_the_same_batches(toy, tokenize, process_count):
    parts = [
        take(toy, tokenize, 5, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    together = [
        {name: np.concatenate([batch[name] for batch in step]) for name in ("image", "text")}
        for step in zip(*parts, strict=True)
    ]
    assert_same(take(toy, tokenize, 5), together)


@pytest.mark.parametrize(
    "runtime",
    [
        {"num_parallel_calls": 1},
        {"num_parallel_calls": 7},
        {"cache_decoded_mb": 0},
        {"cache_decoded_mb": 0.005},  # room for a few records only
        {"prefetch": 9},
    ],
)
def test_threads_and_caches_change_nothing(toy, tokenize, runtime):
    assert_same(take(toy, tokenize, 9), take({**toy, **runtime}, tokenize, 9))


def test_seeds_and_steps_differ(toy, tokenize):
    batches = take(toy, tokenize, 6)
    for other in (*batches[1:], take(toy, tokenize, 1, seed=6)[0]):
        assert not np.array_equal(batches[0]["image"], other["image"])
        assert not np.array_equal(batches[0]["text"], other["text"])


def test_an_epoch_has_every_record_once_and_both_captions_turn_up(toy, tokenize):
    text = np.concatenate([b["text"] for b in take(toy, tokenize, 60, global_batch_size=10)])
    numbers = text[:, 1].reshape(20, 30)  # 20 epochs
    assert (np.sort(numbers, axis=1) == np.arange(30)).all()
    # 600 draws of two captions: half each, within 5 standard deviations.
    assert abs((text[:, 0] == 1).sum() - 300) < 5 * np.sqrt(600 / 4)


def test_without_ops_images_are_the_records(toy, tokenize, toys):
    config = {**toy, "image_size": 12, "image_ops": ""}
    (batch,) = take(config, tokenize, 1)
    from jaxclip.data.decode import decode

    for image, text in zip(batch["image"], batch["text"], strict=True):
        np.testing.assert_array_equal(image, np.asarray(decode(toys.picture(int(text[1])))))


def test_a_data_set_smaller_than_a_batch_is_repeated(toys, tmp_path, tokenize, caplog):
    folder = toys.write_data_set(tmp_path, {"train": toys.records(3)})
    with caplog.at_level(logging.WARNING):
        batches = take({"name": str(folder), "image_size": 8}, tokenize, 3)
    numbers = np.concatenate([batch["text"][:, 1] for batch in batches])
    assert (np.sort(numbers.reshape(8, 3), axis=1) == np.arange(3)).all()
    assert "3 records, fewer than a batch of 8" in caplog.text


def test_fewer_records_than_processes(toys, tmp_path, tokenize):
    config = {"name": str(toys.write_data_set(tmp_path, {"train": toys.records(3)}))}
    config |= {"image_size": 8}
    parts = [take(config, tokenize, 2, process_index=i, process_count=8) for i in range(8)]
    together = [
        {name: np.concatenate([part[step][name] for part in parts]) for name in parts[0][0]}
        for step in range(2)
    ]
    assert_same(take(config, tokenize, 2), together)
    shares = [
        list(pipeline.eval_batches(config, "train", batch_size=8, process_index=i, process_count=8))
        for i in range(8)
    ]
    assert [len(share) for share in shares] == [1] * 8
    assert [bool(share[0]["mask"][0]) for share in shares] == [True] * 3 + [False] * 5


# --- bad records --------------------------------------------------------------------------------


@pytest.fixture
def damaged(toys, tmp_path):
    """Twenty records, four of which cannot be used, each for another reason."""
    records = toys.records(20)
    records[3] = Record(b"no picture", ("thing 99",), key="bad")
    records[7] = Record(records[7].image[:60], ("thing 99",), key="cut")
    records[11] = Record(b"", ("thing 99",), key="empty")
    records[13] = Record(records[13].image, (" ",), key="mute")
    folder = toys.write_data_set(tmp_path, {"train": records})
    return {"name": str(folder), "image_size": 8, "image_ops": AUGMENT}


def test_bad_records_are_replaced_and_counted(damaged, tokenize, caplog):
    iterator = pipeline.train_iterator(damaged, tokenizer=tokenize, global_batch_size=10, seed=0)
    with caplog.at_level(logging.WARNING):
        batches = [next(iterator) for _ in range(20)]
    stats = iterator.stats()
    iterator.close()
    numbers = np.concatenate([batch["text"][:, 1] for batch in batches])
    # Ten epochs of twenty records; 160 places stand as they are, 40 were filled with others.
    assert not set(numbers) & {3, 7, 11, 13, 99}
    counts = np.bincount(numbers, minlength=20)[[i for i in range(20) if i not in (3, 7, 11, 13)]]
    assert counts.min() >= 10 and counts.sum() == 200
    reasons = {"undecodable", "truncated", "zero_bytes", "empty_caption"}
    assert stats["records"] == dict.fromkeys(reasons, 1)
    # Batches made ahead count as well, and so does drawing a bad one as a replacement.
    assert all(stats["uses"][reason] >= 10 for reason in reasons)
    assert "record 3 (bad) is undecodable" in caplog.text
    assert caplog.text.count("is undecodable") == 1


def test_replacements_are_a_function_of_seed_and_step(damaged, tokenize):
    whole = take(damaged, tokenize, 8)
    assert_same(whole[3:], take(damaged, tokenize, 5, start_step=3))
    parts = [take(damaged, tokenize, 8, process_index=i, process_count=2) for i in range(2)]
    together = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(*parts, strict=True)
    ]
    assert_same(whole, together)


def test_nothing_usable_is_an_error_that_says_why(toys, tmp_path, tokenize):
    records = [Record(b"no picture", ("a 1",), key=str(i)) for i in range(4)]
    config = {"name": str(toys.write_data_set(tmp_path, {"train": records})), "image_size": 8}
    iterator = pipeline.train_iterator(config, tokenizer=tokenize, global_batch_size=2, seed=0)
    with pytest.raises(Exception, match="undecodable"):
        next(iterator)


# --- evaluation ---------------------------------------------------------------------------------


def test_evaluation_has_every_example_once_in_order(toy):
    batches = list(pipeline.eval_batches(toy, "val", batch_size=3))
    assert [batch["mask"].tolist() for batch in batches] == [
        [True] * 3,
        [True] * 3,
        [True] + [False] * 2,
    ]
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == [*range(7), -1, -1]
    # Written in three shards: 0 3 6, 1 4, 2 5.
    assert [key for batch in batches for key in batch["key"]] == [
        "key0", "key3", "key6", "key1", "key4", "key2", "key5", "", "",
    ]  # fmt: skip
    assert batches[0]["texts"][1] == ["thing 3", "item 3"]
    assert batches[1]["label"].tolist() == [1, 1, 2] and batches[2]["label"].tolist() == [2, -1, -1]
    assert batches[2]["image"].shape == (3, 8, 8, 3) and not batches[2]["image"][1:].any()


def test_evaluation_on_processes(toy):
    whole = list(pipeline.eval_batches(toy, "val", batch_size=4))
    parts = [
        list(pipeline.eval_batches(toy, "val", batch_size=4, process_index=i, process_count=2))
        for i in range(2)
    ]
    for batch, first, second in zip(whole, *parts, strict=True):
        for name in ("image", "mask", "index", "label"):
            np.testing.assert_array_equal(batch[name], np.concatenate([first[name], second[name]]))
        assert batch["key"] == first["key"] + second["key"]


def test_evaluation_masks_bad_records_and_keeps_their_index(damaged):
    batches = list(pipeline.eval_batches(damaged, "train", batch_size=20))
    assert np.flatnonzero(~batches[0]["mask"]).tolist() == [3, 7, 11, 13]
    assert batches[0]["index"].tolist() == list(range(20))


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"train_split": "trian"}, {}, "no split 'trian'; did you mean 'train'"),
        ({"train_split": "none"}, {}, "split 'none' of data set .* is empty"),
        ({"image_sise": 8}, {}, "unknown data config key 'image_sise'; did you mean 'image_size'"),
        ({"image_ops": "flop"}, {}, "did you mean 'flip'"),
        ({"image_size": 0}, {}, "data.image_size=0"),
        ({"prefetch": -1}, {}, "data.prefetch=-1"),
        ({"languages": ["de"]}, {}, "has no captions in language 'de'"),
        (
            {},
            {"global_batch_size": 7, "process_count": 2},
            "global_batch_size=7 must be a positive",
        ),
        ({}, {"global_batch_size": 0}, "global_batch_size=0"),
        ({}, {"process_index": 2, "process_count": 2}, "process_index=2"),
        ({}, {"seed": -1}, "seed=-1"),
        ({}, {"start_step": -1}, "start_step=-1"),
    ],
)
def test_mistakes_are_named(toy, tokenize, change, options, message):
    options = {"global_batch_size": 8, "seed": 0, **options}
    with pytest.raises(ValueError, match=message):
        pipeline.train_iterator({**toy, **change}, tokenizer=tokenize, **options)


def test_missing_split_and_folder_in_evaluation(toy):
    with pytest.raises(ValueError, match="no split 'vall'; did you mean 'val'"):
        pipeline.eval_batches(toy, "vall", batch_size=2)
    with pytest.raises(ValueError, match="is empty"):
        pipeline.eval_batches(toy, "none", batch_size=2)
    with pytest.raises(FileNotFoundError, match="did you mean 'emoji'"):
        pipeline.eval_batches({"name": "emojy"}, "val", batch_size=2)


def test_closing_ends_the_iterator(toy, tokenize):
    iterator = pipeline.train_iterator(toy, tokenizer=tokenize, global_batch_size=4, seed=0)
    next(iterator)
    iterator.close()
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize("closed", [True, False])
def test_nothing_is_kept_of_an_iterator_that_is_gone(toy, tokenize, closed):
    before = {thread.ident for thread in threading.enumerate()}
    iterator = pipeline.train_iterator(
        {**toy, "num_parallel_calls": 2}, tokenizer=tokenize, global_batch_size=8, seed=0
    )
    next(iterator)
    gone = weakref.ref(iterator._release.peek()[2][1])  # the loader, which has the cache
    if closed:
        iterator.close()
    del iterator

    def left():
        gc.collect()
        names = (t.name for t in threading.enumerate() if t.ident not in before)
        return gone() is not None or any(name.startswith("jaxclip") for name in names)

    until(lambda: not left())


def test_emoji_in_another_language(tokenize):
    from jaxclip.data import tokenizers

    tokenizer = tokenizers.load({"kind": "emoji_bpe"})
    config = {"name": "emoji", "languages": ["de"], "image_ops": "flip"}
    iterator = pipeline.train_iterator(config, tokenizer=tokenizer, global_batch_size=64, seed=0)
    texts = [tokenizer.decode(row) for row in next(iterator)["text"]]
    iterator.close()
    assert any(set(text) & set("äöüß") for text in texts)


@pytest.mark.slow
def test_memory_stays_flat(tokenize):
    import resource

    psutil_like = "/proc/self/statm"
    config = {"name": "emoji", "image_ops": AUGMENT, "image_size": 64}
    iterator = pipeline.train_iterator(config, tokenizer=lambda t: np.zeros((len(t), 4), np.int32),
                                       global_batch_size=64, seed=0)  # fmt: skip

    def resident_mb():
        with open(psutil_like) as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2**20

    sizes = []
    for step in range(2000):
        next(iterator)
        if step % 200 == 199:
            sizes.append(resident_mb())
    iterator.close()
    # The first epochs fill the cache of decoded pictures; after that nothing grows.
    assert max(sizes[2:]) - min(sizes[2:]) < 20, sizes
