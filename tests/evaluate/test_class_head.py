"""The classifier that a run trains, on arrays at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.evaluate import base, stored
from jaxclip.evaluate.class_head import ClassHead
from jaxclip.models import presets
from jaxclip.objectives import class_head


def model(params, encode_tokens=None):
    return base.Model(None, None, params, None, encode_tokens=encode_tokens)


def head_of(features, rng):
    """A head whose norm is not at its initial value."""
    term = class_head.ClassHead(num_classes=5, init_scale=1.0, features=features)
    head = term.init_params(jax.random.key(0), presets.get("tiny"))
    if "norm" in head:
        head["norm"] = {k: v + rng.standard_normal(v.shape) for k, v in head["norm"].items()}
    return head


@pytest.mark.parametrize("features", ["image", "image_tokens"])
def test_it_judges_by_the_logits_of_training(features):
    rng = np.random.default_rng(0)
    head = head_of(features, rng)
    x = rng.standard_normal((40, len(head["kernel"]))).astype(np.float32) + 0.3
    if features == "image":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    best = np.array(np.argmax(class_head.class_logits(head, x), axis=1))
    labels = best.copy()
    labels[:10] = (labels[:10] + 1) % 5  # ten are wrong
    labels[-4:] = -1  # four have none
    data = base.ArrayData({"val": base.arrays(x, labels)})
    given = model({"objective": {"class_head": head}}, encode_tokens=lambda params, images: x)
    found = ClassHead().evaluate(given, data)
    assert found == {"top1": pytest.approx(26 / 36), "num_examples": 36, "num_classes": 5}


def test_the_tokens_of_evaluation_are_those_of_training():
    """What the head of a step sees, and what evaluation gives it, of the same pictures."""
    from jaxclip import config as config_lib
    from jaxclip.train import setup, towers

    config = config_lib.resolve(
        {"model": {"preset": "tiny", "image": {"depth": 1, "width": 32, "num_heads": 2}}}
    )
    own = towers.from_config(config, towers.build_model(config))
    rng, size = np.random.default_rng(0), config["data"]["image_size"]
    shapes = jax.eval_shape(own.model.init, jax.random.key(0))
    params = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)
    images = rng.integers(0, 256, (2, size, size, 3), np.uint8)
    encode = setup.token_encoder(own, setup.sparsity.Sparse())
    found, tokens = jax.jit(lambda p, x: (encode(p, x), own.features(p, "image", x).tokens))(
        params, images
    )
    expected = np.mean(np.asarray(tokens, np.float64), axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected).max() > 0.1


def test_a_run_without_a_head_and_a_model_without_tokens_are_refused():
    data = base.ArrayData({"val": base.arrays(np.eye(3), [-1, -1, -1])})
    with pytest.raises(ValueError, match="no objective 'class_head'"):
        ClassHead().evaluate(model({}), data)
    head = head_of("image_tokens", np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"reads the tokens .* \(evaluate\.token_reduction leaves"):
        ClassHead().evaluate(model({"objective": {"class_head": head}}), data)
    with pytest.raises(ValueError, match="have no label"):
        ClassHead().check(data)


class OneSplit(stored.StoredData):
    """A data set of two pictures, without files."""

    def __init__(self):
        self.name, self.split, self._cache = "two", "val", {}

    def _batches(self, split, batch_size, share, count):
        images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
        two = {"mask": [True, True], "index": [0, 1], "label": [0, 1], "key": ["a", "b"]}
        yield {**two, "texts": [["a"], ["b"]], "image": images}


def test_tokens_and_embeddings_of_a_split_are_kept_apart():
    data = OneSplit()
    embed = jax.jit(lambda params, images: images[:, 0, 0].astype(jnp.float32))
    pool = jax.jit(lambda params, images: images.mean((1, 2)))
    both = base.Model(embed, None, {}, None, encode_tokens=pool, batch_size=2)
    for _ in range(2):  # the second time from the cache
        first, mean = data.images(both).embeddings, data.images(both, tokens=True).embeddings
        np.testing.assert_array_equal(first[:, 0], [0, 48])
        np.testing.assert_allclose(mean[:, 0], [22.5, 70.5])
    with pytest.raises(ValueError, match="gives no tokens of its pictures"):
        data.images(base.Model(embed, None, {}, None), tokens=True)
