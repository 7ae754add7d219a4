"""launch/local_processes.sh, with processes that are a line of bash each."""

import pathlib
import shlex
import signal

import pytest

from tests.patience import LONG, until

SCRIPT = "launch/local_processes.sh"


def lines_of(output, process):
    mark = f"[{process}] "
    return [line.removeprefix(mark) for line in output.splitlines() if line.startswith(mark)]


def is_gone(pid):
    """Whether a process has ended, be it that nobody has asked for its status yet."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_each_process_is_told_who_it_is(tools):
    code = "echo $JAXCLIP_COORDINATOR_ADDRESS $JAXCLIP_NUM_PROCESSES $JAXCLIP_PROCESS_ID"
    output, _ = tools.run(SCRIPT, 3, "--", "bash", "-c", code)
    told = [lines_of(output, i)[0].split() for i in range(3)]
    assert [words[1:] for words in told] == [["3", str(i)] for i in range(3)]
    (address,) = {words[0] for words in told}
    host, port = address.split(":")
    assert host == "127.0.0.1" and 20000 <= int(port) < 40000


def test_devices_and_ports(tools):
    code = "echo $JAXCLIP_COORDINATOR_ADDRESS; echo $XLA_FLAGS; echo $JAX_PLATFORMS"
    words = ["--devices_per_process=4", "--port", 1234, "--", "bash", "-c", code]
    output, _ = tools.run(SCRIPT, 2, *words, XLA_FLAGS="--xla_some")
    for i in range(2):
        flags = "--xla_some --xla_force_host_platform_device_count=4"
        assert lines_of(output, i) == ["127.0.0.1:1234", flags, "cpu"]
    code = "echo $CUDA_VISIBLE_DEVICES"
    output, _ = tools.run(SCRIPT, 2, "--gpus_per_process", 2, "--", "bash", "-c", code)
    assert [lines_of(output, i) for i in range(2)] == [["0,1"], ["2,3"]]


def test_the_last_words_of_a_process_are_kept(tools):
    output, _ = tools.run(SCRIPT, 1, "--", "bash", "-c", "echo out; echo err >&2; printf end")
    assert sorted(lines_of(output, 0)) == ["end", "err", "out"]


def test_one_that_fails_stops_the_others(tools):
    code = (
        "if [ $JAXCLIP_PROCESS_ID = 1 ]; then until [ -f up0 ] && [ -f up2 ]; do sleep 0.1; done;"
        "exit 5; fi; trap 'echo told; exit 0' TERM; : >up$JAXCLIP_PROCESS_ID; sleep 300 & wait"
    )
    output, errors = tools.run(SCRIPT, 3, "--", "bash", "-c", code, status=5)
    assert "process 1 exited with status 5; stopping the other 2" in errors
    assert lines_of(output, 0) == lines_of(output, 2) == ["told"]


def test_one_that_will_not_stop_is_killed_with_its_children(tools):
    note = tools.folder / "child"
    code = (
        f"if [ $JAXCLIP_PROCESS_ID = 1 ]; then until [ -s '{note}' ]; do sleep 0.1; done;"
        f"exit 1; fi; trap '' TERM; sleep 1000 & echo $! >'{note}'; while true; do sleep 1; done"
    )
    _, errors = tools.run(SCRIPT, 2, "--grace", 1, "--", "bash", "-c", code, status=1)
    assert "1 still running after 1 s: killing" in errors
    until(lambda: is_gone(int(note.read_text())))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(tools, number):
    code = "trap 'echo told; exit 9' TERM INT; echo up; sleep 300 & wait"
    process = tools.start(SCRIPT, 2, "--", "bash", "-c", code)
    assert {process.stdout.readline() for _ in range(2)} == {"[0] up\n", "[1] up\n"}
    process.send_signal(number)
    output, errors = process.communicate(timeout=LONG)
    assert sorted(output.splitlines()) == ["[0] told", "[1] told"]
    assert process.returncode == 9 and "stopping the other" not in errors


def test_a_config_is_trained(tools, hostile):
    tools.add_environment("jaxclip")
    tools.run(SCRIPT, 2, "--port", "2345", "configs/emoji.py", "--workdir", "w", *hostile)
    assert len(tools.calls) == 2
    for call in tools.calls:
        expected = ["train", "--config", "configs/emoji.py", "--workdir", "w", *hostile]
        assert call["argv"] == expected
        assert call["env"]["JAXCLIP_COORDINATOR_ADDRESS"] == "127.0.0.1:2345"


def test_the_dry_run(tools, hostile):
    tools.add_environment("jaxclip")
    words = [2, "--port", "2345", "--devices_per_process", 3, "configs/emoji.py", *hostile]
    output, _ = tools.run(SCRIPT, 2, "--dry_run", *words[1:])
    assert not tools.calls
    for i, line in enumerate(output.splitlines()):
        env, *settings = shlex.split(line)
        assert env == "env" and settings[:5] == [
            "JAXCLIP_COORDINATOR_ADDRESS=127.0.0.1:2345",
            "JAXCLIP_NUM_PROCESSES=2",
            f"JAXCLIP_PROCESS_ID={i}",
            "JAX_PLATFORMS=cpu",
            "XLA_FLAGS=--xla_force_host_platform_device_count=3",
        ]
        assert settings[5].endswith("/bin/jaxclip")
        assert settings[6:] == ["train", "--config", "configs/emoji.py", *hostile]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "how many processes?"),
        (["two", "configs/emoji.py"], "N=two is not a whole number"),
        ([2], "nothing to run: give a config, or -- and a command"),
        ([2, "configs/nope.py"], "no such config: configs/nope.py"),
        ([2, "--port"], "--port needs a value"),
        ([2, "--workdir", "w"], "unknown option --workdir (options of `jaxclip train` come after"),
        ([2, "--", "no_such_program"], "cannot run no_such_program"),
    ],
)
def test_mistakes(tools, words, message):
    assert message in tools.run(SCRIPT, *words, status=1)[1]
