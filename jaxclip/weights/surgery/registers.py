"""Register tokens for an image tower that was trained without (Darcet et al., 2024)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxclip.models.presets import CLIPConfig

Params = dict[str, Any]


def add_registers(params: Params, sizes: CLIPConfig, count: int) -> tuple[Params, CLIPConfig]:
    """A model whose image tower has more register tokens (arXiv:2309.16588).

    It is no identity and can't be one: each register is one more key of every attention. So they
    start where they do least, as a patch of the mean colour at the mean position: a query gives
    them the weight of ordinary background, about ``count / N`` of what it gives N patches, and what
    they hold is near the mean of what it gets anyway. With their keys hidden (a bias of the
    attention scores) the model is the old one exactly. Train it to make use of them.

    Args:
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
      sizes: its architecture.
      count: how many more; they come behind those that are there.

    Returns:
      ``(params, sizes)``; the same for ``count=0``.

    Raises:
      ValueError: a negative count, or a tower without patch embedding and learned positions.
    """
    if count < 0:
        raise ValueError(f"count={count} registers: use 0 or more")
    if count == 0:
        return params, sizes
    image, tower = sizes.image, params["image"]
    if "patch_embedding" not in tower or "positions" not in tower:
        raise ValueError(
            "registers start as a patch at the mean position: the image tower needs a patch "
            "embedding (stem='patch') and learned positions"
        )
    table = np.asarray(tower["positions"])
    start = table[table.shape[0] - image.grid**2 :].mean(axis=0, dtype=np.float64)
    # Normalised pixels of the mean colour are 0, so that the kernel adds nothing.
    start = start + np.asarray(tower["patch_embedding"].get("bias", 0.0), np.float64)
    registers = np.broadcast_to(start, (count, image.width)).astype(table.dtype)
    if image.num_registers:
        registers = np.concatenate([np.asarray(tower["registers"]), registers])
    new = dataclasses.replace(image, num_registers=image.num_registers + count)
    return (
        {**params, "image": {**tower, "registers": registers}},
        dataclasses.replace(sizes, image=new),
    )
