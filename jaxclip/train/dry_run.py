"""``jaxclip train --dry_run``: is this configuration all right, before anything is paid for?"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from jaxclip import fields as field_lib
from jaxclip import parallel
from jaxclip.config import Config
from jaxclip.train import checks, setup


def dry_run(config: Config, *, batch_size: int | None = None) -> dict[str, Any]:
    """Build everything, compile, do one step on made-up data; print shapes and memory.

    No vocabulary or workdir is touched, and data only to check what is to be evaluated, if they are
    here. The batch is reduced to what the devices at hand
    stand (8 examples a device) unless ``batch_size`` is given; the configured one is for
    ``jaxclip plan``, which compiles without running.

    Args:
      config: resolved configuration.
      batch_size: global batch size of the step.

    Returns:
      ``{"parameters", "loss", "compile_seconds", "step_seconds", "memory"}``.

    Raises:
      ValueError: a configuration that can't be built, evaluation tasks that do not fit their data,
        metric writers that do not exist, or a loss that is not finite.
    """
    _check_what_comes_later(config)
    pieces = jax.device_count() * config["num_micro_batches"]
    size = batch_size or min(config["global_batch_size"], 8 * pieces)
    reduced = {**config, "global_batch_size": size}
    experiment = checks.build(reduced)
    checks.warn_of_training(config, experiment)
    checks.trace(experiment)
    _print_shapes(experiment, config["global_batch_size"])

    began = time.perf_counter()
    step = experiment.train_step.lower(
        experiment.abstract_state, experiment.abstract_batch()
    ).compile()
    compile_seconds = time.perf_counter() - began
    memory = step.memory_analysis()
    state = experiment.init_state()
    made_up = made_up_batch(reduced, experiment.batch_spec)
    batch = parallel.to_global(made_up, experiment.mesh)
    began = time.perf_counter()
    state, metrics = jax.block_until_ready(step(state, batch))
    step_seconds = time.perf_counter() - began
    loss = float(metrics["loss"])

    result: dict[str, Any] = {
        "parameters": setup.parameter_count(state.params),
        "loss": loss,
        "compile_seconds": compile_seconds,
        "step_seconds": step_seconds,
        "memory": {
            name: getattr(memory, f"{name}_size_in_bytes", None)
            for name in ("argument", "output", "alias", "temp")
        },
    }
    print(f"compiled in {compile_seconds:.1f} s, one step in {step_seconds:.2f} s, loss {loss:.4f}")
    print("memory a device: " + ", ".join(f"{k} {_mib(v)}" for k, v in result["memory"].items()))
    if not np.isfinite(loss):
        raise ValueError(
            f"the loss of the first step is {loss}; check precision and initialisation"
        )
    return result


def _check_what_comes_later(config: Config) -> None:
    """All names and evaluation, as the run itself checks them before its first step."""
    from jaxclip.evaluate import runner  # needs more than a made-up batch does

    checks.check_start(config)
    checks.check_names(config)
    try:
        runner.check(config)
    except FileNotFoundError as error:  # data may be elsewhere: the run itself insists on them
        print(f"evaluation is not checked: {error}")


def made_up_batch(
    config: Config, spec: field_lib.BatchSpec = field_lib.PAIR
) -> dict[str, np.ndarray]:
    """This process's share of a batch of random pixels, tokens and numbers."""
    rng = np.random.default_rng(config["seed"])
    size = config["global_batch_size"] // jax.process_count()
    shapes = field_lib.shapes(spec, size, setup.batch_sizes(config))
    # Texts first: batches of a pair stay the same whatever else there is.
    order = sorted(spec, key=lambda key: (key != "text", key != "image", key))
    return {key: _made_up(spec[key], *shapes[key], config, rng) for key in order}


def _made_up(
    field: field_lib.Field,
    shape: tuple[int, ...],
    dtype: str,
    config: Config,
    rng: np.random.Generator,
) -> np.ndarray:
    if isinstance(field, (field_lib.Captions, field_lib.Negatives, field_lib.RegionTexts)):
        tokens = rng.integers(1, config["model"]["text"]["vocab_size"], shape, dtype=np.int32)
        lengths = rng.integers(2, shape[-1] + 1, (*shape[:-1], 1))
        return np.where(np.arange(shape[-1]) < lengths, tokens, 0).astype(np.int32)
    if isinstance(field, field_lib.Grid):  # the fewest patches of any batch: always enough places
        return np.ones(shape, np.int32)
    if dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if dtype == "int32":
        many = max(2, shape[0] // 2)
        if isinstance(field, field_lib.Label) and field.num_classes:
            many = min(many, field.num_classes)
        return rng.integers(0, many, shape, dtype=np.int32)
    if isinstance(field, field_lib.Boxes):  # corners in order
        return np.sort(rng.random((*shape[:-1], 2, 2)), axis=-2).reshape(shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _print_shapes(experiment: setup.Experiment, configured: int) -> None:
    params = experiment.abstract_state.params
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        print(f"  {name:<60} {leaf.shape!s:<20} {leaf.sharding.spec}")
    print(f"parameters: {setup.parameter_count(params):,}")
    size = experiment.config["global_batch_size"]
    note = f" (configured: {configured})" if size != configured else ""
    batch = {k: f"{v.dtype}{list(v.shape)}" for k, v in experiment.abstract_batch().items()}
    print(f"mesh: {dict(experiment.mesh.shape)}; batch: {batch}{note}")


def _mib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:.1f} MiB"
