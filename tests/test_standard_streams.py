"""Standard streams that are closed, or that nobody reads any more."""

import os
import pathlib
import select
import signal
import subprocess
import sys
import threading

import pytest

from jaxclip import standard_streams
from jaxclip.train import progress, signals
from tests.patience import until


@pytest.fixture
def broken():
    """A stream into a pipe whose reader has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as stream:
        yield stream


def test_a_lost_stream_is_told_of_once_and_takes_everything(broken):
    errors = []
    stream = standard_streams.Forgiving(broken, errors.append)
    for _ in range(3):
        assert stream.write("a line\n") == 7
        stream.flush()
    assert [type(error) for error in errors] == [BrokenPipeError]
    broken.write("goes nowhere\n")  # nor does closing it fail
    assert stream.encoding == broken.encoding


def test_files_do_not_get_the_numbers_of_closed_streams(tmp_path):
    """Else what a library prints lands in them."""
    code = (
        "import os; from jaxclip import standard_streams as s; s.keep_open();"
        f"file = os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY);"
        "print('printed', flush=True); os.write(2, b'noise'); os.write(file, str(file).encode())"
    )
    command = f'exec {sys.executable} -c "{code}" <&- >&- 2>&-'
    root = pathlib.Path(standard_streams.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.run(["bash", "-c", command], env=environment).returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


def test_the_error_of_a_print_is_told_from_others(monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError) as caught:
            print("a line")
        said = standard_streams.explain(caught.value)
        assert said == "standard output can't be written: No space left on device"
    assert not standard_streams.explain(OSError("a message of our own"))
    assert not standard_streams.explain(FileNotFoundError(2, "No such file", "/a/file"))


def test_a_run_whose_reader_has_ended_is_asked_to_stop(broken, caplog):
    stop = signals.StopSignals()
    with progress.Progress(10, 8, stream=broken, lost=stop.nobody_reads) as display:
        display.message("one")
        display.message("two")
    assert stop.received == signal.SIGPIPE
    assert caplog.text.count("nobody reads the output any more") == 1


def test_a_full_disk_behind_the_output_stops_nothing(caplog):
    stop = signals.StopSignals()
    with open("/dev/full", "w") as full:
        progress.Progress(10, 8, stream=full, lost=stop.nobody_reads).message("one")
    assert stop.received is None
    assert "No space left on device" in caplog.text


def test_ctrl_c_that_also_ends_the_reader_is_heard(broken, monkeypatch):
    """As in `jaxclip train … | tee log`: the signal goes to both."""
    monkeypatch.setattr(sys, "stdout", broken)
    with signals.StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_goes_away(ignored):
    """SIGHUP stops a run in good order, and leaves one under `nohup` alone."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with signals.StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.received == (None if ignored else signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_in_the_midst_of_a_print_is_heard(monkeypatch):
    """Python's streams take no second print there: they raise RuntimeError."""
    reader, writer = os.pipe()
    with open(reader, "rb") as other_end, open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)

        def reads():
            try:
                until(lambda: not select.select([], [writer], [], 0)[1])  # the pipe is full
                os.kill(os.getpid(), signal.SIGTERM)
                until(lambda: stop.received)
            finally:
                other_end.read(2**20)

        reading = threading.Thread(target=reads)
        with signals.StopSignals() as stop:
            reading.start()
            print("x" * 2**20, end="", flush=True)  # waits for its reader
            assert stop.received == signal.SIGTERM
        reading.join()
