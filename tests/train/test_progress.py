"""The display: rows of 80 columns in a log, a live line on a terminal."""

import io
import math

import pytest

from jaxclip.train import metric_names, progress
from jaxclip.train.progress import Progress, duration


class Clock:
    """A clock to set."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def record(step, **values):
    base = {"loss": 4.0, "grad_norm": 2.0, "nonfinite_count": 0}
    clipper = {"optim/zclip/threshold": 1.5, "optim/zclip/clipped": float(step % 2)}
    return step, {**base, **clipper, **values}


def shown(stream):
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_a_row_says_what_the_steps_since_the_last_one_did(clock):
    stream = io.StringIO()
    with Progress(100, 32, stream=stream) as display:
        display.start(0)
        clock.now = 100.0  # the compilation
        display.compiled(1)
        clock.now = 104.5
        speed = display.update([record(step, loss=float(step)) for step in range(1, 11)])
    assert speed == {"images_per_second": pytest.approx(9 * 32 / 4.5)}
    header, row = shown(stream)
    assert header.split() == [
        *("step", "loss", "grad", "norm", "clip", "at", "clipped", "images/s", "left")
    ]
    assert row.split() == ["10/100", "5.500", "2.000", "1.500", "50%", "64.0", "0:45"]
    assert len(row) <= 80 and "\x1b" not in stream.getvalue()


def test_evaluations_do_not_count_as_time_of_training(clock):
    stream = io.StringIO()
    with Progress(100, 10, stream=stream) as display:
        display.start(0)
        clock.now = 1.0
        with display.paused("evaluating"):
            clock.now = 61.0
        clock.now = 62.0
        assert display.update([record(4)])["images_per_second"] == pytest.approx(20)


def test_after_a_minute_it_says_how_long_it_will_take_in_all(clock):
    stream = io.StringIO()
    with Progress(1001, 32, stream=stream) as display:
        display.start(0)
        clock.now = 20.0  # the compilation
        display.compiled(1)
        for step in (21, 41, 61, 81, 101):
            clock.now += 15.0
            display.update([record(step)])
    said = [line for line in shown(stream) if "in all" in line]
    # At 65 s; 940 steps at 0.75 s are still to come.
    assert said == ["  at this speed it takes 12:50 in all, 11:45 more (0.75 s a step)"]
    assert shown(stream).index(said[0]) == 4, "below the third row"


def test_the_slow_first_stretch_says_nothing_of_the_whole(clock):
    stream = io.StringIO()
    with Progress(1001, 32, stream=stream) as display:
        display.start(0)
        display.compiled(1)
        for step, seconds in ((21, 80.0), (41, 10.0)):
            clock.now += seconds
            display.update([record(step)])
    (said,) = [line for line in shown(stream) if "in all" in line]
    assert said.endswith("8:00 more (0.5 s a step)")


def test_a_run_that_is_nearly_done_says_nothing_of_its_length(clock):
    stream = io.StringIO()
    with Progress(100, 32, stream=stream) as display:
        display.start(0)
        display.compiled(1)
        for step in (60, 99):
            clock.now += 70.0
            display.update([record(step)])
    assert "in all" not in stream.getvalue()


def test_going_on_counts_from_where_it_was(clock):
    stream = io.StringIO()
    with Progress(100, 10, stream=stream) as display:
        display.start(90)
        display.compiled(91)
        clock.now = 4.0
        display.update([record(step) for step in range(91, 96)])
    assert shown(stream)[1].split()[-2:] == ["10.0", "0:05"]


def test_skipped_steps_are_said_once(clock):
    stream = io.StringIO()
    with Progress(100, 10, stream=stream) as display:
        display.start(0)
        for step, count in ((1, 0), (2, 3), (3, 3)):
            clock.now += 1
            display.update([record(step, loss=math.nan, nonfinite_count=count)])
    text = "\n".join(shown(stream))
    assert text.count("3 step(s) skipped: loss or gradient not finite") == 1 and "nan" in text


def test_an_evaluation_in_words():
    stream = io.StringIO()
    results = {
        "test/zero_shot/top1": 0.4567,
        "test/zero_shot/num_classes": 16,
        "test/retrieval/image_to_text_r5": 0.6,
        "test/retrieval/text_to_image_r5": math.nan,
    }
    Progress(10, 1, stream=stream).show_evaluation(7, results, 3.21)
    assert shown(stream) == [
        "  evaluation at step 7 (3.2 s)",
        "    test/zero_shot  top-1 45.7%  num classes 16",
        "    test/retrieval  image→text  R@5 60.0%",
        "    test/retrieval  text→image  R@5 n/a",
    ]


def test_a_terminal_gets_a_live_line_and_its_cursor_back(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(10, 4, stream=stream, width=100) as display:
        display.start(0)
        display._refresh()
        assert "compiling the first step" in stream.getvalue()
        display.compiled(1)
        clock.now = 4.0
        display.update([record(5)])
        assert "50%  step 5/10" in stream.getvalue() and "1 s/step" in stream.getvalue()
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (61.4, "1:01"), (3723, "1:02:03"), (400_000, "4d 15h"), (math.nan, "?")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_the_outermost_clipper_is_shown():
    available = ["optim/text/adagc/threshold", "optim/zclip/threshold", "threshold"]
    assert metric_names.find(available, "threshold") == "optim/zclip/threshold"
    assert (
        metric_names.find(["loss"], "clipped") is None
        and metric_names.find(["loss"], "loss") == "loss"
    )


@pytest.mark.parametrize(
    ("clip", "text"),
    [
        (None, "none"),
        ("zclip", "zclip"),
        ({"name": "adagc", "alpha": 1}, "adagc"),
        ([{"name": "zclip"}, "elementwise"], "zclip + elementwise"),
    ],
)
def test_what_clips_in_words(clip, text):
    assert metric_names.of_clip({"optim": {"clip": clip}}) == text
