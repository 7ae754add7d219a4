"""What a configuration's parts can't be beside each other: batch, mesh, objectives, optimizer.

:func:`jaxclip.train.setup.build` asks, before anything is traced.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax

from jaxclip import fields as field_lib
from jaxclip import objectives
from jaxclip.config import Config
from jaxclip.train import guard as guard_lib
from jaxclip.train import outputs
from jaxclip.train import teacher as teacher_lib


def check_objectives(
    total: objectives.Total, sizes: Any, batch_spec: field_lib.BatchSpec, teacher: teacher_lib.Setup
) -> None:
    """Refuse terms that can't be trained as configured.

    Args:
      total: the objectives.
      sizes: of the towers, a :class:`jaxclip.models.CLIPConfig`.
      batch_spec: arrays of a batch by key.
      teacher: the teacher's part.

    Raises:
      ValueError: says which and why.
    """
    total.check(sizes, teacher.sizes)
    needs = [
        (f"objective {t.name!r}", t.objective.needs | t.objective.row_needs) for t in total.terms
    ]
    outputs.check(needs, batch_spec, teacher.teacher)
    if any(isinstance(field, field_lib.Patches) for field in batch_spec.values()):
        for name, wanted in needs:
            _check_padding(name, wanted)


def _check_padding(name: str, wanted: Collection[str]) -> None:
    """Refuse a term that would take the padding of short pictures for patches."""
    tokens = sorted(each for each in wanted if each.endswith(("image_tokens", "image_projected")))
    if tokens and not any(each.endswith("image_mask") for each in wanted):
        raise ValueError(
            f"{name} reads {tokens[0]!r} with no word of which are padding, and data.patch_counts "
            "pads pictures; set data.patch_counts=[], or train with another objective"
        )


def check_guard(config: Config, guard: guard_lib.Guard | None, opt_state: Any) -> None:
    """Refuse a policy that the optimizer can't serve.

    Raises:
      ValueError: moments are to be reset, but ``opt_state`` has none.
    """
    if guard is None or "reset_moments" not in guard.actions:
        return
    if not guard_lib.has_moments(opt_state):
        raise ValueError(
            f"on_spike.actions has 'reset_moments', but the state of optim.name="
            f"{config['optim']['name']!r} has no moments that it can reset; use another action"
        )


def check_batch(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Refuse a global batch that does not divide over devices, processes and micro-batches.

    Raises:
      ValueError: names a size that does.
    """
    size = config["global_batch_size"]
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    pieces = shards * config["num_micro_batches"]
    if size % pieces:
        raise ValueError(
            f"global_batch_size={size} does not divide over data x fsdp={shards} devices x "
            f"num_micro_batches={config['num_micro_batches']}; use a multiple of {pieces}, for "
            f"instance {max(pieces, size // pieces * pieces)}, or change config.mesh"
        )


def check_micro_batches(config: Config, sizes: Any, batch_spec: field_lib.BatchSpec) -> None:
    """Refuse micro-batches where the gradient would be another than that of the whole batch.

    Raises:
      ValueError: TrAct's first layer sees several views, each whitened by its own patches.
    """
    count = config["num_micro_batches"]
    views = [key for key in batch_spec if key == "image" or key.endswith("/image")]
    if count > 1 and sizes.image.first_layer == "tract" and len(views) > 1:
        raise ValueError(
            f"num_micro_batches={count}: model.image.first_layer='tract' with the views "
            f"{', '.join(views)} needs the whole batch in one pass; use num_micro_batches=1 or "
            "leave that option out"
        )
