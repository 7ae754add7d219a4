"""A training state as orbax stores it: plain nested names, plain arrays, and back."""

from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxclip.registry import nearest
from jaxclip.train import lazy_arrays

_SHOWN = 5
# What orbax says of a save that failed, at length, and we in a line; and with every save of parts.
_NO_NEWS = ("in background save thread", "_SignalingThread.run() raised", "Global object size")


def handler(
    *, one_by_one: bool = False, processes: ocp.options.MultiprocessingOptions | None = None
) -> ocp.PyTreeCheckpointHandler:
    """How arrays are laid out on disk (zarr 3 chunks in OCDBT files, zstd).

    Args:
      processes: who writes where; default: all into one folder that they share.
      one_by_one: for writing trees of lazy and NumPy arrays (:mod:`jaxclip.train.lazy_arrays`).
    """
    options: dict[str, Any] = (
        {"type_handler_registry": lazy_arrays.registry()} if one_by_one else {}
    )
    if processes is not None:
        options["multiprocessing_options"] = processes
    return ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, **options)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of orbax's (logger ``absl``) says something that we don't say ourselves."""
    text = record.getMessage()
    return not any(each in text for each in _NO_NEWS)


def to_nested(state: Any) -> dict[str, Any]:
    """A state as nested dicts of arrays, keyed by the names on the way to each leaf.

    Typed PRNG keys become their key data; arrays without elements, which the format can't hold,
    and empty containers are left out.
    """
    nested: dict[str, Any] = {}
    for name, leaf in named_leaves(state).items():
        if is_key(leaf):
            leaf = jax.random.key_data(leaf)
        elif not isinstance(leaf, (jax.Array, lazy_arrays.LazyArray)):
            # A copy: the caller may go on to change its array while it is being written.
            leaf = np.array(leaf)
        if leaf.size:
            insert(nested, name, leaf)
    return nested


def describe(state: Any) -> dict[str, list[Any]]:
    """``{name: [dtype, shape]}`` of every leaf."""
    described = {}
    for name, leaf in named_leaves(state).items():
        shape, dtype = shape_and_dtype(leaf)
        described[name] = [str(dtype), list(shape)]
    return described


def restore(path: epath.Path, abstract_state: Any) -> Any:
    """Read the arrays of a state, sharded as wanted.

    Args:
      path: folder written by orbax.
      abstract_state: pytree of ``jax.ShapeDtypeStruct`` or arrays; a leaf with a sharding comes
        back as an array of this sharding, one without as an array on the default device, a number
        as a number.

    Returns:
      The same structure with values.
    """
    leaves = named_leaves(abstract_state)
    wanted: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for name, leaf in leaves.items():
        data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        shape, dtype = shape_and_dtype(data)
        if 0 in shape:
            continue
        insert(wanted, name, jax.ShapeDtypeStruct(shape, dtype))
        sharding = getattr(leaf, "sharding", None)
        if sharding is None:
            insert(arguments, name, ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype))
        else:
            insert(
                arguments,
                name,
                ocp.ArrayRestoreArgs(
                    restore_type=jax.Array, dtype=dtype, sharding=sharding, global_shape=shape
                ),
            )
    arrays: dict[str, Any] = {}
    if wanted:
        # Not by orbax's Checkpointer: it would wait for the other processes, of which one may fail.
        reader = handler()
        try:
            nested = reader.restore(
                path,
                args=ocp.args.PyTreeRestore(
                    item=wanted, restore_args=arguments, partial_restore=True
                ),
            )
        finally:
            reader.close()
        arrays = named_leaves(nested)
    values = [_from_stored(leaf, arrays.get(name)) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract_state), values)


def _from_stored(leaf: Any, stored: Any) -> Any:
    """A stored array in the form the abstract leaf asks for."""
    shape, dtype = shape_and_dtype(leaf)
    if stored is None:  # no elements: never stored
        sharding = getattr(leaf, "sharding", None)
        if sharding is None:
            return jnp.zeros(shape, dtype)
        # Not device_put: of several processes it has all compare what they put, and one may fail.
        return jax.make_array_from_callback(
            shape, sharding, lambda index: np.zeros(shape, dtype)[index]
        )
    if is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=key_implementation(dtype))
    if isinstance(leaf, (bool, int, float, complex)):
        return type(leaf)(np.asarray(stored)[()])
    if isinstance(leaf, (np.ndarray, np.generic)):
        return np.asarray(stored)
    return stored if isinstance(stored, jax.Array) else jnp.asarray(stored)


def check_tree(
    saved: dict[str, list[Any]], abstract_state: Any, path: epath.Path, *, partial: bool
) -> None:
    """Refuse to restore a checkpoint into a state with other leaves.

    Args:
      saved: :func:`describe` of what was saved.
      abstract_state: what is asked for.
      path: the checkpoint, for the message.
      partial: leaves that are saved but not asked for are fine.

    Raises:
      ValueError: names the first missing, superfluous and differing leaves.
    """
    wanted = describe(abstract_state)
    problems = []
    for name, (dtype, shape) in wanted.items():
        if name not in saved:
            near = nearest(name, saved, cutoff=0.6)
            hint = f" (it has {near})" if near else ""
            problems.append(f"{name} is not in the checkpoint{hint}")
        elif [dtype, shape] != saved[name]:
            there = f"{saved[name][0]}{saved[name][1]}"
            problems.append(f"{name} is {there} in the checkpoint, {dtype}{shape} here")
    if not partial:
        problems += [f"{name} of the checkpoint is unknown here" for name in saved.keys() - wanted]
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        way_out = "use the configuration it was saved with, or another workdir"
        missing = wanted.keys() - saved
        if len(missing) == len(problems) and all(name.startswith("opt_state/") for name in missing):
            way_out = (
                "it has all but these, as one saved by an earlier version has: go on with that "
                "version, or set init_from to this workdir in a new one, whose optimizer then "
                "starts anew"
            )
        raise ValueError(
            f"checkpoint {path} belongs to another model or optimizer:\n  "
            + "\n  ".join(problems[:_SHOWN])
            + more
            + f"\n{way_out}"
        )


def leave_out_unfit(
    saved: dict[str, list[Any]], abstract_state: Any, field: str
) -> tuple[dict[str, list[Any]], Any]:
    """A field of a state that a checkpoint need not have: None, unless it holds the very same.

    Args:
      saved: :func:`describe` of what was saved.
      abstract_state: what is asked for, a NamedTuple.
      field: name of the field.

    Returns:
      ``saved`` and the state, both without the field where its leaves differ.
    """

    def part(leaves: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: leaf for name, leaf in leaves.items() if name.startswith(f"{field}/")}

    if part(saved) == part(describe(abstract_state)):
        return saved, abstract_state
    rest = {name: leaf for name, leaf in saved.items() if name not in part(saved)}
    return rest, abstract_state._replace(**{field: None})


def named_leaves(tree: Any) -> dict[str, Any]:
    """``{"params/image/stem/kernel": leaf, …}`` in flattening order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def insert(nested: dict[str, Any], name: str, value: Any) -> None:
    """Put a value at ``a/b/c`` of nested dicts."""
    *folders, last = name.split("/")
    for folder in folders:
        nested = nested.setdefault(folder, {})
    nested[last] = value


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key array."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_implementation(dtype: Any) -> str:
    """``"threefry2x32"`` of a key dtype; JAX tells it of key arrays only, not of their dtype."""
    for name in ("threefry2x32", "rbg", "unsafe_rbg"):
        if jax.eval_shape(lambda name=name: jax.random.key(0, impl=name)).dtype == dtype:
            return name
    raise ValueError(f"PRNG keys of dtype {dtype} can't be restored; use threefry2x32 or rbg keys")


def shape_and_dtype(leaf: Any) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of an array, a ``ShapeDtypeStruct`` or a number."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return tuple(leaf.shape), leaf.dtype
    array = np.asarray(leaf)
    return array.shape, array.dtype
