"""Image towers in stages of falling resolution: what convolutional towers share.

Parameters are ``stem``, ``blocks_<i>`` counted over all stages (whatever brings the resolution down
is part of a stage's first block), and what a tower needs behind them. There are no tokens to keep,
insert or attend to: what asks for them is refused.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import features as features_lib
from jaxclip.models import layers
from jaxclip.models import remat as remat_lib
from jaxclip.models.features import Features
from jaxclip.models.tower_parts import Parts, TowerOptions

Params = Mapping[str, Any]
Part = tuple[nn.Module, tuple[Any, ...]]


class StagedConfig:
    """What the rest of the house reads of a staged tower's sizes, beside its fields.

    A dataclass derives from it that has ``kind``, ``image_size`` and ``depths``.
    """

    image_size: int
    depths: tuple[int, ...]

    # Attributes that a Vision Transformer's sizes have as fields.
    pool: ClassVar[str] = "mean"
    positions: ClassVar[str] = "none"
    projection: ClassVar[str] = ""
    rope: ClassVar[str] = "none"
    mlp: ClassVar[str] = "plain"
    qkv_bias: ClassVar[str] = "all"
    norm_place: ClassVar[str] = "pre"
    first_layer: ClassVar[str] = "plain"
    alpha: ClassVar[bool] = False
    has_class_token: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = False
    layer_scale: ClassVar[float | None] = None
    attention_soft_cap: ClassVar[float] = 0.0
    dropout: ClassVar[float] = 0.0
    patch_dropout: ClassVar[float] = 0.0
    max_patches: ClassVar[int] = 0
    num_registers: ClassVar[int] = 0
    num_experts: ClassVar[int] = 0
    mup_base_width: ClassVar[int] = 0
    mup_base_heads: ClassVar[int] = 0
    # Whether there are batch norms, whose statistics are never trained.
    has_statistics: ClassVar[bool] = False

    @property
    def reduction(self) -> int:
        """Pixels to a place of the last stage, along a side."""
        return 4 * 2 ** (len(self.depths) - 1)

    @property
    def grid(self) -> int:
        """Places of the last stage along a side."""
        return self.image_size // self.reduction

    @property
    def depth(self) -> int:
        """Number of stages, of which ``hidden`` features are counted."""
        return len(self.depths)

    def check_stages(self) -> None:
        """Refuse stages and image sizes that can't be.

        Raises:
          ValueError: names the key and the value.
        """
        if not self.depths or min(self.depths) < 1:
            raise ValueError(
                f"model.image.depths={list(self.depths)}; use a positive number of blocks a stage"
            )
        if self.image_size < 1 or self.image_size % self.reduction:
            raise ValueError(
                f"model.image.image_size={self.image_size} is no multiple of {self.reduction}, "
                f"which the {self.depth} stages bring down to one place; use "
                f"{max(1, round(self.image_size / self.reduction)) * self.reduction}"
            )


# What may be asked of a sequence of tokens only.
_OF_TOKENS = ("keep", "insert", "attend", "attention_bias", "attention", "largest_logits")


@dataclasses.dataclass(frozen=True)
class StagedTower(TowerOptions, abc.ABC):
    """Normalised images float[B, H, W, 3] -> features. It holds no parameters.

    ``scan_layers`` loops over equal blocks of a stage.
    """

    has_residual_dtype: ClassVar[bool] = False
    prefix: ClassVar[int] = 0

    # What a tower is made of.

    @property
    @abc.abstractmethod
    def stem(self) -> nn.Module:
        """[B, H, W, 3] -> [B, h, w, C], unbound."""

    @abc.abstractmethod
    def block(self, stage: int, index: int) -> nn.Module:
        """Block ``index`` of a stage, [B, h, w, C] -> [B, h', w', C'], unbound."""

    @abc.abstractmethod
    def channels(self, stage: int) -> int:
        """Channels that a stage gives; -1: the stem."""

    @abc.abstractmethod
    def parts(self) -> dict[str, Part]:
        """Modules behind the stages by the name of their parameters, each with an input."""

    def finish(self, params: Params, x: jax.Array) -> jax.Array:
        """The last stage's output as tokens see it: [B, h, w, C] -> the same rank."""
        del params
        return x

    @abc.abstractmethod
    def pool(self, params: Params, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, C]."""

    @abc.abstractmethod
    def project(self, params: Params, x: jax.Array) -> jax.Array:
        """To the joint space: [..., C] -> [..., D], not of unit length."""

    @abc.abstractmethod
    def pool_tokens(self, params: Params, x: jax.Array) -> jax.Array:
        """Each place as if the pool saw it alone, for dense methods: [..., C] -> [..., C]."""

    def init_tables(self, rng: jax.Array) -> dict[str, Any]:
        """Parameters that belong to no module."""
        del rng
        return {}

    # The whole.

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Draw float32 parameters of the whole tower."""
        parts: dict[str, Part] = {"stem": (self.stem, (jnp.zeros((1, 8, 8, 3), self.dtype),))}
        for name, stage, index in self._names():
            before = stage if index else stage - 1
            x = jnp.zeros((1, 2, 2, self.channels(before)), self.dtype)
            parts[name] = (self.block(stage, index), (x,))
        parts |= self.parts()
        drawn: Any = Parts(tuple(parts), lambda name: parts[name]).init(rng)
        return {**self.init_tables(rng), **drawn["params"]}

    def random_rates(self) -> dict[str, float]:
        """The rates above 0 that need keys in training: there are none."""
        return {}

    def encode(self, params: Params, inputs: Any) -> jax.Array:
        """Nothing asked: [B, D], not of unit length."""
        x, _ = self._stages(params, inputs, ())
        return self.project(params, self.pool(params, x))

    def features(
        self, params: Params, inputs: Any, **asked: Unpack[features_lib.Asked]
    ) -> Features:
        """As :meth:`jaxclip.models.clip.CLIP.image_features`.

        ``tokens`` are the places of the last stage, row by row; ``hidden`` 0 is behind the stem, i
        behind stage i, each with its own N and C; ``activation_sums`` are of no blocks.

        Raises:
          ValueError: what a convolutional tower can't do is asked of it; a stage or an image size
            that is not there.
        """
        hidden, low_rank = asked.get("hidden", ()), asked.get("low_rank")
        given: dict[str, Any] = dict(asked)
        for name in _OF_TOKENS:
            value = given.get(name)
            if value is not None and value is not False and (name != "attention" or tuple(value)):
                raise ValueError(
                    f"{name} can't be asked of the image tower {self.config.kind!r}, which is no "
                    "sequence of tokens; use a Vision Transformer (model.image.kind='vit')"
                )
        features_lib.requests(self.config.depth, hidden=hidden)
        if low_rank:
            params = features_lib.add_low_rank(params, low_rank)
        x, taps = self._stages(params, inputs, hidden)
        pooled = self.pool(params, x)
        raw = self.project(params, pooled).astype(jnp.float32)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        none = {"activation_sums": jnp.zeros((x.shape[0], 0, 2))}
        return Features(
            embedding=layers.unit(raw),
            raw=raw,
            pooled=pooled,
            tokens=tokens,
            prefix=tokens[:, :0],
            valid=None,
            hidden=taps,
            attention={},
            aux=none if asked.get("activation_sums") else {},
        )

    def _names(self) -> Iterator[tuple[str, int, int]]:
        """Of all blocks: name of the parameters, stage, and index in it."""
        places = [(s, i) for s, depth in enumerate(self.config.depths) for i in range(depth)]
        for number, (stage, index) in enumerate(places):
            yield f"blocks_{number}", stage, index

    def _stages(
        self, params: Params, inputs: jax.Array, hidden: Sequence[int]
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """What the last stage gives, and what behind others was asked for."""
        c = self.config
        sides = inputs.shape[1:3]
        if inputs.ndim != 4 or inputs.shape[3] != 3 or any(s % c.reduction for s in sides):
            raise ValueError(
                f"images of shape {inputs.shape}; the image tower takes [B, H, W, 3] with H and W "
                f"multiples of {c.reduction}"
            )
        taps: dict[int, jax.Array] = {}

        def tap(layer: int, x: jax.Array) -> None:
            for name in features_lib.names_of(layer, hidden, c.depth + 1):
                taps[name] = x.reshape(x.shape[0], -1, x.shape[-1])

        with jax.named_scope(type(self).__name__):
            x: Any = self.stem.apply({"params": params["stem"]}, inputs.astype(self.outer_dtype))
            tap(0, x)
            for stage, blocks in itertools.groupby(self._names(), lambda block: block[1]):
                for run in _alike(params, list(blocks)):
                    x = self._run(params, run, x)
                tap(stage + 1, x)
            return self.finish(params, x), taps

    def _run(self, params: Params, run: list[tuple[str, int, int]], x: jax.Array) -> jax.Array:
        """Blocks of one stage with parameters of the same shapes."""
        loop = self.scan_layers and len(run) > 1
        module = self.block(*run[0][1:])

        def apply(own: Any, x: jax.Array, name: str) -> jax.Array:
            if self.gather_block is not None:  # recomputed: not kept between the passes
                own = self.gather_block(own, name)
            out: Any = module.apply({"params": own}, x)
            return out

        if self.remat != "none":
            policy = remat_lib.remat_policy(self.remat)
            apply = jax.checkpoint(apply, policy=policy, prevent_cse=not loop, static_argnums=(2,))
        if not loop:
            for name, _, _ in run:
                x = apply(params[name], x, name)
            return x
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[n] for n, _, _ in run))
        return jax.lax.scan(lambda x, own: (apply(own, x, run[0][0]), None), x, stacked)[0]


def _alike(
    params: Params, blocks: list[tuple[str, int, int]]
) -> Iterator[list[tuple[str, int, int]]]:
    """Neighbours whose parameters have the same shapes."""

    def shapes(block: tuple[str, int, int]) -> Any:
        leaves, structure = jax.tree.flatten(params[block[0]])
        return structure, [leaf.shape for leaf in leaves]

    run = [blocks[0]]
    for block in blocks[1:]:
        if shapes(block) == shapes(run[-1]):
            run.append(block)
        else:
            yield run
            run = [block]
    yield run
