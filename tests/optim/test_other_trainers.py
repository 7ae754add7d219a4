"""What docs/optim.md says of other people's trainers and of their names of arguments."""

from __future__ import annotations

import inspect
import pathlib
import re

import jax.numpy as jnp
import optax
import pytest

from jaxclip import optim

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "optim.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## In other people's trainers")[1].split("\n## ")[0]


@pytest.mark.parametrize(("first", "acts"), [(True, False), (False, True)])
def test_zclip_never_acts_behind_a_clipper(first: bool, acts: bool) -> None:
    """Norms of 2 with a spike of 1000: behind `clip_by_global_norm` all of them are 1."""
    clip = optax.clip_by_global_norm(1.0) if first else optax.identity()
    tx = optax.chain(clip, optim.zclip(warmup_steps=5, max_norm=None))
    state = tx.init(jnp.zeros(1))
    clipped = []
    for size in [2.0, 2.1, 1.9, 2.05, 2.0, 1.95, 1000.0]:
        _, state = tx.update(jnp.asarray([size]), state)
        clipped.append(bool(optim.read_metrics(state)["zclip/clipped"]))
    assert clipped[-1] is acts and not any(clipped[:-1])


ROWS = re.findall(r"^\| \S+: .*? \| `(\w+)`: (.*?) \|$", SECTION, re.MULTILINE)


@pytest.mark.parametrize(("function", "text"), ROWS)
def test_arguments_named_in_the_table_exist(function: str, text: str) -> None:
    known = inspect.signature(getattr(optim, function)).parameters
    if "the same" in text:
        text = "`lambda_abs`, `lambda_rel`, `beta`, `warmup_steps`"
    assert set(re.findall(r"`(\w+)`", text)) <= set(known)


def test_the_table_is_read() -> None:
    assert {function for function, _ in ROWS} >= {
        "zclip",
        "autoclip",
        "adagc",
        "spam",
        "stable_spam",
    }
