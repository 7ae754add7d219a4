"""Captions by any objective that writes them, with guidance."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.inference import caption, generate
from jaxclip.objectives.maccap import MacCap
from jaxclip.train import towers as towers_lib
from tests.objectives import fixture_g

TOWER = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}
SIZES = models.CLIPConfig(
    models.ImageConfig(image_size=4, patch_size=2, **TOWER),
    models.TextConfig(vocab_size=9, context_length=5, **TOWER),
    embed_dim=6,
)
TOWERS = towers_lib.ModelTowers(models.build(SIZES), (0.5,) * 3, (0.2,) * 3, "float32")
FRAME = generate.Frame(length=5, start_id=1, end_id=2)
PICTURES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)), jnp.uint8)


def write(term, own, **options):
    params = fixture_g.drawn(TOWERS.model.init)
    run = caption.captioner(TOWERS, term, FRAME, "greedy", options, "mine")
    params = {**params, "objective": {"mine": own}}
    return np.asarray(jax.jit(run)(params, PICTURES, jax.random.key(0)))


class Term:
    """Its logits without a picture like word 3 by 1.5; a picture adds 1 to word 4."""

    from_embeddings = True

    def visual(self, own, features, sizes):
        return jnp.ones((len(features.raw), 1, 1))

    def decode(self, own, text, image, sizes, *, at):
        logits = jnp.zeros((len(text), 1, 9)).at[:, :, 3].set(1.5)
        return logits.at[:, :, 4].add(image[:, :, 0])


@pytest.mark.parametrize(("guidance", "word"), [(0.0, 3), (1.0, 3), (2.0, 4)])
def test_guidance_goes_beyond_the_picture(guidance, word):
    rows = write(Term(), {}, guidance=guidance)
    np.testing.assert_array_equal(rows, [[1, word, word, word, 2]] * 2)


def test_maccap_writes_from_the_embedding_as_it_was_trained():
    term = MacCap(prefix=3, depth=1)
    own = fixture_g.drawn(lambda key: term.init_params(key, SIZES))
    rows = write(term, own)
    assert rows.shape == (2, 5) and (rows[:, 0] == 1).all()
    features = types.SimpleNamespace(
        embedding=fixture_g.random_rows("image", size=2, dim=6)["image"]
    )
    seen = term.visual(own, features, SIZES)
    np.testing.assert_array_equal(seen, term.tokens_of(own, features.embedding))
    assert seen.shape == (2, 3, 8)


def test_which_term_writes():
    config = {"objective": ["contrastive", {"name": "maccap", "as": "writer", "weight": 0.5}]}
    name, term = caption.term_of(config, "here")
    assert name == "writer" and isinstance(term, MacCap)
    with pytest.raises(ValueError, match="here has no captioning decoder"):
        caption.term_of({"objective": ["contrastive", "locca"]}, "here")
    with pytest.raises(ValueError, match="guidance=-1 must not be negative"):
        caption.captioner(TOWERS, term, FRAME, "greedy", {"guidance": -1})
