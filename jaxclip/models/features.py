"""What a tower gives, and what may be asked of it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp

from jaxclip.models.attend import Attend, How
from jaxclip.registry import hint


class Features(NamedTuple):
    """The outputs of a tower. Under jit, what nobody uses is not computed.

    N are the tower's own tokens (patches, or places of a text; K of them with ``keep``), P the
    class and register tokens before them, M the tokens that a caller put in, which stand first in
    the sequence and are left out everywhere but in ``attention``.

    Attributes:
      embedding: float32[B, D] of unit length.
      raw: float32[B, D], projected to the joint space, not normalised.
      pooled: [B, C], before the projection.
      tokens: [B, N, C] after the tower's last norm. CoCa: of its image tower (``pool="queries"``)
        what all queries but the first see, [B, Q-1, D]; of its text tower (``pool="cls"``) as the
        last block gives them, for its norm is the class token's alone.
      prefix: [B, P, C], class token (if any), then registers, after the last norm. CoCa: the first
        query, [B, 1, D], and the class token behind the text.
      valid: bool[B, N], False for padding; None where all are valid (images).
      hidden: [B, P+N, C] of the layers asked for: 0 = after the embedding, i = after block i
        (counted from 1), -1 = the last. Of CoCa's text tower [B, N+1, C], the class token last.
      attention: float32[B, H, M+P+N, M+P+N], softmax weights of the blocks asked for, counted from
        0; -1 = the last.
      aux: more arrays by name: ``"inserted"`` [B, M, C], the caller's tokens after the last norm
        (CoCa's image tower: as the last block gives them), where there are any;
        ``"largest_logits"`` float32[B, depth, H], the largest q·k / sqrt(d) of each row, block and
        head, without a gradient, where they were asked for;
        ``"activation_sums"`` float32[B, blocks, 2], sums of clip(x, 0, 1) and of its square over
        all places (padding, too) and units behind the activation, of each row and block whose MLP
        runs, where they were asked for. Blocks with experts are not among them, and those of
        convolutional towers neither: 0 blocks.
    """

    embedding: jax.Array
    raw: jax.Array
    pooled: jax.Array
    tokens: jax.Array
    prefix: jax.Array
    valid: jax.Array | None
    hidden: dict[int, jax.Array]
    attention: dict[int, jax.Array]
    aux: dict[str, jax.Array]


class Asked(TypedDict, total=False):
    """What may be asked of a tower's features; each has a default that costs nothing.

    Layers and blocks may be counted from the end (-1). With ``scan_layers``, blocks that something
    is asked of run between loops over the others.

    Attributes:
      keep: int32[B, K], patches to run (FLIP). They are chosen after positions are added; class,
        register and inserted tokens always run. An index that is not there gives NaN. Of a text:
        the places to run, ascending.
      insert: tokens put in: [M, C] or [B, M, C] at the start, {layer: tokens} at given layers, or
        :class:`Insert` with its options. In a text they stand before it, so that all of a causal
        text sees them; with ``Insert(at=…)`` they take the places of tokens.
      attend: {block: function or :class:`jaxclip.models.attend.Attend`}, another attention in
        chosen blocks.
      attention_bias: float[B or 1, heads or 1, P+N, P+N], added to the attention scores of all
        blocks, or {block: such an array}.
      low_rank: {kernel path within the tower: (A, B)}, A B is added to the kernel (LoRA).
      hidden: layers to return, 0 = after the embedding, i = after block i (from 1).
      attention: blocks whose attention weights are returned, from 0.
      largest_logits: whether ``aux["largest_logits"]`` is made; it does not part a loop over
        blocks, but holds one block's scores.
      activation_sums: whether ``aux["activation_sums"]`` is made; it does not part a loop over
        blocks.
      train: whether dropout and patch dropout are on.
      keys: one PRNG key for each row, [B]; needed with ``train`` where a rate is above 0. A row's
        draw depends on its key alone. The towers want keys of their own.
    """

    keep: jax.Array | None
    insert: InsertLike
    attend: AttendLike
    attention_bias: BiasLike
    low_rank: LowRank | None
    hidden: Sequence[int]
    attention: Sequence[int]
    largest_logits: bool
    activation_sums: bool
    train: bool
    keys: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """The state between two stages of a tower.

    Attributes:
      x: [B, M+P+N, C]; see :class:`Features` for the letters.
      valid: bool[B, N], or None.
      last: int32[B], index of a text's last token among the N; None for images.
      inserted: M, static.
      turns: rotary angles of the N own tokens, float32[N, d / 2] or [B, N, d / 2]; None for none.
      keys: bool[B, P+N], which tokens others see, where that is not all of them; else None.
    """

    x: jax.Array
    valid: jax.Array | None = None
    last: jax.Array | None = None
    inserted: int = dataclasses.field(default=0, metadata={"static": True})
    turns: jax.Array | None = None
    keys: jax.Array | None = None


class Taps(NamedTuple):
    """What was read on the way through the blocks; as in :class:`Features`.

    ``largest`` are float32[blocks, B, H] of runs of blocks, in order, ``router`` float32[blocks, B,
    k + 2, E] of runs of blocks with experts, ``sums`` float32[blocks, B, 2] of those without.
    """

    hidden: dict[int, jax.Array]
    attention: dict[int, jax.Array]
    largest: list[jax.Array]
    router: list[jax.Array]
    sums: list[jax.Array]


@dataclasses.dataclass(frozen=True)
class Insert:
    """Tokens that a caller puts into a tower (prompts, context, mask tokens).

    Without ``at`` they are more tokens, first in the sequence: VPT, MaPLe's image side. In a causal
    text all tokens see them. They get no positions. With ``at`` they take the places of tokens that
    are there: CoOp's context and MaPLe's text side, in placeholders of the prompt; mask tokens in
    place of patches (places are those of all patches at layer 0, of those that run later on).

    Attributes:
      layers: {layer: [M, C] or [B, M, C]}: 0 = to the embedding, i = before block i (from 0).
      accumulate: whether tokens at a later layer come on top of the earlier ones; else they
        replace them (VPT-deep).
      at: int32[M] or [B, M], places that they take. At layer 0 they replace embeddings of tokens
        or patches before positions are added.
      before_norm: whether those at layer 0 pass through the norm before the first block, where
        a tower has one (``ln_pre``).
    """

    layers: Mapping[int, jax.Array]
    accumulate: bool = False
    at: jax.Array | None = None
    before_norm: bool = False


InsertLike = jax.Array | Mapping[int, jax.Array] | Insert | None
AttendLike = Mapping[int, Attend | Callable[..., jax.Array]] | None
BiasLike = jax.Array | Mapping[int, jax.Array] | None
LowRank = Mapping[str, tuple[jax.Array, jax.Array]]


def as_insert(insert: InsertLike, depth: int) -> Insert | None:
    """An array is for layer 0, a mapping is :attr:`Insert.layers`.

    Raises:
      ValueError: a layer that is not there, or tokens of another rank; exclusive options.
    """
    if insert is None:
        return None
    if not isinstance(insert, Insert):
        insert = Insert(insert if isinstance(insert, Mapping) else {0: insert})
    if insert.at is not None and insert.accumulate:
        raise ValueError("insert: at= takes places of tokens, so that nothing can accumulate")
    layers = {_index(layer, depth, "insert"): x for layer, x in insert.layers.items()}
    for layer, x in layers.items():
        if jnp.ndim(x) not in (2, 3):
            raise ValueError(
                f"insert at layer {layer} has shape {jnp.shape(x)}; use [M, C] or [B, M, C]"
            )
    return dataclasses.replace(insert, layers=layers)


def put_in(tokens: Tokens, insert: Insert, layer: int, places_from: int = 0) -> Tokens:
    """Put a layer's tokens in, or in place of what was put in before.

    Args:
      tokens: the state.
      insert: what is put in.
      layer: the key of ``insert.layers``.
      places_from: index of the tower's first own token behind the inserted ones, for ``at``.
    """
    new = rows(insert.layers[layer], tokens.x)
    if insert.at is not None:
        return dataclasses.replace(
            tokens, x=overwrite(tokens.x, new, insert.at + places_from + tokens.inserted)
        )
    if not insert.accumulate:
        tokens = dataclasses.replace(tokens, x=tokens.x[:, tokens.inserted :], inserted=0)
    x = jnp.concatenate([new, tokens.x], axis=1)
    return dataclasses.replace(tokens, x=x, inserted=tokens.inserted + new.shape[1])


def overwrite(x: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
    """Replace tokens: [B, L, C] with [B, M, C] at int32[M] or [B, M]."""
    at = jnp.broadcast_to(at, new.shape[:2])
    return x.at[jnp.arange(x.shape[0])[:, None], at].set(new)


def rows(new: jax.Array, x: jax.Array) -> jax.Array:
    """Tokens [M, C] or [B, M, C] for each row of [B, L, C], in its dtype.

    Raises:
      ValueError: another batch or width.
    """
    new = jnp.asarray(new)
    wanted = (x.shape[0], new.shape[-2], x.shape[-1])
    if new.shape not in (wanted, wanted[1:]):
        raise ValueError(
            f"insert of shape {new.shape}; use [M, {wanted[2]}] or [{wanted[0]}, M, {wanted[2]}]"
        )
    return jnp.broadcast_to(new.astype(x.dtype), wanted)


@dataclasses.dataclass(frozen=True)
class Requests:
    """What is asked of the blocks, checked."""

    insert: Insert | None
    attend: dict[int, Attend]
    bias: dict[int, jax.Array] | jax.Array | None
    hidden: tuple[int, ...]
    attention: tuple[int, ...]
    depth: int
    largest_logits: bool = False
    activation_sums: bool = False

    def cuts(self, start: int, stop: int) -> list[int]:
        """Where blocks[start:stop] come apart into runs of blocks that are all treated alike."""
        own = {_from_end(i, self.depth) for i in self.attention} | set(self.attend)
        own |= set(self.bias) if isinstance(self.bias, dict) else set()
        cuts = {start, stop} | own | {i + 1 for i in own}
        cuts |= {_from_end(layer, self.depth + 1) for layer in self.hidden}
        cuts |= set(self.insert.layers) if self.insert else set()
        return sorted(cut for cut in cuts if start <= cut <= stop)

    def how(self, block: int, inserted: int) -> How:
        """How a block runs behind so many inserted tokens."""
        bias = self.bias.get(block) if isinstance(self.bias, dict) else self.bias
        asked = {_from_end(i, self.depth) for i in self.attention}
        return How(
            None if bias is None else pad_bias(bias, inserted),
            self.attend.get(block, Attend()),
            block in asked,
            self.largest_logits,
            self.activation_sums,
        )


def requests(
    depth: int,
    *,
    insert: InsertLike = None,
    attend: AttendLike = None,
    attention_bias: BiasLike = None,
    hidden: Sequence[int] = (),
    attention: Sequence[int] = (),
    largest_logits: bool = False,
    activation_sums: bool = False,
) -> Requests:
    """Check what is asked of a tower of ``depth`` blocks.

    Raises:
      ValueError: a layer or block that is not there, or arrays of another rank.
    """
    for layer in hidden:
        _index(layer, depth + 1, "hidden")
    for block in attention:
        _index(block, depth, "attention")
    chosen = {
        _index(block, depth, "attend"): how if isinstance(how, Attend) else Attend(how)
        for block, how in (attend or {}).items()
    }
    bias: Any = attention_bias
    if isinstance(bias, Mapping):
        bias = {_index(b, depth, "attention_bias"): _bias(x) for b, x in bias.items()}
    elif bias is not None:
        bias = _bias(bias)
    return Requests(
        as_insert(insert, depth),
        chosen,
        bias,
        tuple(hidden),
        tuple(attention),
        depth,
        largest_logits,
        activation_sums,
    )


def pad_bias(bias: jax.Array, inserted: int) -> jax.Array:
    """A bias of scores [B, H, N, N] with zeros for ``inserted`` more tokens in front."""
    if not inserted:
        return bias
    return jnp.pad(bias, ((0, 0), (0, 0), (inserted, 0), (inserted, 0)))


def add_low_rank(params: Mapping[str, Any], low_rank: LowRank) -> dict[str, Any]:
    """Add A B to named kernels of a tower (LoRA, Hu et al., 2021, arXiv:2106.09685).

    Args:
      params: of a tower.
      low_rank: {path: (A, B)}, such as ``"blocks_0/attention/query/kernel"``; A float[in, r], B
        float[r, out]. The caller scales.

    Raises:
      ValueError: a path that names no kernel (the nearest is offered), or shapes that don't fit.
    """
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    kernels = [name for name, leaf in flat.items() if name.endswith("/kernel") and leaf.ndim == 2]
    result = dict(params)
    for path, pair in low_rank.items():
        if path not in kernels:
            raise ValueError(f"low_rank: no kernel {path!r} in the tower{hint(path, kernels)}")
        a, b = pair
        kernel = flat[path]
        if a.ndim != 2 or b.ndim != 2 or (a.shape[0], b.shape[1]) != kernel.shape:
            raise ValueError(
                f"low_rank: {path!r} is {kernel.shape}, A {a.shape} and B {b.shape}; use "
                f"[{kernel.shape[0]}, r] and [r, {kernel.shape[1]}]"
            )
        delta = jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
        result = _with(result, path.split("/"), kernel + delta.astype(kernel.dtype))
    return result


def valid_keys(valid: jax.Array, before: int) -> jax.Array:
    """bool[B, N] -> bool[B, 1, 1, before+N]; the tokens before are valid."""
    if before:
        valid = jnp.pad(valid, ((0, 0), (before, 0)), constant_values=True)
    return valid[:, None, None, :]


def names_of(index: int, asked: Iterable[int], size: int) -> list[int]:
    """Those of the indices that were asked for, -1 and the like included, that mean an index."""
    return [name for name in asked if _from_end(name, size) == index]


def pairs(cuts: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Neighbours: [0, 2, 5] -> (0, 2), (2, 5)."""
    return itertools.pairwise(cuts)


def _with(tree: Mapping[str, Any], path: Sequence[str], leaf: Any) -> dict[str, Any]:
    first, *rest = path
    return {**tree, first: _with(tree[first], rest, leaf) if rest else leaf}


def _from_end(index: int, size: int) -> int:
    return index + size if index < 0 else index


def _index(index: int, size: int, what: str) -> int:
    found = _from_end(index, size)
    if not 0 <= found < size:
        raise ValueError(f"{what}: there is no {index}; use {-size} to {size - 1}")
    return found


def _bias(bias: Any) -> jax.Array:
    bias = jnp.asarray(bias, jnp.float32)
    if bias.ndim != 4:
        raise ValueError(
            f"attention_bias of shape {bias.shape}; use [B or 1, heads or 1, P+N, P+N]"
        )
    return bias
