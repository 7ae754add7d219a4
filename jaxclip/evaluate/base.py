"""What an evaluator is, and what it is given: a model and a data set.

Nothing here needs a configuration, files or TensorFlow: with :class:`ArrayData` an evaluator runs
on arrays at hand, in a notebook or a test.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jax.sharding import Mesh

from jaxclip import parallel
from jaxclip.evaluate import encoding
from jaxclip.evaluate.encoding import Encode, EncodedSplit, Tokenize


class Model:
    """Two encoders with their parameters.

    Attributes:
      encode_image: ``(params, uint8[B, H, W, 3]) -> float32[B, D]``, of unit length.
      encode_text: ``(params, int32[B, L]) -> float32[B, D]``, of unit length.
      params: parameters, on the mesh.
      tokenizer: ``list of n strings -> int32[n, L]``.
      mesh: the mesh.
      batch_size: rows of a global batch; rounded up to what the mesh divides.
      encode_tokens: ``(params, uint8[B, H, W, 3]) -> float32[B, C]``, the mean of the image
        tower's patch tokens; None where they are not to be had.
    """

    def __init__(
        self,
        encode_image: Encode,
        encode_text: Encode,
        params: Any,
        tokenizer: Tokenize,
        *,
        mesh: Mesh | None = None,
        batch_size: int = 128,
        encode_tokens: Encode | None = None,
    ):
        self.encode_image, self.encode_text = encode_image, encode_text
        self.encode_tokens = encode_tokens
        self.params, self.tokenizer = params, tokenizer
        self.mesh = parallel.make_mesh() if mesh is None else mesh
        self.batch_size = batch_size
        self._texts: dict[tuple[str, ...], np.ndarray] = {}

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of strings, float32[M, D]; the same list again costs nothing.

        All processes must give the same strings.
        """
        key = tuple(texts)
        if key not in self._texts:
            self._texts[key] = encoding.encode_texts(
                self.encode_text,
                self.params,
                key,
                self.tokenizer,
                batch_size=self.batch_size,
                mesh=self.mesh,
            )
        return self._texts[key]


class Data(abc.ABC):
    """A data set as evaluators see it.

    What :meth:`Evaluator.check` may ask needs no model and no picture; :meth:`images` encodes.

    Attributes:
      name: for messages.
      split: the split that the task names.
    """

    name: str
    split: str

    @abc.abstractmethod
    def check_split(self, split: str) -> None:
        """Raise ValueError, naming the nearest split, if there is no such split or it is empty."""

    @abc.abstractmethod
    def class_names(self) -> list[str] | None:
        """Names of all classes by label as the data set has them; None if it has none."""

    @abc.abstractmethod
    def split_classes(self, split: str) -> list[int] | None:
        """Labels that can occur in a split; None if that is not known."""

    def templates(self) -> list[str] | None:
        """Templates of prompts that the data set brings for its class names; None if none."""
        return None

    @abc.abstractmethod
    def sample(self, split: str) -> list[tuple[int, int]]:
        """``(label, number of captions)`` of a few records of a split, read without decoding."""

    @abc.abstractmethod
    def images(self, model: Model, split: str = "", *, tokens: bool = False) -> EncodedSplit:
        """The split (default: the task's) with its embeddings; the same on all processes.

        Args:
          model: what embeds.
          split: of the data set.
          tokens: give means of the patches' tokens in place of embeddings.
        """

    @abc.abstractmethod
    def pictures(self, numbers: Sequence[int], split: str = "") -> dict[int, np.ndarray]:
        """Some pictures of a split, ``{number: uint8[H, W, 3]}``; numbers are rows of ``images``.

        This process reads them alone.
        """


class ArrayData(Data):
    """Splits that are encoded already.

    Args:
      splits: embeddings (or means of tokens, where the evaluator reads these), labels and captions
        of each split; :func:`arrays` makes one.
      split: the split that the evaluator is about; default: the first.
      class_names: by label.
    """

    def __init__(
        self,
        splits: Mapping[str, EncodedSplit],
        split: str = "",
        class_names: Sequence[str] | None = None,
    ):
        self.name = "arrays"
        self.split = split or next(iter(splits))
        self._splits, self._class_names = dict(splits), class_names

    def check_split(self, split: str) -> None:
        if split not in self._splits:
            raise ValueError(f"no split {split!r}; there are: {', '.join(self._splits)}")

    def class_names(self) -> list[str] | None:
        return None if self._class_names is None else list(self._class_names)

    def split_classes(self, split: str) -> list[int] | None:
        return None

    def sample(self, split: str) -> list[tuple[int, int]]:
        rows = self._splits[split]
        return [(int(a), len(b)) for a, b in zip(rows.labels[:16], rows.texts[:16], strict=True)]

    def images(self, model: Model, split: str = "", *, tokens: bool = False) -> EncodedSplit:
        return self._splits[split or self.split]

    def pictures(self, numbers: Sequence[int], split: str = "") -> dict[int, np.ndarray]:
        raise ValueError("arrays at hand have no pictures")


def arrays(
    embeddings: np.ndarray,
    labels: Sequence[int] | np.ndarray | None = None,
    texts: Sequence[Sequence[str]] | None = None,
) -> EncodedSplit:
    """A split of arrays at hand.

    Args:
      embeddings: float[N, D] of images.
      labels: int[N], -1 = none; default: none has one.
      texts: captions of each image; default: none has any.
    """
    count = len(embeddings)
    return EncodedSplit(
        positions=np.arange(count),
        embeddings=np.asarray(embeddings, np.float32),
        labels=np.full(count, -1) if labels is None else np.asarray(labels, np.int64),
        texts=[[] for _ in range(count)] if texts is None else [list(t) for t in texts],
        keys=[str(i) for i in range(count)],
    )


class Evaluator:
    """Base of all evaluators: frozen dataclasses whose fields are their options.

    A new one is a file of this package with a subclass named after it (``linear_probe.py``,
    ``LinearProbe``), and a test file.

    Attributes:
      writes: names of the files that :meth:`files` gives; one task of a run may write a file.
    """

    writes: ClassVar[tuple[str, ...]] = ()

    def metric_names(self) -> list[str]:
        """Names of the metrics by which a run may choose its best checkpoint."""
        raise NotImplementedError

    def check(self, data: Data) -> None:
        """Refuse what :meth:`evaluate` would fail on; called before anything is compiled.

        The task's own split is known to exist and not to be empty.

        Raises:
          ValueError: an option out of range, or data that lack what is needed.
          FileNotFoundError: a file that an option names.
        """

    def evaluate(self, model: Model, data: Data) -> dict[str, float]:
        """Metrics by name, the same on all processes. Shares are in 0…1."""
        raise NotImplementedError

    def files(self, model: Model, data: Data) -> dict[str, Any]:
        """JSON contents to keep in the workdir, by file name; needed on process 0 only.

        Called after :meth:`evaluate`, on all processes, where there is a workdir.
        """
        return {}
