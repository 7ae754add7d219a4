"""Start-up on many hosts: what is found where, and what of it reaches ``jax.distributed``.

Real processes are started in tests/train/test_processes.py.
"""

import subprocess
import sys

import jax
import pytest

from jaxclip.errors import ProcessesError
from jaxclip.parallel import distributed

VARIABLES = (
    *("JAXCLIP_COORDINATOR_ADDRESS", "JAXCLIP_NUM_PROCESSES", "JAXCLIP_PROCESS_ID"),
    *("SLURM_NTASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_GPUS_ON_NODE"),
    *("SLURM_LOCALID", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
)
TIMEOUTS = {
    "heartbeat_timeout_seconds": 60,
    "initialization_timeout": 330,  # we ourselves give up after 300
    "shutdown_timeout_seconds": 300,
}


@pytest.fixture
def start(monkeypatch):
    """``start(arguments, **environment)``: what ``jax.distributed.initialize`` is given."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    calls, met = [], []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    monkeypatch.setattr(distributed, "is_distributed", lambda: bool(calls))
    monkeypatch.setattr(distributed.multihost_utils, "sync_global_devices", met.append)

    def run(arguments=None, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        distributed.initialize_distributed(**(arguments or {}))
        assert len(met) == len(calls)
        met.clear()
        return calls.pop() if calls else None

    return run


def test_one_process_joins_nobody(start):
    assert start() is None
    assert start({"coordinator_address": "h:1", "num_processes": 1, "process_id": 0}) is None


def test_arguments(start):
    given = {"coordinator_address": "host:81", "num_processes": 4, "process_id": 3}
    expected = {**given, **TIMEOUTS, "cluster_detection_method": "deactivate"}
    assert start(given) == expected
    # Whatever a scheduler has in the environment.
    assert start(given, SLURM_NTASKS="9", SLURM_STEP_NODELIST="n[1-9]") == expected


def test_variables_of_the_launch_scripts(start):
    environment = dict(zip(VARIABLES[:3], ("[::1]:81", "4", "3"), strict=True))
    found = start(**environment)
    assert found["coordinator_address"] == "[::1]:81"
    assert found["num_processes"] == 4 and found["process_id"] == 3
    assert start({"process_id": 2}, **environment)["process_id"] == 2


def test_timeouts(start):
    given = {"coordinator_address": "host:81", "num_processes": 2, "process_id": 0}
    found = start({**given, "heartbeat_timeout_seconds": 7, "initialization_timeout_seconds": 8})
    assert found["heartbeat_timeout_seconds"] == 7 and found["initialization_timeout"] == 38


@pytest.mark.parametrize(
    ("tasks", "gpus", "devices"),
    [
        ("1(x4)", "8", [*range(8)]),  # one task a node takes all of them
        ("1", "2", [0, 1]),
        ("8(x4)", "8", None),  # JAX takes the one of the task's number
        ("1(x4)", "", None),
    ],
)
def test_slurm(start, tasks, gpus, devices):
    found = start(
        SLURM_NTASKS="4",
        SLURM_STEP_NODELIST="gpu[3-6]",
        SLURM_STEP_TASKS_PER_NODE=tasks,
        SLURM_GPUS_ON_NODE=gpus,
    )
    assert found == {**TIMEOUTS, "cluster_detection_method": "slurm", "local_device_ids": devices}


@pytest.mark.parametrize(
    ("tasks", "index", "gpus", "visible", "devices"),
    [
        ("2", "1", "", "3", [0]),  # one bound to each task: it is that task's number 0
        ("2", "1", "2", "3", [0]),
        ("8(x4)", "5", "8", "5", [0]),
        ("8(x4)", "5", "8", "GPU-5c2d", [0]),
        ("4", "3", "8", "6,7", [0, 1]),  # two bound to each
        ("8(x4)", "5", "8", "0,1,2,3,4,5,6,7", [5]),  # shared by all
        ("2", "1", "4", "0,1,2,3", [2, 3]),
        ("1(x4)", "0", "8", "2,3,4", [0, 1, 2]),  # fewer than the node has: those
        ("1(x4)", "0", "8", "2,-1,4", [0]),
        ("1(x4)", "0", "", "2,3", [0, 1]),
        ("3", "1", "4", "0,1,2,3", None),  # they do not divide
        ("2", "1", "4", "", None),
        ("2", "1", "4", "NoDevFiles", None),
        ("2(x2),1", "1", "2", "0,1", [1]),
    ],
)
def test_slurm_and_visible_devices(start, tasks, index, gpus, visible, devices):
    found = start(
        SLURM_NTASKS="8",
        SLURM_STEP_NODELIST="gpu[3-6]",
        SLURM_STEP_TASKS_PER_NODE=tasks,
        SLURM_LOCALID=index,
        SLURM_GPUS_ON_NODE=gpus,
        CUDA_VISIBLE_DEVICES=visible,
    )
    assert found["local_device_ids"] == devices


def test_open_mpi_with_one_gpu_bound_to_each_rank(start):
    ranks = {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}
    found = start(OMPI_COMM_WORLD_SIZE="8", CUDA_VISIBLE_DEVICES="2", **ranks)
    assert found["local_device_ids"] == [0]


def test_a_shell_in_a_slurm_allocation_is_one_process(start):
    assert start(SLURM_NTASKS="4") is None
    assert start(SLURM_NTASKS="1", SLURM_STEP_NODELIST="gpu3") is None


def test_open_mpi(start):
    found = start(OMPI_COMM_WORLD_SIZE="2")
    method = {"cluster_detection_method": "ompi", "local_device_ids": None}
    assert found == {**TIMEOUTS, **method}
    assert start(OMPI_COMM_WORLD_SIZE="1") is None


def test_a_half_set_environment_is_one_line(start, monkeypatch):
    """Open MPI 5 does not set what JAX reads."""

    def initialize(**given):
        raise KeyError("OMPI_MCA_orte_hnp_uri")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match=r"SIZE=2 says .* OMPI_MCA_orte_hnp_uri is not set; unset"):
        start(OMPI_COMM_WORLD_SIZE="2")


def test_tpu(start, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(type(jax.config), "values", {"jax_platforms": "tpu,cpu"})
        assert start() == TIMEOUTS

        def alone(**_):
            raise ValueError("coordinator_address should be defined.")

        patch.setattr(jax.distributed, "initialize", alone)
        assert start() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_processes": 2},
            r"--num_processes \(or JAXCLIP_NUM_PROCESSES\) given, but not --coor",
        ),
        ({"process_id": 0, "num_processes": 2}, r"given, but not --coordinator_address \("),
        ({"address": "host"}, r"='host' is not of the form host:port"),
        ({"address": ":80"}, "not of the form host:port"),
        ({"address": "host:99999"}, "not of the form host:port"),
        ({"count": 0}, r"JAXCLIP_NUM_PROCESSES\)=0 must be at least 1"),
        ({"count": "two"}, "='two' is not a whole number"),
        ({"process": 2}, r"JAXCLIP_PROCESS_ID\)=2 must be in 0 … 1 "),
        ({"process": -1}, "=-1 must be in 0 … 1"),
    ],
)
def test_mistakes(start, arguments, message):
    if arguments.keys() & {"address", "count", "process"}:
        arguments = {
            "coordinator_address": arguments.get("address", "host:80"),
            "num_processes": arguments.get("count", 2),
            "process_id": arguments.get("process", 0),
        }
    with pytest.raises(ValueError, match=message):
        start(arguments)


def test_half_of_the_variables(start):
    with pytest.raises(ValueError, match="several processes need all three, one process none"):
        start(JAXCLIP_NUM_PROCESSES="2", JAXCLIP_PROCESS_ID="1")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [::1]:9"), True),
        (RuntimeError("UNKNOWN: Gloo context initialization failed: Connect timeout"), True),
        (RuntimeError("Task 1 heartbeat timeout. This indicates that the remote task"), True),
        (RuntimeError("NCCL error: remote process has exited or there was a network error"), True),
        (ValueError("global_batch_size=3 does not divide"), False),
        (KeyError("image"), False),
        (OSError("gs://runs/a can't be read: Connection reset by peer"), False),
        (ProcessesError("process 1 of 2 on h: gs://runs/a: Connection reset by peer"), False),
    ],
)
def test_which_errors_are_another_process(error, lost):
    told = distributed.explain_loss(error)
    assert bool(told) == lost
    if lost:
        assert told.startswith("process 0 of 1 on ") and "the newest checkpoint" in told
        wrapped = RuntimeError("checkpoint of step 3 was not written")
        wrapped.__cause__ = error
        assert distributed.explain_loss(wrapped)


def test_a_store_that_is_gone_is_not_another_process():
    wrapped = RuntimeError("checkpoint of step 3 was not written: Connection reset by peer")
    wrapped.__cause__ = OSError("gs://runs/a: Connection reset by peer")
    assert not distributed.explain_loss(wrapped)
    wrapped.__cause__ = RuntimeError("Gloo: Connection reset by peer")
    assert distributed.explain_loss(wrapped)


def test_leaving_skips_what_python_does_at_the_end():
    code = (
        "import atexit, sys; atexit.register(print, 'late');"
        "from jaxclip.parallel import distributed;"
        "sys.stdout.write('said'); distributed.leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "said")
