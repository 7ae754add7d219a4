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

from jaxclip import parallel
from jaxclip.config import Config
from jaxclip.errors import NonFiniteError
from jaxclip.train import checks, describe, environment, rewind, setup, spike_files, writers
from jaxclip.train import report as report_lib
from jaxclip.train import state as state_lib
from jaxclip.train import workdir as workdir_lib
from jaxclip.train.checkpoint import Checkpointer
from jaxclip.train.data_faults import DataFaults
from jaxclip.train.metrics import MetricWriter, Progress
from jaxclip.train.profile import Profile
from jaxclip.train.signals import StopSignals
from jaxclip.train.state import TrainState
from jaxclip.train.step_metrics import StepMetrics
from jaxclip.train.workdir_config import check_config, claim

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
      workdir: folder or address (``gs://…``) for checkpoints, metrics and the report; created if
        missing. It belongs to this configuration once a first step is done.
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
    experiment = checks.build(config)
    checks.warn_of_training(config, experiment)
    tokenizer = checks.load_tokenizer(config)
    checks.check_data(config, experiment.batch_spec, experiment.total.owners())
    checks.check_start(config, f"{workdir}/{workdir_lib.CHECKPOINTS}")
    writers.from_config(config["writers"])
    checks.trace(experiment)
    with (
        StopSignals() as stop,
        workdir_lib.hold(
            workdir, break_lock=break_lock, stopped=lambda: stop.received is not None
        ) as held,
    ):
        changes = check_config(config, held.path, extend=extend, name=held.name)
        result = _train(experiment, tokenizer, held, stop, changes)
        if jax.process_index() == 0:
            written = report_lib.write_report(held.path, held.name)
            stop.say(f"report: {held.name}/{written.name}")
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
        **{k: value for k, value in config["checkpoint"].items() if k != "every_steps"},
        keep_every=rewinds.keep_every(),
        copy=held.copy,
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
        describe.describe(experiment, held, start, changes, stop.say)
        checks.warn_of_frozen_scale(config, state.params)
        environment.write(workdir, parameters=setup.parameter_count(state.params))
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
        self.faults = DataFaults(held.path, self.config["data"]["max_unusable"])
        total, batch = self.config["total_steps"], self.config["global_batch_size"]
        self.progress = Progress(total, batch, lost=stop.nobody_reads)
        self.metrics = StepMetrics(writer, self.progress, held)

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
                self.metrics.add(step, metrics)
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
                        claim(config, self.workdir, start, self.changes)
                        self.claimed = True
                stopping = self.stop.requested(step + self.gone_back)
                last = stopping or step == total
                evaluates = is_due(config["evaluate"]["every_steps"], step) and not stopping
                saves = last or is_due(config["checkpoint"]["every_steps"], step)
                if saves or step % config["log_every_steps"] == 0:
                    self.metrics.flush(records.stats())
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
                # A stop does not wait for an evaluation: the run makes it when it goes on.
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
        self.metrics.drop_after(step)
        self.metrics.flush(records.stats())
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
        self.metrics.drop_after(step)
        self.metrics.flush(records.stats())
        newest = self.checkpointer.drop_after(step - streak)
        left = "there is no checkpoint" if newest is None else f"the newest checkpoint is {newest}"
        raise NonFiniteError(
            f"the last {streak} gradients up to step {step} were not finite "
            f"(max_consecutive_nonfinite={limit}; {left}); lower optim.learning_rate or set "
            "optim.clip (with --extend), or look at the data of these steps"
        )

    def evaluate(self, state: TrainState, step: int) -> None:
        """Evaluate the state, if anything is to be evaluated."""
        from jaxclip.evaluate import tasks
        from jaxclip.train import evaluation

        if not tasks.from_config(self.config):
            return
        with self.progress.paused("evaluating"):
            began = time.perf_counter()
            self.evaluation = evaluation.evaluate_state(
                self.experiment, state, tokenizer=self.tokenizer, workdir=self.workdir, step=step
            )
            self.last_evaluated = step
            seconds = time.perf_counter() - began
            self.writer.write(step, {f"eval/{k}": v for k, v in self.evaluation.items()})
            self.progress.show_evaluation(step, self.evaluation, seconds)

    def save(self, state: TrainState, step: int, *, postpone: bool = False) -> None:
        """Save the state, but ``postpone`` it if the state may be why gradients are not finite."""
        wrong = state_lib.what_is_not_finite(state) if postpone else ""
        if wrong:
            self.progress.message(f"  no checkpoint at step {step}: its {wrong} not finite")
            return
        self.held.check()
        fresh = self.evaluation if self.last_evaluated == step else None
        extra = {"config": self.config, rewind.KEY: self.rewinds.done}
        self.checkpointer.save(step, state_lib.to_save(state), metrics=fresh, extra=extra)


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
