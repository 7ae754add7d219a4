"""LocCa's captioning part: a decoder on all patches, half of the captions all tokens at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.models import CLIPConfig
from jaxclip.models.heads import CrossAttentionDecoder, caption_decoder
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count, check_number
from jaxclip.objectives._clip import clip_part


@dataclasses.dataclass(frozen=True)
class LocCa(Objective):
    """Wan et al. 2024 (arXiv:2403.19596), after CapPa (arXiv:2306.07915), as SigLIP 2
    (arXiv:2502.14786) has it beside its contrast: CLIP + caption_weight * cross-entropy of tokens.

    The decoder has the text tower's width and looks at all patches. It writes a caption token after
    token, from the text tower's embeddings of the tokens before; or, for a part of the rows, all
    tokens at once: then its inputs are a mask token with positions, and nothing is causal. Targets
    are the same. Its output layer starts at zero. CapPa's numbers: weight 1, ``parallel`` 0.75;
    SigLIP 2's half of the captions and half the text tower's depth are recalled (not checked).

    LocCa's other tasks, the box of a phrase and the phrase of a box, are not here: records have no
    phrase for each box.

    Attributes:
      contrastive: weight of CLIP's loss; 0 where a contrastive term of its own is listed.
      caption_weight: of captioning.
      parallel: share of the rows whose tokens are predicted all at once.
      depth: layers of the decoder; 0 for half as many as the text tower has.
      zero_start: whether the output layer starts at zero (else at random).
      implementation: of CLIP's loss, ``"plain"`` or ``"blockwise"``.
    """

    contrastive: float = 1.0
    caption_weight: float = 1.0
    parallel: float = 0.5
    depth: int = 0
    zero_start: bool = True
    implementation: str = "plain"

    # A zero layer hands no gradient on in the first step, which tests look at.
    small: ClassVar[Mapping[str, Any]] = {"zero_start": False}

    def __post_init__(self) -> None:
        check_number("locca.contrastive", self.contrastive)
        check_number("locca.caption_weight", self.caption_weight)
        check_number("locca.parallel", self.parallel, high=1.0)
        check_count("locca.depth", self.depth, 0)
        check_choice("locca.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({"image_tokens", "text_hidden_0", "text_mask", "text_input"})

    def _decoder(self, sizes: CLIPConfig, dtype: Any) -> CrossAttentionDecoder:
        depth = self.depth or max(1, sizes.text.depth // 2)
        module = caption_decoder(sizes, depth=depth, dtype=dtype)
        return module.clone(vocab_size=0, causal=False)  # the mask says what a place sees

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        keys, text = jax.random.split(rng, 4), sizes.text
        tokens, image = jnp.zeros((1, 2, text.width)), jnp.zeros((1, 2, sizes.token_width))
        shape = (text.width, text.vocab_size)
        kernel = jax.random.normal(keys[3], shape) * text.width**-0.5
        return {
            "decoder": self._decoder(sizes, tokens.dtype).init(keys[0], tokens, image)["params"],
            "start": 0.02 * jax.random.normal(keys[1], (text.width,)),
            # The mask token with the positions of a text.
            "masked": 0.02 * jax.random.normal(keys[2], (text.context_length, text.width)),
            "logits": jnp.zeros(shape) if self.zero_start else kernel,
        }

    def logits(
        self, params: Params, outputs: Outputs, at_once: jax.Array, sizes: CLIPConfig
    ) -> jax.Array:
        """float32[B, L, V]: what the decoder expects at each place.

        Args:
          params: of the term.
          outputs: those of ``row_needs``.
          at_once: bool[B], rows whose tokens are all predicted at once.
          sizes: of the model.
        """
        length = outputs["text_input"].shape[1]
        text = outputs["text_hidden_0"][:, :length]
        start = jnp.broadcast_to(params["start"].astype(text.dtype), text[:, :1].shape)
        shifted = jnp.concatenate([start, text[:, :-1]], axis=1)
        masked = params["masked"][:length].astype(text.dtype)
        inputs = jnp.where(at_once[:, None, None], masked, shifted)
        # All at once, places behind the text are seen: how long it is must not be told.
        seen = at_once[:, None, None] | jnp.tril(jnp.ones((length, length), bool))
        states: Any = self._decoder(sizes, text.dtype).apply(
            {"params": params["decoder"]}, inputs, outputs["image_tokens"], text_valid=seen
        )
        kernel = params["logits"].astype(states.dtype)
        return jnp.matmul(states, kernel, preferred_element_type=jnp.float32)

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        at_once = jax.vmap(lambda key: jax.random.bernoulli(key, self.parallel))(ctx.row_keys())
        logits = self.logits(params, outputs, at_once, ctx.sizes)
        sums = losses.token_sums(logits, outputs["text_input"], outputs["text_mask"])
        return {**sums, "at_once": at_once.astype(jnp.float32)}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        loss, metrics = clip_part(
            self.contrastive, images, texts, ctx, implementation=self.implementation
        )
        nll, tokens, at_once = (outputs[key] for key in ("nll", "tokens", "at_once"))
        caption = jnp.sum(nll) / jnp.maximum(jnp.sum(tokens), 1.0)
        metrics["caption"] = caption
        for name, part in (("causal", 1.0 - at_once), ("parallel", at_once)):
            count = jnp.maximum(jnp.sum(part * tokens), 1.0)
            metrics[f"caption_{name}"] = jnp.sum(part * nll) / count
            metrics[f"caption_accuracy_{name}"] = jnp.sum(part * outputs["hits"]) / count
        return loss + self.caption_weight * caption, metrics, state
