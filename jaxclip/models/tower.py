"""A tower in stages: embed, blocks[start:stop], pool and project.

Each stage is a pure function of the tower's parameters, a plain dict. Blocks are parameters
``blocks_<i>`` whatever the switches say; with ``scan_layers`` they are stacked on the fly, which
compiles one block in place of many.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import dropout as dropout_lib
from jaxclip.models import features as features_lib
from jaxclip.models import layers
from jaxclip.models.features import Features, Insert, Requests, Taps, Tokens

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tower(abc.ABC):
    """What the two towers share. It holds no parameters.

    Attributes:
      config: sizes (:class:`jaxclip.models.presets.ImageConfig` or ``TextConfig``).
      embed_dim: size of the joint space, D.
      dtype: compute dtype.
      remat: what blocks compute again in the backward pass, see :func:`layers.remat_policy`.
      scan_layers: loop over blocks in place of unrolling. Blocks that a caller asks something of
        run by themselves, between loops.
      attention_implementation: as in :func:`jaxclip.models.clip.build`.
      gather_block: function of a block's parameters and its name that makes of them what the block
        uses.
      flat_products: see :func:`layers.dense`.
    """

    config: Any
    embed_dim: int
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = False
    attention_implementation: layers.Implementation = None
    gather_block: Callable[..., Any] | None = None
    flat_products: bool = False

    @property
    @abc.abstractmethod
    def prefix(self) -> int:
        """Number of class and register tokens before the tower's own ones, P."""

    @property
    @abc.abstractmethod
    def has_projection(self) -> bool:
        """Whether a linear map leads to the joint space."""

    @abc.abstractmethod
    def init_embed(self, rng: jax.Array) -> dict[str, Any]:
        """Parameters of the first stage."""

    @abc.abstractmethod
    def embed(
        self,
        params: Params,
        inputs: jax.Array,
        *,
        keep: jax.Array | None = None,
        insert: Insert | None = None,
        keys: jax.Array | None = None,
    ) -> Tokens:
        """Inputs to tokens with positions: the first stage."""

    @abc.abstractmethod
    def mask(self, tokens: Tokens) -> jax.Array | None:
        """Which keys the queries see beside causality: bool, broadcast to [B, H, L, L], or None."""

    @abc.abstractmethod
    def pool(self, params: Params, tokens: Tokens) -> jax.Array:
        """Last norm and pooling: [B, C]."""

    @abc.abstractmethod
    def random_rates(self) -> dict[str, float]:
        """The rates above 0 that need keys in training, by name of their option."""

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Draw float32 parameters of the whole tower."""
        # One example does not divide over the devices of a sharded attention, which has no
        # parameters of its own.
        block = self.block.clone(implementation=None)
        x = jnp.zeros((1, 1, self.config.width), self.dtype)
        parts: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
            f"blocks_{index}": (block, (x, None)) for index in range(self.config.depth)
        }
        parts["norm_post"] = (self.norm_post, (x,))
        if self.config.pool == "map":
            parts["attention_pool"] = (self.attention_pool, (x,))
        if self.has_projection:
            parts["projection"] = (self.projection, (x[:, 0],))
        drawn: Any = Parts(tuple(parts), lambda name: parts[name]).init(rng)
        return {**self.init_embed(rng), **drawn["params"]}

    # The pieces, as unbound modules; `apply` gives them their parameters.

    @property
    def block(self) -> layers.Block:
        c = self.config
        return layers.Block(
            num_heads=c.num_heads,
            mlp_dim=c.mlp_dim,
            activation=c.activation,
            norm_eps=c.norm_eps,
            dtype=self.dtype,
            causal=getattr(c, "causal", False),
            implementation=self.attention_implementation,
            flat=self.flat_products,
            dropout=c.dropout,
            parent=None,
        )

    @property
    def norm_post(self) -> nn.LayerNorm:
        return layers.norm(self.config.norm_eps, self.dtype, None)

    @property
    def attention_pool(self) -> layers.AttentionPool:
        c = self.config
        return layers.AttentionPool(
            c.num_heads,
            c.mlp_dim,
            c.activation,
            c.norm_eps,
            self.dtype,
            self.flat_products,
            parent=None,
        )

    @property
    def projection(self) -> nn.Dense:
        return layers.dense(
            self.embed_dim,
            self.dtype,
            None,
            use_bias=self.config.projection == "linear_bias",
            init=nn.initializers.normal(self.config.width**-0.5),
            flat=self.flat_products,
        )

    # Stages.

    def requests(self, **options: Any) -> Requests:
        """What is asked of :meth:`blocks`; see :func:`jaxclip.models.features.requests`."""
        return features_lib.requests(self.config.depth, **options)

    def blocks(
        self,
        params: Params,
        tokens: Tokens,
        start: int = 0,
        stop: int | None = None,
        *,
        requests: Requests | None = None,
        keys: jax.Array | None = None,
    ) -> tuple[Tokens, Taps]:
        """Blocks[start:stop].

        Args:
          params: of the tower.
          tokens: what :meth:`embed` or an earlier block gave.
          start: first block.
          stop: the block behind the last one; None for all.
          requests: what is asked (:func:`jaxclip.models.features.requests`).
          keys: PRNG keys [B] for dropout, None for none.

        Raises:
          ValueError: blocks that are not there.
        """
        asked = requests or features_lib.requests(self.config.depth)
        stop = self.config.depth if stop is None else stop
        if not 0 <= start <= stop <= self.config.depth:
            raise ValueError(f"no blocks[{start}:{stop}] in a tower of depth {self.config.depth}")
        taps = Taps({}, {})
        cuts = asked.cuts(start, stop)
        self._tap(taps, asked, tokens, start)
        for first, end in features_lib.pairs(cuts):
            if asked.insert is not None and first in asked.insert.layers and first > 0:
                tokens = features_lib.put_in(tokens, asked.insert, first, self.prefix)
            how = asked.how(first, tokens.inserted)
            run = [params[f"blocks_{index}"] for index in range(first, end)]
            x, weights = self._run(run, tokens.x, self.mask(tokens), how, keys, first)
            tokens = dataclasses.replace(tokens, x=x)
            self._tap(taps, asked, tokens, end)
            if weights is not None:
                for name in features_lib.names_of(first, asked.attention, self.config.depth):
                    taps.attention[name] = weights
        return tokens, taps

    def _tap(self, taps: Taps, asked: Requests, tokens: Tokens, layer: int) -> None:
        for name in features_lib.names_of(layer, asked.hidden, self.config.depth + 1):
            taps.hidden[name] = tokens.x[:, tokens.inserted :]

    def _run(
        self,
        run: Sequence[Any],
        x: jax.Array,
        mask: jax.Array | None,
        how: layers.How,
        keys: jax.Array | None,
        first: int,
    ) -> tuple[jax.Array, jax.Array | None]:
        """A run of blocks that are treated alike; attention weights only of a run of one."""
        block = self.block
        loop = self.scan_layers and len(run) > 1

        def apply(params: Any, x: jax.Array, index: Any) -> tuple[jax.Array, jax.Array | None]:
            if self.gather_block is not None:  # recomputed: not kept between the passes
                params = self.gather_block(params, "blocks_0")
            own = None if keys is None else dropout_lib.fold_in(keys, index)
            out: Any = block.apply({"params": params}, x, mask, how, own)
            return out

        if self.remat != "none":
            # Inside a scan nothing can be merged across the boundary, so no barrier is needed.
            policy = layers.remat_policy(self.remat)
            apply = jax.checkpoint(apply, policy=policy, prevent_cse=not loop)
        indices = range(first, first + len(run))
        with jax.named_scope(type(self).__name__):
            if not loop:
                weights = None
                for index, params in zip(indices, run, strict=True):
                    x, weights = apply(params, x, index if keys is not None else None)
                return x, weights
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *run)
            places = None if keys is None else jnp.arange(first, first + len(run))
            return jax.lax.scan(
                lambda x, xs: (apply(xs[0], x, xs[1])[0], None), x, (stacked, places)
            )

    def normed(self, params: Params, x: jax.Array) -> jax.Array:
        """The last norm, of any tokens [..., C]."""
        with jax.named_scope("norm_post"):  # the plan tells norms by their names
            out: Any = self.norm_post.apply({"params": params["norm_post"]}, x)
        return out

    def project(self, params: Params, x: jax.Array) -> jax.Array:
        """To the joint space: [..., C] -> [..., D], not of unit length."""
        if not self.has_projection:
            return x
        with jax.named_scope(type(self).__name__), jax.named_scope("projection"):
            out: Any = self.projection.apply({"params": params["projection"]}, x.astype(self.dtype))
        return out

    def pool_tokens(self, params: Params, x: jax.Array) -> jax.Array:
        """Each token as if the pool saw it alone, for dense methods: [..., C] -> [..., C].

        With attention pooling that is the pool's value path and MLP; other pools change nothing.

        Args:
          params: of the tower.
          x: normed tokens (:attr:`Features.tokens`).
        """
        if self.config.pool != "map":
            return x
        alone = x.reshape(-1, 1, x.shape[-1])
        out: Any = self.attention_pool.apply({"params": params["attention_pool"]}, alone)
        return out.reshape(x.shape)

    def encode(self, params: Params, inputs: jax.Array) -> jax.Array:
        """All stages, nothing asked: [B, D], not of unit length."""
        tokens, _ = self.blocks(params, self.embed(params, inputs))
        return self.project(params, self.pool(params, tokens))

    def features(
        self,
        params: Params,
        inputs: jax.Array,
        *,
        keep: jax.Array | None = None,
        insert: features_lib.InsertLike = None,
        attend: features_lib.AttendLike = None,
        attention_bias: features_lib.BiasLike = None,
        low_rank: features_lib.LowRank | None = None,
        hidden: Sequence[int] = (),
        attention: Sequence[int] = (),
        train: bool = False,
        keys: jax.Array | None = None,
    ) -> Features:
        """All stages; see :meth:`jaxclip.models.clip.CLIP.image_features`."""
        asked = features_lib.requests(
            self.config.depth,
            insert=insert,
            attend=attend,
            attention_bias=attention_bias,
            hidden=hidden,
            attention=attention,
        )
        rates = self.random_rates() if train else {}
        if rates:
            dropout_lib.check_keys(keys, inputs.shape[0], rates)
        drawn = keys if rates else None
        if low_rank:
            params = features_lib.add_low_rank(params, low_rank)
        tokens = self.embed(params, inputs, keep=keep, insert=asked.insert, keys=drawn)
        tokens, taps = self.blocks(params, tokens, requests=asked, keys=drawn)
        return self.head(params, tokens, taps)

    def head(self, params: Params, tokens: Tokens, taps: Taps | None = None) -> Features:
        """The last stage: norm, pool and project.

        Args:
          params: of the tower.
          tokens: what the last block gave.
          taps: what was read on the way, for the result.
        """
        taps = taps or Taps({}, {})
        inserted, prefix = tokens.inserted, self.prefix
        pooled = self.pool(params, tokens)
        raw = self.project(params, pooled).astype(jnp.float32)
        own = tokens.x[:, inserted:]
        with jax.named_scope(type(self).__name__):
            normed = [self.normed(params, x) for x in (own[:, prefix:], own[:, :prefix])]
            aux = {}
            if inserted:
                aux["inserted"] = self.normed(params, tokens.x[:, :inserted])
        return Features(
            embedding=layers.unit(raw),
            raw=raw,
            pooled=pooled,
            tokens=normed[0],
            prefix=normed[1],
            valid=tokens.valid,
            hidden=taps.hidden,
            attention=taps.attention,
            aux=aux,
        )

    # Parts of a block, for methods that take one to pieces.

    def qkv(
        self, params: Params, x: jax.Array, block: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values that a block makes of its input.

        Args:
          params: of the tower.
          x: [B, L, C], what comes into the block.
          block: its index, -1 = the last.

        Returns:
          Three arrays [B, H, L, C / H].
        """
        p = params[f"blocks_{block % self.config.depth}"]
        norm = layers.norm(self.config.norm_eps, self.dtype, None)
        y: Any = norm.apply({"params": p["attention_norm"]}, x)
        linear = layers.dense(self.config.width, self.dtype, None, flat=self.flat_products)

        def heads(name: str) -> jax.Array:
            out: Any = linear.apply({"params": p["attention"][name]}, y)
            return layers.split_heads(out, self.config.num_heads)

        return heads("query"), heads("key"), heads("value")

    def attention_out(
        self, params: Params, weights: jax.Array, value: jax.Array, block: int
    ) -> jax.Array:
        """What a block's attention gives for these weights: out(A V), [B, Q, C].

        Args:
          params: of the tower.
          weights: [B, H, Q, K].
          value: [B, H, K, C / H].
          block: its index, -1 = the last.
        """
        p = params[f"blocks_{block % self.config.depth}"]["attention"]["out"]
        x = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value)
        linear = layers.dense(self.config.width, self.dtype, None, flat=self.flat_products)
        out: Any = linear.apply({"params": p}, layers.join_heads(x))
        return out


class Parts(nn.Module):
    """Draws the parameters of unbound modules under their names."""

    names: tuple[str, ...]
    part: Callable[[str], tuple[nn.Module, tuple[Any, ...]]]

    @nn.compact
    def __call__(self) -> None:
        for name in self.names:
            module, args = self.part(name)
            module.clone(name=name, parent=self)(*args)  # type: ignore[operator]
