"""MacCap: a caption decoder that is trained on texts alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.models import CLIPConfig, unit
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._captioning import Captioning
from jaxclip.objectives._checks import check_count, check_number
from jaxclip.objectives._clip import clip_part_if_any


@dataclasses.dataclass(frozen=True)
class MacCap(Captioning, Objective):
    """Qiu et al. 2024 (arXiv:2401.02347): a decoder writes a text from its own embedding.

    The embedding, without a gradient, gets Gaussian noise and unit length again: that covers the
    gap between the modalities, so that the decoder can be given an image's embedding later
    (``jaxclip.load(workdir).caption``). A linear map makes a few tokens of it, at which the decoder
    looks. The paper's decoder is a language model; here it is one of the text tower's width. For
    pictures the paper adds vectors of sub-regions, with noise again: :func:`subregion_vectors`
    makes them of attention and tokens in the joint space; the caption method uses the embedding
    alone. Freeze the towers (``config.optim.groups``), or train them with ``contrastive`` beside.

    Attributes:
      variance: of the noise in each coordinate.
      depth: layers of the decoder; 0 for as many as the text tower has.
      prefix: tokens that are made of an embedding.
      contrastive: weight of CLIP's loss, for the towers.
    """

    variance: float = 0.016
    depth: int = 0
    prefix: int = 10
    contrastive: float = 0.0

    # Of Captioning; no options here.
    num_queries = 0
    from_embeddings = True
    self_mlp = False

    small: ClassVar[Mapping[str, Any]] = {"contrastive": 1.0, "prefix": 2}

    def __post_init__(self) -> None:
        check_number("maccap.variance", self.variance)
        check_count("maccap.depth", self.depth, 0)
        check_count("maccap.prefix", self.prefix)
        check_number("maccap.contrastive", self.contrastive)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"} if self.contrastive else ())

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({"text", self.text_start, "text_mask", "text_input"})

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        first, second = jax.random.split(rng)
        text = jnp.zeros((1, 2, sizes.text.width))
        shape = (sizes.embed_dim, self.prefix, sizes.text.width)
        return {
            "decoder": self._decoder(sizes, text.dtype).init(first, text, text)["params"],
            "prefix": jax.random.normal(second, shape) * sizes.embed_dim**-0.5,
        }

    def visual(self, params: Params, features: Any, sizes: CLIPConfig) -> jax.Array:
        return self.tokens_of(params, features.embedding)

    def tokens_of(self, params: Params, embeddings: jax.Array) -> jax.Array:
        """What the decoder looks at, float32[B, prefix, C], of unit embeddings [B, D]."""
        return jnp.einsum("bd,dnc->bnc", embeddings, params["prefix"], precision="highest")

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        given = noisy(jax.lax.stop_gradient(outputs["text"]), self.variance, ctx.row_keys())
        text = outputs[self.text_start][:, : outputs["text_input"].shape[1]]
        logits = self.decode(params, text, self.tokens_of(params, given), ctx.sizes)[:, :-1]
        return losses.token_sums(logits, outputs["text_input"][:, 1:], outputs["text_mask"][:, 1:])

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics = clip_part_if_any(self.contrastive, outputs, ctx)
        count = jnp.maximum(jnp.sum(outputs["tokens"]), 1.0)
        caption = jnp.sum(outputs["nll"]) / count
        metrics |= {"caption": caption, "caption_accuracy": jnp.sum(outputs["hits"]) / count}
        return loss + caption, metrics, state


def noisy(vectors: jax.Array, variance: float, keys: jax.Array) -> jax.Array:
    """unit(vector + noise): float32[B, D].

    Args:
      vectors: float32[B, D].
      variance: of the noise in each coordinate; 0 for none.
      keys: key[B].
    """
    drawn = jax.vmap(lambda key: jax.random.normal(key, vectors.shape[1:]))(keys)
    return unit(vectors + variance**0.5 * drawn)


def subregion_vectors(
    attention: jax.Array, tokens: jax.Array, count: int = 10
) -> tuple[jax.Array, jax.Array]:
    """Vectors of the neighbourhoods of the patches that the class token attends to most.

    r_k = unit(softmax(attention row of patch k) @ unit(tokens)). The softmax of weights that are a
    softmax's is nearly flat; that is the authors' rule.

    Args:
      attention: float32[B, N, N], weights of the last block, the mean over heads; token 0 is the
        class token.
      tokens: float32[B, N, D], projected to the joint space.
      count: K; the class token itself may be one of them.

    Returns:
      ``(float32[B, K, D], int32[B, K])``: the vectors, and which tokens they are of.
    """
    _, chosen = jax.lax.top_k(attention[:, 0], count)
    rows = jnp.take_along_axis(attention, chosen[:, :, None], axis=1)
    mixed = jnp.einsum("bkn,bnd->bkd", jax.nn.softmax(rows), unit(tokens), precision="highest")
    return unit(mixed), chosen
