"""Shared test set-up: eight virtual CPU devices, a quiet TensorFlow, no accelerators."""

import colorsys
import contextlib
import gc
import importlib.metadata
import io
import os
import pathlib
import signal
import sys
import threading

import hypothesis
import numpy as np
import pytest

# On a machine with other work, making examples may take a while: that is no fault of a test. CI
# tries the same examples each time, so that it does not fail for what a change has not touched.
hypothesis.settings.register_profile(
    "busy",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("busy")

# These must be set before JAX starts its backend, hence at import time of the conftest.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs are small, so nearly all the time of the tests is compilation: the compiler is told not
# to optimise, and on the JAX that still has them to take the emitters that compile twice as fast.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# On two busy cores some of eight devices come late to where they meet; XLA gives up after 40 s.
_FLAGS = {
    "xla_force_host_platform_device_count": "8",
    "xla_cpu_collective_call_terminate_timeout_seconds": "600",
}
_JAX = importlib.metadata.version("jax")
if _JAX.startswith("0.10."):
    _FLAGS["xla_cpu_use_fusion_emitters"] = "false"
    _FLAGS["xla_cpu_parallel_codegen_split_count"] = "1"  # the other cores have tests of their own
    # Else two collectives of a program may run at once, each with half of the devices' threads, and
    # wait for each other until XLA gives up.
    _FLAGS["xla_cpu_enable_concurrency_optimized_scheduler"] = "false"
for _name, _value in _FLAGS.items():
    if _name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_name}={_value}".strip()
# With a limit JAX locks its folder of compiled programs, which all processes that run tests share:
# without, one may read what another is still writing, which ends it.
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(20 * 2**30))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Seconds that a test marked slow may take.
SLOW_LIMIT = 1800


def pytest_collection_modifyitems(config, items):
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.timeout(SLOW_LIMIT))


# Linux lets a process map 65 530 pieces of memory; one that wants more dies in the compiler.
MOST_MAPPINGS = 20_000


def _mappings() -> int:
    """Pieces of memory that this process maps; too many where the system does not say."""
    try:
        return pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return MOST_MAPPINGS + 1


def pytest_collection_finish():
    """Let the garbage collector pass over what is there for good, and look for the rest less often:
    tracing makes so many objects that it took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="module", autouse=True)
def _mlir_contexts_are_reused():
    """As JAX 0.12 does of itself, each serves several programs: to make one is a quarter of what a
    small program costs. What it interns stays in it, so it doesn't serve for good."""
    mlir = sys.modules.get("jax._src.interpreters.mlir")
    with pytest.MonkeyPatch.context() as patch:
        if mlir is not None and _JAX.startswith("0.10."):
            patch.setattr(mlir, "make_ir_context", _reused(mlir.make_ir_context, 50))
        yield


def _reused(make, times):
    """``make``, called each so many times only, by each thread for itself."""
    of_thread = threading.local()

    def made():
        uses = getattr(of_thread, "uses", 0)
        if uses % times == 0:
            of_thread.value = make()
        of_thread.uses = uses + 1
        return of_thread.value

    return made


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Let go of what files compiled, once it is much: the next file wants many of them again."""
    yield
    if "jax" in sys.modules and _mappings() > MOST_MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()


TINY_COLORS = ("red", "yellow", "green", "blue")
TINY_SHAPES = ("square", "bar", "cross", "frame")


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> pathlib.Path:
    """A TFDS directory: 48 pictures of 16 kinds in ``train``, 16 in ``test``, none in ``empty``."""
    from jaxclip.data import schema
    from jaxclip.data._tfds import tensorflow_datasets

    tfds = tensorflow_datasets()
    names = [f"{color} {shape}" for color in TINY_COLORS for shape in TINY_SHAPES]
    directory = tmp_path_factory.mktemp("data") / "tiny" / "1.0.0"
    directory.mkdir(parents=True)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name="tiny", version=tfds.core.Version("1.0.0"), data_dir=str(directory), module_name=""
        ),
        features=schema.features(names, image_shape=(16, 16, 3), encoding="png"),
        disable_shuffling=True,
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=1000)
    writer.initialize_splits(["train", "test", "empty"])
    for split, copies in (("train", 3), ("test", 1)):
        examples = [
            schema.example(
                _tiny_picture(label, copy if split == "train" else 7),
                [names[label], f"a {names[label]}"],
                key=f"{split}/{label}/{copy}",
                label=label,
            )
            for copy in range(copies)
            for label in range(len(names))
        ]
        writer.add_examples({split: examples})
    writer.close_all()
    return directory


def _tiny_picture(label: int, seed: int) -> bytes:
    """16 x 16 pixels: a coloured shape somewhere on a grey ground, as PNG."""
    from PIL import Image

    rng = np.random.default_rng([label, seed])
    pixels = np.full((16, 16, 3), rng.integers(90, 130), np.uint8)
    color = 255 * np.array(colorsys.hsv_to_rgb(label // 4 / 4 + rng.uniform(0, 0.05), 1, 0.9))
    shape = np.zeros((10, 10), bool)
    match TINY_SHAPES[label % 4]:
        case "square":
            shape[:] = True
        case "bar":
            shape[3:7] = True
        case "cross":
            shape[3:7] = shape[:, 3:7] = True
        case "frame":
            shape[[0, 1, -2, -1]] = shape[:, [0, 1, -2, -1]] = True
    top, left = rng.integers(0, 7, 2)
    pixels[top : top + 10, left : left + 10][shape] = color
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tiny_config(tiny_dataset):
    """``make(*overrides) -> resolved configuration`` of a model of width 16 on that data."""
    from jaxclip import config as config_lib

    tower = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    gallery = {"gallery_split": "test", "every_steps": 10}
    config = {
        "total_steps": 20,
        "global_batch_size": 16,
        "data": {"name": str(tiny_dataset), "image_size": 16, "image_ops": "flip"},
        "tokenizer": {"context_length": 8},
        "model": {"image": {"patch_size": 8, **tower}, "text": tower, "embed_dim": 16},
        "optim": {"clip": {"name": "zclip"}, "schedule": {"warmup_steps": 2}},
        "ema_decay": 0.9,
        "evaluate": {"zero_shot": ["test"], "retrieval": ["test"], "batch_size": 16, **gallery},
        "checkpoint": {"every_steps": 10, "best_metric": "test/zero_shot/top1"},
        "log_every_steps": 5,
    }
    return lambda *overrides: config_lib.resolve(config, overrides)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> pathlib.Path:
    """A folder for compiled functions, the same for all processes that run tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "jax_cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def compilation_cache(cache_dir):
    """A context manager: compile nothing twice, in this process or another."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache as cache

    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")

    def switch(*values):
        for option, value in zip(options, values, strict=True):
            jax.config.update(option, value)
        cache.reset_cache()  # it looks at the options once

    @contextlib.contextmanager
    def use():
        before = [getattr(jax.config, option) for option in options]
        switch(str(cache_dir), 0.1)
        try:
            yield
        finally:
            switch(*before)

    return use


@pytest.fixture(scope="session")
def trained(tiny_config, compilation_cache, tmp_path_factory) -> pathlib.Path:
    """Workdir of the finished 20 steps of ``tiny_config``. Look at it, but change nothing."""
    from jaxclip.train import loop

    workdir = tmp_path_factory.mktemp("runs") / "tiny run"
    with compilation_cache():
        assert loop.train(tiny_config(), workdir).finished
    return workdir


@pytest.fixture(scope="session")
def tiny_config_file(tiny_config, tmp_path_factory) -> pathlib.Path:
    """The same as a file for ``--config``."""
    file = tmp_path_factory.mktemp("configs") / "tiny.py"
    file.write_text(f"def get_config(arg=''):\n    return {tiny_config()!r}\n")
    return file
