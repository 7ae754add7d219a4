"""Whether learning rates carry over from narrow to wide models: muP against the usual way.

    python -m jaxclip.bench mup                       # some minutes on two cores
    python -m jaxclip.bench mup --widths 32,64,128,256 --rates -4,-3,-2,-1,0,1,2 --steps 200

Trains towers of several widths at several rates on made-up pairs (two attributes of 16 values each,
drawn into an image and named in a text) and prints the loss of the last tenth of the steps, with
``mup_base_width`` the narrowest and without it. A rate carries over where the best one is the same
at all widths. ``--check`` prints the coordinate check instead: how far five steps at the rate 0.002
move activations.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip import losses, models, optim
from jaxclip.markdown import table
from jaxclip.models import mup, presets

ATTRIBUTES, SIDE, PATCH, LENGTH = 16, 16, 4, 4
DEPTH, HEADS = 2, 4


def sizes(width: int, base: int) -> presets.CLIPConfig:
    """Towers of a width; ``base`` 0 for the usual parametrisation."""
    shape: dict[str, Any] = {
        "width": width,
        "depth": DEPTH,
        "num_heads": HEADS,
        "mlp_dim": 4 * width,
        "mup_base_width": base,
        "mup_base_heads": HEADS if base else 0,
    }
    image = presets.ImageConfig(image_size=SIDE, patch_size=PATCH, pool="mean", **shape)
    text = presets.TextConfig(
        vocab_size=2 * ATTRIBUTES + 1, context_length=LENGTH, causal=False, pool="mean", **shape
    )
    return presets.CLIPConfig(image, text, embed_dim=64)


def batches(size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images float32[B, 16, 16, 3] and texts int32[B, 4] of two attributes, with noise."""
    drawn = np.random.default_rng(0).normal(size=(2, ATTRIBUTES, SIDE // 2, SIDE, 3))
    rng = np.random.default_rng(seed)
    while True:
        values = rng.integers(0, ATTRIBUTES, (2, size))
        halves = [drawn[half, values[half]] for half in (0, 1)]
        images = np.concatenate(halves, axis=1) + rng.normal(size=(size, SIDE, SIDE, 3))
        words = np.stack([values[0] + 1, values[1] + 1 + ATTRIBUTES], axis=1)
        texts = np.concatenate([words, rng.integers(1, 2 * ATTRIBUTES + 1, (size, 2))], axis=1)
        yield images.astype(np.float32), texts.astype(np.int32)


class Trainer:
    """Steps of one model, compiled once for all rates."""

    def __init__(self, width: int, base: int):
        self.model = models.build(sizes(width, base), flat_products=jax.default_backend() == "cpu")
        self._factors = mup.rate_factors(self.model.config)
        self._tx = optax.chain(optax.scale_by_adam(b2=0.98), optax.scale(-1.0))

        @functools.partial(jax.jit, donate_argnums=(0,))
        def step(state: Any, rate: jax.Array, images: jax.Array, texts: jax.Array) -> Any:
            params, opt_state = state

            def loss(params: Any) -> jax.Array:
                image = self.model.encode_image(params, images)
                text = self.model.encode_text(params, texts)
                return losses.softmax(image, text, logit_scale=params["logit_scale"])[0]

            value, grads = jax.value_and_grad(loss)(params)
            updates, opt_state = self._tx.update(grads, opt_state, params)
            leaves, tree = jax.tree.flatten(updates)
            names = optim.tensor_names(updates)
            scaled = [
                rate * mup.factor_of(name, self._factors) * leaf
                for name, leaf in zip(names, leaves, strict=True)
            ]
            params = optax.apply_updates(params, jax.tree.unflatten(tree, scaled))
            return (params, opt_state), value

        self.step = step

    def start(self, seed: int) -> Any:
        """Parameters and moments before the first step."""
        params = jax.jit(self.model.init)(jax.random.key(seed))
        return params, self._tx.init(params)

    def train(self, rate: float, steps: int, batch_size: int, seed: int) -> float:
        """The mean loss of the last tenth of the steps; the rate warms up over the first tenth."""
        state, found = self.start(seed), []
        for number, (images, texts) in zip(range(steps), batches(batch_size, seed), strict=False):
            warm = min(1.0, 10 * (number + 1) / steps)
            state, value = self.step(state, jnp.float32(rate * warm), images, texts)
            found.append(value)
        last = np.array(jax.device_get(found[-max(1, steps // 10) :]))
        return float(last.mean())

    def moved(self, rate: float, steps: int, batch_size: int, seed: int) -> dict[str, float]:
        """How far some steps move activations: root mean square of the change, by layer."""
        draws = batches(batch_size, seed)
        probe = next(draws)
        state = self.start(seed)

        @jax.jit
        def look(params: Any) -> dict[str, jax.Array]:
            found = {}
            for tower, array in zip(("image", "text"), probe, strict=True):
                part = getattr(self.model, tower)
                features = part.features(params[tower], array, hidden=[0, DEPTH])
                found[f"{tower} embedding"] = features.hidden[0]
                found[f"{tower} blocks"] = features.hidden[DEPTH]
                found[f"{tower} output"] = features.raw
            return found

        before = jax.device_get(look(state[0]))
        for _, (images, texts) in zip(range(steps), draws, strict=False):
            state, _ = self.step(state, jnp.float32(rate), images, texts)
        after = jax.device_get(look(state[0]))
        return {
            name: float(np.sqrt(np.mean((after[name] - value) ** 2)))
            for name, value in before.items()
        }


def coordinate_check(
    widths: Sequence[int], *, rate: float = 2e-3, steps: int = 5, batch_size: int = 32
) -> dict[str, list[dict[str, float]]]:
    """Change of activations at each width, ``{"usual": …, "muP": …}``; flat where rates carry over.

    Args:
      widths: ascending; the first one is muP's base.
      rate: learning rate.
      steps: updates.
      batch_size: pairs.
    """
    return {
        way: [Trainer(width, base).moved(rate, steps, batch_size, seed=0) for width in widths]
        for way, base in (("usual", 0), ("muP", widths[0]))
    }


def sweep(
    widths: Sequence[int], rates: Sequence[float], steps: int, batch_size: int, seeds: int
) -> dict[tuple[str, int], list[float]]:
    """Losses by way and width, one of each rate, means over seeds; each is told when it is done."""
    found = {}
    for way, base in (("usual", 0), ("muP", widths[0])):
        for width in widths:
            trainer = Trainer(width, base)
            found[way, width] = [
                float(np.mean([trainer.train(r, steps, batch_size, seed) for seed in range(seeds)]))
                for r in rates
            ]
            shown = " ".join(f"{loss:.3f}" for loss in found[way, width])
            print(f"{way}, width {width}: {shown}", file=sys.stderr, flush=True)
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxclip.bench mup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--widths", type=numbers, default=[32, 64, 128], help="ascending")
    parser.add_argument(
        "--rates", type=numbers, default=[-2, -1, 0, 1, 2, 3, 4], help="powers of 2 times 1e-3"
    )
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch_size", type=int, help="pairs (default: 64, with --check 32)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="the coordinate check instead")
    options = parser.parse_args(list(arguments))
    if options.widths != sorted(options.widths) or any(w % HEADS for w in options.widths):
        parser.error(f"--widths {options.widths}: give them ascending, multiples of {HEADS}")
    if options.check:
        found = coordinate_check(options.widths, batch_size=options.batch_size or 32)
        rows = [["change after 5 steps", *(f"width {w}" for w in options.widths)]]
        for way, by_width in found.items():
            for name in by_width[0]:
                rows.append([f"{way}: {name}", *(f"{each[name]:.3f}" for each in by_width)])
        print(table(rows))
        return 0
    rates = [1e-3 * 2.0**power for power in options.rates]
    batch_size = options.batch_size or 64
    losses_of = sweep(options.widths, rates, options.steps, batch_size, options.seeds)
    rows = [["", "width", *(f"{rate:.2g}" for rate in rates), "best"]]
    for (way, width), values in losses_of.items():
        best = rates[int(np.nanargmin(values))]
        rows.append([way, str(width), *(f"{value:.3f}" for value in values), f"{best:.2g}"])
    print(table(rows))
    return 0
