"""A fourth channel for an image tower that was trained without (Sun et al., 2024)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxclip.models.presets import CLIPConfig

Params = dict[str, Any]


def add_alpha(params: Params, sizes: CLIPConfig) -> tuple[Params, CLIPConfig]:
    """A model whose pictures may have a mask beside their colours (Alpha-CLIP, arXiv:2312.03818).

    The identity, whatever the mask: what the channel adds to the patches begins at zero, as in the
    paper. Train it on pictures with masks to make use of it.

    Args:
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
      sizes: its architecture.

    Returns:
      ``(params, sizes)``; the same where the tower has the channel already.

    Raises:
      ValueError: a tower without a patch embedding.
    """
    image = sizes.image
    if image.alpha:
        return params, sizes
    tower = params["image"]
    if "patch_embedding" not in tower or image.max_patches:
        raise ValueError(
            "an alpha channel joins the patches of a picture: the image tower needs a patch "
            "embedding (kind='vit', stem='patch', no max_patches)"
        )
    dtype = np.asarray(tower["patch_embedding"]["kernel"]).dtype
    kernel = np.zeros((image.patch_size**2, image.width), dtype)
    new = dataclasses.replace(sizes, image=dataclasses.replace(image, alpha=True))
    return {**params, "image": {**tower, "alpha_embedding": {"kernel": kernel}}}, new
