"""From the same imported weights, on the same batch, a step of AdamW is torch's: gradients, too."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from jaxclip import losses, models
from jaxclip.models import presets
from jaxclip.train import state_io
from jaxclip.weights import export, mapping
from jaxclip.weights.checkpoint import open_checkpoint
from jaxclip.weights.families import FAMILIES
from tests.weights import adamw_step


def our_step(params, sizes, images, tokens):
    """``(loss, parameters after the step)``."""
    model = models.build(sizes, scan_layers=sizes.image.depth > 2)  # which compiles sooner
    sigmoid = sizes.logit_bias_init is not None

    def loss_of(params):
        loss, _ = (losses.sigmoid if sigmoid else losses.softmax)(
            model.encode_image(params, images),
            model.encode_text(params, tokens),
            logit_scale=params["logit_scale"],
            **({"logit_bias": params["logit_bias"]} if sigmoid else {}),
        )
        return loss

    given = adamw_step.OPTIONS
    tx = optax.adamw(given["lr"], *given["betas"], given["eps"], weight_decay=given["weight_decay"])

    @jax.jit
    def step(params):
        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, _ = tx.update(gradient, tx.init(params), params)
        return loss, optax.apply_updates(params, updates)

    return step(params)


def compare(family, sizes, before, after, theirs, loss, expected_loss):
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
    entries = FAMILIES.get(family).entries(sizes)
    old, new = (
        dict(mapping.to_theirs(entries, state_io.named_leaves(tree))) for tree in (before, after)
    )
    assert old.keys() == new.keys() == theirs.keys()
    worst, moved, wrong = 0.0, 0.0, 0.0
    for name, array in theirs.items():
        difference = np.asarray(new[name], np.float64) - array
        worst = max(worst, np.abs(difference).max())
        moved += np.sum((np.asarray(old[name], np.float64) - array) ** 2)
        wrong += np.sum(difference**2)
    # A step moves each number by up to 1e-3, one with a gradient near epsilon by less.
    assert worst < 1e-4 and moved > 0
    assert (wrong / moved) ** 0.5 < 3e-3
    return worst, (wrong / moved) ** 0.5


@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip"])
def test_a_step_of_adamw_is_torchs(name):
    opened = open_checkpoint(adamw_step.GOLDEN / name)
    params = opened.read()
    images, tokens = adamw_step.inputs(8, 8, 48, 4, causal=name == "hf_clip")
    expected = dict(np.load(adamw_step.GOLDEN / name / "adamw.npz"))
    expected_loss = expected.pop("the loss")
    loss, after = our_step(params, opened.sizes, images, tokens)
    compare(name, opened.sizes, params, after, expected, loss, expected_loss)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [12, 2])
@pytest.mark.parametrize(
    ("family", "preset"), [("hf_clip", "vit_b32_quickgelu"), ("hf_siglip", "siglip_b16")]
)
def test_so_is_one_of_full_size(tmp_path, family, preset, depth, capsys):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    whole = presets.get(preset)
    assert whole.image.depth == whole.text.depth == 12
    towers = {t: dataclasses.replace(getattr(whole, t), depth=depth) for t in ("image", "text")}
    sizes = dataclasses.replace(whole, **towers)
    params = adamw_step.random_parameters(sizes)
    preprocess = open_checkpoint(adamw_step.GOLDEN / family).preprocess
    export.export_checkpoint(params, sizes, family, tmp_path / "to", preprocess)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "to").train()
    text = sizes.text
    images, tokens = adamw_step.inputs(
        sizes.image.image_size, text.context_length, text.vocab_size, 2, causal=text.causal
    )
    expected_loss, expected = adamw_step.torch_step(theirs, images, tokens)
    loss, after = our_step(params, sizes, images, tokens)
    worst, share = compare(family, sizes, params, after, expected, loss, expected_loss)
    with capsys.disabled():
        print(
            f"\n{preset}, {depth} blocks: loss {float(loss):.6f} and {expected_loss:.6f}, largest "
            f"difference {worst:.1e}, {share:.1e} of the step"
        )
