"""Hostile files: refused in one line, with nothing of them executed."""

import io
import json
import os
import pathlib
import pickle
import random
import zipfile

import numpy as np
import pytest

from jaxclip.weights import files

GOLDEN = pathlib.Path(__file__).parent / "golden"
ALLOWED = (files.FileError,)


def read_all(path):
    opened = files.open_file(path)
    for tensor in opened.tensors.values():
        array = tensor.read()
        assert array.shape == tensor.shape and array.dtype == tensor.dtype


@pytest.mark.parametrize(
    "source",
    ["hf_clip/model.safetensors", "open_clip/open_clip_pytorch_model.bin", "openai/model.pt",
     "hf_clip/expected.npz"],
)  # fmt: skip
def test_damaged_files_are_refused_or_read(source, tmp_path):
    """Cut anywhere, or with bytes changed in what describes the tensors."""
    whole = (GOLDEN / source).read_bytes()
    target = tmp_path / pathlib.Path(source).name
    rng = random.Random(0)
    refused = 0
    for attempt in range(300):
        data = bytearray(whole)
        if attempt % 3 == 0:
            del data[rng.randrange(len(data)) :]
        else:
            where = (len(data) - 9000, len(data)) if attempt % 2 else (0, 2500)
            for _ in range(rng.choice((1, 3, 20))):
                data[rng.randrange(max(0, where[0]), where[1])] = rng.randrange(256)
        target.write_bytes(data)
        try:
            read_all(target)
        except ALLOWED:
            refused += 1
    assert refused > 60


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def archive(path, content, **members):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        for name, data in members.items():
            file.writestr(f"archive/data/{name}", data)


def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive(tmp_path / "evil.pt", pickle.dumps({"weight": Evil()}))
    with pytest.raises(files.FileError, match=r"asks for (posix|nt)\.mkdir: only tensors are read"):
        files.open_file(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_a_bare_pickle_is_refused(tmp_path):
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"weight": [1]}))
    with pytest.raises(files.FileError, match=r"is no zip archive .* best as safetensors"):
        files.open_file(tmp_path / "old.pt")


def described(shape, stride, offset=0, key="0"):
    """A pickle of one float32 tensor, written opcode by opcode as torch does."""
    out = io.BytesIO()

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            return value.pid if isinstance(value, Pid) else None

    class Pid:
        pid = ("storage", Name("torch", "FloatStorage"), key, "cpu", 4)

    class Rebuilt:
        def __reduce__(self):
            return Name("torch._utils", "_rebuild_tensor_v2"), (Pid(), offset, shape, stride)

    Pickler.dispatch = dict(pickle._Pickler.dispatch)
    Pickler.dispatch[Name] = lambda self, name: self.write(
        pickle.GLOBAL + f"{name.module}\n{name.name}\n".encode()
    )
    Pickler(out, 2).dump({"weight": Rebuilt()})
    return out.getvalue()


class Name:
    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        """So that pickle takes it for a function."""


def test_a_tensor_as_torch_describes_it(tmp_path):
    numbers = np.arange(6, dtype=np.float32)
    archive(tmp_path / "x.pt", described((2, 3), (1, 2)), **{"0": numbers.tobytes()})
    array = files.open_file(tmp_path / "x.pt").tensors["weight"].read()
    np.testing.assert_array_equal(array, numbers.reshape(3, 2).T)


@pytest.mark.parametrize(
    ("shape", "stride", "offset", "key", "message"),
    [
        ((2, -3), (3, 1), 0, "0", "which is none"),
        ((2**40, 2**40), (1, 1), 0, "0", "needs .* bytes, but there are 24"),
        ((2, 3), (30, 1), 0, "0", "reaches beyond its 24 bytes"),
        ((2, 3), (3, 1), 4, "0", "reaches beyond its 24 bytes"),
        ((2, 3), (-3, 1), 0, "0", "which is none"),
        ((2, 3), (3, 1), -1, "0", "its numbers are not in the file"),
        ((2, 3), (3, 1), 0, "../../etc", "its numbers are not in the file"),
    ],
)
def test_a_tensor_that_lies(tmp_path, shape, stride, offset, key, message):
    content = described(shape, stride, offset, key)
    archive(tmp_path / "x.pt", content, **{"0": np.zeros(6, np.float32).tobytes()})
    with pytest.raises(files.FileError, match=message):
        files.open_file(tmp_path / "x.pt")


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", described((2, 3), (3, 1)))
        file.writestr("archive/data/0", bytes(10**6))
    with pytest.raises(files.FileError, match="is compressed, which torch never does"):
        files.open_file(tmp_path / "x.pt")


def test_an_array_of_objects_is_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "x.npz", weight=np.array([Evil()], dtype=object))
    with pytest.raises(files.FileError, match="holds Python objects, which are never read"):
        files.open_file(tmp_path / "x.npz")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("header", [2**63 - 1, 2**40, 10**9])
def test_a_huge_header_is_not_believed(tmp_path, header):
    (tmp_path / "x.safetensors").write_bytes(header.to_bytes(8, "little") + b"{}")
    with pytest.raises(files.FileError, match="is no safetensors file"):
        files.open_file(tmp_path / "x.safetensors")


def test_a_file_that_was_cut_short_says_so(tmp_path):
    part = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": part}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    path = tmp_path / "x.safetensors"
    for there in (0, 3, 20, len(content) - 1):
        path.write_bytes(content[:there])
        with pytest.raises(files.FileError, match=rf"it has {there} of \d+ bytes: .* cut short"):
            files.open_file(path)
    strange = [b"[" * 10_000, b'{"a": {"data_offsets": [0, 1e999]}}', b"[]"]
    headers = [len(each).to_bytes(8, "little") + each for each in strange]
    for whole in (b"a text in place of tensors", content + b"more", *headers):
        path.write_bytes(whole)
        with pytest.raises(files.FileError, match="is no safetensors file") as caught:
            files.open_file(path)
        assert "cut short" not in str(caught.value)


def test_overlapping_offsets_are_refused(tmp_path):
    part = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": part, "b": part}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(files.FileError, match="is no safetensors file"):
        files.open_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../other.safetensors"}}, "is no file beside it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "is no file beside it"),
        ({"weight_map": {"a": 3}}, "is no file beside it"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors does not exist"),
        ({"weight_map": {}}, "has no 'weight_map'"),
        ([], "holds list, not a JSON object"),
    ],
)
def test_an_index_that_leads_elsewhere(tmp_path, index, message):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(files.FileError, match=message):
        files.open_folder(tmp_path)


def test_shards_are_read_by_their_index(tmp_path):
    from safetensors.numpy import save_file

    arrays = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float16)}
    for place, (name, array) in enumerate(arrays.items()):
        save_file({name: array}, tmp_path / f"part{place}.safetensors")
    table = {"a": "part0.safetensors", "b": "part1.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    opened = files.open_folder(tmp_path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(opened.tensors[name].read(), array)
