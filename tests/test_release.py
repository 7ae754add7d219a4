"""What would be released: the wheel holds all it needs, and works without the repository."""

import pathlib
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]

pytestmark = pytest.mark.slow

# Run by the installed package's own interpreter, far from the repository.
_USE = """
import json, pathlib, sys
import jaxclip, jaxclip.optim
assert pathlib.Path(jaxclip.__file__).is_relative_to(sys.prefix), jaxclip.__file__
from jaxclip import cli
pathlib.Path("c.py").write_text('''
def get_config(arg=""):
    tower = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    return {
        "total_steps": 1, "global_batch_size": 8, "tokenizer": {"context_length": 16},
        "data": {"name": "emoji", "image_size": 16},
        "model": {"image": {"patch_size": 8, **tower}, "text": tower, "embed_dim": 16},
        "optim": {"clip": "zclip", "schedule": {"warmup_steps": 0}},
    }
''')
assert cli.main(["train", "--config", "c.py", "--workdir", "run"]) == 0
line = json.loads(pathlib.Path("run/metrics.jsonl").read_text().splitlines()[0])
assert line["step"] == 1 and 0 < line["loss"] < 10, line
assert pathlib.Path("run/report.html").stat().st_size > 10_000
"""


def tracked(*folders):
    """Files of the repository, without those that are not released."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout of the repository")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the source distribution and the wheel."""
    pytest.importorskip("hatchling", reason="the build backend comes with the test extra")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", folder], cwd=ROOT, check=True
    )
    return folder


def test_the_wheel_holds_every_file_of_the_package_and_the_licences(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        (metadata,) = (name for name in inside if name.endswith(".dist-info/METADATA"))
        about = archive.read(metadata).decode()
    assert tracked("jaxclip") <= inside
    assert not {name.split("/")[0] for name in inside} - {"jaxclip", metadata.split("/")[0]}
    assert "jaxclip/data/emoji/ATTRIBUTION.md" in inside
    assert metadata.replace("METADATA", "licenses/LICENSE") in inside
    assert "License-Expression: Apache-2.0" in about
    required = {
        line.split()[1].partition(">")[0]
        for line in about.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    assert required == {"jax", "numpy", "optax"}
    assert wheel.stat().st_size < 60e6


def test_the_source_distribution_holds_the_repository(built):
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    missing = {name for name in tracked() - inside if not name.startswith(".")}
    assert not missing


def test_the_wheel_alone_trains_on_the_built_in_data(built, tmp_path):
    """Installed without its dependencies, which are those of the environment of this test."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--no-deps", "--no-index", wheel], check=True)
    (own,) = environment.glob("lib/python*/site-packages")
    # A folder in a .pth file: what is editable in it, this repository too, stays out.
    (own / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    settings = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [python, "-c", _USE],
        cwd=tmp_path,
        env=settings,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    command = environment / "bin" / "jaxclip"
    version = subprocess.run([command, "--version"], env=settings, capture_output=True, text=True)
    assert version.returncode == 0 and version.stdout.startswith("jaxclip 0.")
