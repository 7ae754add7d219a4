"""The runner on a data set in memory: exact on remainders, whatever the batch and the mesh."""

import base64
import io
import json
import types
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxclip import parallel
from jaxclip.data import pipeline, sources
from jaxclip.data.record import Record
from jaxclip.evaluate import encoding, retrieval, runner, zero_shot

NUM_IMAGES, NUM_CLASSES, SIDE = 37, 5, 8
CAPTIONS = [[f"thing {i}", f"of kind {i % 7}"][: 1 + i % 2] for i in range(NUM_IMAGES)]
BAD = 11  # an image that can't be decoded


class MemoryDataSet:
    """A split ``test`` of random pictures, in the manner of the real readers."""

    name = "memory"
    classes = None
    splits: ClassVar = {"test": NUM_IMAGES}

    def __init__(self):
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (NUM_IMAGES, SIDE, SIDE, 3), np.uint8)
        self.labels = np.arange(NUM_IMAGES) % (NUM_CLASSES + 1) - 1

    def source(self, split):
        assert split == "test"
        return [
            Record(b"", tuple(texts), label=int(label))
            for texts, label in zip(CAPTIONS, self.labels, strict=True)
        ]

    def texts_of(self, languages):
        return lambda record: record.texts

    def class_names(self, split):
        assert split == "test"
        return [f"class {c}" for c in range(NUM_CLASSES)]

    def split_classes(self, split):
        return self.classes

    def eval_batches(self, config, split, *, batch_size, process_index=0, process_count=1):
        assert (config, split) == ({"name": "memory"}, "test")
        for start in range(0, NUM_IMAGES, batch_size):
            index = np.arange(start, start + batch_size)
            index[index >= NUM_IMAGES] = -1
            keep = (index >= 0) & (index != BAD)
            yield {
                "image": np.where(keep[:, None, None, None], self.images[index], 99),
                "mask": keep,
                "index": index,
                "label": np.where(keep, self.labels[index], -1),
                "texts": [CAPTIONS[i] if ok else [] for i, ok in zip(index, keep, strict=True)],
                "key": [f"k{i}" if ok else "" for i, ok in zip(index, keep, strict=True)],
            }


@pytest.fixture
def data_set(monkeypatch):
    data = MemoryDataSet()
    monkeypatch.setattr(sources, "open", lambda name: data)
    monkeypatch.setattr(pipeline, "eval_batches", data.eval_batches)
    return data


def tokenizer(texts):
    return np.array([[1 + sum(t.encode()) % 50, 1 + len(t), 1 + t.encode()[-1] % 9] for t in texts])


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def encode_image(params, images):
    assert images.dtype == jnp.uint8
    return unit(images.reshape(len(images), -1).astype(jnp.float32) @ params["image"])


def encode_text(params, tokens):
    assert tokens.dtype == jnp.int32
    return unit(params["text"][tokens].sum(1))


@pytest.fixture
def params():
    rng = np.random.default_rng(1)
    return {
        "image": jnp.asarray(rng.normal(size=(SIDE * SIDE * 3, 6)), jnp.float32),
        "text": jnp.asarray(rng.normal(size=(64, 6)), jnp.float32),
    }


def config(batch_size=8, **options):
    evaluate = {
        "batch_size": batch_size,
        "zero_shot": ["test"],
        "retrieval": ["test"],
        "templates": ["{}", "a {}"],
        "gallery_split": "test",
    }
    return {"data": {"name": "memory"}, "evaluate": {**evaluate, **options}}


def evaluate(params, mesh=None, workdir=None, **options):
    return runner.evaluate(
        encode_image,
        encode_text,
        params,
        config(**options),
        tokenizer=tokenizer,
        mesh=mesh or parallel.make_mesh(),
        workdir=workdir,
        step=7,
    )


def expected(data, params):
    """The same numbers without batches, mesh or padding."""
    keep = [i for i in range(NUM_IMAGES) if i != BAD]
    images = np.asarray(encode_image(params, jnp.asarray(data.images[keep])))
    captions = retrieval.index_captions([CAPTIONS[i] for i in keep])
    texts = np.asarray(encode_text(params, jnp.asarray(tokenizer(captions.texts), jnp.int32)))
    prompts = [t.replace("{}", n) for n in data.class_names("test") for t in ("{}", "a {}")]
    classes = zero_shot.class_embeddings(
        np.asarray(encode_text(params, jnp.asarray(tokenizer(prompts), jnp.int32))), NUM_CLASSES
    )
    zero = zero_shot.classify(images, classes, data.labels[keep])
    found = {f"test/zero_shot/{k}": v for k, v in zero.metrics().items()}
    for name, ask in (
        ("image_to_text", retrieval.image_to_text),
        ("text_to_image", retrieval.text_to_image),
    ):
        recall = ask(images, texts, captions.pairs)
        found |= {f"test/retrieval/{k}": v for k, v in recall.metrics(name).items()}
    return {
        **found,
        "test/zero_shot/num_examples": zero.examples,
        "test/zero_shot/num_classes": NUM_CLASSES,
        "test/retrieval/num_images": len(keep),
        "test/retrieval/num_captions": len(captions.texts),
    }


@pytest.mark.parametrize("batch_size", [1, 8, 64])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_exact_whatever_batch_and_mesh(data_set, params, batch_size, num_devices):
    mesh = parallel.make_mesh({"data": -1}, devices=jax.devices()[:num_devices])
    assert evaluate(params, mesh, batch_size=batch_size) == expected(data_set, params)


def test_parameters_may_be_sharded(data_set, params):
    mesh = parallel.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    spec = jax.sharding.PartitionSpec("fsdp")
    sharded = jax.device_put(params, jax.sharding.NamedSharding(mesh, spec))
    found = evaluate(sharded, mesh)
    assert found == expected(data_set, params)


def test_second_evaluation_compiles_nothing(data_set, params):
    traces = 0

    def counted(params, tokens):
        nonlocal traces
        traces += 1
        return encode_text(params, tokens)

    for _ in range(2):
        runner.evaluate(
            encode_image,
            counted,
            params,
            config(),
            tokenizer=tokenizer,
            mesh=parallel.make_mesh(),
        )
    assert traces == 1


def test_only_classes_of_the_split_compete(data_set, params):
    data_set.classes = [3, 1]
    found = evaluate(params)
    assert found["test/zero_shot/num_classes"] == 2
    labels = np.delete(data_set.labels, BAD)
    assert found["test/zero_shot/num_examples"] == np.isin(labels, [1, 3]).sum()
    assert found["test/zero_shot/top5"] == 1.0


def test_an_example_given_twice_is_an_error(data_set, params):
    batches = list(data_set.eval_batches({"name": "memory"}, "test", batch_size=8))
    with pytest.raises(ValueError, match="example 0 was evaluated twice"):
        encoding.encode_split(
            encode_image, params, batches + batches[:1], batch_size=8, mesh=parallel.make_mesh()
        )


def test_an_empty_split_is_an_error(params):
    with pytest.raises(ValueError, match="no example"):
        encoding.encode_split(encode_image, params, [], batch_size=8, mesh=parallel.make_mesh())


def test_no_class_names_is_explained(data_set, params, monkeypatch):
    monkeypatch.setattr(data_set, "class_names", lambda split: None)
    with pytest.raises(ValueError, match=r"evaluate.zero_shot .*has no class names; take"):
        evaluate(params)


def test_results_and_gallery_are_kept(data_set, params, tmp_path):
    found = evaluate(params, workdir=tmp_path)
    runner.write_results(tmp_path, {"x": float("nan")}, step=9, weights="ema")
    results = runner.read_results(tmp_path)
    assert results["model"]["metrics"] == found
    assert results["model"]["step"] == 7
    assert np.isnan(results["ema"]["metrics"]["x"])
    json.loads((tmp_path / "eval.json").read_text(), parse_constant=pytest.fail)

    gallery = json.loads((tmp_path / "gallery.json").read_text())
    assert (gallery["split"], gallery["step"]) == ("test", 7)
    assert len(gallery["text_to_image"]) == 12 and len(gallery["image_to_text"]) == 8
    row = gallery["text_to_image"][0]
    assert len(row["results"]) == 5
    scores = [result["score"] for result in row["results"]]
    assert scores == sorted(scores, reverse=True)
    keep = [i for i in range(NUM_IMAGES) if i != BAD]
    for result in row["results"]:
        number = keep[int(result["picture"])]
        assert result["right"] == (row["query"] in CAPTIONS[number])
        raw = base64.b64decode(gallery["pictures"][result["picture"]].split(",")[1])
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(raw))), data_set.images[number]
        )
    for row in gallery["image_to_text"]:
        own = CAPTIONS[keep[int(row["picture"])]]
        assert all(result["right"] == (result["text"] in own) for result in row["results"])


def test_json_gather_is_the_identity_alone():
    assert encoding.gather_json({"a": [1]}) == [{"a": [1]}]


def test_processes_without_examples_still_take_part(monkeypatch):
    """Two processes, 3 and 0 batches: the second one goes along with empty batches."""
    shape_and_type = [[4, 3], "|u1"]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    rounds = iter([True, True, True, False])
    monkeypatch.setattr(
        encoding,
        "multihost_utils",
        types.SimpleNamespace(process_allgather=lambda own: np.array([own, next(rounds)])),
    )
    monkeypatch.setattr(encoding, "gather_json", lambda own: [shape_and_type, own])
    got = list(encoding.in_step(iter([])))
    assert len(got) == 3
    assert all(x.shape == (0, 4, 3) and x.dtype == np.uint8 and not len(p) for x, p in got)
