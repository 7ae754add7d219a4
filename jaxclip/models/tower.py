"""A tower in stages: embed, blocks[start:stop], pool and project.

Each stage is a pure function of the tower's parameters, a plain dict. Blocks are parameters
``blocks_<i>`` whatever the switches say; with ``scan_layers`` they are stacked on the fly, which
compiles one block in place of many.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import attend as attend_lib
from jaxclip.models import dropout as dropout_lib
from jaxclip.models import features as features_lib
from jaxclip.models import layers
from jaxclip.models import remat as remat_lib
from jaxclip.models.features import Features, Insert, Requests, Taps, Tokens
from jaxclip.models.tower_parts import Params, Parts, TowerParts


@dataclasses.dataclass(frozen=True)
class Tower(TowerParts, abc.ABC):
    """What the two towers share. It holds no parameters."""

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
        inputs: Any,
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
            f"blocks_{index}": (self.at(block, index), (x, None))
            for index in range(self.config.depth)
        }
        parts |= self.head_parts(x)
        drawn: Any = Parts(tuple(parts), lambda name: parts[name]).init(rng)
        return {**self.init_embed(rng), **drawn["params"]}

    def head_parts(self, x: jax.Array) -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
        """Modules of the last stage with what they take of the blocks' [B, L, C], by name."""
        parts: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {"norm_post": (self.norm_post, (x,))}
        if self.config.pool == "map":
            parts["attention_pool"] = (self.attention_pool, (x,))
        if self.has_projection:
            parts["projection"] = (self.projection, (x[:, 0],))
        return parts

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
        taps = Taps({}, {}, [], [], [])
        if asked.activation_sums:  # there may be no block that has any
            taps.sums.append(jnp.zeros((0, tokens.x.shape[0], 2)))
        cuts = asked.cuts(start, stop)
        if start < self.first_expert < stop:  # blocks with experts are another kind
            cuts = sorted({*cuts, self.first_expert})
        self._tap(taps, asked, tokens, start)
        for first, end in features_lib.pairs(cuts):
            if asked.insert is not None and first in asked.insert.layers and first > 0:
                tokens = features_lib.put_in(tokens, asked.insert, first, self.prefix)
            how = asked.how(first, tokens.inserted)
            run = [params[f"blocks_{index}"] for index in range(first, end)]
            x, taken = self._run(run, tokens, how, keys, first)
            tokens = dataclasses.replace(tokens, x=x)
            self._tap(taps, asked, tokens, end)
            if taken.weights is not None:
                for name in features_lib.names_of(first, asked.attention, self.config.depth):
                    taps.attention[name] = taken.weights
            if taken.largest is not None:
                taps.largest.append(taken.largest)
            if taken.router is not None:
                taps.router.append(taken.router)
            if taken.sums is not None:
                taps.sums.append(taken.sums)
        return tokens, taps

    def _tap(self, taps: Taps, asked: Requests, tokens: Tokens, layer: int) -> None:
        for name in features_lib.names_of(layer, asked.hidden, self.config.depth + 1):
            taps.hidden[name] = tokens.x[:, tokens.inserted :]

    def _run(
        self,
        run: Sequence[Any],
        tokens: Tokens,
        how: attend_lib.How,
        keys: jax.Array | None,
        first: int,
    ) -> tuple[jax.Array, attend_lib.Taken]:
        """A run of blocks that are treated alike; attention weights only of a run of one.

        What else was read of the blocks is stacked: the largest scores are float32[blocks, B, H].
        """
        block, x = self.at(self.block, first), tokens.x
        mask, turns = self.mask(tokens), self.turns(tokens)
        loop = self.scan_layers and len(run) > 1

        def apply(params: Any, x: jax.Array, index: Any) -> tuple[jax.Array, attend_lib.Taken]:
            if self.gather_block is not None:  # recomputed: not kept between the passes
                params = self.gather_block(params, "blocks_0")
            own = None if keys is None else dropout_lib.fold_in(keys, index)
            out: Any = block.apply({"params": params}, x, mask, how, own, turns)
            return out

        if self.remat != "none":
            # Inside a scan nothing can be merged across the boundary, so no barrier is needed.
            policy = remat_lib.remat_policy(self.remat)
            apply = jax.checkpoint(apply, policy=policy, prevent_cse=not loop)
        indices = range(first, first + len(run))
        with jax.named_scope(type(self).__name__):
            if not loop:
                every: list[attend_lib.Taken] = []
                for index, params in zip(indices, run, strict=True):
                    x, taken = apply(params, x, index if keys is not None else None)
                    every.append(taken._replace(weights=None))
                rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)
                return x, rows._replace(weights=taken.weights)
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *run)
            places = None if keys is None else jnp.arange(first, first + len(run))

            def one(x: jax.Array, xs: Any) -> tuple[jax.Array, attend_lib.Taken]:
                return apply(xs[0], x, xs[1])

            return jax.lax.scan(one, x, (stacked, places))

    def turns(self, tokens: Tokens) -> jax.Array | None:
        """Rotary angles of the whole sequence, [N, d / 2] or [B, N, d / 2]; None for none.

        They are zero for tokens that were put in, or stand before the tower's own.
        """
        if tokens.turns is None:
            return None
        before = tokens.inserted + self.prefix
        return jnp.pad(tokens.turns, [(0, 0)] * (tokens.turns.ndim - 2) + [(before, 0), (0, 0)])

    def normed(self, params: Params, x: jax.Array) -> jax.Array:
        """The last norm, of any tokens [..., C]."""
        with jax.named_scope("norm_post"):  # the plan tells norms by their names
            out: Any = self.norm_post.apply({"params": params["norm_post"]}, x)
        return out

    def normed_tokens(self, params: Params, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
        """:attr:`Features.tokens` and :attr:`Features.prefix` of what the last block gave."""
        own, prefix = tokens.x[:, tokens.inserted :], self.prefix
        return self.normed(params, own[:, prefix:]), self.normed(params, own[:, :prefix])

    def normed_inserted(self, params: Params, tokens: Tokens) -> jax.Array:
        """``Features.aux["inserted"]`` of what the last block gave."""
        return self.normed(params, tokens.x[:, : tokens.inserted])

    def project(self, params: Params, x: jax.Array) -> jax.Array:
        """To the joint space: [..., C] -> [..., D], not of unit length."""
        if not self.has_projection:
            return x
        with jax.named_scope(type(self).__name__), jax.named_scope("projection"):
            out: Any = self.projection.apply(
                {"params": params["projection"]}, x.astype(self.outer_dtype)
            )
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

    def encode(self, params: Params, inputs: Any) -> jax.Array:
        """All stages, nothing asked: [B, D], not of unit length."""
        tokens, _ = self.blocks(params, self.embed(params, inputs))
        return self.project(params, self.pool(params, tokens))

    def features(
        self,
        params: Params,
        inputs: Any,
        *,
        keep: jax.Array | None = None,
        insert: features_lib.InsertLike = None,
        attend: features_lib.AttendLike = None,
        attention_bias: features_lib.BiasLike = None,
        low_rank: features_lib.LowRank | None = None,
        hidden: Sequence[int] = (),
        attention: Sequence[int] = (),
        largest_logits: bool = False,
        activation_sums: bool = False,
        train: bool = False,
        keys: jax.Array | None = None,
    ) -> Features:
        """All stages; what may be asked is :class:`jaxclip.models.features.Asked`."""
        asked = features_lib.requests(
            self.config.depth,
            insert=insert,
            attend=attend,
            attention_bias=attention_bias,
            hidden=hidden,
            attention=attention,
            largest_logits=largest_logits,
            activation_sums=activation_sums,
        )
        rates = self.random_rates() if train else {}
        if rates:
            dropout_lib.check_keys(keys, jax.tree.leaves(inputs)[0].shape[0], rates)
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
        taps = taps or Taps({}, {}, [], [], [])
        inserted = tokens.inserted
        pooled = self.pool(params, tokens)
        raw = self.project(params, pooled).astype(jnp.float32)
        with jax.named_scope(type(self).__name__):
            normed = self.normed_tokens(params, tokens)
            aux = {}
            if inserted:
                aux["inserted"] = self.normed_inserted(params, tokens)
            if taps.router:
                aux["router"] = jnp.concatenate(taps.router).swapaxes(0, 1)
            if taps.largest:
                aux["largest_logits"] = jnp.concatenate(taps.largest).swapaxes(0, 1)
            if taps.sums:
                aux["activation_sums"] = jnp.concatenate(taps.sums).swapaxes(0, 1)
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
