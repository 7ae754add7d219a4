"""`jaxclip data reinforce`, and training on what it writes."""

import dataclasses
import json
import pickle
import zlib

import jax
import numpy as np
import pytest

from jaxclip import cli, fields, inference
from jaxclip import config as config_lib
from jaxclip.data import pipeline, reinforced, sources
from jaxclip.data.record import Record
from jaxclip.inference import reinforce
from jaxclip.train import loop, setup, towers
from tests.data import conftest as toys

OPS = "random_resized_crop(0.3, 1.0)|flip|color_jitter(0.4, 0.4, 0.4, 0.1)"
OPTIONS = reinforce.Options(
    copies=3, image_ops=OPS, image_size=8, shard_size=5, batch_size=8, dtype="float32"
)


def tokens(texts):
    rows = np.zeros((len(texts), 4), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[:] = [1 + zlib.crc32(text.encode()) % 60, 1 + len(text), 63, 0]
    return rows


@pytest.fixture(scope="module")
def teachers():
    """Two models of different sizes with random parameters, one for smaller pictures."""
    made = []
    for seed, (size, dim) in enumerate([(8, 6), (4, 4)]):
        tower = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}
        config = config_lib.resolve(
            {
                "data": {"image_size": size},
                "tokenizer": {"context_length": 4},
                "model": {
                    "image": {"patch_size": 4, **tower},
                    "text": {"vocab_size": 64, **tower},
                    "embed_dim": dim,
                },
            }
        )
        model = towers.build_model(config)
        params = model.init(jax.random.key(seed))
        own = inference.Model(f"teacher{seed}", params, config, towers.from_config(config, model))
        own.__dict__["_tokenizer"] = tokens
        made.append(own)
    return made


def write_records(folder, bad=()):
    """Records with pictures of several sizes and captions of two tags."""
    records = []
    for i in range(12):
        image = b"no picture" if i in bad else toys.picture(i, 12 + i, 20 - i)
        meta = json.dumps({"caption_tags": ["alt", "blip", "blip"]})
        texts = (f"{i} a true caption", f"{i} synthetic", f"{i} another")
        records.append(Record(image, texts, key=f"key{i}", meta=meta))
    return toys.write_data_set(folder, {"train": records})


@pytest.fixture(scope="module")
def made(teachers, tmp_path_factory):
    """A reinforced data set, two of whose records are no pictures: (data, folder, summary)."""
    data = write_records(tmp_path_factory.mktemp("d") / "set", bad=(2, 7))
    folder, summary = reinforce.reinforce(str(data), "train", teachers, None, OPTIONS)
    return data, folder, summary


def spec_of(folder, **captions):
    size = sum(reinforced.Reinforced(folder).sizes)
    spec = {
        "image": fields.View(replay=str(folder)),
        "text": fields.Captions(**captions),
        "texts1/text": fields.Captions(source="blip"),
        "index": fields.Index(),
    }
    of = ("image", "text", "texts1/text")
    return {**spec, **{f"teacher/{key}": fields.Embedded(key, size, str(folder)) for key in of}}


def batches(data, spec, steps=1, start=0, **options):
    iterator = pipeline.train_iterator(
        {"name": str(data), "image_size": 8, "image_ops": "resize", **options},
        tokenizer=tokens,
        global_batch_size=8,
        seed=3,
        start_step=start,
        spec=spec,
    )
    try:
        return [next(iterator) for _ in range(steps)], iterator.stats()
    finally:
        iterator.close()


def test_training_replays_the_picture_that_was_embedded(made, teachers):
    data, folder, summary = made
    assert folder == data / "reinforced" / "train"
    assert summary.records == 10 and summary.bad == {"undecodable": 2} and summary.texts == 36
    steps, stats = batches(data, spec_of(folder), steps=3)
    kept = reinforced.Reinforced(folder)
    encoders = [reinforce._Encoder(teacher, 8) for teacher in teachers]
    seen = set()
    for batch in steps:
        for image, index in zip(batch["image"], batch["index"], strict=True):
            shard, place = kept.shard(index)
            digests = list(shard.digests[place])
            assert reinforced.picture_digest(image) in digests
            seen.add((int(index), digests.index(reinforced.picture_digest(image))))
        # The vectors are those of these very pixels and tokens, by each teacher.
        for n, teacher in enumerate(teachers):
            part = slice(0, 6) if n == 0 else slice(6, 10)
            np.testing.assert_allclose(
                batch["teacher/image"][:, part], encoders[n].images(batch["image"]), atol=1e-5
            )
            for key in ("text", "texts1/text"):
                np.testing.assert_allclose(
                    batch[f"teacher/{key}"][:, part],
                    np.asarray(teacher.encode_text(batch[key])),
                    atol=1e-5,
                )
    assert {index for index, _ in seen} <= set(range(12)) - {2, 7}
    assert len({copy for _, copy in seen}) == 3
    assert set(stats["records"]) <= {"bad_vector"} and stats["records"]["bad_vector"] == 2


def test_batches_are_a_function_of_the_step(made):
    data, folder, _ = made
    (_, third), _ = batches(data, spec_of(folder), steps=2, start=2)
    (again,), _ = batches(data, spec_of(folder), start=3)
    for key, array in third.items():
        np.testing.assert_array_equal(array, again[key])


def test_what_was_begun_goes_on_to_the_same_bytes(made, teachers, tmp_path):
    data, folder, _ = made

    class Killed(Exception):
        pass

    def kill(line):
        raise Killed

    with pytest.raises(Killed):
        reinforce.reinforce(str(data), "train", teachers, tmp_path / "r", OPTIONS, report=kill)
    assert [path.name for path in sorted((tmp_path / "r").glob("done_*"))] == ["done_00000.json"]
    with pytest.raises(ValueError, match="is not finished: 2 of 3 shards are missing"):
        batches(data, spec_of(tmp_path / "r"))
    # Half a shard, as a kill leaves it.
    (tmp_path / "r" / "images_00001.npy").write_bytes(b"half")
    _, summary = reinforce.reinforce(str(data), "train", teachers, tmp_path / "r", OPTIONS)
    assert (summary.before, summary.records) == (5, 6)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "r").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "r" / name).read_bytes()
    _, summary = reinforce.reinforce(str(data), "train", teachers, tmp_path / "r", OPTIONS)
    assert (summary.before, summary.records) == (12, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"copies": 4}, "holds reinforced records with copies=3, not 4; name another folder"),
        ({"image_ops": "resize"}, "with image_ops='random_resized_crop"),
    ],
)
def test_other_options_do_not_go_on(made, teachers, change, message):
    data, folder, _ = made
    with pytest.raises(ValueError, match=message):
        reinforce.reinforce(str(data), "train", teachers, folder, OPTIONS._replace(**change))
    with pytest.raises(ValueError, match="with teachers="):
        reinforce.reinforce(str(data), "train", teachers[:1], folder, OPTIONS)


def test_other_records_pixels_and_captions_are_refused(made, tmp_path):
    data, folder, _ = made
    other = write_records(tmp_path / "other")
    (other / "dataset_info.json").write_text((other / "dataset_info.json").read_text() + " ")
    with pytest.raises(ValueError, match="was made of other records"):
        batches(other, spec_of(folder))
    with pytest.raises(ValueError, match="image_backend='pillow', which has other pixels"):
        batches(data, spec_of(folder), image_backend="fast")
    with pytest.raises(ValueError, match="vectors are of captions as they are"):
        batches(data, spec_of(folder, ops="swap_words"))
    with pytest.raises(ValueError, match="holds vectors of 10 numbers, not 3"):
        field = fields.Embedded("image", 3, str(folder))
        batches(data, {**spec_of(folder), "teacher/image": field})
    with pytest.raises(ValueError, match="holds no reinforced records"):
        reinforced.Reinforced(tmp_path)


def test_a_library_that_makes_other_pixels_is_found_at_the_start(made, tmp_path):
    data, folder, _ = made
    changed = tmp_path / "r"
    changed.mkdir()
    for path in folder.iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    digests = np.load(folder / "digests_00000.npy")
    np.save(changed / "digests_00000.npy", digests + 1)
    with pytest.raises(ValueError, match="the replayed picture of record 0 is not the one"):
        batches(data, spec_of(changed))


def test_a_teachers_nan_keeps_its_records_out(made, teachers, tmp_path):
    data, *_ = made
    first = teachers[0]
    broken = dataclasses.replace(first, params=jax.tree.map(lambda x: x * np.nan, first.params))
    broken.__dict__.update(
        {name: first.__dict__[name] for name in ("_tokenizer", "_image", "_text")}
    )
    _, summary = reinforce.reinforce(str(data), "train", [first, broken], tmp_path / "r", OPTIONS)
    assert summary.records == 0
    assert summary.bad == {"bad_vector": 10, "undecodable": 2, "caption_bad_vector": 36}


def test_the_folder_travels_to_worker_processes(made):
    kept = pickle.loads(pickle.dumps(reinforced.Reinforced(made[1])))
    u = np.array([0.9], np.float32)
    assert kept.copy_of(u) == 2 and kept.copy_of(np.array([1.0], np.float32)) == 2
    np.testing.assert_array_equal(kept.numbers(11, u), kept.shard(11)[0].augmentations[1, 2])
    assert kept.text_vector(11, "never seen") is None


@pytest.mark.slow
def test_mobileclip_trains_on_it(made, tmp_path):
    data, folder, _ = made
    tower = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}
    config = {
        "total_steps": 4,
        "optim": {"schedule": {"name": "constant", "warmup_steps": 0}},
        "log_every_steps": 2,
        "global_batch_size": 8,
        "data": {"name": str(data), "image_size": 8},
        "tokenizer": {"context_length": 4},
        "model": {"image": {"patch_size": 4, **tower}, "text": tower, "embed_dim": 8},
        "objective": [
            {"name": "mobileclip", "sizes": [6, 4], "scales": [100.0, 70.0],
             "captions": "random", "synthetic": "blip"}
        ],
        "teacher": {"kind": "reinforced", "path": str(folder)},
    }  # fmt: skip
    resolved = config_lib.resolve(config)
    experiment = setup.build(resolved, devices=jax.devices()[:1])
    assert experiment.batch_spec["image"] == fields.View(replay=str(folder))
    assert experiment.batch_spec["teacher/texts1/text"] == fields.Embedded(
        "texts1/text", 10, str(folder)
    )
    with pytest.raises(ValueError, match=r"teacher.kind='reinforced' needs teacher.path"):
        setup.build(config_lib.resolve({**config, "teacher": {"kind": "reinforced"}}))
    result = loop.train(resolved, tmp_path / "run")
    assert result.finished
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "mobileclip/distill" in text and "NaN" not in text


def test_a_stored_vector_of_one_caption_is_refused_where_any_is_drawn(made):
    data, *_ = made
    pipeline.write_stored(data, "train", "t", np.ones((12, 3), np.float32))
    spec = {"text": fields.Captions(), "teacher/text": fields.Stored("t", 3)}
    with pytest.raises(ValueError, match="a stored vector is that of one caption"):
        pipeline.check_spec({"name": str(data)}, spec)
    spec["text"] = fields.Captions(policy="first")
    pipeline.check_spec({"name": str(data)}, spec)


def test_the_command_says_what_is_missing(capsys):
    assert cli.main(["data", "reinforce", "--data", "emoji"]) != 0
    assert "name at least one --teacher" in capsys.readouterr().err
    assert sources.open("emoji").splits["train"] == 3488
