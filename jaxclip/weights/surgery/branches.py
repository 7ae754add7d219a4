"""Parallel convolutions with batch norms as the one convolution that they add up to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip.models.presets import CLIPConfig

Params = dict[str, Any]
_EPSILON = 1e-5


def fold_branches(params: Params, sizes: CLIPConfig) -> tuple[Params, CLIPConfig]:
    """A FastViT image tower with its branches folded: the same function, in fewer convolutions.

    Structural reparametrisation (Ding et al., 2021, RepVGG, arXiv:2101.03697; Vasu et al., 2023,
    arXiv:2303.14189): a batch norm on fixed statistics is a linear map, so a sum of convolutions
    and identities, each with one, is a convolution. Embeddings agree to rounding. What comes out
    can be trained on, but not taken apart again, and open_clip's format has no words for it.

    Args:
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
      sizes: its architecture.

    Returns:
      ``(params, sizes)`` with ``image.form="folded"``; the same where it is folded already.

    Raises:
      ValueError: the image tower has no branches.
    """
    if sizes.image.kind != "fastvit":
        raise ValueError(
            f"model.image.kind={sizes.image.kind!r} has no branches to fold; 'fastvit' has"
        )
    if sizes.image.form == "folded":
        return params, sizes
    image = dataclasses.replace(sizes.image, form="folded")
    folded = {**params, "image": _fold(params["image"])}
    return folded, dataclasses.replace(sizes, image=image)


def _fold(tree: Mapping[str, Any]) -> Any:
    """A tree with every node of branches folded."""
    if "conv_norm" in tree:
        return _with_squeeze(tree, _sum(tree, ("conv", "scale", "identity")))
    if "large_norm" in tree:
        return _with_squeeze(tree, _sum(tree, ("large", "small")))
    if "branches" in tree:  # x + scale * (branches(x) - norm(x))
        kernel, bias = _sum(tree["branches"], ("conv", "scale", "identity"))
        identity, shift = _identity(tree["norm"], kernel.shape)
        scale = tree["layer_scale"]
        kernel = _unit(kernel.shape) + scale * (kernel - identity)
        return {"folded": {"kernel": kernel, "bias": scale * (bias - shift)}}
    folded = {k: _fold(v) if isinstance(v, Mapping) else v for k, v in tree.items()}
    if "position" in tree:
        kernel = tree["position"]["kernel"]
        folded["position"] = {**tree["position"], "kernel": kernel + _unit(kernel.shape)}
    return folded


def _with_squeeze(tree: Mapping[str, Any], convolution: tuple[Any, Any]) -> dict[str, Any]:
    kept = {"squeeze": tree["squeeze"]} if "squeeze" in tree else {}
    return {"folded": dict(zip(("kernel", "bias"), convolution, strict=True)), **kept}


def _sum(tree: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Any, Any]:
    """Kernel and bias of the branches that are there, the first of which is the largest."""
    shape = tree[names[0]]["kernel"].shape
    kernel, bias = jnp.zeros(shape), jnp.zeros(shape[-1:])
    for name in names:
        if name not in tree:
            continue
        if name == "identity":
            one, shift = _identity(tree[name], shape)
        else:
            factor, shift = _affine(tree[f"{name}_norm"])
            one = _padded(tree[name]["kernel"], shape) * factor
        kernel, bias = kernel + one, bias + shift
    return kernel, bias


def _affine(norm: Mapping[str, Any]) -> tuple[Any, Any]:
    """A batch norm as factor and shift, [C]."""
    factor = norm["scale"] / jnp.sqrt(norm["running_var"] + _EPSILON)
    return factor, norm["bias"] - norm["running_mean"] * factor


def _identity(norm: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[Any, Any]:
    factor, shift = _affine(norm)
    return _unit(shape) * factor, shift


def _unit(shape: tuple[int, ...]) -> np.ndarray:
    """The kernel that changes nothing: [C, C] (linear) or [k, k, 1, C] (depthwise)."""
    if len(shape) == 2:
        return np.eye(shape[0], dtype=np.float32)
    kernel = np.zeros(shape, np.float32)
    kernel[shape[0] // 2, shape[1] // 2, 0] = 1.0
    return kernel


def _padded(kernel: Any, shape: tuple[int, ...]) -> Any:
    """A smaller kernel in the middle of a larger one; a linear layer's is a 1x1 kernel."""
    if kernel.ndim < len(shape):
        kernel = kernel[None, None]
    if kernel.shape == tuple(shape):
        return kernel
    margin = (shape[0] - kernel.shape[0]) // 2
    return jnp.pad(kernel, ((margin, margin), (margin, margin), (0, 0), (0, 0)))
