"""Self-distillation with prototypes, as DINO has it: head, target and centre."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.models import unit
from jaxclip.models.heads import MLPHead
from jaxclip.objectives._base import Params


@dataclasses.dataclass(frozen=True)
class PrototypeHead:
    """An MLP of three layers to unit vectors, and their cosines with prototypes (DINO,
    arXiv:2104.14294).

    Attributes:
      prototypes: K.
      width: of the MLP's hidden layers.
      features: size of its unit vectors.
    """

    prototypes: int
    width: int
    features: int

    def _mlp(self, dtype: Any) -> MLPHead:
        options: dict[str, Any] = {"activation": "gelu", "unit": True, "dtype": dtype}
        return MLPHead(self.features, depth=3, width=self.width, **options)

    def init(self, rng: jax.Array, size: int) -> Params:
        """Parameters for vectors of so many channels."""
        first, second = jax.random.split(rng)
        mlp = self._mlp(jnp.float32).init(first, jnp.zeros((1, size)))["params"]
        return {
            "mlp": mlp,
            "prototypes": jax.random.normal(second, (self.prototypes, self.features)),
        }

    def __call__(self, params: Params, x: jax.Array) -> jax.Array:
        """[..., C] -> float32[..., K], cosines."""
        features: Any = self._mlp(x.dtype).apply({"params": params["mlp"]}, x)
        return jnp.matmul(features, unit(params["prototypes"]).T, precision="highest")


def distillation(
    student: jax.Array,
    teacher: jax.Array,
    centre: jax.Array,
    student_temperature: float,
    teacher_temperature: float,
) -> jax.Array:
    """Cross-entropy of softmax(student / its temperature) to the teacher's, which is centred and
    sharpened: softmax((teacher - centre) / its temperature).

    Args:
      student: float32[..., K].
      teacher: float32[..., K]; it has no gradient.
      centre: float32[K].
      student_temperature: of the student.
      teacher_temperature: of the teacher.

    Returns:
      float32[...].
    """
    target = jax.nn.softmax((teacher - centre) / teacher_temperature)
    target = jax.lax.stop_gradient(target)
    return -jnp.sum(target * jax.nn.log_softmax(student / student_temperature), axis=-1)


def moved(centre: jax.Array, teacher: jax.Array, momentum: float) -> jax.Array:
    """The centre after a batch of the teacher's outputs, float32[B, K]."""
    mean = jnp.mean(jax.lax.stop_gradient(teacher), axis=0)
    return momentum * centre + (1.0 - momentum) * mean
