"""One AdamW step by torch on a model of ``transformers``, for comparison with ours.

    python -m tests.weights.adamw_step

writes ``golden/<model>/adamw.npz``: the loss, and every parameter after the step.
"""

import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"
# The epsilon of CLIP's paper. The gradient of a key's bias is zero but for rounding, of which a
# smaller one would make whole steps.
OPTIONS = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}


def random_parameters(sizes):
    """Parameters of an architecture by NumPy, of the size that training begins with.

    To compile :meth:`jaxclip.models.CLIP.init` takes longer than a step.
    """
    import jax

    from jaxclip import models

    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    rng = np.random.default_rng(7)

    def draw(path, shape):
        *_, kind = (str(key.key) for key in path)
        if not shape.shape:
            initial = {"logit_scale": sizes.logit_scale_init, "logit_bias": sizes.logit_bias_init}
            return np.float32(initial[kind])
        noise = rng.standard_normal(shape.shape, np.float32)
        if kind == "scale":
            return 1 + 0.1 * noise
        if kind == "kernel":
            return noise * np.float32(shape.shape[0] ** -0.5)
        return np.float32(0.02) * noise

    return jax.tree_util.tree_map_with_path(draw, shapes)


def inputs(size, length, vocabulary, batch, *, causal):
    rng = np.random.default_rng(5)
    images = rng.standard_normal((batch, size, size, 3)).astype(np.float32)
    tokens = rng.integers(3, vocabulary - 2, (batch, length)).astype(np.int32)
    if causal:  # the end of a text is its largest token
        tokens[:, -1] = vocabulary - 1
    return images, tokens


def unit_embeddings(model, images, tokens):
    import torch

    found = (
        model.get_image_features(pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2)),
        model.get_text_features(input_ids=torch.from_numpy(tokens).long()),
    )
    rows = [x if torch.is_tensor(x) else x.pooler_output for x in found]
    return [x / x.norm(dim=-1, keepdim=True) for x in rows]


def torch_step(model, images, tokens):
    """``(loss, {name: float32 after the step})``."""
    import torch
    import torch.nn.functional as F

    image, text = unit_embeddings(model, images, tokens)
    logits = model.logit_scale.exp() * image @ text.T
    if hasattr(model, "logit_bias"):
        sign = 2 * torch.eye(len(logits)) - 1
        loss = -F.logsigmoid(sign * (logits + model.logit_bias)).sum() / len(logits)
    else:
        target = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    optimizer = torch.optim.AdamW(model.parameters(), **OPTIONS)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    state = {n: p.detach().numpy().copy() for n, p in model.state_dict().items()}
    return float(loss), {n: p for n, p in state.items() if not n.endswith("position_ids")}


def main():
    import transformers

    for name in ("hf_clip", "hf_siglip"):
        model = transformers.AutoModel.from_pretrained(GOLDEN / name).train()
        images, tokens = inputs(8, 8, 48, 4, causal=name == "hf_clip")
        loss, after = torch_step(model, images, tokens)
        np.savez_compressed(GOLDEN / name / "adamw.npz", **after, **{"the loss": loss})


if __name__ == "__main__":
    main()
