"""Which cue does a model go by where several would do: shape, scale, orientation or colour?

WCST-ML (Scimeca et al., 2022, arXiv:2110.03095): in training all cues of a picture agree (arrows
are red, tiny and point up), so that any of them serves; then pictures whose cues disagree show
which one was learned. Pictures are drawn here, so that no data are needed.
``python -m jaxclip.evaluate.cues --to DIR`` writes a training set.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import pathlib
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxclip import parallel
from jaxclip.evaluate import encoding
from jaxclip.evaluate.base import Data, Evaluator, Model

# Values of a cue by their number; in training all cues of a picture have the same number.
NAMES: dict[str, tuple[str, ...]] = {
    "shape": ("arrow", "triangle", "letter T", "house"),
    "scale": ("tiny", "small", "big", "huge"),
    "orientation": ("up", "right", "down", "left"),
    "colour": ("red", "green", "blue", "yellow"),
}
NUM_VALUES = 4

_PROMPTS = {
    "shape": "a picture of a {}",
    "scale": "a {} shape",
    "orientation": "a shape pointing {}",
    "colour": "a {} shape",
}
_OUTLINES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.8, -0.1)),
    ((0, -1), (0.7, 1), (-0.7, 1)),
    ((-0.9, -1), (0.9, -1), (0.9, -0.5), (0.25, -0.5), (0.25, 1), (-0.25, 1), (-0.25, -0.5),
     (-0.9, -0.5)),
    ((0, -1), (0.8, -0.2), (0.8, 1), (-0.8, 1), (-0.8, -0.2)),
)  # fmt: skip
_RADII = (0.22, 0.38, 0.58, 0.8)  # of half the side
_COLOURS = ((222, 40, 40), (40, 170, 60), (50, 80, 225), (235, 205, 40))
_OVERSAMPLING = 4


@dataclasses.dataclass(frozen=True)
class Cues(Evaluator):
    """Shape, scale, orientation or colour? On pictures drawn here: the task's data do not matter.

    Attributes:
      image_size: side of the pictures, that of the model's own.
      seed: of places and shades.
    """

    image_size: int = 64
    seed: int = 0

    def metric_names(self) -> list[str]:
        return [f"{kind}_{cue}" for kind in ("bias", "agree", "names") for cue in NAMES]

    def check(self, data: Data) -> None:
        """Refuse a size in which nothing could be seen."""
        if self.image_size < 16:
            raise ValueError(f"image_size={self.image_size} must be at least 16")

    def evaluate(self, model: Model, data: Data) -> dict[str, float]:
        """Of each cue: ``bias_``, the share of pictures whose cues all disagree that are taken for
        the class of this cue (they add up to at most 1); ``agree_``, the same over all
        combinations, where a model that goes by another cue has 1/4; ``names_``, how often its
        value is named right when asked for this cue alone."""
        combinations = all_combinations()
        rng = np.random.default_rng(self.seed)
        images = np.stack([draw(values, self.image_size, rng) for values in combinations])
        embedded = encode_images(model, images)
        classes = model.texts([caption([value] * len(NAMES)) for value in range(NUM_VALUES)])
        found = biases(np.argmax(embedded @ classes.T, axis=1), combinations)
        for place, (cue, names) in enumerate(NAMES.items()):
            texts = model.texts([_PROMPTS[cue].format(name) for name in names])
            right = np.argmax(embedded @ texts.T, axis=1) == combinations[:, place]
            found[f"names_{cue}"] = float(np.mean(right))
        return found


def all_combinations() -> np.ndarray:
    """int[4^4, 4]: numbers of the values of each cue."""
    return np.array(list(itertools.product(range(NUM_VALUES), repeat=len(NAMES))))


def biases(predicted: np.ndarray, combinations: np.ndarray) -> dict[str, float]:
    """``bias_<cue>`` and ``agree_<cue>`` of predicted classes.

    Args:
      predicted: int[N], numbers of classes.
      combinations: int[N, 4].
    """
    distinct = np.array([len(set(row)) == len(row) for row in combinations.tolist()])
    found = {}
    for place, cue in enumerate(NAMES):
        right = np.asarray(predicted) == combinations[:, place]
        found[f"bias_{cue}"] = float(np.mean(right[distinct]))
        found[f"agree_{cue}"] = float(np.mean(right))
    return found


def caption(values: Sequence[int]) -> str:
    """The caption of a picture that names all of its cues."""
    shape, scale, orientation, colour = (
        NAMES[cue][value] for cue, value in zip(NAMES, values, strict=True)
    )
    return f"a {scale} {colour} {shape} pointing {orientation}"


def draw(values: Sequence[int], size: int, rng: np.random.Generator) -> np.ndarray:
    """uint8[size, size, 3]: a shape on grey.

    Args:
      values: number of the value of each cue, in the order of :data:`NAMES`.
      size: side.
      rng: of the place of the shape, and of the shades.
    """
    from PIL import Image, ImageDraw

    shape, scale, orientation, colour = values
    side = size * _OVERSAMPLING
    radius = _RADII[scale] * side / 2
    center = side / 2 + rng.uniform(-0.9, 0.9, 2) * (side / 2 - radius)
    angle = orientation * np.pi / 2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = center + radius * np.array(_OUTLINES[shape]) @ turn
    ground = tuple(int(v) for v in rng.integers(100, 150, 1).repeat(3))
    fill = np.clip(np.array(_COLOURS[colour]) + rng.integers(-20, 21, 3), 0, 255)
    picture = Image.new("RGB", (side, side), ground)
    ImageDraw.Draw(picture).polygon(
        [(float(x), float(y)) for x, y in points], fill=tuple(int(v) for v in fill)
    )
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))


def encode_images(model: Model, images: np.ndarray) -> np.ndarray:
    """float32[N, D] of pictures at hand; all processes give the same ones."""
    stride = encoding.global_rows(model.batch_size, model.mesh)
    share, count = parallel.process_share(model.mesh)
    rows = stride // count

    def inputs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(share * rows, len(images), stride):
            mine = images[start : start + rows]
            yield mine, np.arange(start, start + len(mine))

    return encoding.encode_rows(
        model.encode_image, model.params, inputs(), batch_size=model.batch_size, mesh=model.mesh
    )[0]


def training_pictures(count: int, size: int, seed: int) -> Iterator[tuple[np.ndarray, str, int]]:
    """``(uint8[size, size, 3], caption, class)``: all cues of a picture agree."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        value = number % NUM_VALUES
        yield draw([value] * len(NAMES), size, rng), caption([value] * len(NAMES)), value


def write_training_set(
    folder: pathlib.Path, *, count: int = 2048, size: int = 64, seed: int = 1
) -> pathlib.Path:
    """Write ``train.tar`` of pictures whose cues agree, for ``data.name="webdataset:…"``.

    Args:
      folder: a new or existing one.
      count: pictures.
      size: their side.
      seed: of places and shades.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.tar"
    with tarfile.open(path, "w") as tar:
        for number, (pixels, text, label) in enumerate(training_pictures(count, size, seed)):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            members = {"png": buffer.getvalue(), "txt": text.encode(), "cls": str(label).encode()}
            for kind, content in members.items():
                info = tarfile.TarInfo(f"{number:06d}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def main(argv: Sequence[str] | None = None) -> Any:
    """Write the training set of a command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--to", required=True, help="folder")
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--image_size", type=int, default=64)
    args = parser.parse_args(argv)
    print(write_training_set(pathlib.Path(args.to), count=args.count, size=args.image_size))


if __name__ == "__main__":
    main()
