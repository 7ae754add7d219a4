"""launch/slurm.sh: what it submits, and what the job then does on its nodes."""

import shlex
import signal

import pytest

from tests.patience import LONG

SCRIPT = "launch/slurm.sh"
JOB = {
    "SLURM_JOB_ID": "40123",
    "SLURM_JOB_NODELIST": "gpu[3-4]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_ON_NODE": "64",
}


@pytest.fixture
def cluster(tools):
    tools.add("sbatch", "srun", "scontrol", "scancel")
    tools.add_environment("jaxclip")
    tools.answer("^scontrol show hostnames", "gpu3\ngpu4\n")
    return tools


def submit(cluster, *words, train=("--workdir", "/scratch/b16"), **options):
    """Submit and return the call of sbatch."""
    cluster.run(SCRIPT, "--no_install", *words, "configs/clip_vit_b16.py", *train, **options)
    (call,) = [call for call in cluster.calls if call["tool"] == "sbatch"]
    return call


def test_what_is_submitted(cluster, hostile):
    call = submit(
        cluster,
        *["--nodes=4", "--gpus_per_node", "8", "--time", "2:00:00", "--partition", "gpu"],
        *["--account=me", "--sbatch", "--mail-type=END --nice=5"],
        train=["--workdir", "/scratch/b16", *hostile],
    )
    split = call["argv"].index(f"{cluster.root}/launch/slurm.sh")
    options, job = call["argv"][:split], call["argv"][split + 1 :]
    for option in (
        *["--job-name=clip_vit_b16", "--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8"],
        *["--time=2:00:00", "--partition=gpu", "--account=me", "--mail-type=END", "--nice=5"],
        *["--requeue", "--exclusive", "--open-mode=append", "--signal=B:USR1@180", "--export=ALL"],
        f"--output={cluster.root}/workdir/slurm/%x-%j.log",
    ):
        assert option in options
    config = ["--config", "configs/clip_vit_b16.py"]
    assert job == ["--batch", *config, "--workdir", "/scratch/b16", *hostile]
    assert call["env"]["JAXCLIP_ROOT"] == str(cluster.root)
    assert call["env"]["JAXCLIP_PROCESSES_PER_NODE"] == "1"
    assert (cluster.root / "workdir" / "slurm").is_dir()


def test_a_part_of_a_node(cluster):
    options = ["--gpus_per_node", 4, "--processes_per_node", 4, "--cpus_per_node", 32]
    call = submit(cluster, *options, "--no_requeue", "--port", 7000)
    assert "--cpus-per-task=8" in call["argv"] and "--exclusive" not in call["argv"]
    assert "--ntasks-per-node=4" in call["argv"] and "--no-requeue" in call["argv"]
    assert call["env"]["JAXCLIP_PORT"] == "7000" and call["env"]["JAXCLIP_REQUEUE"] == "0"


def test_a_dry_run_prints_what_a_run_calls(cluster, hostile):
    words = ["--no_install", "configs/emoji.py", "--workdir", "w", *hostile]
    output, _ = cluster.run(SCRIPT, "--dry_run", *words)
    assert not cluster.calls and not (cluster.root / "workdir").exists()
    cluster.run(SCRIPT, *words)
    (line,) = cluster.lines
    mkdir, env = map(shlex.split, output.splitlines())
    assert mkdir[:2] == ["mkdir", "-p"]
    assert env[0] == "env" and env[env.index("sbatch") :] == line


def test_it_installs_for_gpus_first(cluster):
    output, _ = cluster.run(SCRIPT, "--dry_run", "configs/emoji.py", "--workdir", "w")
    first = shlex.split(output.splitlines()[0])
    assert first[0] == "env" and first[-2:] == ["launch/install.sh", "train,cuda"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no config given"),
        (["configs/nope.py", "--workdir", "w"], "no such config: configs/nope.py"),
        (["configs/emoji.py"], "no --workdir given after the config"),
        (["--nodes", "0", "configs/emoji.py", "--workdir", "w"], "--nodes=0 is not a whole"),
        (["--processes_per_node", "3", "configs/emoji.py"], "must be 1 or --gpus_per_node (8)"),
        (["--workdir", "w", "configs/emoji.py"], "unknown option --workdir"),
        (["--port", "70000", "configs/emoji.py"], "--port=70000 is no port"),
        (["--nodes"], "--nodes needs a value"),
    ],
)
def test_mistakes(cluster, words, message):
    assert message in cluster.run(SCRIPT, *words, status=1)[1]
    assert not cluster.calls


def test_without_slurm(tools):
    words = ["--no_install", "configs/emoji.py", "--workdir", "w"]
    assert "no 'sbatch' on the PATH" in tools.run(SCRIPT, *words, status=1)[1]


def follow(cluster, call, **environment):
    """Run what was submitted as Slurm would run it; returns the finished process."""
    script = call["argv"].index(f"{cluster.root}/launch/slurm.sh")
    settings = {k: v for k, v in call["env"].items() if k.startswith("JAXCLIP_")}
    return cluster.start(
        SCRIPT, *call["argv"][script + 1 :], cwd="/", **settings, **JOB, **environment
    )


def test_from_the_login_node_to_the_training(cluster, hostile):
    words = ["--gpus_per_node", 4, "--processes_per_node", 4]
    call = submit(cluster, *words, train=["--workdir", "w", *hostile])
    job = follow(cluster, call)
    assert job.communicate()[0] == "" and job.returncode == 0
    (step,) = [call for call in cluster.calls if call["tool"] == "srun"]
    for option in ("--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=16"):
        assert option in step["argv"]
    assert "--kill-on-bad-exit=1" in step["argv"]
    assert step["env"]["JAXCLIP_COORDINATOR_ADDRESS"] == f"gpu3:{20000 + 40123 % 20000}"
    assert step["env"]["JAXCLIP_NUM_PROCESSES"] == "8"
    # Task 6 is the third one of the second node.
    start = step["argv"].index("bash")
    settings = {k: v for k, v in step["env"].items() if k.startswith("JAXCLIP_")}
    task = cluster.start(
        *[SCRIPT, *step["argv"][start + 2 :]],
        **settings,
        SLURM_PROCID="6",
        SLURM_LOCALID="2",
    )
    assert task.communicate()[1] == "" and task.returncode == 0
    training = cluster.calls[-1]
    config = ["--config", "configs/clip_vit_b16.py"]
    assert training["tool"] == "jaxclip"
    workdir = f"{cluster.root}/w"  # from where it was submitted
    assert training["argv"] == ["train", *config, "--workdir", workdir, *hostile]
    assert training["env"]["JAXCLIP_PROCESS_ID"] == "6"
    assert training["env"]["CUDA_VISIBLE_DEVICES"] == "2"


def test_one_process_a_node_gets_all_its_gpus(cluster):
    call = submit(cluster)
    settings = {k: v for k, v in call["env"].items() if k.startswith("JAXCLIP_")}
    words = ["--task", "--config", "c"]
    cluster.run(SCRIPT, *words, **settings, SLURM_PROCID="1", SLURM_LOCALID="0")
    assert "CUDA_VISIBLE_DEVICES" not in cluster.calls[-1]["env"]


@pytest.mark.parametrize(
    ("visible", "local", "used"),
    [("3", "1", "3"), ("4,5,6,7", "2", "6"), ("GPU-1a,GPU-2b", "1", "GPU-2b"), ("", "1", "1")],
)
def test_a_process_for_each_gpu_takes_the_one_that_is_bound_to_it(cluster, visible, local, used):
    call = submit(cluster, "--processes_per_node=8")
    settings = {k: v for k, v in call["env"].items() if k.startswith("JAXCLIP_")}
    task = {"SLURM_PROCID": "1", "SLURM_LOCALID": local, "CUDA_VISIBLE_DEVICES": visible}
    cluster.run(SCRIPT, "--task", "--config", "c", **settings, **task)
    assert cluster.calls[-1]["env"]["CUDA_VISIBLE_DEVICES"] == used


def test_its_status_is_that_of_the_step(cluster):
    call = submit(cluster)
    cluster.answer("^srun", ("", 3))
    job = follow(cluster, call)
    job.communicate()
    assert job.returncode == 3
    assert not any(line[:2] == ["scontrol", "requeue"] for line in cluster.lines)


@pytest.mark.parametrize("requeue", [True, False])
def test_before_the_time_limit_it_is_stopped_and_goes_back_into_the_queue(cluster, requeue):
    call = submit(cluster, *([] if requeue else ["--no_requeue"]))
    ends = cluster.folder / "ended"
    (cluster.bin / "srun").write_text(
        f"#!/bin/bash\necho up\nuntil [ -e '{ends}' ]; do sleep 0.1; done\nexit 143\n"
    )
    (cluster.bin / "scancel").write_text(
        f"#!/bin/bash\n[ \"$*\" = '--signal=TERM 40123' ] && : >'{ends}'\n"
    )
    job = follow(cluster, call)
    assert job.stdout.readline() == "up\n"
    job.send_signal(signal.SIGUSR1)
    _, errors = job.communicate(timeout=LONG)
    assert job.returncode == 143, errors
    requeued = ["scontrol", "requeue", "40123"] in cluster.lines
    assert requeued == requeue == ("back into the queue" in errors)
