"""Names of slices, ``v5e:16x16``, to devices that a program can be compiled for but not run on."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxclip.plan import chips


class Topology(NamedTuple):
    """A slice to compile for.

    Attributes:
      name: as asked for, ``"v5e:16x16"``.
      chip: peaks of its chips.
      shape: chips along each dimension of the interconnect, () where it is not known.
      devices: its devices, one a chip.
    """

    name: str
    chip: chips.Chip
    shape: tuple[int, ...]
    devices: Sequence[Any]


def parse(name: str) -> tuple[chips.Chip, tuple[int, ...]]:
    """Read ``chip:AxB`` or ``chip:AxBxC``.

    Raises:
      ValueError: the name is not of that form, or there is no such chip.
    """
    kind, colon, sizes = name.partition(":")
    chip = chips.get(kind)
    parts = sizes.split("x")
    if not colon or not all(part.isdecimal() and int(part) > 0 for part in parts):
        example = "4x4x4" if chip.torus_dims == 3 else "4x4"
        raise ValueError(
            f"topology {name!r} is not of the form CHIP:AxB or CHIP:AxBxC; for instance "
            f"{kind}:{example}"
        )
    if len(parts) != chip.torus_dims:
        shape = "x".join("ABC"[: chip.torus_dims])
        raise ValueError(
            f"topology {name!r} has {len(parts)} dimensions; {kind} slices have "
            f"{chip.torus_dims}: {kind}:{shape}"
        )
    return chip, tuple(map(int, parts))


def get(name: str) -> Topology:
    """Describe a slice of TPUs; needs libtpu, but no TPU.

    Args:
      name: for instance ``"v5e:16x16"``, ``"v5p:4x4x4"``.

    Raises:
      ValueError: an impossible name, or a shape that libtpu does not know.
      ModuleNotFoundError: libtpu is not installed.
    """
    chip, shape = parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            f"planning for {name} compiles with libtpu, which is not installed (no TPU is needed): "
            "in a clone of jaxclip: pip install '.[tpu]'",
            name="libtpu",
        )
    _quiet_libtpu()
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if chip.name == "v4":
        # The two cores of a chip as one device, as on every real machine.
        options["chip_config_name"] = "megacore"
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:
        raise ValueError(f"libtpu does not know the topology {name!r}: {error}") from error
    return Topology(name, chip, shape, description.devices)


def _quiet_libtpu() -> None:
    """Keep libtpu from looking for a TPU, its metadata server and its lock file."""
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    # Nothing is run, so several plans may be made at once, beside a run on real chips too.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
