"""Do pictures made to fool one model fool another? Surrogates from flat and sharp minima.

    python -m jaxclip.bench transfer
    python -m jaxclip.bench transfer --steps 1200 --seeds 5 --radius 4

Trains the lab's tiny CLIPs (:mod:`jaxclip.lab.config`): surrogates with AdamW, stopped early, and
with SAM of several radii, and victims of other seeds and patch sizes. Pictures are changed by PGD
(:mod:`jaxclip.evaluate.attack`) until a surrogate takes them for another one's, among 32 captions;
printed is which share of those that a victim had right it then gets wrong. The claim (arXiv:
2304.02688): the larger SAM's radius, and so the flatter the surrogate's minimum, the better they
transfer, better than from a surrogate that was stopped early.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip import config as config_lib
from jaxclip import objectives, optim
from jaxclip.evaluate import attack
from jaxclip.lab import config as lab_config
from jaxclip.lab import data, injectors, measures
from jaxclip.lab.data import Pairs
from jaxclip.markdown import table
from jaxclip.train import state as state_lib
from jaxclip.train import step as step_lib
from jaxclip.train import towers

GROUP = 32  # captions that a picture is told among
RATE = 1e-3
# name -> (share of the steps, SAM's radius); early stopping is the paper's other cure.
SURROGATES: dict[str, tuple[float, float]] = {
    "AdamW": (1.0, 0.0),
    "AdamW, a quarter of the steps": (0.25, 0.0),
    "SAM, radius 0.05": (1.0, 0.05),
    "SAM, radius 0.2": (1.0, 0.2),
    "SAM, radius 0.4": (1.0, 0.4),
}
# name -> patch size. Seeds of victims are others than those of surrogates.
VICTIMS = {"same towers": 4, "patches of 8": 8, "patches of 2": 2}
_VICTIM_SEED = 1000


class Models:
    """The tiny CLIPs of a patch size and a way to train them; a run compiles once for all seeds."""

    def __init__(self, pairs: Pairs, patch_size: int = 4, rho: float = 0.0, steps: int = 600):
        """
        Args:
          pairs: training data.
          patch_size: of the image tower.
          rho: SAM's radius; 0 for AdamW alone.
          steps: of a run.
        """
        given = {**lab_config.TRAIN, "total_steps": steps}
        image = {**given["model"]["image"], "patch_size": patch_size}
        given["model"] = {**given["model"], "image": image}
        own = {"sam": {"rho": rho}} if rho else {}
        given["optim"] = {**given["optim"], "learning_rate": RATE, **own}
        self.config = config_lib.resolve(given)
        self.model = towers.build_model(self.config)
        self.towers = towers.from_config(self.config, self.model)
        self._pairs, self._steps = pairs, steps
        tx = optim.from_config(self.config["optim"], steps)
        gradient = step_lib.make_gradient(
            objectives.from_config(self.config["objective"], self.config["loss"]), self.towers
        )
        step = step_lib.make_train_step(
            gradient, tx, extra_args=("grad_fn",) if rho else ("value",)
        )

        @jax.jit
        def run(params: Any, rows: jax.Array, images: jax.Array, tokens: jax.Array) -> Any:
            state = state_lib.create_state(lambda key: params, tx, jax.random.key(0))

            def body(state: Any, at: jax.Array) -> tuple[Any, jax.Array]:
                state, metrics = step(state, {"image": images[at], "text": tokens[at]})
                return state, metrics["loss"]

            state, curve = jax.lax.scan(body, state, rows)
            return state.params, curve

        self._run = run

    def train(self, seed: int) -> tuple[Any, float]:
        """Parameters after the run of a seed, and the mean loss of its last 50 steps."""
        size = self.config["global_batch_size"]
        place = injectors.Place(seed, self._steps, size, (), self._pairs.groups)
        rows = injectors.empty_plan(place).image
        params = jax.jit(self.model.init)(jax.random.key(seed))
        params, curve = self._run(params, rows, *map(jnp.asarray, self._pairs[:2]))
        return params, measures.final_loss(np.asarray(curve))

    @functools.cached_property
    def right(self) -> Any:
        """Compiled ``(params, images, tokens) -> bool[N]``: which pictures it tells among 32."""

        def right(params: Any, images: jax.Array, tokens: jax.Array) -> jax.Array:
            best = jnp.argmax(self._logits(params, images, tokens), axis=-1)
            return (best == jnp.arange(GROUP)).reshape(-1)

        return jax.jit(right)

    @functools.cached_property
    def fool(self) -> Any:
        """Compiled ``(params, images, tokens, radius, key) -> images`` that it gets wrong."""

        def fool(params: Any, images: Any, tokens: Any, radius: Any, key: Any) -> jax.Array:
            own = jnp.broadcast_to(jnp.arange(GROUP), (images.shape[0] // GROUP, GROUP))

            def loss(images: jax.Array) -> jax.Array:
                logits = self._logits(params, images, tokens)
                return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, own))

            return attack.pgd(loss, images, radius=radius, steps=10, key=key)

        return jax.jit(fool, static_argnums=3)

    def _logits(self, params: Any, images: jax.Array, tokens: jax.Array) -> jax.Array:
        """float32[N / 32, 32, 32] of the pictures and captions of each group of 32."""
        image, text = (
            self.towers.encode(params, tower, array).reshape(len(array) // GROUP, GROUP, -1)
            for tower, array in (("image", images), ("text", tokens))
        )
        scale = jnp.exp(params["logit_scale"])
        return scale * jnp.einsum("gid,gtd->git", image, text)


def measure(
    steps: int, seeds: int, radius: float, pictures: int = 256
) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[float]]]:
    """Success rates of every surrogate on every victim.

    Args:
      steps: of the runs.
      seeds: of surrogates, and of each kind of victim.
      radius: of the change, in 255ths.
      pictures: that are changed.

    Returns:
      Surrogate -> victim -> one rate a seed (the mean over victims of all seeds), and what each
      model gets right of the pictures as they are, by name. ``"random signs"`` is the change by
      ``radius`` up or down at random.
    """
    config = config_lib.resolve({**lab_config.TRAIN, "total_steps": steps})
    pairs = data.load(config, config["data"]["train_split"])
    some = np.random.default_rng(0).permutation(len(pairs.images))[: pictures // GROUP * GROUP]
    images, tokens = jnp.asarray(pairs.images[some]), jnp.asarray(pairs.tokens[some])
    victims, right = {}, {}
    for name, patch_size in VICTIMS.items():
        models = Models(pairs, patch_size, steps=steps)
        runs = [models.train(_VICTIM_SEED + seed)[0] for seed in range(seeds)]
        before = [models.right(params, images, tokens) for params in runs]
        victims[name] = models, runs, before
        right[f"victim, {name}"] = [float(jnp.mean(each)) for each in before]

    def rates(changed: jax.Array) -> dict[str, float]:
        return {
            name: float(np.mean([
                attack.success_rate(was, models.right(params, changed, tokens))
                for params, was in zip(runs, before, strict=True)
            ]))
            for name, (models, runs, before) in victims.items()
        }  # fmt: skip

    found: dict[str, dict[str, list[float]]] = {}

    def add(surrogate: str, changed: jax.Array) -> None:
        for victim, rate in rates(changed).items():
            found.setdefault(surrogate, {}).setdefault(victim, []).append(rate)

    for seed in range(seeds):
        signs = jax.random.rademacher(jax.random.key(seed), images.shape, jnp.float32)
        add("random signs", jnp.clip(images + radius * signs, 0.0, 255.0))
    for name, (share, rho) in SURROGATES.items():
        models = Models(pairs, rho=rho, steps=round(share * steps))
        for seed in range(seeds):
            params, _ = models.train(seed)
            right.setdefault(name, []).append(float(jnp.mean(models.right(params, images, tokens))))
            add(name, models.fool(params, images, tokens, radius, jax.random.key(seed)))
            print(f"{name}, seed {seed}: done", flush=True)
    return found, right


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxclip.bench transfer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=600, help="of a run (default: 600)")
    parser.add_argument("--seeds", type=int, default=3, help="of each model (default: 3)")
    parser.add_argument("--radius", type=float, default=8.0, help="in 255ths (default: 8)")
    options = parser.parse_args(list(arguments))
    if options.steps < 60 or options.seeds < 1 or options.radius <= 0:
        parser.error("--steps must be at least 60 (50 are warm-up), --seeds 1, --radius above 0")
    found, right = measure(options.steps, options.seeds, options.radius)
    rows = [["surrogate", "right itself", *(f"fools {name}" for name in VICTIMS)]]
    for name, by_victim in found.items():
        own = _percent(right[name]) if name in right else ""
        rows.append([name, own, *(_percent(by_victim[victim]) for victim in VICTIMS)])
    print(table(rows))
    for name, shares in right.items():
        if name.startswith("victim"):
            print(f"{name}: {_percent(shares)} right of the pictures as they are")
    return 0


def _percent(shares: Sequence[float]) -> str:
    mean, deviation = measures.spread([100 * share for share in shares])
    return f"{mean:.1f} ± {deviation:.1f}%" if len(shares) > 1 else f"{mean:.1f}%"
