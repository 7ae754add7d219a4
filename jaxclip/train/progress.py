"""Progress for a person: a table row now and then, and on a terminal a live line below it."""

from __future__ import annotations

import atexit
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import jax
from rich.console import Console
from rich.live import Live
from rich.text import Text

from jaxclip import standard_streams
from jaxclip.train import metric_names

_HEADER_EVERY = 25
_BAR_WIDTH = 24
# When to say how long it will take in all; a run that ends within as much says nothing.
_FORECAST_SECONDS = 60.0


class Progress:
    """Shows step, loss, gradient norm, what the clipper did, speed and time left.

    Every :meth:`update` prints one row (80 columns) of means over the steps since the row before;
    ``clipped`` is the share of these steps in which the clipper acted. After the first minute a
    line says how long it will take in all. On a terminal a live line
    with a bar follows the last row. Processes other than 0 show nothing.
    """

    def __init__(
        self,
        total_steps: int,
        global_batch_size: int,
        *,
        stream: TextIO | None = None,
        width: int | None = None,
        lost: Callable[[OSError], None] = lambda error: None,
    ):
        """Make a display; nothing is printed before :meth:`start`.

        Args:
          total_steps: steps of the whole run.
          global_batch_size: examples a step, for images/s.
          stream: where to print (default: standard output).
          width: columns, for tests (default: the terminal's; 80 when piped).
          lost: called, once, when the stream can't be written; from then on nothing is shown.
        """
        self._total, self._batch = total_steps, global_batch_size
        stream = stream or sys.stdout
        self._silent = jax.process_index() != 0
        if width is None and not stream.isatty():
            width = 80
        file: Any = standard_streams.Forgiving(stream, lost)
        self._console = Console(file=file, width=width, highlight=False, soft_wrap=False)
        self._live: Live | None = None
        self._rows = 0
        self._step = self._first = 0
        self._status = ""
        self._seconds_per_step = math.nan
        self._measured = 0
        self._nonfinite = 0.0
        self._since = self._began = time.monotonic()
        self._forecast = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def start(self, step: int) -> None:
        """Begin at a step (after a restart: the restored one); the clock runs from here."""
        self._step = self._first = step
        self._since = self._began = time.monotonic()
        if self._console.is_terminal and not self._silent:
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=1,
                transient=True,
            )
            self._live.start()
            atexit.register(self.close)  # whatever ends the run, the cursor comes back

    def compiled(self, step: int) -> None:
        """Start the clock anew once the first step, which held the compilation, is done."""
        self._step = step
        self._since = time.monotonic()
        self._seconds_per_step = math.nan
        self._refresh()

    def update(self, records: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, float]:
        """Print a row about the steps since the last one.

        Args:
          records: (step, metrics) of each of these steps, in order; values are scalars.

        Returns:
          ``{"images_per_second": …}`` over these steps, to be recorded (without the time spent in
          :meth:`paused`); empty if there were none.
        """
        if not records:
            return {}
        now = time.monotonic()
        steps = records[-1][0] - self._step
        elapsed = max(now - self._since, 1e-9)
        self._since = now
        self._step = records[-1][0]
        speed = {}
        if steps > 0:
            self._measure(elapsed / steps)
            speed["images_per_second"] = steps * self._batch / elapsed
        values = metric_names.summarize([metrics for _, metrics in records])
        self._print_row({**values, **speed})
        if values.get("nonfinite_count", 0.0) > self._nonfinite:
            skipped = int(values["nonfinite_count"] - self._nonfinite)
            self._say(f"  {skipped} step(s) skipped: loss or gradient not finite", "yellow")
        self._nonfinite = values.get("nonfinite_count", 0.0)
        self._say_duration(now)
        self._refresh()
        if self._step >= self._total:
            self.close()
        return speed

    @contextlib.contextmanager
    def paused(self, status: str) -> Iterator[None]:
        """While doing something else, such as evaluating: say so, and stop the clock.

        Args:
          status: what is being done, for the live line.
        """
        began, before, self._status = time.monotonic(), self._status, status
        self._refresh()
        try:
            yield
        finally:
            self._since += time.monotonic() - began
            self._status = before
            self._refresh()

    def show_evaluation(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Print the results of an evaluation, a line a split and task.

        Args:
          step: the step evaluated.
          metrics: flat dict, ``split/task/name`` -> share in 0…1.
          seconds: how long it took.
        """
        lines: dict[tuple[str, str], list[str]] = {}
        for name, value in metrics.items():
            group, _, last = name.rpartition("/")
            shown = metric_names.short(last)
            subject, _, measure = shown.rpartition(" ") if "→" in shown else ("", "", shown)
            shown = f"{measure} {metric_names.percent(last, value)}"
            lines.setdefault((group, subject), []).append(shown)
        self._say(f"  evaluation at step {step} ({seconds:.1f} s)", "bold cyan")
        for (group, subject), parts in lines.items():
            self._say("    " + "  ".join(filter(None, [group, subject, *parts])), "cyan")

    def message(self, text: str) -> None:
        """Print a line above the live line."""
        self._say(text, "")

    def close(self) -> None:
        """Remove the live line; may be called again."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            atexit.unregister(self.close)

    def _measure(self, seconds: float) -> None:
        # Caches are empty in the first stretch: forget it as soon as there is a second one.
        if self._measured < 2:
            self._seconds_per_step = seconds
        else:
            self._seconds_per_step = 0.7 * self._seconds_per_step + 0.3 * seconds
        self._measured += 1

    def _print_row(self, values: Mapping[str, float]) -> None:
        digits = len(str(self._total))
        columns = [
            (f"{self._step:>{digits}}/{self._total}", "step", 2 * digits + 1),
            (_number(values.get("loss")), "loss", 8),
            (_number(values.get("grad_norm")), "grad norm", 9),
            (_number(values.get("threshold")), "clip at", 8),
            (_share(values.get("clipped")), "clipped", 7),
            (_speed(values.get("images_per_second")), "images/s", 8),
            (duration(self._left()), "left", 8),
        ]
        gap = " " if sum(width + 2 for *_, width in columns) > self._console.width else "  "
        if self._rows % _HEADER_EVERY == 0:
            self._say(gap.join(f"{title:>{width}}" for _, title, width in columns), "bold")
        self._rows += 1
        self._say(gap.join(f"{text:>{width}}" for text, _, width in columns), "")

    def _say_duration(self, now: float) -> None:
        """Once, after a minute: how long it will take in all, from :meth:`start` on."""
        passed, left = now - self._began, self._left()
        # The first stretch is slow, with empty caches: it would promise too long a run.
        if self._forecast or passed < _FORECAST_SECONDS or self._measured < 2:
            return
        self._forecast = True
        if left >= _FORECAST_SECONDS:
            self._say(
                f"  at this speed it takes {duration(passed + left)} in all, {duration(left)} more "
                f"({self._seconds_per_step:.3g} s a step)",
                "",
            )

    def _left(self) -> float:
        """Seconds left."""
        return (self._total - self._step) * self._seconds_per_step

    def _render(self) -> Text:
        done = self._step / max(self._total, 1)
        full = int(done * _BAR_WIDTH)
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append("━" * full, "green").append("━" * (_BAR_WIDTH - full), "bright_black")
        text.append(f" {done:4.0%}  step {self._step}/{self._total}")
        if self._status:
            text.append(f"  {self._status} …", "italic cyan")
        elif self._step == self._first:
            text.append("  compiling the first step …", "italic")
        elif math.isnan(self._seconds_per_step):
            text.append("  …", "italic")
        else:
            text.append(f"  {self._seconds_per_step:.3g} s/step  {duration(self._left())} left")
        return text

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _say(self, text: str, style: str) -> None:
        if self._silent:
            return
        self._console.print(Text(text, style), crop=False, overflow="ignore", no_wrap=True)
        if self._live is None:
            self._console.file.flush()


def duration(seconds: float) -> str:
    """``"0:42"``, ``"1:02:03"``, ``"3d 04h"``; ``"?"`` for NaN."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole >= 100 * 3600:
        return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if math.isfinite(value) and (abs(value) >= 1e5 or 0 < abs(value) < 1e-3):
        return f"{value:.1e}"
    return f"{value:#.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _speed(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}".replace(",", " ")
