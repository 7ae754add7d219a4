"""Generation against slow references: every text there is, and a beam search of lists."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.inference import generate

START, END, PAD, VOCABULARY, LENGTH = 3, 2, 0, 5, 6
FRAME = generate.Frame(LENGTH, START, END, PAD)
ROWS = 4


def table(seed):
    """Logits that depend on the row, the place and the two last tokens."""
    shape = (ROWS, LENGTH, VOCABULARY, VOCABULARY, VOCABULARY)
    return 2.0 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def next_logits_of(logits, copies=1):
    rows = jnp.repeat(jnp.arange(ROWS), copies)

    def next_logits(tokens, place):
        last = tokens[:, place]
        before = jnp.where(place > 0, tokens[:, jnp.maximum(place - 1, 0)], PAD)
        return jnp.asarray(logits)[rows, place, before, last]

    return next_logits


def slow_logits(logits, row, text):
    """Of what follows a list of tokens, with the same rule."""
    place = len(text) - 1
    return logits[row, place, text[-2] if place else PAD, text[-1]].astype(np.float64)


def log_softmax(x):
    return x - x.max() - math.log(np.exp(x - x.max()).sum())


def padded(text):
    return [*text, *[PAD] * (LENGTH - len(text))]


@jax.jit
def run_greedy(logits):
    return generate.greedy(next_logits_of(logits), ROWS, FRAME)


def run_beam(logits, num_beams, length_penalty=1.0, frame=FRAME):
    next_logits = next_logits_of(logits, num_beams)
    return generate.beam(
        next_logits, ROWS, frame, num_beams=num_beams, length_penalty=length_penalty
    )


def test_greedy_is_the_likeliest_token_at_every_place():
    for seed in range(5):
        logits = table(seed)
        found = np.asarray(run_greedy(logits))
        for row in range(ROWS):
            text = [START]
            while text[-1] != END:
                following = slow_logits(logits, row, text)
                text.append(END if len(text) == LENGTH - 1 else int(np.argmax(following)))
            assert found[row].tolist() == padded(text)


def slow_beam(logits, row, num_beams, length_penalty):
    """Beam search of Python lists, without an early end."""
    running, ended = [(0.0, [START])], []
    for place in range(1, LENGTH):
        candidates = []
        for total, text in running:
            scores = log_softmax(slow_logits(logits, row, text))
            allowed = [END] if place == LENGTH - 1 else range(VOCABULARY)
            candidates += [(total + scores[token], [*text, token]) for token in allowed]
        candidates.sort(key=lambda each: -each[0])
        for total, text in candidates[:num_beams]:
            if text[-1] == END:
                ended.append((total / (len(text) - 1) ** length_penalty, text))
        going = candidates[: 2 * num_beams]
        running = [each for each in going if each[1][-1] != END][:num_beams]
        ended = sorted(ended, key=lambda each: -each[0])[:num_beams]
    return ended[0]


@pytest.mark.parametrize(("num_beams", "length_penalty"), [(1, 1.0), (2, 1.0), (3, 0.3)])
def test_beams_are_those_of_a_slow_search(num_beams, length_penalty):
    beam = jax.jit(lambda logits: run_beam(logits, num_beams, length_penalty))
    for seed in range(8):
        logits = table(seed)
        found, scores = beam(logits)
        for row in range(ROWS):
            score, text = slow_beam(logits, row, num_beams, length_penalty)
            assert found[row].tolist() == padded(text), (seed, row)
            assert float(scores[row]) == pytest.approx(score, abs=1e-4)


def test_enough_beams_find_the_best_of_all_texts():
    logits = table(11)
    inner = [token for token in range(VOCABULARY) if token != END]
    found, scores = jax.jit(lambda logits: run_beam(logits, 256))(logits)
    for row in range(ROWS):
        best = max(
            (
                sum(
                    log_softmax(slow_logits(logits, row, list(text[:i])))[text[i]]
                    for i in range(1, len(text))
                )
                / (len(text) - 1),
                text,
            )
            for count in range(LENGTH - 1)
            for middle in itertools.product(inner, repeat=count)
            for text in [(START, *middle, END)]
        )
        assert found[row].tolist() == padded(best[1])
        assert float(scores[row]) == pytest.approx(best[0], abs=1e-4)


def test_no_end_before_min_length():
    frame = FRAME._replace(min_length=4)
    logits = table(0)
    logits[..., END] += 20
    found = generate.greedy(next_logits_of(logits), ROWS, frame)
    assert (np.asarray(found)[:, 4] == END).all()  # tokens 0 to 3, then the end
    beams, _ = run_beam(logits, 2, frame=frame)
    assert (np.asarray(beams)[:, 4] == END).all()


def test_the_nucleus_is_the_fewest_tokens_that_sum_to_top_p():
    probabilities = np.array([0.1, 0.4, 0.2, 0.3], np.float32)
    logits = jnp.log(probabilities)
    for top_p, kept in [
        (0.05, {1}),
        (0.4, {1}),
        (0.45, {1, 3}),
        (0.85, {1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ]:
        found = np.flatnonzero(generate.in_nucleus(logits, top_p))
        assert set(found.tolist()) == kept, top_p


def test_samples_are_of_the_nucleus_and_as_likely():
    """Of one place: frequencies are those of the cut and tempered distribution."""
    probabilities = np.array([0.3, 0.05, 0.05, 0.2, 0.4])
    rows, frame = 4000, generate.Frame(3, START, END, PAD)

    @jax.jit
    def sample(key):
        def next_logits(tokens, place):
            return jnp.broadcast_to(jnp.log(probabilities.astype(np.float32)), (rows, 5))

        return generate.nucleus(next_logits, rows, frame, key, top_p=0.85, temperature=2.0)

    found = np.asarray(sample(jax.random.key(0)))
    counts = np.bincount(found[:, 1], minlength=5) / rows
    kept = np.where(probabilities >= 0.2, np.sqrt(probabilities), 0)
    np.testing.assert_allclose(counts, kept / kept.sum(), atol=0.03)
    assert (found[:, 2] == END).all()
    np.testing.assert_array_equal(found, sample(jax.random.key(0)))
    assert (found != sample(jax.random.key(1))).any()


def test_a_cold_nucleus_is_greedy():
    logits = table(3)
    found = generate.nucleus(
        next_logits_of(logits), ROWS, FRAME, jax.random.key(0), top_p=1.0, temperature=1e-4
    )
    np.testing.assert_array_equal(found, run_greedy(logits))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: generate.nucleus(f, 1, FRAME, jax.random.key(0), top_p=0.0), "top_p=0.0"),
        (lambda f: generate.nucleus(f, 1, FRAME, jax.random.key(0), temperature=0), "above 0"),
        (lambda f: generate.beam(f, 1, FRAME, num_beams=0), "num_beams=0"),
        (lambda f: generate.beam(f, 1, FRAME, length_penalty=-1), "length_penalty=-1"),
        (lambda f: generate.greedy(f, 1, FRAME._replace(length=1)), "length=1"),
        (lambda f: generate.greedy(f, 1, FRAME._replace(min_length=6)), "min_length=6"),
    ],
)
def test_bad_options_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(lambda tokens, place: jnp.zeros((1, VOCABULARY)))


def test_guided_logits():
    conditional, unconditional = jnp.array([1.0, 0, 0]), jnp.array([0.0, 1, 0])
    guided = jax.nn.softmax(generate.guided_logits(conditional, unconditional, 2.0))
    np.testing.assert_allclose(guided, [0.843795, 0.042010, 0.114195], atol=1e-6)
    plain = generate.guided_logits(conditional, unconditional, 1.0)
    np.testing.assert_array_equal(plain, conditional)
