"""The training loop: a straight story from a configuration and a workdir to a report."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from jaxclip import fields as field_lib
from jaxclip import parallel
from jaxclip.config import Config
from jaxclip.train import (
    checks,
    environment,
    metric_names,
    multihost,
    rewind,
    setup,
    spike_files,
    watch,
    writers,
)
from jaxclip.train import report as report_lib
from jaxclip.train import state as state_lib
from jaxclip.train import step as step_lib
from jaxclip.train import workdir as workdir_lib
from jaxclip.train.checkpoint import Checkpointer
from jaxclip.train.data_faults import DataFaults
from jaxclip.train.errors import RunError
from jaxclip.train.metrics import MetricWriter, Progress
from jaxclip.train.profile import Profile
from jaxclip.train.signals import StopSignals
from jaxclip.train.state import TrainState

if TYPE_CHECKING:
    from jaxclip.data import pipeline

logger = logging.getLogger("jaxclip")


class Result(NamedTuple):
    """How a call of :func:`train` ended.

    Attributes:
      finished: all steps are done (False: stopped by a signal, to be continued).
      step: updates done so far.
      signal: the signal that stopped it, or None.
      metrics: the last evaluation.
    """

    finished: bool
    step: int
    signal: signal.Signals | None
    metrics: dict[str, float]


class NonFiniteError(RunError):
    """Too many steps in a row had a loss or gradient that was not finite."""


def train(
    config: Config,
    workdir: str | pathlib.Path,
    *,
    extend: bool = False,
    break_lock: bool = False,
) -> Result:
    """Train, evaluate and report, from the newest checkpoint in ``workdir`` if there is one.

    Args:
      config: resolved configuration.
      workdir: folder for checkpoints, ``config.json``, ``metrics.jsonl``, TensorBoard events,
        ``eval.json`` and ``report.html``; created if missing. It belongs to this configuration
        once a first step is done.
      extend: the run in the workdir goes on with another value of what
        :data:`jaxclip.config.EXTENDABLE_KEYS` names, such as more steps or another rate.
      break_lock: take the workdir from a run that seems to be alive.

    Returns:
      A :class:`Result`. SIGTERM and SIGINT end the run after the step in flight with a
      checkpoint; a second SIGINT ends it at once.

    Raises:
      workdir.WorkdirError: the workdir is unwritable or holds a run of another configuration.
      lock.LockedError: another run uses the workdir.
      NonFiniteError: ``max_consecutive_nonfinite`` steps in a row were not finite.
      ValueError: a configuration that can't be built.
    """
    # Whatever is wrong shall be found before anything is written.
    experiment = checks.build(config)
    tokenizer = load_tokenizer(config)
    check_data(config, experiment.batch_spec, experiment.total.owners())
    writers.from_config(config["writers"])
    checks.trace(experiment)
    with (
        StopSignals() as stop,
        workdir_lib.hold(
            workdir, break_lock=break_lock, stopped=lambda: stop.received is not None
        ) as held,
    ):
        changes = workdir_lib.check_config(config, held.path, extend=extend)
        result = _train(experiment, tokenizer, held, stop, changes)
        if jax.process_index() == 0:
            print(f"report: {report_lib.write_report(held.path)}", flush=True)
    return result


def _train(
    experiment: setup.Experiment,
    tokenizer: Any,
    held: workdir_lib.Workdir,
    stop: StopSignals,
    changes: Mapping[str, tuple[Any, Any]],
) -> Result:
    """:func:`train` in a workdir that is ours; ``changes`` of its configuration are to be noted."""
    config, workdir = experiment.config, held.path
    rewinds = rewind.Rewinds(config)
    checkpointer = Checkpointer(
        workdir / workdir_lib.CHECKPOINTS,
        keep_last=config["checkpoint"]["keep_last"],
        keep_best=config["checkpoint"]["keep_best"],
        best_metric=config["checkpoint"]["best_metric"],
        best_mode=config["checkpoint"]["best_mode"],
        keep_every=rewinds.keep_every(),
    )
    with checkpointer:
        state, evaluation, rewinds.done = first_state(experiment, checkpointer)
        start = int(state.step)
        rewind.check_given(config, changes, start, rewinds)
        if changes and start >= config["total_steps"]:
            raise workdir_lib.WorkdirError(
                f"total_steps={config['total_steps']}, but {start} steps are done already; give "
                "--extend more of them"
            )
        describe(experiment, workdir, start)
        for key, (before, now) in changes.items():
            logger.info("changed after step %d: %s: %r -> %r", start, key, before, now)
        checks.warn_of_frozen_scale(config, state.params)
        parameters = setup.parameter_count(experiment.abstract_state.params)
        environment.write(workdir, parameters=parameters)
        with MetricWriter(workdir, config["writers"], resume_step=start, config=config) as writer:
            run = _Run(experiment, tokenizer, checkpointer, writer, stop, held, rewinds)
            run.changes = changes
            if evaluation:
                run.evaluation, run.last_evaluated = evaluation, start
            with run.progress:
                state = run.steps(state)
                finished = int(state.step) >= config["total_steps"]
                if finished:
                    run.finish(state)
    return Result(finished, int(state.step), stop.received, run.evaluation)


class _Run:
    """The moving parts of one call of :func:`train`."""

    def __init__(
        self,
        experiment: setup.Experiment,
        tokenizer: Any,
        checkpointer: Checkpointer,
        writer: MetricWriter,
        stop: StopSignals,
        held: workdir_lib.Workdir,
        rewinds: rewind.Rewinds,
    ):
        self.rewinds = rewinds
        self.spikes = spike_files.SpikeFiles(experiment, tokenizer, held.path)
        self.judged = 0  # the last step whose spike was looked at
        self.gone_back = 0  # steps done again, so that steps and these make a clock
        self.claimed = False
        self.experiment = experiment
        self.config = experiment.config
        self.tokenizer = tokenizer
        self.checkpointer = checkpointer
        self.writer = writer
        self.stop = stop
        self.held, self.workdir = held, held.path
        self.changes: Mapping[str, tuple[Any, Any]] = {}
        self.evaluation: dict[str, float] = {}
        self.last_evaluated = -1
        self.unusable = 0
        self.told_of_captions = False
        self.faults = DataFaults(held.path, self.config["data"]["max_unusable"])
        self.pending: list[tuple[int, dict[str, jax.Array]]] = []
        self.progress = Progress(self.config["total_steps"], self.config["global_batch_size"])

    def steps(self, state: TrainState) -> TrainState:
        """Do the remaining steps, or as many as come before a signal."""
        config, total = self.config, self.config["total_steps"]
        start = int(state.step)
        if start >= total:
            return state
        if is_due(config["evaluate"]["every_steps"], start) and self.last_evaluated != start:
            self.evaluate(state, start)  # a stop cut it off
            self.save(state, start)
        profile = Profile(self.config["profile"], self.workdir)
        self.progress.start(start)
        with profile:
            # Each stretch goes to the end, to a stop, or to a spike that the run goes back from.
            go_on = True
            while go_on:
                state, go_on = self.stretch(state, profile)
        return state

    def stretch(self, state: TrainState, profile: Profile) -> tuple[TrainState, bool]:
        """Steps in a row; the state after them, and whether another stretch follows."""
        config, total, start = self.config, self.config["total_steps"], int(state.step)
        previous: dict[str, jax.Array] | None = None
        with contextlib.closing(self.records(start)) as records:
            for step in range(start + 1, total + 1):
                batch = parallel.to_global(next(records), self.experiment.mesh)
                profile.before(step, previous)
                state, metrics = self.experiment.train_step(state, batch)
                metrics |= self.spikes.probe(step, state.params, batch)
                self.spikes.add(step, metrics)
                self.pending.append((step, metrics))
                # Run one step ahead of the device and no further: the host's memory stays flat.
                if previous is not None:
                    jax.block_until_ready(previous["loss"])
                    self.check_finite(step - 1, previous, records)
                    if self.must_go_back(step - 1, previous, state):
                        del state, metrics, batch  # room for the one that is read
                        return self.go_back(step - 1, records), True
                previous = metrics
                if step == start + 1:
                    jax.block_until_ready(metrics["loss"])
                    self.progress.compiled(step)
                    if not self.claimed:
                        workdir_lib.claim(config, self.workdir, start, self.changes)
                        self.claimed = True
                stopping = self.stop.requested(step + self.gone_back)
                last = stopping or step == total
                evaluates = is_due(config["evaluate"]["every_steps"], step) and not stopping
                saves = last or is_due(config["checkpoint"]["every_steps"], step)
                if last or step % config["log_every_steps"] == 0:
                    self.flush(records.stats())
                    self.faults.note(records.bad_records())
                    self.faults.check(records.stats()["uses"], records.drawn)
                    self.check_finite(step, metrics, records)
                if (evaluates or saves) and self.must_go_back(step, metrics, state):
                    if not stopping:
                        del state, batch
                        return self.go_back(step, records), True
                    self.progress.message(
                        f"stopped after step {step}, a spike; run it again to go back from it"
                    )
                    break
                # Who stops a run seldom waits for long; on the way back there is time.
                if evaluates:
                    self.evaluate(state, step)
                if saves:
                    self.save(state, step, postpone=not last)
                if stopping:
                    self.progress.message(f"stopped after step {step}; run it again to go on")
                    break
        return state, False

    def must_go_back(self, step: int, metrics: Mapping[str, jax.Array], state: TrainState) -> bool:
        """Look at what the step said of itself, once; whether to go back from it.

        Args:
          step: the step, which the device is done with.
          metrics: of this step.
          state: at hand now, after the step or one more.

        Raises:
          rewind.SpikeError: it would be once too often.
        """
        if self.experiment.guard is None or step <= self.judged:
            return False
        self.judged = step
        kind = int(metrics["watch/spike"])
        if not kind:
            return False
        if self.spikes.is_due(step, kind):
            with self.progress.paused("writing down the spike"):
                self.spikes.write(step, kind, state.params, self.rewinds.batch(step))
        if not self.rewinds.wanted:
            done = ", ".join(self.experiment.guard.actions) or "nothing done about it"
            loss, norm = (float(metrics[name]) for name in ("loss", "grad_norm"))
            self.progress.message(
                f"  spike at step {step}: loss {loss:.4g}, gradient norm {norm:.4g}; {done}"
            )
            return False
        self.checkpointer.wait()
        steps = [other for other in self.checkpointer.steps() if other < step]
        self.rewinds.check_limit(step, steps[-1] if steps else None)
        return True

    def go_back(self, step: int, records: pipeline.TrainIterator) -> TrainState:
        """The state of before a spike, from which batches of this past are passed over."""
        # The step under way has no say any more.
        self.pending = [(at, values) for at, values in self.pending if at <= step]
        self.flush(records.stats())
        experiment = self.experiment
        target, state = self.rewinds.go_back(
            step, self.checkpointer, state_lib.to_save(experiment.abstract_state)
        )
        spike_files.write_rewinds(self.workdir, self.rewinds.done)
        self.spikes.forget_after(target)
        self.progress.message(self.rewinds.message())
        self.judged = target
        self.gone_back += step - target
        if self.last_evaluated > target:
            self.evaluation, self.last_evaluated = {}, -1
        self.progress.compiled(target)
        return experiment.init_state() if state is None else experiment.with_frozen(state)

    def finish(self, state: TrainState) -> None:
        """The last evaluation, unless the run was evaluated at this very step."""
        step = int(state.step)
        if self.last_evaluated != step:
            self.evaluate(state, step)
            self.save(state, step)

    def records(self, start: int) -> pipeline.TrainIterator:
        """This process's batches for steps start, start + 1, …"""
        from jaxclip.data import pipeline

        share, count = parallel.process_share(self.experiment.mesh)
        return pipeline.train_iterator(
            self.config["data"],
            tokenizer=self.tokenizer,
            global_batch_size=self.config["global_batch_size"],
            seed=self.config["seed"],
            start_step=start,
            process_index=share,
            process_count=count,
            spec=self.experiment.batch_spec,
            passed_over=self.rewinds.passed_over,
        )

    def flush(self, stats: Mapping[str, Mapping[str, int]]) -> None:
        """Fetch, write and show the metrics of the steps since the last flush.

        Args:
          stats: what this process met in the data so far (:meth:`.TrainIterator.stats`).
        """
        unusable, captions = stats["records"], stats["captions"]
        if not self.pending:
            return
        self.held.check()
        fetched = [(step, jax.device_get(scalars(metrics))) for step, metrics in self.pending]
        self.pending.clear()
        for step, metrics in fetched:
            self.writer.write(step, {key: float(value) for key, value in metrics.items()})
        step, _ = fetched[-1]
        speed = self.progress.update(fetched)
        count = multihost.total(sum(unusable.values()))
        self.writer.write(step, {**speed, "unusable_records": count})
        if not self.told_of_captions:
            self.told_of_captions = True
            self.progress.message(describe_captions(captions))
        if count > self.unusable:
            self.unusable = count
            reasons = ", ".join(f"{count} {reason}" for reason, count in unusable.items())
            where = "" if jax.process_count() == 1 else f" ({count} on all hosts)"
            self.progress.message(
                f"  records replaced because they can't be used{where}: {reasons or 'none here'}"
            )

    def check_finite(
        self, step: int, metrics: Mapping[str, jax.Array], records: pipeline.TrainIterator
    ) -> None:
        """End the run at ``max_consecutive_nonfinite``, asking a step that the device is done with.

        What remains as the newest checkpoint is from before the first of these steps.

        Args:
          step: the step.
          metrics: of this step.
          records: the batches, for the counts of those replaced.

        Raises:
          NonFiniteError: so many steps in a row were not finite.
        """
        streak, limit = int(metrics["nonfinite_streak"]), self.config["max_consecutive_nonfinite"]
        if streak < limit:
            return
        # The step under way has no say any more.
        self.pending = [(at, values) for at, values in self.pending if at <= step]
        self.flush(records.stats())
        newest = self.checkpointer.drop_after(step - streak)
        left = "there is no checkpoint" if newest is None else f"the newest checkpoint is {newest}"
        raise NonFiniteError(
            f"the last {streak} gradients up to step {step} were not finite "
            f"(max_consecutive_nonfinite={limit}; {left}); lower optim.learning_rate or set "
            "optim.clip (with --extend), or look at the data of these steps"
        )

    def evaluate(self, state: TrainState, step: int) -> None:
        """Evaluate the averaged parameters if there are any, else the current ones."""
        from jaxclip.evaluate import runner, tasks

        if not tasks.from_config(self.config):
            return
        with self.progress.paused("evaluating"):
            params = state.params if state.ema_params is None else state.ema_params
            began = time.perf_counter()
            self.evaluation = runner.evaluate(
                self.experiment.encode_image,
                self.experiment.encode_text,
                params,
                self.config,
                tokenizer=self.tokenizer,
                mesh=self.experiment.mesh,
                workdir=self.workdir,
                step=step,
                weights="model" if state.ema_params is None else "ema",
            )
            self.last_evaluated = step
            seconds = time.perf_counter() - began
            self.writer.write(step, {f"eval/{k}": v for k, v in self.evaluation.items()})
            self.progress.show_evaluation(step, self.evaluation, seconds)

    def save(self, state: TrainState, step: int, *, postpone: bool = False) -> None:
        """Save the state, but ``postpone`` it if the state may be why gradients are not finite."""
        if postpone:
            wrong = "gradient was" if int(state.nonfinite_streak) else ""
            if not wrong and not bool(_all_finite(state.params)):
                wrong = "parameters are"
            if wrong:
                self.progress.message(f"  no checkpoint at step {step}: its {wrong} not finite")
                return
        self.held.check()
        fresh = self.evaluation if self.last_evaluated == step else None
        saved = state_lib.to_save(state)
        extra = {"config": self.config, rewind.KEY: self.rewinds.done}
        self.checkpointer.save(step, saved, metrics=fresh, extra=extra)


def scalars(metrics: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Metrics without the vectors that are kept for spikes only."""
    return {name: x for name, x in metrics.items() if not name.startswith(watch.TENSORS)}


_all_finite = jax.jit(step_lib.all_finite)


def describe_captions(counts: Mapping[str, int]) -> str:
    """What the captions met so far are like: those that may be cut, and false negatives.

    They are no metrics: how far this process has read ahead is not the same in every run.
    """
    drawn = counts.get("drawn", 0)
    if not drawn:
        return "  captions: none drawn yet"
    full, equal = counts["fill"] / drawn, counts["equal"] / drawn
    return (
        f"  captions so far: {full:.1%} fill their row, so may be cut; "
        f"{equal:.1%} equal another one of their batch"
    )


def is_due(every: int, step: int) -> bool:
    """Whether something done ``every`` steps (0: never) is due after ``step``."""
    return every > 0 and step > 0 and step % every == 0


def first_state(
    experiment: setup.Experiment, checkpointer: Checkpointer
) -> tuple[TrainState, dict[str, float], list[dict[str, Any]]]:
    """The newest usable checkpoint, its evaluation and rewinds, or a fresh state without one."""
    wanted = state_lib.to_save(experiment.abstract_state)
    restored = checkpointer.restore_latest(wanted, optional="guard")
    if restored is None:
        return experiment.init_state(), {}, []
    state = experiment.with_frozen(restored.state)
    return state, restored.metrics, list(restored.extra.get(rewind.KEY, []))


def load_tokenizer(config: Config) -> Any:
    """The tokenizer of a configuration, checked against the text tower.

    Raises:
      FileNotFoundError: its vocabulary is missing.
      ValueError: it has more tokens than the text tower embeds.
    """
    from jaxclip.data import tokenizers

    tokenizer = tokenizers.load(config["tokenizer"])
    embedded = config["model"]["text"]["vocab_size"]
    if tokenizer.vocab_size > embedded:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, model.text.vocab_size={embedded}; "
            f"set model.text.vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer


def check_data(
    config: Config,
    spec: field_lib.BatchSpec = field_lib.PAIR,
    owners: Mapping[str, str] | None = None,
) -> None:
    """Refuse what training or evaluation would trip over, before anything is compiled.

    Args:
      config: resolved configuration.
      spec: what a batch holds.
      owners: who wants which key of it, for errors.

    Raises:
      FileNotFoundError: the data set does not exist.
      ValueError: a missing or empty split, an unknown image op or language, a field that the data
        set can't have, or as :func:`jaxclip.evaluate.runner.check`.
    """
    from jaxclip.data import image_ops, pipeline
    from jaxclip.evaluate import runner

    data = pipeline.complete(config["data"])
    for ops in (data["image_ops"], data["eval_image_ops"]):
        image_ops.build(ops, data["image_size"])
    data_set = pipeline.training_data(data)
    data_set.source(data["train_split"])
    data_set.texts_of(data["languages"])
    pipeline.check_spec(config["data"], spec, owners=owners)
    runner.check(config)


def describe(experiment: setup.Experiment, workdir: pathlib.Path, start: int) -> None:
    """Print what is about to run, in a few lines."""
    if jax.process_index() != 0:
        return
    config, mesh = experiment.config, experiment.mesh
    count = setup.parameter_count(experiment.abstract_state.params)
    clip = metric_names.of_clip(config)
    objective = " + ".join(term.name for term in experiment.total.terms)
    if not config["objective"]:
        objective = config["loss"]["name"]
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    print(
        f"model {config['model']['preset']}: {count / 1e6:.2f} M parameters, "
        f"compute {config['precision']['compute_dtype']}\n"
        f"batch {config['global_batch_size']} on {mesh.size} x {mesh.devices.flat[0].device_kind}"
        f"{f' ({axes})' if axes else ''}, {jax.process_count()} process(es)\n"
        f"objective {objective}, optimizer {config['optim']['name']}, clip {clip}\n"
        f"workdir {workdir}: "
        + (f"going on after step {start}" if start else "a new run")
        + f" of {config['total_steps']} steps",
        flush=True,
    )
