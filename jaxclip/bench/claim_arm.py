"""One arm of a claim: its configuration, what its step costs, its runs, and how they are judged."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxclip.bench import methods
from jaxclip.bench.claim_list import HALF, JUDGE, SMALL, TRAIN, Arm
from jaxclip.bench.stepper import stepper
from jaxclip.bench.timing import take_turns

BATCH = 128
MEASURES = ("top1", "top5", "long5", "both5", "order", "gap", "uniform")  # see `measures`


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the comparison's files are.

    Attributes:
      to: folder of all runs.
      configs: folder of the repository's configurations.
      steps: of an arm with the share 1.
    """

    to: pathlib.Path
    configs: pathlib.Path
    steps: int

    @property
    def data(self) -> pathlib.Path:
        """The data set by style, see :func:`write_data`."""
        return self.to / "styles"

    @property
    def teacher(self) -> pathlib.Path:
        """Workdir of the run that teaches and that others go on from."""
        return self.to / f"teacher-{3 * self.steps}"


def write_data(place: Place) -> None:
    """The built-in training records by style, and every other one of those trained on."""
    if (place.data / "dataset_info.json").is_file():
        return
    from jaxclip.data import emoji

    methods.write_styles(
        place.data, {TRAIN: (TRAIN, 1, 1), HALF: (TRAIN, 1, 2), JUDGE: (JUDGE, 1, 1)}
    )
    shutil.copytree(emoji.directory() / "translations", place.data / "translations")


def configuration(place: Place, arm: Arm) -> dict[str, Any]:
    """The resolved configuration of an arm."""
    from jaxclip import config as config_lib

    steps = max(1, round(place.steps * arm.share))
    values: dict[str, Any] = {
        **SMALL,
        "total_steps": 100 * steps,  # the rate is constant: no end is planned for
        "global_batch_size": BATCH,
        "optim.schedule": {"name": "constant", "warmup_steps": max(1, steps // 12)},
        "data.name": str(place.data),
        "data.train_split": arm.split,
        "evaluate.zero_shot": [],
        "evaluate.retrieval": [],
        "evaluate.gallery_split": "",
        "checkpoint.best_metric": "",
        **arm.changes,
    }
    if arm.taught:
        values["teacher.path"] = str(place.teacher)
    if arm.goes_on:
        values["init_from"] = str(place.teacher)
    given = config_lib.load_file(f"{place.configs / 'methods.py'}:{arm.method}")
    return config_lib.resolve(given, methods.as_overrides(values))


def train_teacher(place: Place) -> None:
    """Train the teacher with CLIP's loss for three times the steps, unless it is there."""
    if (place.teacher / "done").is_file():
        return
    steps = 3 * place.steps
    shutil.rmtree(place.teacher, ignore_errors=True)
    config = {
        **SMALL,
        "total_steps": steps,
        "optim.schedule.warmup_steps": max(1, place.steps // 12),
        "data.name": str(place.data),
        "data.train_split": TRAIN,
        "evaluate.zero_shot": [JUDGE],
        "evaluate.retrieval": [],
        "evaluate.gallery_split": "",
        "evaluate.every_steps": 0,
        "checkpoint.every_steps": 0,
        "checkpoint.best_metric": "",
    }
    methods.train(place.teacher, place.configs / "methods.py:contrastive", config)
    (place.teacher / "done").touch()


class Runs:
    """The runs of an arm, on one compiled step.

    A seed chooses the initial weights and the order, captions and augmentation of the data; what a
    step draws itself goes by the row.
    """

    def __init__(self, place: Place, arm: Arm):
        import jax

        from jaxclip.train import checks, setup

        self.arm = arm
        self.config = configuration(place, arm)
        self.experiment: Any = setup.build(self.config)
        self.tokenizer = checks.load_tokenizer(self.config)
        towers = self.experiment.towers
        self.encoders = {
            name: jax.jit(lambda params, rows, name=name: towers.features(params, name, rows).raw)
            for name in ("image", "text")
        }

    def stepper(self, seed: int, stack: contextlib.ExitStack) -> Callable[[], Any]:
        """A function that does the next step of a run and returns its state."""
        return stepper(self.experiment, self.tokenizer, stack, seed)

    def run(
        self, seed: int, stops: Sequence[int], judge: Judge
    ) -> tuple[dict[int, dict[str, float]], float]:
        """Train up to the last of ``stops``.

        Returns:
          ``({steps: measures}, seconds of all cores for a step, with its input)``.
        """
        found: dict[int, dict[str, float]] = {}
        seconds = 0.0
        with contextlib.ExitStack() as stack:
            step = self.stepper(seed, stack)
            for done in range(1, max(stops) + 1):
                began = time.process_time()
                state = step()
                if done > 1:  # the first one compiles
                    seconds += time.process_time() - began
                if done in stops:
                    found[done] = judge.measure(self, state.ema_params)
        return found, seconds / max(1, max(stops) - 1)


def cost(own: Runs, reference: Runs, rounds: int) -> float:
    """What a step and its batch cost, that of ``reference`` being 1: the time of all cores."""
    if own is reference:
        return 1.0
    with contextlib.ExitStack() as stack:
        steps = {"own": own.stepper(0, stack), "reference": reference.stepper(0, stack)}
        timings = take_turns(
            steps,
            reference="reference",
            rounds=rounds,
            warmup=1,
            calls=4,
            clock=time.process_time,
        )
    return timings["own"].ratio


class Judge:
    """Pictures of the other artist, and what may be said of them."""

    def __init__(self, config: Mapping[str, Any], tokenizer: Callable[[list[str]], np.ndarray]):
        from jaxclip.data import pipeline, sources
        from jaxclip.evaluate import class_names

        batches = list(pipeline.eval_batches(config["data"], JUDGE, batch_size=BATCH))
        keep = [np.flatnonzero(batch["mask"]) for batch in batches]
        pairs = list(zip(batches, keep, strict=True))
        texts = [batch["texts"][row] for batch, rows in pairs for row in rows]
        self.images = np.concatenate([batch["image"][rows] for batch, rows in pairs])
        self.labels = np.concatenate([batch["label"][rows] for batch, rows in pairs])
        known = sources.open(config["data"]["name"]).class_names()
        names = class_names.resolve("", known, None, what="the pictures by style")
        self.names = tokenizer([names[label] for label in sorted(names)])
        longest = [max(each, key=lambda text: len(text.split())) for each in texts]
        self.long, self.swapped = tokenizer(longest), tokenizer(_in_another_order(longest))

    def measure(self, runs: Runs, params: Any) -> dict[str, float]:
        """See :func:`measures`."""
        images = _raw(runs, params, "image", self.images)
        names, long, swapped = (
            _raw(runs, params, "text", tokens) for tokens in (self.names, self.long, self.swapped)
        )
        differs = np.any(self.long != self.swapped, axis=1)
        return measures(images, names, self.labels, long, swapped, differs, runs.arm.metric)


def _in_another_order(texts: Sequence[str]) -> list[str]:
    """Each text with two words swapped; the same for all arms."""
    from jaxclip.data import text_op

    swap = text_op.build("swap_words")
    draws = np.random.default_rng(0).random((len(texts), swap.num_draws), np.float32)
    return [swap(text, u) for text, u in zip(texts, draws, strict=True)]


def _raw(runs: Runs, params: Any, tower: str, rows: np.ndarray) -> np.ndarray:
    """float32[N, D] before normalisation."""
    padded = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % BATCH, axis=0)])
    parts = [
        np.asarray(runs.encoders[tower](params, padded[start : start + BATCH]))
        for start in range(0, len(padded), BATCH)
    ]
    return np.concatenate(parts)[: len(rows)].astype(np.float32)


def measures(
    images: np.ndarray,
    names: np.ndarray,
    labels: np.ndarray,
    long: np.ndarray,
    swapped: np.ndarray,
    differs: np.ndarray,
    metric: str = "cosine",
) -> dict[str, float]:
    """What claims are judged by.

    Args:
      images: float32[N, D] raw embeddings.
      names: float32[C, D] of all classes.
      labels: int[N].
      long: float32[N, D] of each image's longest caption.
      swapped: float32[N, D] of the same with two words swapped.
      differs: bool[N]: whether that is another text.
      metric: ``"cosine"`` or ``"squared"``: how scores are made of embeddings.

    Returns:
      ``top1``, ``top5``: shares of images whose class's name is among the k best of all names;
      ``long5``: whose longest caption is among the five best of all images';
      ``both5``: the mean of ``top5`` and ``long5``;
      ``order``: whose longest caption scores higher than with two words swapped;
      ``gap``: distance between the mean image and the mean name, of unit rows;
      ``uniform``: log mean exp(-2 |a - b|²) over pairs of unit rows, the mean of both sides.
    """
    scores = _scores(images, names, metric)
    ranks = _ranks(scores, labels)
    long_ranks = _ranks(_scores(images, long, metric), np.arange(len(images)))
    own, other = (_paired(images, texts, metric) for texts in (long, swapped))
    a, b = _unit(images), _unit(names[labels])
    top5, long5 = float(np.mean(ranks < 5)), float(np.mean(long_ranks < 5))
    return {
        "top1": float(np.mean(ranks < 1)),
        "top5": top5,
        "long5": long5,
        "both5": (top5 + long5) / 2,
        "order": float(np.mean((own > other)[differs])) if differs.any() else float("nan"),
        "gap": float(np.linalg.norm(a.mean(0) - b.mean(0))),
        "uniform": (_uniformity(a) + _uniformity(b)) / 2,
    }


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def _scores(a: np.ndarray, b: np.ndarray, metric: str) -> np.ndarray:
    if metric == "squared":
        return 2.0 * a @ b.T - np.sum(b * b, axis=-1)  # |a|² is the same for a whole row
    return _unit(a) @ _unit(b).T


def _paired(a: np.ndarray, b: np.ndarray, metric: str) -> np.ndarray:
    if metric == "squared":
        return -np.sum((a - b) ** 2, axis=-1)
    return np.sum(_unit(a) * _unit(b), axis=-1)


def _ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How many score at least as high as the right one, it left out; NaN is the worst."""
    own = scores[np.arange(len(scores)), right][:, None]
    return np.sum(~(scores < own), axis=1) - 1


def _uniformity(rows: np.ndarray) -> float:
    products = rows @ rows.T
    off = ~np.eye(len(rows), dtype=bool)
    return float(np.log(np.mean(np.exp(4.0 * products[off] - 4.0))))
