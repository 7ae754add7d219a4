"""Ten thousand hostile files: each is refused in a line or read; nothing runs, nothing blows up."""

import collections
import contextlib
import io
import json
import random
import shutil
import sys
import tracemalloc

import numpy as np
import pytest

from jaxclip.weights import files
from jaxclip.weights.checkpoint import open_checkpoint
from jaxclip.weights.files import torch_pickle
from tests import work
from tests.weights import fuzz

MOST_MEMORY = 100 * 2**20
MOST_CALLS = 2_000_000  # of functions; a loop without end or a square of something makes more

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
        before = tracemalloc.get_traced_memory()[0]
        with watched() as done, work.counted() as calls:
            try:
                arrays, fate = read(place / name), "read"
            except files.FileError as error:
                arrays, fate = None, "refused"
                assert len(str(error)) < 2000 and str(error), what
        assert not done, f"{what}: {done}"
        assert tracemalloc.get_traced_memory()[1] - before < MOST_MEMORY, what
        assert calls() < MOST_CALLS, what
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


def refused(tmp_path, program):
    """The message of a torch file with this program, and how many calls it took to come to it."""
    content = fuzz.members(fuzz.torch_seed())
    content[next(key for key in content if key.endswith("data.pkl"))] = program
    (tmp_path / "x.pt").write_bytes(fuzz.zipped(content))
    with work.counted() as calls, pytest.raises(files.FileError) as error:
        read(tmp_path / "x.pt")
    return str(error.value), calls()


def pairs(count, value=b"N"):
    return b"".join(b"\x8c\x04%04d" % i + value for i in range(count))


NONES, DICT = b"(" + b"N" * 900 + b"tq\x00", b"}q\x00(" + pairs(900) + b"u"
LEVELS = b"".join(b"q%c0}(\x8c\x01ah%c\x8c\x01bh%cu" % (i, i, i) for i in range(40))
PREFIX = b"X\xa0\x0f\x00\x00" + b"x" * 4000
PROGRAMS = {
    "a memo of 2^31 places": (b"Nr\xff\xff\xff\x7f.", "holds no tensors"),
    "a key whose hash takes 2^60 steps": (b"}N" + b"2\x86" * 60 + b"Ns.", "a tuple as a key"),
    "an address with 2^60 letters": (b"N" + b"2\x86" * 60 + b"Q.", "which is no storage"),
    "2^40 entries": (b"}" + LEVELS + b".", "more than 200000 entries"),
    "a dict in itself": (b"}q\x00(" + pairs(900, b"h\x00") + b"u.", "nested more than 64 deep"),
    "900 dicts of 900": (DICT + b"0}(" + pairs(900, b"h\x00") + b"u.", "more than 200000 entries"),
    "many lists": (b"]" * 20_000 + b".", "more than 10000 steps"),
    "many marks": (b"(" * 20_000 + b".", "more than 10000 steps"),
    "many memo places": (b"N" + b"\x94" * 20_000 + b".", "more than 10000 steps"),
    "calls with many values": (
        NONES + b"ctorch._utils\n_rebuild_parameter\nq\x01" + b"h\x01h\x00R0" * 100 + b".",
        "more than 10000 steps",
    ),
    "copies of pairs": (
        b"(" + b"NN\x86" * 900 + b"lq\x00\x85q\x01ccollections\nOrderedDict\nq\x02"
        + b"h\x02h\x01R0" * 100 + b".", "more than 10000 steps",
    ),
    "copies of attributes": (
        DICT + b"c__torch__.a\nB\n)\x81" + b"h\x00b" * 100 + b".", "more than 10000 steps",
    ),
    "a long key": (b"}X\xa1\x0f\x01\x00" + b"x" * 69537 + b"Ns.", "a key of 69537 characters"),
    "a wide number": (b"\x8b\x00\x10\x00\x00" + b"\x01" * 4096 + b".", "a number of 32761 bits"),
    "a wide number in hex": (b"I0x1" + b"0" * 9000 + b"\n.", "a number of 36001 bits"),
    "long names": (
        DICT + b"0}(" + PREFIX + b"}(" + b"".join(b"\x8c\x01%ch\x00" % i for i in range(65, 75))
        + b"uu.", "over 16777216 characters",
    ),
    "a file with a long name": (
        b"(\x8c\x07storagectorch\nFloatStorage\nX\xa1\x0f\x01\x00" + b"x" * 69537 + b"tQ.",
        "a key of 69537 characters",
    ),
}  # fmt: skip


def test_programs_that_mean_more_than_they_say(tmp_path, monkeypatch):
    """Hours of this, or gigabytes, would be the end of it: a few steps tell that it is too much."""
    monkeypatch.setattr(torch_pickle, "MOST_STEPS", 10_000)
    for name, (program, message) in PROGRAMS.items():
        said, calls = refused(tmp_path, b"\x80\x02" + program)
        assert message in said, name
        assert calls < 200_000, name
    assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY


def test_a_program_of_tensors_may_be_as_long_as_is_said():
    """Its steps are not at their limit before its bytes are."""
    content = fuzz.members(fuzz.torch_seed())
    program = content[next(key for key in content if key.endswith("data.pkl"))]
    machine = torch_pickle._Machine(io.BytesIO(program), "x")
    machine.load()
    assert 1000 < machine.steps < torch_pickle.MOST_STEPS / torch_pickle.LARGEST * len(program)


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
