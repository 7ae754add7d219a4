"""``jaxclip.optim`` needs jax, optax and numpy alone; ``import jaxclip`` needs nothing at all."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import sysconfig

import pytest

import jaxclip

ROOT = pathlib.Path(jaxclip.__file__).parents[1]

# What jax, optax and numpy need themselves (optax 0.2.8 still asks for absl).
NEEDED = (
    "jax",
    "jaxlib",
    "jax_cuda12_plugin",
    "libtpu",
    "numpy",
    "ml_dtypes",
    "opt_einsum",
    "scipy",
    "optax",
    "absl",
    "typing_extensions",
)

USE = """
import jax, optax
from jaxclip import optim
assert "jaxclip.models" not in sys.modules and "jaxclip.train" not in sys.modules
tx = optim.from_config(
    {"name": "adamw", "learning_rate": 1e-3, "clip": ["zclip", "adagc"]}, total_steps=10
)
params = {"kernel": jax.numpy.ones((2, 3))}
state = tx.init(params)
updates, state = tx.update(params, state, params)
assert optim.read_metrics(state)["zclip/clipped"]
"""


def run(python: str, code: str) -> None:
    done = subprocess.run(
        [python, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_works_where_every_other_package_is_missing() -> None:
    """Everything installed beside what jax and optax need is hidden from a fresh interpreter."""
    site = pathlib.Path(sysconfig.get_paths()["purelib"])
    installed = {path.name.partition(".")[0] for path in site.iterdir()}
    hidden = sorted(installed - set(NEEDED) - {"jaxclip", "__pycache__"})
    assert "flax" in hidden or "pytest" in hidden
    run(sys.executable, f"import sys\nfor name in {hidden!r}: sys.modules[name] = None\n{USE}")


def test_import_jaxclip_is_light() -> None:
    heavy = ("jax", "optax", "flax", "numpy", "tensorflow", "orbax", "ml_collections")
    look = f"loaded = set({heavy!r}) & set(sys.modules)\nassert not loaded, loaded"
    run(sys.executable, f"import sys, jaxclip\n{look}")


@pytest.mark.slow
def test_works_in_a_bare_virtual_environment(tmp_path: pathlib.Path) -> None:
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    install = [python, "-m", "pip", "install", "-q", str(ROOT)]
    subprocess.run(install, check=True, timeout=600)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout
    assert "flax" not in listed and "tensorflow" not in listed
    done = subprocess.run(
        [python, "-c", f"import sys\n{USE}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
