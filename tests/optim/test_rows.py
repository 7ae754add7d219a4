"""Numbers for each tensor: the right ones, and kernels that are equal for equal tensors."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import optim
from jaxclip.optim import _rows


@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_rows_are_the_numbers_of_each_tensor(number: int) -> None:
    first, second = jnp.arange(number) * 1.5, jnp.arange(number) % 2 == 0
    found = jax.jit(lambda count: _rows.rows([first, second], count))(3)
    assert len(found) == number
    for i, row in enumerate(found):
        np.testing.assert_array_equal(row, [1.5 * i, i % 2 == 0])


def different_kernels(number: int) -> int:
    """Of the compiled step of as many equal tensors."""
    params = {f"tensor_{i}": jnp.ones((8, 16)) for i in range(number)}
    tx = optim.stable_adamw(1e-3)
    program = jax.jit(tx.update).lower(params, tx.init(params), params).compile().as_text()
    kernels = set()
    for part in re.split(r"\n(?=%|ENTRY)", re.sub(r"metadata=\{[^}]*\}", "", program)):
        if part.startswith("%fused_computation"):
            names: dict[str, str] = {}
            part = re.sub(r"param_[\d.]+", "p", re.sub(r"(calls|to_apply)=\S+", "", part))
            part = part.replace(f"[{number}", "[n")
            kernels.add(
                re.sub(r"%[\w.-]+", lambda m, n=names: n.setdefault(m[0], f"%{len(n)}"), part)
            )
    return len(kernels)


def test_equal_tensors_share_their_kernels() -> None:
    """XLA's CPU compiler makes one function of them; without, compiling takes many times longer."""
    few, many = different_kernels(6), different_kernels(18)
    assert many <= few + 3, (few, many)
