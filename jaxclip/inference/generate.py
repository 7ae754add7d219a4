"""Texts token by token: greedy, beam search and nucleus sampling, as pure functions.

They know no model: ``next_logits(tokens, place)`` gives float32[R, V], what is expected behind
``place`` of int32[R, L] whose later places are padding. Rows have a fixed length, so that one
program serves all texts; loops end early once every row has ended. A row begins with ``start_id``
and ends with ``end_id``, at its last place if not before; padding follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NextLogits = Callable[[jax.Array, jax.Array], jax.Array]
# Of (logits float32[R, V], place int32[]) the next tokens int32[R].
_Choose = Callable[[jax.Array, jax.Array], jax.Array]

_NEVER = -1e9  # finite, so that differences of it are numbers


class Frame(NamedTuple):
    """What generated rows look like.

    Attributes:
      length: tokens in a row, L, with start and end.
      start_id: the first token.
      end_id: the last one.
      pad_id: fills the rest.
      min_length: tokens before the end may come, the start among them.
    """

    length: int
    start_id: int
    end_id: int
    pad_id: int = 0
    min_length: int = 1


def guided_logits(
    conditional: jax.Array, unconditional: jax.Array, guidance: jax.Array | float
) -> jax.Array:
    """Logits beyond those that the picture asks for: u + guidance (c - u).

    Classifier-free guidance of captions (Kornblith et al., 2023, arXiv:2307.16686), which makes
    them fit the picture better and read worse; the decoder must have been trained with pictures
    left out at times (``coca.drop_image``).

    Args:
      conditional: float32[R, V], with the picture.
      unconditional: float32[R, V], without.
      guidance: 1 for the picture's own logits; 2 in the paper.
    """
    return unconditional + guidance * (conditional - unconditional)


def greedy(next_logits: NextLogits, rows: int, frame: Frame) -> jax.Array:
    """The likeliest next token at every place.

    Args:
      next_logits: see the module docstring.
      rows: R.
      frame: of the rows.

    Returns:
      int32[R, L].
    """
    return _one_by_one(next_logits, rows, frame, lambda logits, place: jnp.argmax(logits, axis=-1))


def nucleus(
    next_logits: NextLogits,
    rows: int,
    frame: Frame,
    key: jax.Array,
    *,
    top_p: float = 0.9,
    temperature: float = 1.0,
) -> jax.Array:
    """Nucleus sampling (Holtzman et al., 2020, arXiv:1904.09751).

    A token is drawn of the fewest likeliest ones whose probabilities sum to ``top_p``; the
    temperature then divides their logits, as in open_clip. Each row has a key of its own: its
    text does not depend on the others.

    Args:
      next_logits: see the module docstring.
      rows: R.
      frame: of the rows.
      key: PRNG key.
      top_p: in (0, 1]; 1 keeps all tokens.
      temperature: above 0; towards 0 it is :func:`greedy`.

    Returns:
      int32[R, L].

    Raises:
      ValueError: options out of range.
    """
    if not 0 < top_p <= 1 or not temperature > 0:
        raise ValueError(f"top_p={top_p} must be in (0, 1] and temperature={temperature} above 0")
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))

    def choose(logits: jax.Array, place: jax.Array) -> jax.Array:
        kept = jnp.where(in_nucleus(logits, top_p), logits, _NEVER) / temperature
        own = jax.vmap(lambda one: jax.random.fold_in(one, place))(keys)
        return jax.vmap(jax.random.categorical)(own, kept)

    return _one_by_one(next_logits, rows, frame, choose)


def in_nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Which tokens are of the fewest likeliest whose probabilities sum to ``top_p``.

    Args:
      logits: float32[..., V].
      top_p: in (0, 1].

    Returns:
      bool[..., V], at least one a row.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    sorted_probabilities = jnp.take_along_axis(jax.nn.softmax(logits), order, axis=-1)
    before = jnp.cumsum(sorted_probabilities, axis=-1) - sorted_probabilities
    kept = (before < top_p).at[..., 0].set(True)
    return jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)


def _one_by_one(next_logits: NextLogits, rows: int, frame: Frame, choose: _Choose) -> jax.Array:
    _check(frame)

    def unfinished(state: Any) -> jax.Array:
        place, _, done = state
        return (place < frame.length - 1) & ~jnp.all(done)

    def step(state: Any) -> Any:
        place, tokens, done = state
        logits = _allowed(next_logits(tokens, place), place, frame)
        chosen = choose(logits, place).astype(jnp.int32)
        chosen = jnp.where(done, frame.pad_id, chosen)
        tokens = tokens.at[:, place + 1].set(chosen)
        return place + 1, tokens, done | (chosen == frame.end_id)

    start = (jnp.int32(0), _blank((rows,), frame), jnp.zeros(rows, bool))
    tokens: jax.Array = jax.lax.while_loop(unfinished, step, start)[1]
    return tokens


class _Beams(NamedTuple):
    """Beam search of R rows with K beams at one place.

    Attributes:
      place: of the last token that is there.
      tokens: int32[R, K, L], running texts.
      sums: float32[R, K], their log-probabilities.
      ended: int32[R, K, L], the best texts that have ended.
      scores: float32[R, K] of these, best first.
    """

    place: jax.Array
    tokens: jax.Array
    sums: jax.Array
    ended: jax.Array
    scores: jax.Array


def beam(
    next_logits: NextLogits,
    rows: int,
    frame: Frame,
    *,
    num_beams: int = 6,
    length_penalty: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Beam search: the ended text with the largest log-probability / (tokens ^ length_penalty).

    Tokens are counted behind the start, the end among them. Of the ``2 K`` likeliest continuations
    of K beams, those that end compete with the ended ones, if they are among the first K, and the
    first K others go on. The search of a row is over once no running text can reach its K ended
    ones.

    Args:
      next_logits: see the module docstring; it gets ``R * K`` rows, the beams of a row together.
      rows: R.
      frame: of the rows.
      num_beams: K; 1 differs from :func:`greedy` only where the end is second best.
      length_penalty: at least 0; 0 for the plain log-probability, above 1 favours long texts.

    Returns:
      ``(tokens int32[R, L], scores float32[R])``.

    Raises:
      ValueError: options out of range.
    """
    if num_beams < 1 or length_penalty < 0:
        raise ValueError(
            f"num_beams={num_beams} must be at least 1, length_penalty={length_penalty} at least 0"
        )
    _check(frame)
    longest = float(frame.length - 1) ** length_penalty

    def unfinished(state: _Beams) -> jax.Array:
        # Sums only fall, so that this is the most that a running text can reach.
        reachable = jnp.max(state.sums, axis=1) / longest
        return (state.place < frame.length - 1) & jnp.any(state.scores[:, -1] < reachable)

    def step(state: _Beams) -> _Beams:
        return _extend(next_logits, state, frame, length_penalty)

    shape = (rows, num_beams)
    sums = jnp.full(shape, _NEVER, jnp.float32).at[:, 0].set(0.0)
    blank = _blank(shape, frame)
    start = _Beams(jnp.int32(0), blank, sums, blank, jnp.full(shape, _NEVER, jnp.float32))
    final: _Beams = jax.lax.while_loop(unfinished, step, start)
    return final.ended[:, 0], final.scores[:, 0]


def _extend(next_logits: NextLogits, state: _Beams, frame: Frame, length_penalty: float) -> _Beams:
    rows, beams, length = state.tokens.shape
    logits = next_logits(state.tokens.reshape(-1, length), state.place)
    log_probabilities = _allowed(jax.nn.log_softmax(logits), state.place, frame)
    totals = state.sums[..., None] + log_probabilities.reshape(rows, beams, -1)
    vocabulary = totals.shape[-1]
    count = min(2 * beams, beams * vocabulary)
    best, index = jax.lax.top_k(totals.reshape(rows, -1), count)
    token = (index % vocabulary).astype(jnp.int32)
    texts = jnp.take_along_axis(state.tokens, (index // vocabulary)[..., None], axis=1)
    texts = texts.at[:, :, state.place + 1].set(token)
    ends = token == frame.end_id
    # Those that end, among the ended.
    generated = (state.place + 1).astype(jnp.float32)
    counts = ends & (jnp.arange(count) < beams) & (best > _NEVER / 2)
    scores = jnp.where(counts, best / generated**length_penalty, _NEVER)
    scores = jnp.concatenate([state.scores, scores], axis=1)
    kept, places = jax.lax.top_k(scores, beams)
    ended = jnp.concatenate([state.ended, texts], axis=1)
    ended = jnp.take_along_axis(ended, places[..., None], axis=1)
    # The best of the others go on.
    sums, places = jax.lax.top_k(jnp.where(ends, 2 * _NEVER, best), beams)
    tokens = jnp.take_along_axis(texts, places[..., None], axis=1)
    return _Beams(state.place + 1, tokens, sums, ended, kept)


def _allowed(logits: jax.Array, place: jax.Array, frame: Frame) -> jax.Array:
    """No end before ``min_length`` tokens, nothing but the end at the last place."""
    is_end = jnp.arange(logits.shape[-1]) == frame.end_id
    last = place == frame.length - 2
    barred = jnp.where(last, ~is_end, is_end & (place + 1 < frame.min_length))
    return jnp.where(barred, 4 * _NEVER, logits)


def _blank(shape: tuple[int, ...], frame: Frame) -> jax.Array:
    tokens = jnp.full((*shape, frame.length), frame.pad_id, jnp.int32)
    return tokens.at[..., 0].set(frame.start_id)


def _check(frame: Frame) -> None:
    if frame.length < 2 or not 0 <= frame.min_length < frame.length:
        raise ValueError(
            f"length={frame.length} must be at least 2 (start and end) and above min_length="
            f"{frame.min_length}"
        )
