"""What a batch holds: the words in which objectives ask for it and in which data makes it.

A batch is a dict of arrays with leading axis B. Its specification (``BatchSpec``) is a dict from
the same keys to the fields of this module: ``{"image": View(), "text": Captions(), "view1/image":
View(ops="...")}``. An objective declares the fields that it wants, their union is the run's
specification, and from it the pipeline makes the arrays and ``--dry_run``, ``plan`` and ``bench``
know their shapes. It imports nothing of ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What shapes depend on beside the field itself."""

    image_size: int
    context_length: int


@dataclasses.dataclass(frozen=True)
class Field:
    """An array of a batch."""

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Shape of one row."""
        raise NotImplementedError

    @property
    def dtype(self) -> str:
        """Name of the dtype."""
        return "int32"

    @property
    def varies(self) -> bool:
        """Whether the first axis of a row differs from batch to batch, up to ``shape``."""
        return False

    def joined(self, other: Field) -> Field | None:
        """What serves both this field and another under the same key; None if nothing does."""
        return self if self == other else None


@dataclasses.dataclass(frozen=True)
class View(Field):
    """The record's picture through a chain of image ops: uint8[B, S, S, 3].

    Attributes:
      ops: the chain (:mod:`jaxclip.data.image_ops`); empty for ``data.image_ops``. Each view draws
        its own random numbers.
      size: side S; 0 for ``data.image_size``.
      replay: folder of reinforced records (``jaxclip data reinforce``): one of the augmentations
        kept there is replayed, by the ops that are named there.
    """

    ops: str = ""
    size: int = 0
    replay: str = ""

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        side = self.size or sizes.image_size
        return (side, side, 3)

    @property
    def dtype(self) -> str:
        return "uint8"


@dataclasses.dataclass(frozen=True)
class Patches(Field):
    """The record's picture in its own aspect ratio, as patches row by row: uint8[B, N, p * p * 3].

    N is one of ``counts``, drawn for each batch; a picture fills its first places, as
    :class:`Grid` says, and zeros the others.

    Attributes:
      ops: chain of image ops before that, whose pictures may have any size; empty for
        ``data.image_ops``.
      patch_size: side p of a patch.
      counts: the most patches of a picture.
    """

    ops: str = ""
    patch_size: int = 16
    counts: tuple[int, ...] = (256,)

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return (max(self.counts), 3 * self.patch_size**2)

    @property
    def dtype(self) -> str:
        return "uint8"

    @property
    def varies(self) -> bool:
        return len(self.counts) > 1


@dataclasses.dataclass(frozen=True)
class Grid(Field):
    """Rows and columns of the patches under another key: int32[B, 2].

    Attributes:
      of: the other key, which holds :class:`Patches`.
    """

    of: str

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return (2,)


@dataclasses.dataclass(frozen=True)
class Captions(Field):
    """Captions of the record as token ids: int32[B, L], or int32[B, count, L] if count > 1.

    Attributes:
      count: how many. A record with fewer repeats some.
      policy: which: ``"random"`` (uniform, each draw independent), ``"distinct"`` (without
        repetition as long as there are enough), ``"first"``, ``"shortest"``, ``"longest"``.
      source: only captions with this tag (a source or a language: the record's ``caption_tags``, or
        a language of the data set); empty for any.
      ops: chain of text ops; empty for none.
      min_words: captions with fewer words are passed over where the record has a longer one.
      length: tokens L; 0 for ``tokenizer.context_length``.
      folder: of reinforced records, whose synthetic captions stand beside the record's own under
        the tag ``synthetic``; empty for none.
      shares: ``((tag, share), ...)``: first a tag is drawn by these, of those that the record has
        captions of, then one of its captions; a tag is as for ``source``. Empty for equal chances
        of all captions.
    """

    count: int = 1
    policy: str = "random"
    source: str = ""
    ops: str = ""
    min_words: int = 0
    length: int = 0
    folder: str = ""
    shares: tuple[tuple[str, float], ...] = ()

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        length = self.length or sizes.context_length
        return (length,) if self.count == 1 else (self.count, length)


@dataclasses.dataclass(frozen=True)
class Negatives(Field):
    """Hard negative captions of the record as token ids: int32[B, count, L].

    They are the record's own as far as it has some (``hard_negatives``), the others made of the
    caption of ``text`` by ``ops``. Where there is none (``ops`` change nothing) the row is padding
    only: a negative is valid where any id is not 0.

    Attributes:
      count: how many.
      ops: chain of text ops that makes one of the caption.
    """

    count: int = 1
    ops: str = "swap_words"

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return (self.count, sizes.context_length)


@dataclasses.dataclass(frozen=True)
class Label(Field):
    """Class of the record: int32[B], -1 for none.

    Attributes:
      required: a record without one is replaced and counted, a data set without any is refused.
      num_classes: labels are 0 to ``num_classes - 1``: a record with another is replaced and
        counted, a data set that declares more classes is refused. 0 for any.
    """

    required: bool = True
    num_classes: int = 0

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return ()

    def joined(self, other: Field) -> Field | None:
        if not isinstance(other, Label):
            return None
        bounds = [each for each in (self.num_classes, other.num_classes) if each]
        return Label(self.required or other.required, min(bounds, default=0))


@dataclasses.dataclass(frozen=True)
class CaptionHash(Field):
    """int32[B], not negative: equal for rows whose ``text`` is the same caption, else different
    but for collisions (2^-31 a pair)."""

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return ()


@dataclasses.dataclass(frozen=True)
class Index(Field):
    """Number of the record in its split: int32[B]."""

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return ()


@dataclasses.dataclass(frozen=True)
class Stored(Field):
    """A vector kept with the record, such as a teacher's embedding: float32[B, size].

    Attributes:
      key: its name in the record.
      size: its length. A record where it is missing, of another length or not finite is replaced
        and counted.
      required: False takes records without one, whose row is zeros.
    """

    key: str
    size: int
    required: bool = True

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return (self.size,)

    @property
    def dtype(self) -> str:
        return "float32"


@dataclasses.dataclass(frozen=True)
class Embedded(Field):
    """Teachers' vector of what stands under another key, from reinforced records: float32[B, size].

    It is that of the replayed picture, or of the caption that was drawn. A record without one, or
    where it is not finite, is replaced and counted.

    Attributes:
      of: the other key.
      size: length of the vector.
      folder: of ``jaxclip data reinforce``.
    """

    of: str
    size: int
    folder: str

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return (self.size,)

    @property
    def dtype(self) -> str:
        return "float32"


@dataclasses.dataclass(frozen=True)
class Boxes(Field):
    """Boxes (x0, y0, x1, y1) in [0, 1] of the view ``image``: float32[B, count, 4].

    Those that are missing or fall out of the picture are all zero.

    Attributes:
      count: how many at most.
      min_visible: share of a box's area that must be left in the picture, or it counts as out.
    """

    count: int = 8
    min_visible: float = 0.0

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return (self.count, 4)

    @property
    def dtype(self) -> str:
        return "float32"


BatchSpec = Mapping[str, Field]


@dataclasses.dataclass(frozen=True)
class RegionTexts(Field):
    """A text for each of the record's boxes as token ids: int32[B, count, L], padding for none.

    Attributes:
      count: how many, the same as of the :class:`Boxes`.
    """

    count: int = 8

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return (self.count, sizes.context_length)


# What every contrastive run has.
PAIR: BatchSpec = {"image": View(), "text": Captions()}


def union(specs: Iterable[tuple[str, BatchSpec]]) -> dict[str, Field]:
    """One specification out of several, sorted by key.

    Args:
      specs: ``(who wants it, specification)``.

    Raises:
      ValueError: two want different things under one key.
    """
    result: dict[str, Field] = {}
    owners: dict[str, str] = {}
    for owner, spec in specs:
        for key, field in spec.items():
            both = result[key].joined(field) if key in result else field
            if both is None:
                raise ValueError(
                    f"{owner} wants batch[{key!r}] as {field}, but {owners[key]} wants it as "
                    f"{result[key]}"
                )
            result[key], owners[key] = both, owner
    return dict(sorted(result.items()))


def as_patches(spec: BatchSpec, patch_size: int, counts: Sequence[int]) -> dict[str, Field]:
    """The specification with every picture as patches, and its grid under ``<key>_grid``.

    Args:
      spec: of the batch.
      patch_size: of the image tower.
      counts: patches of a picture at most, one of which is drawn for each batch.

    Raises:
      ValueError: a picture of a size of its own, or one that is replayed.
    """
    result: dict[str, Field] = {}
    for key, field in spec.items():
        if isinstance(field, View):
            if field.size or field.replay:
                raise ValueError(f"data.patch_counts: batch[{key!r}] is {field}, which is square")
            result[key] = Patches(field.ops, patch_size, tuple(counts))
            result[f"{key}_grid"] = Grid(key)
        else:
            result[key] = field
    return dict(sorted(result.items()))


def shapes(spec: BatchSpec, batch_size: int, sizes: Sizes) -> dict[str, tuple[Any, str]]:
    """``(shape, dtype)`` of each array of a batch."""
    return {key: ((batch_size, *f.shape(sizes)), f.dtype) for key, f in spec.items()}


def known_shapes(
    spec: BatchSpec, batch_size: int, sizes: Sizes
) -> dict[str, tuple[tuple[int | None, ...], str]]:
    """:func:`shapes` with None for an axis that differs from batch to batch."""
    result: dict[str, tuple[tuple[int | None, ...], str]] = {}
    for key, (shape, dtype) in shapes(spec, batch_size, sizes).items():
        varies = spec[key].varies
        result[key] = ((shape[0], None, *shape[2:]) if varies else shape, dtype)
    return result
