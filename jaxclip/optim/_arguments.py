"""Checks of what the transformations of this package are made with: one clear error each."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Hyperparameter = float | jax.Array | Callable[[Any], Any]

_LARGEST = float(np.finfo(np.float32).max)


def check_number(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse a hyperparameter outside its range, if it is a plain number (traced ones pass).

    Args:
      name: ``"transformation.argument"``, for the message.
      value: the argument; arrays and schedules are not looked at.
      low: smallest value allowed.
      high: largest value allowed.
      above: value that it must exceed.
      below: value that it must not reach.

    Raises:
      TypeError: the value is neither number, array nor schedule, or an array in half precision.
      ValueError: the value is out of range (or NaN), or finite but not so in float32.
    """
    if callable(value):
        _check_schedule(name, value)
    if isinstance(value, jax.Array) or callable(value):
        if isinstance(value, jax.Array) and not is_real(value):
            raise TypeError(f"{name} is an array of dtype {value.dtype}: no number")
        _check_precision(name, value)
        if isinstance(value, jax.Array) and value.ndim:
            raise TypeError(f"{name} must be a scalar, got an array of shape {value.shape}")
        return
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.number, np.ndarray)
    ):
        raise TypeError(f"{name}={value!r} must be a number, an array or a schedule")
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"{name} must be a scalar, got an array of shape {value.shape}")
    try:
        number = float(value)
    except OverflowError:  # of an integer
        number = _LARGEST * 2
    if _LARGEST < abs(number) < math.inf:
        no_limit = "; inf is no limit" if high is None and below is None else ""
        raise ValueError(f"{name}={value} is more than float32 holds{no_limit}")
    conditions = {
        f">= {low}": low is None or number >= low,
        f"<= {high}": high is None or number <= high,
        f"> {above}": above is None or number > above,
        f"< {below}": below is None or number < below,
    }
    if number != number or not all(conditions.values()):
        wanted = " and ".join(text for text in conditions if not text.endswith("None"))
        raise ValueError(f"{name}={value} must be {wanted or 'a number'}")


def is_real(value: Any) -> bool:
    """Whether it is a real number, or an array of such (traced or not)."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        return False
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return isinstance(value, (int, float))
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _check_schedule(name: str, schedule: Callable[..., Any]) -> None:
    """Refuse a function that takes no number of updates.

    Raises:
      TypeError: it wants another number of arguments.
    """
    if hasattr(schedule, "__wrapped__"):
        return  # what wraps another function shows its arguments, and may take others
    try:
        inspect.signature(schedule).bind(0)
    except ValueError:  # of code that is not Python's
        return
    except TypeError as error:
        raise TypeError(
            f"{name}={schedule!r} is no schedule, a function of the number of updates: {error}"
        ) from error


def check_inner(name: str, inner: Any) -> None:
    """Refuse what is no transformation to wrap.

    Raises:
      TypeError: it is something else, such as ``optax.adamw`` that was not called.
    """
    if callable(getattr(inner, "init", None)) and callable(getattr(inner, "update", None)):
        return
    way = "call it, with its learning rate" if callable(inner) else "such as optax.adamw(1e-3)"
    raise TypeError(f"{name}.inner={inner!r} is no optax.GradientTransformation; {way}")


def _check_precision(name: str, value: Any) -> None:
    """Refuse a hyperparameter in half precision, which makes 1.0 of 0.999.

    Raises:
      TypeError: the value is an array of a float dtype narrower than float32.
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize >= 4:
        return
    raise TypeError(
        f"{name} is an array of dtype {dtype}, too coarse for a hyperparameter (0.999 is 1.0 in "
        "bfloat16); optax.inject_hyperparams casts to the parameters' dtype unless told otherwise: "
        "pass hyperparam_dtype=jnp.float32 to it"
    )


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False, nor an array.

    Raises:
      TypeError: it is something else, such as ``"False"``.
    """
    if not isinstance(value, (bool, np.bool_, jax.Array)):
        raise TypeError(f"{name}={value!r} must be True or False")


def integer(name: str, value: Any, low: int) -> int | jax.Array:
    """A number of steps: an integer or a traced array, but no schedule.

    Args:
      name: ``"transformation.argument"``, for the message.
      value: the argument; a float without a fraction will do.
      low: smallest value allowed, if it is a plain number.

    Raises:
      TypeError: it is a function or no number.
      ValueError: it has a fraction, or is less than ``low``.
    """
    if callable(value):
        raise TypeError(
            f"{name} is a number of updates and can't be a schedule (got {value!r}); give an "
            "integer, or an array through optax.inject_hyperparams"
        )
    if isinstance(value, jax.Array):
        check_number(name, value)
        return value
    check_number(name, value, low, below=2**31)
    if not float(value).is_integer():
        raise ValueError(f"{name}={value} must be an integer")
    return int(value)


def static_integer(name: str, value: Any, low: int, high: int | None = 2**31 - 1) -> int:
    """An argument that sets a shape, as an int.

    Raises:
      TypeError: it is no integer, or a traced one.
      ValueError: it is less than ``low``, or more than any array is long.
    """
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={value!r} must be an integer")
    try:
        number = operator.index(value)
    except (TypeError, jax.errors.JAXTypeError) as error:
        argument = name.rpartition(".")[2]
        raise TypeError(
            f"{name}={value!r} must be an integer known when tracing; within "
            f"optax.inject_hyperparams pass static_args={argument!r}"
        ) from error
    if number < low:
        raise ValueError(f"{name}={number} must be >= {low}")
    if high is not None and number > high:
        raise ValueError(f"{name}={number} must be <= {high}")
    return number


def static_number(name: str, value: Any, **limits: float) -> float:
    """An argument that sets a shape, as a float.

    Args:
      name: ``"transformation.argument"``, for the message.
      value: the argument.
      **limits: as for :func:`check_number`.

    Raises:
      TypeError: it is no number, or a traced one.
      ValueError: it is out of range.
    """
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={value!r} must be a number")
    try:
        number = float(value if isinstance(value, jax.Array) else operator.pos(value))
    except (TypeError, ValueError, jax.errors.JAXTypeError) as error:
        argument = name.rpartition(".")[2]
        raise TypeError(
            f"{name}={value!r} must be a number known when tracing; within "
            f"optax.inject_hyperparams pass static_args={argument!r}"
        ) from error
    check_number(name, number, **limits)
    return number
