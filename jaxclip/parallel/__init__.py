"""Mesh, sharding by rules, exact gradient accumulation, start-up on many hosts."""

from jaxclip.parallel.distributed import initialize_distributed
from jaxclip.parallel.gather import gather
from jaxclip.parallel.mesh import (
    AXES,
    BATCH_AXES,
    batch_sharding,
    batch_shards,
    make_mesh,
    process_share,
    replicated,
    to_global,
)
from jaxclip.parallel.offload import is_on_host, on_host, to_device
from jaxclip.parallel.sharding import (
    PRESETS,
    Rule,
    abstract,
    init_sharded,
    sharding_rules,
    specs_for,
)

__all__ = [
    "AXES",
    "BATCH_AXES",
    "PRESETS",
    "Rule",
    "abstract",
    "batch_sharding",
    "batch_shards",
    "gather",
    "init_sharded",
    "initialize_distributed",
    "is_on_host",
    "make_mesh",
    "on_host",
    "process_share",
    "replicated",
    "sharding_rules",
    "specs_for",
    "to_device",
    "to_global",
]
