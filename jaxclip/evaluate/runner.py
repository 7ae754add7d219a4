"""Evaluate parameters on the splits a configuration names, and keep the results in the workdir."""

from __future__ import annotations

import difflib
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxclip import parallel, storage
from jaxclip.evaluate import encoding, gallery, retrieval, templates, zero_shot
from jaxclip.evaluate.encoding import Encode, EncodedSplit, Tokenize

RESULTS_FILE = "eval.json"
GALLERY_FILE = "gallery.json"
ZERO_SHOT_KS = (1, 5)
RETRIEVAL_KS = (1, 5, 10)


def evaluate(
    encode_image: Encode,
    encode_text: Encode,
    params: Any,
    config: Mapping[str, Any],
    *,
    tokenizer: Tokenize,
    mesh: Mesh,
    workdir: str | os.PathLike[str] | None = None,
    step: int = 0,
    weights: str = "model",
) -> dict[str, float]:
    """Zero-shot classification and retrieval on the splits of ``config["evaluate"]``.

    Args:
      encode_image: ``(params, uint8[B, H, W, 3]) -> float32[B, D]``, L2-normalised.
      encode_text: ``(params, int32[B, L]) -> float32[B, D]``, L2-normalised.
      params: parameters, on the mesh.
      config: a resolved configuration; read are ``data`` and ``evaluate``: ``batch_size``,
        ``zero_shot`` and ``retrieval`` (lists of splits), ``templates``, ``gallery_split``.
      tokenizer: ``list of n strings -> int32[n, L]``.
      mesh: the mesh, axes ``data``, ``fsdp``, ``tensor``.
      workdir: where ``eval.json`` and ``gallery.json`` are written (by process 0); None = nowhere.
      step: the step the parameters are of, for these files.
      weights: which parameters these are (``"model"``, ``"ema"``); ``eval.json`` keeps one result
        of each.

    Returns:
      A flat dict: ``<split>/zero_shot/top1``, ``top5``, ``num_examples``, ``num_classes``;
      ``<split>/retrieval/image_to_text_r1``, ``_r5``, ``_r10``, ``text_to_image_r1``, …,
      ``num_images``, ``num_captions``. Shares are in 0…1.

    Raises:
      ValueError: an unknown or empty split, a data set without class names, a bad template.
    """
    from jaxclip.data import sources

    options = config["evaluate"]
    data_set = sources.open(config["data"]["name"])
    prompts = templates.resolve(options["templates"])
    tasks = {"zero_shot": list(options["zero_shot"]), "retrieval": list(options["retrieval"])}
    gallery_split = options.get("gallery_split") if workdir is not None else None
    metrics: dict[str, float] = {}
    for split in dict.fromkeys([*tasks["zero_shot"], *tasks["retrieval"], gallery_split]):
        if not split:
            continue
        run = _SplitRun(encode_image, encode_text, params, config, tokenizer, mesh, split)
        if split in tasks["zero_shot"]:
            found = run.classify(class_names(data_set, split), prompts)
            metrics |= {f"{split}/zero_shot/{name}": value for name, value in found.items()}
        if split in tasks["retrieval"]:
            found = run.recall()
            metrics |= {f"{split}/retrieval/{name}": value for name, value in found.items()}
        if split == gallery_split and workdir is not None:
            run.write_gallery(pathlib.Path(workdir) / GALLERY_FILE, step)
    if workdir is not None and jax.process_index() == 0:
        write_results(workdir, metrics, step=step, weights=weights)
    return metrics


def check(config: Mapping[str, Any]) -> None:
    """Refuse what :func:`evaluate` would fail on, so that it comes to light before the training.

    Args:
      config: a resolved configuration.

    Raises:
      ValueError: an unknown or empty split, a data set without class names, a bad template, or a
        ``checkpoint.best_metric`` that no evaluation yields.
    """
    from jaxclip.data import sources

    options = config["evaluate"]
    templates.resolve(options["templates"])
    data_set = sources.open(config["data"]["name"])
    for split in options["zero_shot"]:
        class_names(data_set, split)
    for split in [*options["zero_shot"], *options["retrieval"], options["gallery_split"]]:
        if split:
            data_set.source(split)
    best, known = config["checkpoint"]["best_metric"], metric_names(options)
    if best and best not in known:
        near = difflib.get_close_matches(best, known, n=1, cutoff=0.3)
        hint = (
            f"did you mean {near[0]!r}?" if near else "evaluate.zero_shot and .retrieval are empty"
        )
        raise ValueError(f"checkpoint.best_metric={best!r} is not what is evaluated; {hint}")


def metric_names(options: Mapping[str, Any]) -> list[str]:
    """Names of the shares that :func:`evaluate` returns for ``config["evaluate"]``."""
    zero_shot = [f"{s}/zero_shot/top{k}" for s in options["zero_shot"] for k in ZERO_SHOT_KS]
    directions = ("image_to_text", "text_to_image")
    recall = [f"{direction}_r{k}" for direction in directions for k in RETRIEVAL_KS]
    return [*zero_shot, *(f"{s}/retrieval/{name}" for s in options["retrieval"] for name in recall)]


def class_names(data_set: Any, split: str) -> dict[int, str]:
    """The classes that images of a split are told apart from: label -> name.

    These are the classes that can occur in the split where the data set says so, else all.

    Raises:
      ValueError: the data set has no class names.
    """
    names = data_set.class_names(split)
    if not names:
        raise ValueError(
            f"data set {data_set.name!r} has no class names; take {split!r} out of "
            "evaluate.zero_shot"
        )
    ids = data_set.split_classes(split)
    return {label: names[label] for label in (range(len(names)) if ids is None else sorted(ids))}


class _SplitRun:
    """One split: its images encoded once, its distinct captions once."""

    def __init__(
        self,
        encode_image: Encode,
        encode_text: Encode,
        params: Any,
        config: Mapping[str, Any],
        tokenizer: Tokenize,
        mesh: Mesh,
        split: str,
    ):
        self.encode_text, self.params, self.tokenizer = encode_text, params, tokenizer
        self.mesh, self.data_config, self.name = mesh, config["data"], split
        self.batch_size = config["evaluate"]["batch_size"]
        self.images = self._encode_images(encode_image)
        self._captions: tuple[retrieval.Captions, np.ndarray] | None = None

    def classify(self, names: Mapping[int, str], prompts: Sequence[str]) -> dict[str, float]:
        """Classification among the given classes; images of other classes do not count."""
        embedded = self._encode_texts(templates.fill(list(names.values()), prompts))
        classes = zero_shot.class_embeddings(embedded, len(names))
        place = {label: i for i, label in enumerate(names)}
        labels = np.array([place.get(int(label), -1) for label in self.images.labels], np.int64)
        mine = share_of_work(len(labels))
        counts = zero_shot.classify(
            self.images.embeddings[mine], classes, labels[mine], ks=ZERO_SHOT_KS
        )
        correct = {k: sum_over_processes(count) for k, count in counts.correct.items()}
        total = zero_shot.ZeroShot(correct, sum_over_processes(counts.examples))
        sizes = {"num_examples": total.examples, "num_classes": len(names)}
        return {**total.metrics(), **sizes}

    def recall(self) -> dict[str, float]:
        """Recall in both directions among the images and distinct captions of the split."""
        captions, embedded = self.captions()
        found: dict[str, float] = {}
        for direction, ask, queries in (
            ("image_to_text", retrieval.image_to_text, len(self.images.positions)),
            ("text_to_image", retrieval.text_to_image, len(captions.texts)),
        ):
            counts = ask(
                self.images.embeddings,
                embedded,
                captions.pairs,
                ks=RETRIEVAL_KS,
                queries=share_of_work(queries),
            )
            hits = {k: sum_over_processes(count) for k, count in counts.hits.items()}
            total = retrieval.Recall(hits, sum_over_processes(counts.queries))
            found |= total.metrics(direction)
        sizes = {"num_images": len(self.images.positions), "num_captions": len(captions.texts)}
        return {**found, **sizes}

    def write_gallery(self, path: pathlib.Path, step: int) -> None:
        """Write retrieved images and captions for some queries."""
        captions, embedded = self.captions()
        if jax.process_index() != 0:
            return
        from jaxclip.data import pipeline

        picked = gallery.pick(self.images.embeddings, embedded, captions)
        # A second pass, by this process alone: the pictures shown are known only now.
        batches = pipeline.eval_batches(self.data_config, self.name, batch_size=self.batch_size)
        pictures = gallery.pictures(batches, self.images.positions, picked.images())
        storage.write_json(path, picked.content(captions.texts, pictures, self.name, step))

    def captions(self) -> tuple[retrieval.Captions, np.ndarray]:
        """The split's distinct captions and their embeddings."""
        if self._captions is None:
            captions = retrieval.index_captions(self.images.texts)
            if not captions.texts:
                raise ValueError(
                    f"split {self.name!r} has no captions; take it out of evaluate.retrieval and "
                    "evaluate.gallery_split"
                )
            self._captions = captions, self._encode_texts(captions.texts)
        return self._captions

    def _encode_images(self, encode_image: Encode) -> EncodedSplit:
        from jaxclip.data import pipeline

        share, count = parallel.process_share(self.mesh)
        batches = pipeline.eval_batches(
            self.data_config,
            self.name,
            batch_size=encoding.global_rows(self.batch_size, self.mesh),
            process_index=share,
            process_count=count,
        )
        return encoding.encode_split(
            encode_image, self.params, batches, batch_size=self.batch_size, mesh=self.mesh
        )

    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return encoding.encode_texts(
            self.encode_text,
            self.params,
            texts,
            self.tokenizer,
            batch_size=self.batch_size,
            mesh=self.mesh,
        )


def share_of_work(count: int) -> np.ndarray:
    """Numbers below ``count`` that this process handles."""
    return np.arange(jax.process_index(), count, jax.process_count())


def sum_over_processes(value: int) -> int:
    """The sum of each process's integer."""
    return sum(encoding.gather_json(value))


def write_results(
    workdir: str | os.PathLike[str], metrics: Mapping[str, float], *, step: int, weights: str
) -> None:
    """Put results into ``eval.json``, beside those of other weights.

    The file is ``{weights: {"step": …, "time": seconds since 1970, "metrics": {name: value}}}``;
    NaN is the string ``"NaN"``.

    Args:
      workdir: the run's folder.
      metrics: flat dict of :func:`evaluate`.
      step: the step the parameters are of.
      weights: which parameters these are.
    """
    path = pathlib.Path(workdir) / RESULTS_FILE
    results = read_results(workdir)
    results[weights] = {
        "step": step,
        "time": round(time.time(), 3),
        "metrics": {name: float(value) for name, value in metrics.items()},
    }
    for result in results.values():
        result["metrics"] = storage.encode_floats(result["metrics"])
    storage.write_json(path, results)


def read_results(workdir: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """What :func:`write_results` wrote; empty if there is nothing readable."""
    results = storage.read_json(pathlib.Path(workdir) / RESULTS_FILE, {})
    for result in results.values():
        result["metrics"] = storage.decode_floats(result["metrics"])
    return results
