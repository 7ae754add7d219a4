"""What clip-rocket and its relatives share: a weak pair, and two strong views of each side."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.models import CLIPConfig
from jaxclip.models.heads import MLPHead
from jaxclip.objectives import _views
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count, check_number

STRONG_TEXT_OPS = "drop_words(0.8)|swap_words(0.4)|delete_words(0.2, 0.2)"
_MAX_LOGIT_SCALE = math.log(100.0)

IMAGES = ("image", "view1/image", "view2/image")
TEXTS = ("text", "texts1/text", "texts2/text")
# (image, text) of the weak pair and of the four strong ones.
PAIRS = ((IMAGES[0], TEXTS[0]), *itertools.product(IMAGES[1:], TEXTS[1:]))


class Local(NamedTuple):
    """Strong views under the local heads, unit rows float32[B, features] by view.

    Attributes:
      images: of the two strong images.
      texts: of the two strong texts.
      logit_scale: float32[], log of their own scale.
    """

    images: list[jax.Array]
    texts: list[jax.Array]
    logit_scale: jax.Array


@dataclasses.dataclass(frozen=True)
class Rocket(Objective):
    """The contrastive part; a relative adds :meth:`relative` and its heads.

    Attributes:
      local_weight: w of the total, (L_global + w L_local) / (1 + w); 2 in the paper.
      label_smoothing: of the strong views' contrast.
      implementation: of both contrasts, ``"plain"`` or ``"blockwise"``.
      image_ops: of the strong images.
      text_ops: of the strong texts. The paper makes one of a synonym, a swap or a deletion with
        odds .4, .4, .2; here swaps and deletions are drawn apart and there are no synonyms, which
        need a list of words.
      weak_text_ops: of the weak text.
      width: of the local heads' hidden layers.
      features: that come out of them.
    """

    local_weight: float = 2.0
    label_smoothing: float = 0.1
    implementation: str = "plain"
    image_ops: str = _views.STRONG_IMAGE_OPS
    text_ops: str = STRONG_TEXT_OPS
    weak_text_ops: str = "drop_words(0.8)"
    width: int = 4096
    features: int = 256

    small: ClassVar[Mapping[str, Any]] = {"width": 16, "features": 8}

    def __post_init__(self) -> None:
        name = self.method()
        check_number(f"{name}.local_weight", self.local_weight)
        check_number(f"{name}.label_smoothing", self.label_smoothing, high=0.99)
        check_choice(f"{name}.implementation", self.implementation, IMPLEMENTATIONS)
        check_count(f"{name}.width", self.width)
        check_count(f"{name}.features", self.features)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", *(f"{v}_pooled" for v in IMAGES[1:] + TEXTS[1:])})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {
            "text": field_lib.Captions(ops=self.weak_text_ops),
            **_views.image_views(2, self.image_ops),
            **_views.text_views(2, self.text_ops),
        }

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        heads = init_heads(self._head(), rng, sizes)
        return {"local": heads, "logit_scale": jnp.asarray(math.log(1 / 0.1), jnp.float32)}

    def _head(self) -> MLPHead:
        return MLPHead(self.features, depth=3, width=self.width, norm="batch", unit=True)

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        options: dict[str, Any] = {"implementation": self.implementation, "mesh": ctx.mesh}
        weak, metrics = losses.infonce(
            outputs["image"], outputs["text"], logit_scale=ctx.logit_scale, **options
        )
        local = Local(
            [apply_head(self._head(), params["local"], outputs, view) for view in IMAGES[1:]],
            [apply_head(self._head(), params["local"], outputs, view) for view in TEXTS[1:]],
            jnp.minimum(params["logit_scale"], _MAX_LOGIT_SCALE),
        )
        options |= {"logit_scale": local.logit_scale, "label_smoothing": self.label_smoothing}
        pairs = itertools.product(local.images, local.texts)
        strong: Any = sum(losses.infonce(*pair, **options)[0] for pair in pairs) / 4
        total = (weak + self.local_weight * strong) / (1 + self.local_weight)
        metrics |= {"clip": weak, "local": strong}
        metrics["local_logit_scale"] = jnp.exp(local.logit_scale)
        more, own = self.relative(params, outputs, local, ctx)
        return total + more, metrics | own, state

    def relative(
        self, params: Params, outputs: Outputs, local: Local, ctx: Context
    ) -> tuple[Any, Metrics]:
        """What a relative adds: ``(loss, metrics)``."""
        del params, outputs, local, ctx
        return 0.0, {}


def init_heads(head: MLPHead, rng: jax.Array, sizes: CLIPConfig) -> Params:
    """Parameters of one head for images and one for texts, on pooled vectors."""
    widths = {"image": sizes.image.width, "text": sizes.text.width}
    keys = jax.random.split(rng)
    return {
        tower: head.init(key, jnp.zeros((2, width)))["params"]
        for key, (tower, width) in zip(keys, widths.items(), strict=True)
    }


def apply_head(head: MLPHead, params: Params, outputs: Outputs, view: str) -> jax.Array:
    """The head of a view's tower on the view's pooled vectors: float32[B, features].

    Args:
      head: the module.
      params: of :func:`init_heads`.
      outputs: with ``<view>_pooled``.
      view: such as ``"view1/image"`` or ``"teacher/text"``.
    """
    x = outputs[f"{view}_pooled"]
    tower = view.rpartition("/")[2]
    out: Any = head.clone(dtype=x.dtype).apply({"params": params[tower]}, x)
    return out
