"""launch/gke: the manifest, the commands, and the container's exit status."""

import shlex
import signal
import subprocess

import pytest
import yaml

from tests.patience import LONG

SCRIPT = "launch/gke/submit.sh"
TRAIN = ["configs/clip_vit_b16.py", "--workdir", "/mnt/jaxclip/b16"]
TPU = ["--accelerator", "tpu-v5-lite-podslice", "--topology", "16x16"]
GPU = ["--accelerator", "nvidia-h100-80gb", "--hosts", "2"]
BASE = ["--name", "b16", "--image", "registry/jaxclip:1"]


def render(tools, *words):
    return yaml.safe_load(tools.run(SCRIPT, "render", *BASE, *words)[0])


def pod_of(manifest):
    (hosts,) = manifest["spec"]["replicatedJobs"]
    return hosts["template"]["spec"]["template"]


def test_a_tpu_slice(tools):
    manifest = render(tools, *TPU, "--bucket", "my-bucket", "--spot", *TRAIN)
    assert manifest["kind"] == "JobSet" and manifest["metadata"]["name"] == "b16"
    assert manifest["spec"]["failurePolicy"] == {"maxRestarts": 100}
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 64 and job["backoffLimit"] == 0
    pod = pod_of(manifest)
    assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "registry/jaxclip:1"
    assert container["args"] == ["--config", *TRAIN]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    environment = {item["name"]: item for item in container["env"]}
    assert environment["JAXCLIP_COORDINATOR_ADDRESS"]["value"] == "b16-hosts-0-0.b16:8476"
    assert environment["JAXCLIP_NUM_PROCESSES"]["value"] == "64"
    assert "valueFrom" in environment["JAXCLIP_PROCESS_ID"]
    assert {"containerPort": 8476} in container["ports"]
    shared = {volume["name"]: volume for volume in pod["spec"]["volumes"]}["shared"]
    assert shared["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"


def test_gpu_nodes(tools):
    manifest = render(tools, *GPU, "--claim", "nfs", "--port", "99", "--namespace", "me", *TRAIN)
    assert manifest["metadata"] == {"name": "b16", "namespace": "me"}
    pod = pod_of(manifest)
    assert "metadata" not in pod
    assert pod["spec"]["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert container["ports"] == [{"containerPort": 99}]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert volumes["shared"] == {"name": "shared", "persistentVolumeClaim": {"claimName": "nfs"}}


def test_hostile_arguments_are_read_back(tools, hostile):
    manifest = render(
        tools, *GPU, "--claim", "nfs", *TRAIN, *hostile, "@NAME@", "a&b", "x # if tpu"
    )
    arguments = pod_of(manifest)["spec"]["containers"][0]["args"]
    assert arguments == ["--config", *TRAIN, *hostile, "@NAME@", "a&b", "x # if tpu"]


def test_submit_applies_what_render_prints(tools):
    tools.add("kubectl")
    words = [*BASE, *GPU, "--claim", "nfs", *TRAIN]
    rendered, _ = tools.run(SCRIPT, "render", *words)
    dry, _ = tools.run(SCRIPT, "submit", "--dry_run", *words)
    assert not tools.calls and dry.startswith("kubectl apply --filename - <<'MANIFEST'\n")
    tools.run(SCRIPT, "submit", *words)
    (call,) = tools.calls
    assert call["argv"] == ["apply", "--filename", "-"]
    assert call["stdin"] == rendered
    # What the dry run prints can be pasted into a shell.
    subprocess.run(["bash", "-c", dry], env=tools.environment, check=True)
    assert tools.calls[-1]["stdin"] == rendered


def test_nothing_is_applied_when_the_manifest_is_wrong(tools):
    tools.add("kubectl")
    tools.run(SCRIPT, "submit", *BASE, *TPU, "--topology", "3x", "--bucket", "b", *TRAIN, status=1)
    assert not tools.calls


def test_its_status_is_that_of_kubectl(tools):
    tools.add("kubectl")
    tools.answer("^kubectl apply", ("error: no matches for kind JobSet\n", 4))
    words = [*BASE, *GPU, "--claim", "nfs", *TRAIN]
    assert "no matches" in tools.run(SCRIPT, "submit", *words, status=4)[1]


def test_logs_status_delete(tools):
    tools.add("kubectl")
    tools.run(SCRIPT, "logs", "--name", "b16", "--host", "3")
    selector = "jobset.sigs.k8s.io/jobset-name=b16,batch.kubernetes.io/job-completion-index=3"
    assert tools.lines[-1] == shlex.split(
        f"kubectl logs --namespace default --follow --tail 100 --selector {selector}"
    )
    tools.run(SCRIPT, "status", "--name", "b16", "--namespace", "me")
    assert tools.lines[-2] == shlex.split("kubectl get jobset b16 --namespace me")
    output, _ = tools.run(SCRIPT, "delete", "--dry_run", "--name", "b16")
    tools.run(SCRIPT, "delete", "--name", "b16")
    expected = shlex.split("kubectl delete jobset b16 --namespace default")
    assert tools.lines[-1] == shlex.split(output) == expected


def test_the_image(tools):
    tools.add("docker")
    words = ["image", "--image", "r/j:1", "--extras", "train,cuda"]
    output, _ = tools.run(SCRIPT, *words, "--dry_run")
    assert not tools.calls
    tools.run(SCRIPT, *words)
    assert [shlex.split(line) for line in output.splitlines()] == tools.lines
    build, push = tools.lines
    assert build[:2] == ["docker", "build"] and build[-1] == str(tools.root)
    assert "EXTRAS=train,cuda" in build and f"{tools.root}/launch/gke/Dockerfile" in build
    assert push == ["docker", "push", "r/j:1"]


def test_the_image_is_not_pushed_when_it_was_not_built(tools):
    tools.add("docker")
    tools.answer("^docker build", ("no space\n", 1))
    tools.run(SCRIPT, "image", "--image", "r/j:1", status=1)
    assert len(tools.calls) == 1


RUN = [*BASE, *GPU, "--claim", "nfs"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command given"),
        (["apply"], "unknown command 'apply'; one of image, render"),
        (["image"], "no --image given"),
        (["render", "--name", "B16"], "--name='B16' must be 1 to 40 small letters"),
        (["render", "--name", "b" * 41], "must be 1 to 40 small letters"),
        (["render", *BASE, *TRAIN], "no --accelerator given"),
        (["render", *BASE, "--accelerator", "tpu-v4-podslice", *TRAIN], "--topology='' is none"),
        (["render", *BASE, *TPU, "--topology=3x3", *TRAIN], "9 chips, not a multiple of"),
        (["render", *BASE, *TPU, "--hosts", "3", *TRAIN], "leave --hosts out"),
        (["render", *RUN, "--topology", "2x2", *TRAIN], "--topology is for TPUs"),
        (["render", *RUN], "no config given"),
        (["render", *RUN, "configs/nope.py"], "no such config in the checkout"),
        (["render", *RUN, "--bucket", "b", *TRAIN], "give one of --bucket and --claim"),
        (["render", *BASE, *GPU, *TRAIN], "give one of --bucket and --claim"),
        (
            ["render", *RUN, TRAIN[0], "--workdir", "/tmp/x"],
            "the workdir must be on what the hosts",
        ),
        (["render", *RUN, *TRAIN, "line\nbreak"], "control characters in the argument"),
        (["submit", *RUN, "--port", "http", *TRAIN], "--port=http is not a whole number"),
        (["logs", "--name"], "--name needs a value"),
        (["logs", "--name", "b", "--host", "-1"], "--host=-1 is not a whole number"),
        (["submit", *BASE, *GPU, "--bucket", "gs://b", *TRAIN], "give the name alone"),
        (["submit", *RUN, "--namespace", "A b", *TRAIN], "--namespace='A b' must be"),
        (["submit", *RUN, "--port", "70000", *TRAIN], "--port=70000 is no port"),
        (["image", "--image", "i", "--extras", "trian"], "there is no extra 'trian'"),
        (["submit", *RUN, "--image", 'i: "x"', *TRAIN], "belongs to no such name"),
    ],
)
def test_mistakes(tools, words, message):
    tools.add("kubectl", "docker")
    assert message in tools.run(SCRIPT, *words, status=1)[1]
    assert not tools.calls


def test_without_kubectl(tools):
    assert "no 'kubectl' on the PATH" in tools.run(SCRIPT, "delete", "--name", "b", status=1)[1]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_container_has_the_status_of_the_training(tools, hostile, code):
    tools.add("jaxclip")
    tools.answer("^jaxclip train", ("", code))
    tools.run("launch/gke/container.sh", "--config", "c", *hostile, status=code)
    assert tools.lines == [["jaxclip", "train", "--config", "c", *hostile]]


@pytest.mark.parametrize(("code", "expected"), [(0, 143), (143, 143), (5, 5)])
def test_a_container_that_is_told_to_stop_has_not_finished(tools, code, expected):
    program = tools.bin / "jaxclip"
    program.write_text(
        f"#!/bin/bash\ntrap 'exit {code}' TERM\necho up\nsleep 300 >/dev/null 2>&1 & wait\n"
    )
    program.chmod(0o755)
    process = tools.start("launch/gke/container.sh", "--config", "c")
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LONG)
    assert process.returncode == expected
