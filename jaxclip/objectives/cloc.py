"""CLOC: region embeddings made of patches by a prompt, which is a box or a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip.models import CLIPConfig, layers, unit
from jaxclip.models.heads import MLPHead
from jaxclip.objectives import _regions
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import (
    check_choice,
    check_count,
    check_heads,
    check_number,
    check_square_grid,
)
from jaxclip.objectives._clip import clip_part


class Prompter(nn.Module):
    """A Transformer layer in which prompts look at patches: [B, R, C], [B, N, C] -> [B, R, C].

    x + attention(norm(x), norm(patches)), then x + mlp(norm(x)); prompts do not see each other.
    """

    num_heads: int
    mlp_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, prompts: jax.Array, patches: jax.Array) -> jax.Array:
        def norm(name: str) -> Any:
            return layers.norm(1e-6, self.dtype, name)

        x, keys = prompts.astype(self.dtype), norm("patch_norm")(patches.astype(self.dtype))
        attention = layers.Attention(self.num_heads, self.dtype, name="attention")
        x = x + attention(norm("prompt_norm")(x), keys, mask=None, causal=False)[0]
        mlp = layers.MLP(self.mlp_dim, "gelu", self.dtype, name="mlp")
        return x + mlp(norm("mlp_norm")(x))


@dataclasses.dataclass(frozen=True)
class CLOC(Objective):
    """Chen et al. 2024 (arXiv:2410.02746): CLIP + region_weight (regions and texts + grounding).

    A prompter turns a box and the picture's patches into a region embedding, which is contrasted
    with the region's text over the global batch; the same prompter turns a region's text into a
    vector of which a head reads the box (L1 + 1 - GIoU). Records bring boxes and texts (the paper
    makes about four a picture by recaptioning and a detector). Regions with the same text are left
    out of each other's negatives: the same tokens, where the paper compares texts by similarity.
    The weights are not known; the defaults are a guess.

    The paper: batch 32768, betas 0.9 and 0.98.

    Attributes:
      contrastive: weight of CLIP's loss; 0 where a contrastive term of its own is listed.
      region_weight: of both terms on regions.
      grounding: weight of the boxes within them; 0 for none.
      prompter: ``"attention"``, a light Transformer layer, or ``"pool"``, the mean of the patches
        in a box, which the text prompt can't have (grounding stays with the layer).
      num_regions: boxes of a record at most.
    """

    contrastive: float = 1.0
    region_weight: float = 1.0
    grounding: float = 1.0
    prompter: str = "attention"
    num_regions: int = 4

    small: ClassVar[Mapping[str, Any]] = {"num_regions": 2}

    def __post_init__(self) -> None:
        for name in ("contrastive", "region_weight", "grounding"):
            check_number(f"cloc.{name}", getattr(self, name))
        check_choice("cloc.prompter", self.prompter, ("attention", "pool"))
        check_count("cloc.num_regions", self.num_regions)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "boxes", "regions/text", "regions/text_input"})

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({"image_tokens", "boxes", "regions/text"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return _regions.region_fields(self.num_regions)

    @property
    def whole_views(self) -> frozenset[str]:
        return frozenset({"image"} if self.prompter == "pool" else ())

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        if self.prompter == "pool":
            check_square_grid("cloc.prompter='pool'", sizes)

    def _modules(self, sizes: CLIPConfig) -> dict[str, nn.Module]:
        check_heads("cloc", sizes)
        width = sizes.image.width
        return {
            "prompter": Prompter(sizes.image.num_heads, 4 * width),
            "box_in": MLPHead(width, depth=2, width=width, activation="gelu"),
            "text_in": MLPHead(width, depth=1),
            "out": MLPHead(sizes.embed_dim, depth=1),
            "box_out": MLPHead(4, depth=2, width=width, activation="gelu"),
        }

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        width, tokens = sizes.image.width, jnp.zeros((1, 1, sizes.image.width))
        inputs: dict[str, tuple[jax.Array, ...]] = {
            "prompter": (tokens, tokens),
            "box_in": (jnp.zeros((1, 1, 4)),),
            "text_in": (jnp.zeros((1, 1, sizes.embed_dim)),),
            "out": (tokens,),
            "box_out": (jnp.zeros((1, 1, width)),),
        }
        modules = self._modules(sizes)
        keys = jax.random.split(rng, len(inputs))
        return {
            name: modules[name].init(key, *args)["params"]
            for key, (name, args) in zip(keys, inputs.items(), strict=True)
        }

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        modules = self._modules(ctx.sizes)

        def run(name: str, *args: jax.Array) -> Any:
            return modules[name].apply({"params": params[name]}, *args)

        tokens, boxes = outputs["image_tokens"], outputs["boxes"]
        if self.prompter == "pool":
            regions = _regions.box_pool(tokens, boxes)
        else:
            regions = run("prompter", run("box_in", 2 * boxes - 1), tokens)
        found = {"regions": unit(run("out", regions))}
        if self.grounding:
            prompted = run("prompter", run("text_in", outputs["regions/text"]), tokens)
            found["found_boxes"] = jax.nn.sigmoid(run("box_out", prompted))
        return found

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics = clip_part(self.contrastive, outputs["image"], outputs["text"], ctx)
        if not self.region_weight:
            return loss, metrics, state
        ids, boxes = outputs["regions/text_input"], outputs["boxes"]
        valid = _regions.valid_regions(boxes, ids)
        contrast, own = _regions.region_contrast(
            _regions.flat(outputs["regions"]),
            _regions.flat(outputs["regions/text"]),
            _regions.flat(valid),
            _regions.flat(_regions.text_numbers(ids)),
            jnp.exp(ctx.logit_scale),
        )
        metrics |= own | {"region": contrast}
        total = contrast
        if self.grounding:
            found = _regions.corners(outputs["found_boxes"])
            ground = _regions.box_loss(found, boxes, valid)
            metrics["grounding"] = ground
            total += self.grounding * ground
        return loss + self.region_weight * total, metrics, state
