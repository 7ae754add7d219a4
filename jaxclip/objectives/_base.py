"""What an objective is: a term of the loss that names the outputs it needs."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from jaxclip import fields as field_lib
from jaxclip.models.presets import CLIPConfig

Metrics = dict[str, jax.Array]
Outputs = Mapping[str, jax.Array]
Params = Any
State = Any


@dataclasses.dataclass(frozen=True)
class Context:
    """What a term sees beside parameters and outputs.

    Attributes:
      step: int32[], steps done before this one.
      key: a key of this term and step: the same for the whole batch.
      row: int32[B], places of the rows in the global batch; with :meth:`row_keys` a row's
        randomness does not depend on how the batch is cut.
      logit_scale: float32[], log of the factor on cosines.
      logit_bias: float32[] or None.
      teacher_logit_scale: float32[] of the teacher, or None.
      mesh: the mesh the batch is sharded over, or None for one device.
      sizes: of the model in training.
      teacher_own: the term's own parameters as a teacher that follows the run has them, without a
        gradient; empty for another teacher.
      own: the term's own parameters, for :meth:`Objective.tower_options`.
      state: the term's state before the step, for :meth:`Objective.rows`.
    """

    step: jax.Array
    key: jax.Array
    row: jax.Array
    logit_scale: jax.Array
    logit_bias: jax.Array | None = None
    teacher_logit_scale: jax.Array | None = None
    mesh: jax.sharding.Mesh | None = None
    sizes: CLIPConfig = dataclasses.field(default_factory=CLIPConfig)
    teacher_own: Params = dataclasses.field(default_factory=dict)
    own: Params = dataclasses.field(default_factory=dict)
    state: State = dataclasses.field(default_factory=dict)

    def row_keys(self) -> jax.Array:
        """key[B]: one for each row, a function of (seed, step, row) and the term's name."""
        return jax.vmap(lambda row: jax.random.fold_in(self.key, row))(self.row)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A term of the loss. A method is a subclass in a file of its own; its fields are its options.

    Options are checked in ``__post_init__``, which raises ``ValueError``. A term keeps nothing: its
    own trained parameters come from :meth:`init_params` and live in ``params["objective"][name]``,
    what gradients do not train comes from :meth:`init_state`.

    **Outputs.** ``needs`` and ``row_needs`` name arrays with leading axis B, which the forward pass
    makes only as far as terms ask. A name is ``[scope/]tower[_kind]``:

    =================  =========================================================================
    tower              ``image`` or ``text``
    kind               none: float32[B, D] of unit length; ``raw``: float32[B, D] before that;
                       ``pooled`` [B, C] before the projection; ``tokens`` [B, N, C] without
                       class and prompt tokens; ``projected`` [B, N, D]: these in the joint space,
                       not of unit length; ``prefix``: class tokens; ``mask`` bool[B, N]: which
                       tokens are real; ``input``: what the tower runs on, uint8 pixels or
                       int32[B, L] token ids; ``hidden_3`` [B, P + N, C] after block 3;
                       ``attention_3`` float32[B, H, P + N, P + N] of block 3; ``attention``
                       float32[B, P + N, P + N], the mean over all blocks and heads;
                       ``largest_logits`` float32[B, depth, H], each row's largest q·k / sqrt(d);
                       ``activation_sums`` float32[B, blocks, 2], sums over the hidden units of each
                       block's MLP (:class:`jaxclip.models.Features`)
    scope              none: ``batch["image"]``, ``batch["text"]``; ``view1/``:
                       ``batch["view1/image"]``; ``texts1/``: ``batch["texts1/text"]``;
                       ``teacher/`` in front of any: the same by the teacher, without a gradient
    =================  =========================================================================

    Where the batch has K captions a row, [B, K, L], there is an axis K behind B. Any other name is
    that of an array of the batch as it is (``label``, ``boxes``); ``fields`` says how it is made.

    Attributes:
      small: options that suit a model of width 16, for tests.
      small_model: what such a model must have beside that: ``{"image": {"alpha": True}}``.
    """

    small: ClassVar[Mapping[str, Any]] = {}
    small_model: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def method(cls) -> str:
        """Its name in a configuration, that of its file, for errors of options it inherits."""
        return cls.__module__.rpartition(".")[2]

    @property
    def needs(self) -> frozenset[str]:
        """Outputs that :meth:`loss` reads, on the whole global batch."""
        return frozenset()

    @property
    def row_needs(self) -> frozenset[str]:
        """Outputs that :meth:`rows` reads; they never leave their micro-batch."""
        return frozenset()

    @property
    def fields(self) -> field_lib.BatchSpec:
        """Arrays of the batch beyond ``image`` and ``text``, and how data makes them."""
        return {}

    @property
    def whole_views(self) -> frozenset[str]:
        """Views (``"image"``) of which it needs every patch, so that nobody may set ``keep``."""
        return frozenset()

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        """Refuse a model that the term can't be trained with.

        Args:
          sizes: of the model.
          teacher: of the teacher; None if there is none or its embeddings are stored.

        Raises:
          ValueError: with what does not fit and the way out.
        """

    def check_run(self, global_batch_size: int, teacher: str) -> None:
        """Refuse a batch or a teacher that the term can't be trained with.

        Args:
          global_batch_size: rows of a step.
          teacher: kind of the teacher: ``"none"``, ``"frozen"``, ``"ema"``, ``"stored"``, ….

        Raises:
          ValueError: with what does not fit and the way out.
        """

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        """The term's own modules, a dict of float32 arrays; traceable."""
        del rng, sizes
        return {}

    def init_state(self, sizes: CLIPConfig) -> State:
        """What gradients do not train, a dict of arrays; it changes on finite steps only."""
        del sizes
        return {}

    def tower_options(self, view: str, batch: Outputs, ctx: Context) -> dict[str, Any]:
        """How a tower is to run on a view in training, such as ``{"keep": int32[B, K]}``.

        Args:
          view: key of the batch that the tower runs on (``"image"``, ``"view1/image"``).
          batch: the rows at hand, with the teacher's outputs that terms need (``teacher/...``).
          ctx: with ``row`` of these rows.

        Returns:
          Keyword arguments of :meth:`jaxclip.models.CLIP.image_features` or ``text_features``, and
          ``alpha`` float[B, H, W] for an image tower with such a channel. Two
          terms that want different things of one view are refused when the step is traced.
        """
        del view, batch, ctx
        return {}

    def tower_params(self, params: Params, ctx: Context) -> Params:
        """The model's parameters as the towers run on them in training, masked say.

        Args:
          params: the whole dict.
          ctx: with ``own``; its key is that of the whole batch, whatever part of it runs.
        """
        del ctx
        return params

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        """The work that each row can do alone, in whichever micro-batch it is.

        Returns:
          Arrays with leading axis B, small ones: they are handed to :meth:`loss` as ``outputs`` of
          the same names.
        """
        del params, outputs, ctx
        return {}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        """The term's value on the global batch.

        Returns:
          ``(loss float32[], metrics, new state)``.
        """
        raise NotImplementedError


def term_key(key: jax.Array, name: str) -> jax.Array:
    """A key that depends on a name, not on which other names there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def view_keys(ctx: Context, view: str) -> jax.Array:
    """key[B] for a tower's own randomness (dropout) on a view of the batch."""
    return dataclasses.replace(ctx, key=term_key(ctx.key, f"tower/{view}")).row_keys()
