"""Which layers multiply by which product: ``config.precision.products``.

Layers are the linear ones of the Transformer blocks. Patch embedding, pooling, projections, norms,
the products of attention and the logits stay as they are. A rule is for all blocks of a tower: they
may be one loop (``scan_layers``), in which no block has a number.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models.layers import Block
from jaxclip.models.products import PRODUCTS
from jaxclip.models.products._base import Product
from jaxclip.registry import check_numbers

ALL_LAYERS = "^(image|text)/"
_KERNEL = re.compile(r"^(image|text)/blocks_\d+/((?:attention|mlp)/[a-z]+)/kernel$")


class Rule(NamedTuple):
    """A product for some layers.

    Attributes:
      layers: pattern of their names, such as ``image/mlp/up``.
      product: what they multiply by.
    """

    layers: str
    product: Product


def from_config(given: Any) -> tuple[Rule, ...]:
    """Rules, of which the first counts that matches a layer.

    Args:
      given: a list of ``{"name", "layers", option: value, …}``; a name alone is that product for
        all layers. Empty for none.

    Raises:
      ValueError: an unknown product or option (naming the nearest), or a pattern that is none or
        that names single blocks.
      ImportError: a library that is not there.
    """
    rules = []
    for number, each in enumerate([given] if isinstance(given, (str, Mapping)) else given or ()):
        where = f"precision.products[{number}]"
        options = {"name": each} if isinstance(each, str) else each
        if not isinstance(options, Mapping):
            raise ValueError(f"{where}={each!r} is neither a name nor a dict with a 'name'")
        pattern = options.get("layers", ALL_LAYERS)
        try:
            product = PRODUCTS.build({k: v for k, v in options.items() if k != "layers"})
            check_numbers(product, f"product {options['name']!r}")
            product.check()
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        _check_pattern(where, pattern)
        rules.append(Rule(pattern, product))
    return tuple(rules)


def _check_pattern(where: str, pattern: Any) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{where}: layers={pattern!r} is no pattern: {error}") from error
    if "blocks" in pattern:
        raise ValueError(
            f"{where}: layers={pattern!r} names blocks, but a rule is for all blocks of a tower; "
            "leave them out, as in 'image/mlp/(up|down)$'"
        )


def layer_names(paths: Iterable[str]) -> list[str]:
    """Names of the layers that rules may match, of paths of all parameters."""
    found = (_KERNEL.match(path) for path in paths)
    return list(dict.fromkeys(f"{match[1]}/{match[2]}" for match in found if match))


def check_used(rules: Sequence[Rule], names: Sequence[str]) -> None:
    """Refuse a rule that is for no layer.

    Args:
      rules: in their order.
      names: of all layers (:func:`layer_names`).

    Raises:
      ValueError: says which, and what there is.
    """
    used = {id(found) for name in names if (found := _rule_of(rules, name)) is not None}
    for number, rule in enumerate(rules):
        if id(rule) not in used:
            left = [n for n in names if _rule_of(rules[:number], n) is None]
            there = ", ".join(left or names) or "no linear layers of Transformer blocks"
            raise ValueError(
                f"precision.products[{number}]: layers={rule.layers!r} is left with no layer; "
                f"there are {there}"
            )


def _rule_of(rules: Sequence[Rule], name: str) -> Rule | None:
    return next((rule for rule in rules if re.search(rule.layers, name)), None)


@contextlib.contextmanager
def applied(rules: Sequence[Rule], tower: str) -> Iterator[None]:
    """Within it, linear layers of blocks multiply as the rules say.

    Args:
      rules: none for nothing.
      tower: ``"image"`` or ``"text"``, which names of layers begin with.
    """
    if not rules:
        yield
        return

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if type(module) is nn.Dense and module.name and isinstance(_root(module), Block):
            rule = _rule_of(rules, f"{tower}/{'/'.join(module.path)}")
            if rule is not None:
                return _dense(module, rule.product, args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def _root(module: nn.Module) -> nn.Module:
    while isinstance(module.parent, nn.Module):
        module = module.parent
    return module


def _dense(module: nn.Dense, product: Product, x: jax.Array) -> jax.Array:
    """A linear layer with another product; its parameters are there already."""
    params = module.variables["params"]
    dtype = module.dtype or jnp.result_type(x, params["kernel"])
    x, kernel = x.astype(dtype), params["kernel"].astype(dtype)
    out = product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])
    return out + params["bias"].astype(dtype) if module.use_bias else out
