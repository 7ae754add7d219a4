"""PSP-entropy by hand, and units counted in a tower."""

import jax
import numpy as np

from jaxclip import models
from jaxclip.evaluate import psp_entropy


def test_entropy_by_hand():
    """p = .25 of a class: .811278; always on or off: .001473 each."""
    on = np.array([[1, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 0], [1, 1, 0], [1, 1, 0]])
    found = psp_entropy.psp_entropy(on, np.array([3, 3, 3, 3, 8, 8]))
    np.testing.assert_allclose(found, [0.811278 + 0.001473, 2 * 0.001473, 1 + 0.001473], atol=1e-5)


def test_units_that_are_on_are_counted_in_every_block():
    tower = {"width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 6}
    sizes = models.CLIPConfig(
        image=models.ImageConfig(image_size=8, patch_size=4, pool="mean", **tower),
        text=models.TextConfig(vocab_size=9, context_length=3, **tower),
        embed_dim=8,
    )
    model = models.build(sizes)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.standard_normal(s.shape, np.float32) / 3,
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    images = np.random.default_rng(0).standard_normal((3, 8, 8, 3), np.float32)

    def with_bias(value):
        def shift(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return leaf + value if name.endswith("mlp/up/bias") else leaf

        return jax.tree_util.tree_map_with_path(shift, params)

    count = jax.jit(lambda p: psp_entropy.units_on(model.encode_image, p, images))
    found = count(params)
    assert [x.shape for x in found] == [(3, 6)] * 2
    assert 0 < np.mean(found) < 1
    np.testing.assert_array_equal(count(with_bias(100.0)), 1)
    np.testing.assert_array_equal(count(with_bias(-100.0)), 0)
