"""Flax's files: the numbers of ``FlaxCLIPModel``, chunks, and damage."""

import pathlib
import random

import flax.serialization
import jax
import ml_dtypes
import numpy as np
import pytest

from jaxclip import models
from jaxclip.weights import files
from jaxclip.weights.checkpoint import open_checkpoint
from tests.weights import fuzz

GOLDEN = pathlib.Path(__file__).parent / "golden" / "hf_clip_flax"


def test_embeddings_are_those_of_flax_clip_model():
    """The file and its numbers were made by transformers 4.49."""
    opened = open_checkpoint(GOLDEN / "flax_model.msgpack")
    assert opened.family == "hf_clip_flax" and opened.parts == ("image", "text")
    assert opened.sizes.image.activation == "quick_gelu"
    expected, params = np.load(GOLDEN / "expected.npz"), opened.read()
    model = models.build(opened.sizes)
    image = jax.jit(model.encode_image)(params, expected["images"])
    text = jax.jit(model.encode_text)(params, expected["tokens"])
    np.testing.assert_allclose(image, expected["image"], atol=2e-6)
    np.testing.assert_allclose(text, expected["text"], atol=2e-6)
    logits = np.exp(params["logit_scale"]) * text @ image.T
    np.testing.assert_allclose(logits.T, expected["logits"], atol=1e-5)


def write(path, tree):
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    return path


def test_every_array_is_as_flax_wrote_it(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tree = {
        "a": {"b": rng.standard_normal((3, 4)).astype(np.float32), "scalar": np.float32(2.5)},
        "c": rng.standard_normal(5).astype(ml_dtypes.bfloat16),
        "step": 70_000, "name": "x" * 40, "nothing": None, "list": [1, -5, 2.5, True],
        "long": np.arange(7000, dtype=np.int32).reshape(70, 100),
    }  # fmt: skip
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 4096)
    opened = files.open_file(write(tmp_path / "x.msgpack", tree))
    assert set(opened.tensors) == {"a.b", "a.scalar", "c", "long"}
    for name, wanted in (("a.b", tree["a"]["b"]), ("c", tree["c"]), ("long", tree["long"])):
        found = opened.tensors[name]
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_array_equal(found.read(), wanted)
    assert opened.tensors["a.scalar"].read() == np.float32(2.5)


def test_flaxs_file_yields_to_others_in_its_folder(tmp_path):
    write(tmp_path / "flax_model.msgpack", {"a": np.zeros(2, np.float32)})
    assert set(files.open_folder(tmp_path).tensors) == {"a"}
    np.savez(tmp_path / "weights.npz", b=np.zeros(3))
    assert set(files.open_folder(tmp_path).tensors) == {"b"}


@pytest.mark.parametrize("count", [200, pytest.param(1600, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_read(count, tmp_path):
    """Of a file that is headers for the most part."""
    tree = {f"layer_{i}": {"kernel": np.ones((2, 3), np.float32), "n": i} for i in range(40)}
    whole = flax.serialization.msgpack_serialize(tree)
    target, refused = tmp_path / "x.msgpack", 0
    for attempt in range(count):
        target.write_bytes(fuzz.bytes_changed(whole, random.Random(attempt)))
        try:
            for tensor in files.open_file(target).tensors.values():
                assert tensor.read().shape == tensor.shape
        except files.FileError as error:
            refused += 1
            assert "\n" not in str(error)
    print(f"{refused} refused, {count - refused} read")
    assert 0.1 * count < refused < 0.99 * count


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x93\x01\x02\x03", "no dict of arrays"),
        (b"\x80", "holds no arrays"),
        (b"\x81\xa1a" * 100 + b"\xc0", "nested more than 64 deep"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "ends within"),
        (b"\x81\xa1a\xdb\xff\xff\xff\xff", "ends within"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff" + b"\x01" * 300_000, "more than 200000 values"),
        # An array of [2^32 - 1] of which four bytes are there.
        (b"\x81\xa1a\xc7\x17\x01\x93\x91\xce\xff\xff\xff\xff\xa7float32\xc4\x04" + bytes(4),
         r"needs \d+ bytes, but there are 4"),
        (b"\x81\xa1a\xc7\x11\x01\x93\x91\x01\xa6object\xc4\x04" + bytes(4), "dtype 'object'"),
    ],
)  # fmt: skip
def test_hostile_files_are_refused_before_they_cost_anything(content, message, tmp_path):
    (tmp_path / "x.msgpack").write_bytes(content)
    with pytest.raises(files.FileError, match=message):
        files.open_file(tmp_path / "x.msgpack")
