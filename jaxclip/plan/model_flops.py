"""Matrix FLOPs that a training step cannot do without: the numerator of model-FLOPs utilisation.

Chowdhery et al. (2022, arXiv:2204.02311, appendix B): what is computed again (rematerialisation,
GradCache's second forward pass) does not count. They are counted in the traced program, forward and
backward, so that frozen parameters, stems and poolings of all kinds count as what they are.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.config import Config


def of_config(config: Config) -> int:
    """FLOPs of both encoders, forward and backward, on one pair of image and text.

    The product of all images with all texts in the loss is left out, as is usual; it is
    ``6 B D`` a pair, a per mille of the encoders' at B = 32 768.
    """
    from jaxclip import config_check
    from jaxclip.train import setup, state, towers

    is_frozen = functools.partial(config_check.is_frozen, config)
    plain = {**config, "remat": "none", "attention_implementation": None, "scan_layers": True}
    model = setup.build_model(plain)
    encode_image, encode_text = setup.encoders(towers.from_config(plain, model))
    side, length = config["data"]["image_size"], config["tokenizer"]["context_length"]
    batch = {
        "image": jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((1, length), jnp.int32),
    }

    def similarity(params: Any, batch: Any) -> jax.Array:
        params = state.stop_frozen_gradients(params, is_frozen)
        return jnp.sum(encode_image(params, batch["image"]) * encode_text(params, batch["text"]))

    params = jax.eval_shape(model.init, jax.random.key(0))
    return of_function(jax.grad(similarity), params, batch)


def of_function(function: Any, *args: Any) -> int:
    """Matrix FLOPs of a traceable function: two for each multiply-add of a product or convolution.

    Loops over arrays (``scan``) count as often as they run; of branches, the one that does most;
    the body of a ``while`` once.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[dim] for dim in contracted)
    if name == "conv_general_dilated":
        # Taps on the padding are counted in, as is usual for convolutions.
        kernel, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
        taps = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * taps // params["batch_group_count"]
    inner = [_of_jaxpr(jaxpr) for jaxpr in _inner(params)]
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _inner(params: dict[str, Any]) -> list[Any]:
    values = [
        v for value in params.values() for v in (value if isinstance(value, tuple) else (value,))
    ]
    closed = [getattr(value, "jaxpr", value) for value in values]
    return [value for value in closed if hasattr(value, "eqns")]
