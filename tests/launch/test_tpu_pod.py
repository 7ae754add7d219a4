"""launch/tpu_pod.sh, with a gcloud that notes its calls."""

import shlex
import subprocess
import tarfile

import pytest

SCRIPT = "launch/tpu_pod.sh"
PLACE = ["--name", "b16", "--zone", "us-west4-a"]
OPTIONS = [*PLACE, "--type", "v5litepod-16", "--mount", "gs://bucket", "--poll", "1"]
TRAIN = ["configs/clip_vit_b16.py", "--workdir", "/mnt/jaxclip/b16"]
STATUS = "bash jaxclip/launch/tpu_worker.sh status"


@pytest.fixture
def cloud(tools):
    tools.add("gcloud")
    subprocess.run(["git", "init", "--quiet"], cwd=tools.root, check=True)
    (tools.root / ".gitignore").write_text("/secret\n")
    (tools.root / "secret").touch()
    return tools


def verbs(cloud):
    """What was asked of gcloud, in a word each: create, ssh run, delete, ..."""
    found = []
    for line in cloud.lines:
        assert line[:4] == ["gcloud", "compute", "tpus", line[3]]
        verb = line[4]
        if verb == "ssh":
            (command,) = [word for word in line if word.startswith("--command=")]
            verb = "ssh " + (command.rpartition("tpu_worker.sh ")[2].split() or ["?"])[0]
            verb = "ssh guard" if "stop it first" in command else verb
        if verb != "describe" and verb != "ssh status":
            assert "--zone=us-west4-a" in line
            found.append(verb)
    return found


UP = ["create", "ssh guard", "scp", "ssh install", "ssh mount", "ssh run"]


def test_up(cloud):
    cloud.run(SCRIPT, "up", *OPTIONS, "--spot", "--project", "p", *TRAIN)
    assert verbs(cloud) == UP
    create = cloud.lines[0]
    assert create[3:6] == ["tpu-vm", "create", "b16"] and "--spot" in create
    assert "--accelerator-type=v5litepod-16" in create and "--project=p" in create
    assert "--version=v2-alpha-tpuv5-lite" in create


def test_a_dry_run_prints_what_a_run_calls(cloud, hostile):
    words = ["up", *OPTIONS, *TRAIN, *hostile]
    output, _ = cloud.run(SCRIPT, words[0], "--dry_run", *words[1:])
    assert not cloud.calls
    cloud.run(SCRIPT, *words)
    printed = [shlex.split(line) for line in output.splitlines()]
    (pack,) = [line for line in printed if line[0] == "git"]
    printed.remove(pack)
    called = cloud.lines
    (scp,) = [i for i, line in enumerate(called) if line[4] == "scp"]
    assert called[scp][5].endswith("jaxclip.tar.gz") and printed[scp][5] == "jaxclip.tar.gz"
    called[scp][5] = printed[scp][5]
    assert printed == called


def test_what_is_shipped(cloud):
    odd = cloud.root / "configs" / "with blank é.py"
    odd.touch()
    cloud.run(SCRIPT, "ship", *PLACE)
    assert verbs(cloud) == ["ssh guard", "scp", "ssh install"]
    with tarfile.open(cloud.folder / "shipped.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"launch/gke/submit.sh", "configs/emoji.py", "configs/with blank é.py"} <= names
    assert "secret" not in names and not any(".git/" in name for name in names)


def test_hostile_arguments_survive_both_shells(cloud, hostile):
    cloud.run(SCRIPT, "run", *OPTIONS, *TRAIN, *hostile)
    (line,) = cloud.lines
    (command,) = [word for word in line if word.startswith("--command=")]
    assert "--worker=all" in line
    # What sshd does with it, in a home directory where the worker's script notes its words.
    worker = cloud.home / "jaxclip" / "launch"
    cloud.add("noted", into=worker)
    (worker / "tpu_worker.sh").write_text('exec "$(dirname "$0")/noted" "$@"\n')
    subprocess.run(
        ["bash", "-c", command.removeprefix("--command=")],
        cwd=cloud.home,
        env=cloud.environment,
        check=True,
    )
    assert cloud.lines[-1] == ["noted", "run", "--config", *TRAIN, *hostile]


def test_queued_resources(cloud):
    cloud.answer("queued-resources describe", "WAITING\n", "PROVISIONING\n", "ACTIVE\n")
    _, errors = cloud.run(SCRIPT, "create", *OPTIONS, "--queued")
    create = cloud.lines[0]
    assert create[3:6] == ["queued-resources", "create", "b16"] and "--node-id=b16" in create
    assert "--runtime-version=v2-alpha-tpuv5-lite" in create
    assert "queued resource: WAITING" in errors and "PROVISIONING" in errors
    cloud.run(SCRIPT, "delete", *PLACE, "--queued")
    assert cloud.lines[-1][3:6] == ["queued-resources", "delete", "b16"]
    assert "--force" in cloud.lines[-1] and "--quiet" in cloud.lines[-1]


def test_a_queued_resource_that_fails(cloud):
    cloud.answer("queued-resources describe", "FAILED\n")
    _, errors = cloud.run(SCRIPT, "up", *OPTIONS, "--queued", *TRAIN, status=1)
    assert "the queued resource is FAILED" in errors and verbs(cloud) == ["create"]


def test_logs_status_stop_delete(cloud):
    cloud.run(SCRIPT, "logs", *PLACE, "--worker", "3")
    assert cloud.lines[-1][-2:] == [
        "--worker=3",
        "--command=bash jaxclip/launch/tpu_worker.sh logs",
    ]
    cloud.run(SCRIPT, "stop", *PLACE)
    assert "--worker=all" in cloud.lines[-1] and verbs(cloud)[-1] == "ssh stop"
    cloud.run(SCRIPT, "status", *PLACE)
    assert cloud.lines[-2][4] == "describe" and cloud.lines[-1][4] == "ssh"
    cloud.run(SCRIPT, "delete", *PLACE)
    assert cloud.lines[-1][3:6] == ["tpu-vm", "delete", "b16"] and "--quiet" in cloud.lines[-1]


def test_a_running_training_is_not_overwritten(cloud):
    cloud.answer("stop it first", ("a training is running: stop it first\n", 1))
    _, errors = cloud.run(SCRIPT, "ship", *PLACE, status=1)
    assert "stop it first" in errors and verbs(cloud) == ["ssh guard"]


def test_names_may_come_from_the_environment(cloud):
    cloud.run(SCRIPT, "delete", TPU_NAME="b16", TPU_ZONE="us-west4-a")
    assert cloud.lines[0][5] == "b16"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command given"),
        (["upp"], "unknown command 'upp'; one of create, ship"),
        (["up", "--zone", "z", *TRAIN], "no --name given"),
        (["up", "--name", "n", *TRAIN], "no --zone given"),
        (["create", *PLACE], "no --type given"),
        (["create", *PLACE, "--type", "v9-8"], "no runtime version known for --type=v9-8"),
        (["run", *PLACE], "no config given after the options"),
        (["run", *PLACE, "configs/nope.py"], "no such config in the checkout: configs/nope.py"),
        (["run", *PLACE, "/etc/passwd"], "no such config in the checkout: /etc/passwd"),
        (["run", *OPTIONS, TRAIN[0]], "no --workdir given after the config"),
        (["run", *PLACE, *TRAIN], "no --mount says what that is"),
        (["run", *PLACE, "--mount", "disk", *TRAIN], "neither gs://BUCKET nor HOST:/SHARE"),
        (["watch", *OPTIONS, "--poll", "soon", *TRAIN], "--poll=soon is not a whole number"),
        (["run", *PLACE, "--workdir", "w"], "unknown option --workdir"),
        (["run", *PLACE, "--mount"], "--mount needs a value"),
        (["ship", *PLACE, "--extras", "trian"], "there is no extra 'trian'"),
        (["logs", *PLACE, "--worker", "-1"], "--worker=-1 is not a whole number"),
    ],
)
def test_mistakes(cloud, words, message):
    assert message in cloud.run(SCRIPT, *words, status=1)[1]
    assert not cloud.calls


def test_without_gcloud(tools):
    assert "no 'gcloud' on the PATH" in tools.run(SCRIPT, "delete", *PLACE, status=1)[1]


def watch(cloud, states, statuses, *words, status=0):
    """Watch with these states of the TPU and of the training on worker 0, one a look."""
    cloud.answer("tpu-vm describe", *states)
    cloud.answer(f"command={STATUS}$", *statuses)
    return cloud.run(SCRIPT, "watch", *OPTIONS, *words, *TRAIN, status=status)[1]


def test_watch_ends_with_the_training(cloud):
    errors = watch(cloud, ["READY\n"], ["running\n", "running\n", "exited 0\n"])
    assert errors.rstrip().endswith("finished") and verbs(cloud) == []


def test_watch_restarts_after_a_preemption(cloud):
    states = ["READY\n", "PREEMPTED\n", "PREEMPTED\n", "READY\n"]
    watch(cloud, states, ["running\n", "running\n", "exited 0\n"])
    assert verbs(cloud) == ["delete", *UP]


def test_watch_creates_what_is_gone(cloud):
    gone = ("ERROR: (gcloud) NOT_FOUND: Resource 'b16' was not found\n", 1)
    watch(cloud, [gone, gone, "READY\n"], ["exited 0\n"])
    assert verbs(cloud) == UP


def test_watch_tries_again_when_there_is_no_capacity(cloud):
    gone = ("NOT_FOUND\n", 1)
    cloud.answer("tpu-vm create", ("no more capacity in the zone\n", 1), "")
    watch(cloud, [gone, gone, gone, gone, "READY\n"], ["exited 0\n"])
    assert verbs(cloud) == ["create", *UP]


def test_watch_deletes_nothing_when_it_cannot_look(cloud):
    lost = ("ERROR: network unreachable\n", 1)
    errors = watch(cloud, [lost, lost, "READY\n"], ["exited 0\n"])
    assert verbs(cloud) == [] and "gcloud: ERROR: network unreachable" in errors


@pytest.mark.parametrize("ended", ["exited 1", "exited 143", "exited unknown", "never started"])
def test_watch_starts_a_training_again(cloud, ended):
    watch(cloud, ["READY\n"], [f"{ended}\n", "running\n", "exited 0\n"])
    # What still runs on other workers is stopped first.
    assert verbs(cloud) == ["ssh stop", "ssh guard", "scp", "ssh install", "ssh mount", "ssh run"]


def test_watch_gives_up_on_one_that_fails_each_time(cloud):
    errors = watch(cloud, ["READY\n"], ["exited 1\n"], status=1)
    assert "failed 4 times in a row" in errors and verbs(cloud).count("ssh run") == 3


def test_watch_gives_up_after_max_restarts(cloud):
    errors = watch(cloud, ["PREEMPTED\n"], ["running\n"], "--max_restarts", "2", status=1)
    assert "restarted 2 times: giving up" in errors and verbs(cloud).count("create") == 2


def test_watch_leaves_one_that_was_stopped_by_hand(cloud):
    errors = watch(cloud, ["READY\n"], ["running\n", "stopped\n"])
    assert "stopped by hand" in errors and verbs(cloud) == []


def test_the_dry_run_of_watch(cloud):
    output, _ = cloud.run(SCRIPT, "watch", "--dry_run", *OPTIONS, *TRAIN)
    assert not cloud.calls
    words = [shlex.split(line, comments=True) for line in output.splitlines()]
    assert [line[4] for line in words if line and line[0] == "gcloud"][:4] == [
        "describe",
        "ssh",
        "delete",
        "create",
    ]
