"""Ten thousand hostile files: each is refused in a line or read; nothing runs, nothing blows up."""

import collections
import contextlib
import json
import random
import shutil
import sys
import time
import tracemalloc

import numpy as np
import pytest

from jaxclip.weights import files
from jaxclip.weights.checkpoint import open_checkpoint
from tests.weights import fuzz

MOST_MEMORY = 100 * 2**20
MOST_SECONDS = 20.0  # of this thread's own time; the longest takes a fraction

# What no reader has a reason to do.
_DEEDS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "os.mkdir",
          "os.remove", "os.rename", "os.symlink", "socket.", "shutil.", "exec", "ctypes.",
          "marshal.loads")  # fmt: skip
_watching = []


def _hook(event, arguments):
    if not _watching:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event.startswith(_DEEDS):
        _watching[-1].append((event, str(arguments)[:200]))


sys.addaudithook(_hook)


@contextlib.contextmanager
def watched():
    done = []
    _watching.append(done)
    try:
        yield done
    finally:
        _watching.pop()


def read(path):
    arrays = {}
    for name, tensor in files.open_file(path).tensors.items():
        array = tensor.read()
        assert array.shape == tensor.shape and array.dtype == tensor.dtype, name
        arrays[name] = np.array(array)
    return arrays


def run(folder, count, seed):
    """Open ``count`` inputs; returns how often each kind was read and refused."""
    fates = collections.Counter()
    original = fuzz.tensors()
    for number, (kind, content, name) in enumerate(fuzz.inputs(count, seed)):
        place = folder / str(number)
        place.mkdir()
        for file, data in content.items():
            (place / file).write_bytes(data)
        what = f"{kind} {number} of seed {seed}: {place / name}"
        tracemalloc.reset_peak()
        before, began = tracemalloc.get_traced_memory()[0], time.thread_time()
        with watched() as done:
            try:
                arrays, fate = read(place / name), "read"
            except files.FileError as error:
                arrays, fate = None, "refused"
                assert len(str(error)) < 2000 and str(error), what
        assert not done, f"{what}: {done}"
        assert tracemalloc.get_traced_memory()[1] - before < MOST_MEMORY, what
        assert time.thread_time() - began < MOST_SECONDS, what
        fates[kind, fate] += 1
        if kind == "harmless":
            assert arrays is not None and arrays.keys() == original.keys(), what
            for key, array in arrays.items():
                np.testing.assert_array_equal(array, original[key], err_msg=what)
        for file in content:
            (place / file).unlink()
    return fates


@pytest.fixture(autouse=True)
def traced(tmp_path):
    # Modules that are imported on first use, and the hook's own work, are not the files'.
    next(iter(run_once(tmp_path)))
    tracemalloc.start()
    yield
    tracemalloc.stop()


def run_once(folder):
    for name, data in (("a.safetensors", fuzz.with_header(*fuzz.safetensors_seed())),
                       ("a.npz", fuzz.npz_seed()), ("a.pt", fuzz.torch_seed())):  # fmt: skip
        (folder / name).write_bytes(data)
        yield read(folder / name)


def check(fates, count):
    assert sum(fates.values()) == count
    for kind in fuzz.KINDS:
        assert kind == "harmless" or fates[kind, "refused"] > 0.1 * count / len(fuzz.KINDS), kind
    assert fates["harmless", "refused"] == 0


def test_a_sample_is_refused_or_read(tmp_path):
    check(run(tmp_path, 175, 1), 175)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_ten_thousand_are_refused_or_read(tmp_path, seed, capsys):
    fates = run(tmp_path, 2800, seed)
    with capsys.disabled():
        print(f"\nseed {seed}: {dict(fates)}")
    check(fates, 2800)


@pytest.mark.parametrize("number", range(4))
def test_programs_that_mean_more_than_they_say(tmp_path, number):
    """Seconds of this, or a gigabyte, would be the end of it."""
    programs = [
        b"\x80\x02r\xff\xff\xff\x7f.",  # a memo of 2^31 places
        b"\x80\x02}" + b"N" + b"2\x86" * 60 + b"Ns.",  # a key whose hash takes 2^60 steps
        b"\x80\x02" + b"N" + b"2\x86" * 60 + b"Q.",  # an address whose name has 2^60 letters
        None,
    ]
    content = fuzz.members(fuzz.torch_seed())
    name = next(key for key in content if key.endswith("data.pkl"))
    program = programs[number]
    while program is None:  # 2^40 entries, by dicts that are shared
        program = fuzz.doubled(rng := random.Random(number))
        program = program if b"ah" in program else None
        number = rng.randrange(10**6)
    content[name] = program
    (tmp_path / "x.pt").write_bytes(fuzz.zipped(content))
    began = time.thread_time()
    with pytest.raises(files.FileError):
        read(tmp_path / "x.pt")
    assert time.thread_time() - began < 5
    assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY


def test_an_index_of_itself_is_refused(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    with pytest.raises(files.FileError, match="which is an index itself"):
        files.open_file(index)


def lies(folder, count, seed):
    """Configurations in which something is another thing than it was."""
    name = "open_clip_config.json" if "open_clip" in folder.name else "config.json"
    whole = json.loads((folder / name).read_text())
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        config = json.loads(json.dumps(whole))
        for _ in range(rng.choice((1, 1, 3))):
            node = config
            while True:
                key = rng.choice(list(node))
                if isinstance(node[key], dict) and node[key] and rng.random() < 0.8:
                    node = node[key]
                    continue
                if rng.random() < 0.2:
                    del node[key]
                else:
                    node[key] = rng.choice((*fuzz.JUNK, *fuzz.INTEGERS))
                break
            if not config:
                break
        yield name, config


def check_lies(tmp_path, source, count, seed):
    fates = collections.Counter()
    folder = tmp_path / source
    shutil.copytree(fuzz.GOLDEN / source, folder)
    shapes = open_checkpoint(folder).sizes.to_dict()
    for name, config in lies(folder, count, seed):
        (folder / name).write_text(json.dumps(config))
        try:
            opened = open_checkpoint(folder)
        except ValueError as error:
            assert len(str(error)) < 4000
            fates["refused"] += 1
            continue
        fates["opened"] += 1
        # What tensors tell is not a matter of configuration.
        for tower in ("image", "text"):
            found = opened.sizes.to_dict()[tower]
            assert all(found[key] == shapes[tower][key] for key in ("width", "depth", "mlp_dim"))
    return fates


def test_configurations_that_lie(tmp_path):
    check_lies(tmp_path, "hf_clip", 3, 0)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["hf_clip", "hf_siglip", "open_clip", "open_clip_siglip"])
def test_more_configurations_that_lie(tmp_path, source, capsys):
    fates = check_lies(tmp_path, source, 400, 1)
    with capsys.disabled():
        print(f"\n{source}: {dict(fates)}")
    assert fates["refused"] > 5 and fates["opened"] > 5
