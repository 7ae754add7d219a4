"""Training methods side by side on the built-in pictures: at equal pictures and at equal time.

    python -m jaxclip.bench methods --to runs/methods [--methods dcl slip …] [--steps 400]

Every method of ``configs/methods.py`` that is named trains on one drawing style (Noto) and is
judged on another one (Twemoji), among the names of all ideas, so that no test split has a part in
it. Equal pictures: each takes ``--steps`` steps. Equal time: as many steps as cost what those of
``contrastive`` cost; a step's cost, its batch included, is the time that all cores work, measured
in turns with the others'. A method with a frozen teacher learns from ``configs/emoji_long.py``'s
recipe, trained on Noto as well; its forward pass is in the cost, its training is not.

What is done is kept under ``--to``: the same command goes on where it was stopped.

    python -m jaxclip.bench methods --to runs/costs --costs_only

measures nothing but the step and memory of every method, see :mod:`jaxclip.bench.method_costs`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxclip.bench.stepper import stepper
from jaxclip.bench.timing import take_turns
from jaxclip.markdown import table

METHODS = ("contrastive", "dcl", "unicl", "slip", "coca", "flip", "mobileclip")
TRAIN, TWICE, JUDGE = "noto", "noto_twice", "twemoji"
_TAUGHT = ("mobileclip", "affinity")  # by a frozen teacher
_SAME = 0.1  # share by which costs may differ and count as equal
_SCORES = ("zero_shot/top1", "zero_shot/top5")


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.bench methods", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--to", type=pathlib.Path, required=True, help="folder for all runs")
    parser.add_argument("--configs", type=pathlib.Path, default=pathlib.Path("configs"))
    parser.add_argument("--methods", nargs="+", default=METHODS, help="objectives to compare")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--teacher_steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1))
    parser.add_argument("--warmup_steps", type=int, help="without it a twelfth of the steps")
    parser.add_argument("--ema_decay", type=float, default=0.98, help="of the judged average")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the measured cost")
    parser.add_argument(
        "--costs_only", action="store_true", help="step and memory of each, with made-up data"
    )
    parser.add_argument("--work_only", action="store_true", help="FLOPs of each, nothing is run")
    args = parser.parse_args(arguments)
    if args.costs_only or args.work_only:
        from jaxclip.bench import method_costs

        chosen = () if args.methods == METHODS else args.methods
        if args.work_only:
            return method_costs.run_work(args.to, args.configs, chosen)
        return method_costs.run(args.to, args.configs, chosen, args.rounds)
    study = Study(args.to, args.configs, args.steps, args.teacher_steps)
    study.warmup_steps, study.ema_decay = args.warmup_steps, args.ema_decay
    names = list(dict.fromkeys(["contrastive", *args.methods]))
    study.write_data()
    if set(names) & set(_TAUGHT):
        scores = study.run("teacher", args.teacher_steps, 0, "emoji_long.py")
        print(f"teacher: top-1 {100 * scores[_SCORES[0]]:.1f} on {JUDGE}", flush=True)
    costs = study.costs(names, args.rounds)
    rows = [["method", "cost of a step", "equal", "steps", "top-1", "top-5", "top-1 by seed"]]
    for name in names:
        ratio = costs[name]
        # A difference that the measurement itself has is none.
        timely = args.steps if abs(ratio - 1) < _SAME else round(args.steps / ratio)
        for equal, steps in (("pictures", args.steps), ("time", timely)):
            found = [study.run(name, steps, seed) for seed in args.seeds]
            means = [f"{100 * statistics.mean(s[key] for s in found):.1f}" for key in _SCORES]
            each = ", ".join(f"{100 * score[_SCORES[0]]:.1f}" for score in found)
            rows.append([name, f"{ratio:.2f}", equal, str(steps), *means, each])
            print("\n" + table(rows), flush=True)
    return 0


def write_styles(folder: pathlib.Path, splits: Mapping[str, tuple[str, int, int]]) -> None:
    """Write a data set of the built-in training records by style.

    Args:
      folder: where to, made anew.
      splits: name -> (style, how often each record is there, n: only every n-th record).
    """
    from jaxclip.data import emoji, schema
    from jaxclip.data._tfds import tensorflow_datasets

    tfds = tensorflow_datasets()
    built_in = tfds.builder_from_directory(emoji.directory())
    plain = {"image": tfds.decode.SkipDecoding()}
    records = list(tfds.as_numpy(built_in.as_dataset(split="train", decoders=plain)))
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name="styles", version="1.0.0", data_dir=str(folder), module_name=""
        ),
        features=built_in.info.features,
        disable_shuffling=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=1 << 30)
    writer.initialize_splits(list(splits))
    for split, (style, copies, stride) in splits.items():
        own = [r for r in records if json.loads(r["meta"])["style"] == style][::stride]
        for copy in range(copies):
            for record in own:
                key = f"{record['key'].decode()}{'/again' if copy else ''}"
                writer.add_examples({split: [{**record, schema.KEY: key}]})
    writer.close_all()


def train(workdir: pathlib.Path, config: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Train a run in a process of its own.

    Args:
      workdir: of the run.
      config: config file, with what follows its colon.
      values: keys that are set on the command line.

    Raises:
      subprocess.CalledProcessError: the run failed; what it said is on stderr.
    """
    subprocess.run(
        [sys.executable, "-m", "jaxclip", "train"]
        + ["--workdir", str(workdir), "--config", str(config)]
        + [f"--config.{each}" for each in as_overrides(values)],
        check=True,
        stdout=subprocess.DEVNULL,
    )


class Study:
    """The runs of one comparison, each in a folder of its own."""

    def __init__(self, to: pathlib.Path, configs: pathlib.Path, steps: int, teacher_steps: int):
        self.to, self.configs = to.resolve(), configs.resolve()
        self.steps, self.teacher_steps = steps, teacher_steps
        self.warmup_steps: int | None = None
        self.ema_decay = 0.98
        self.data = self.to / "styles"

    def write_data(self) -> None:
        """A data set of the built-in training records by style.

        In ``noto_twice`` each record is there two times. With ``examples_per_class=2`` a batch then
        has two captions and two augmented pictures of each of its ideas.
        """
        if not (self.data / "dataset_info.json").is_file():
            write_styles(
                self.data, {TRAIN: (TRAIN, 1, 1), TWICE: (TRAIN, 2, 1), JUDGE: (JUDGE, 1, 1)}
            )

    def overrides(self, name: str, steps: int, seed: int) -> dict[str, Any]:
        """What a run's configuration has that the recipe has not."""
        values: dict[str, Any] = {
            "seed": seed,
            "total_steps": steps,
            "optim.schedule.warmup_steps": self.warmup_steps or max(1, steps // 12),
            "ema_decay": self.ema_decay,
            "data.name": str(self.data),
            "data.train_split": TRAIN,
            "evaluate.zero_shot": [JUDGE],
            "evaluate.retrieval": [],
            "evaluate.gallery_split": "",
            "evaluate.every_steps": 0,
            "checkpoint.every_steps": steps,
            "checkpoint.best_metric": "",
        }
        if name == "unicl":
            values.update({"data.train_split": TWICE, "data.examples_per_class": 2})
        if name in _TAUGHT:
            values["teacher.path"] = str(self.to / f"teacher-{self.teacher_steps}-0")
        return values

    def run(self, name: str, steps: int, seed: int, config: str = "") -> dict[str, float]:
        """Scores of a run, which is trained unless it is there."""
        from jaxclip.evaluate import runner

        workdir = self.to / f"{name}-{steps}-{seed}"
        if not runner.read_results(workdir):
            began = time.perf_counter()
            values = self.overrides(name, steps, seed)
            if name == "teacher":  # as it was when the table was made
                values["objective"] = []
            train(workdir, self.configs / (config or f"methods.py:{name}"), values)
            print(f"{workdir.name}: {time.perf_counter() - began:.0f} s", flush=True)
        metrics = runner.read_results(workdir)["ema"]["metrics"]
        return {key: metrics[f"{JUDGE}/{key}"] for key in _SCORES}

    def costs(self, names: Sequence[str], rounds: int) -> dict[str, float]:
        """What a step and its batch cost, by method; that of ``contrastive`` is 1.

        Counted is the time that all cores work.
        """
        path = self.to / "costs.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for name in (name for name in names if name not in known):
            with contextlib.ExitStack() as stack:
                steps = {each: self._stepper(each, stack) for each in {"contrastive", name}}
                timings = take_turns(
                    steps, reference="contrastive", rounds=rounds, calls=10, clock=time.process_time
                )
            known[name] = timings[name].ratio
            path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        return known

    def _stepper(self, name: str, stack: contextlib.ExitStack) -> Callable[[], Any]:
        """A callable that does the next step of a run of this method, until ``stack`` is closed."""
        from jaxclip import config as config_lib
        from jaxclip.train import checks, setup

        config = config_lib.resolve(
            config_lib.load_file(f"{self.configs / 'methods.py'}:{name}"),
            as_overrides(self.overrides(name, self.steps, 0)),
        )
        return stepper(setup.build(config), checks.load_tokenizer(config), stack)


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """``key=value`` as :func:`jaxclip.config.resolve` reads it."""
    return [f"{key}={value!r}" for key, value in values.items()]
