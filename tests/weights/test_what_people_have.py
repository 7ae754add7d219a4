"""Files as trainers, caches and converters leave them: read, or refused in one line."""

import argparse
import io
import json
import os
import pathlib
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from jaxclip.weights import files, mapping
from jaxclip.weights.checkpoint import open_checkpoint

GOLDEN = pathlib.Path(__file__).parent / "golden"


def read(name):
    return {k: np.array(t.read()) for k, t in open_checkpoint(GOLDEN / name).tensors.items()}


CLIP, HF = read("open_clip"), read("hf_clip")
KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


class Name:
    """A global of a pickle, which need not be there."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        """So that pickle takes it for a function."""


class Stored:
    def __init__(self, key, array):
        kind = Name("torch", KINDS[str(array.dtype)])
        self.pid = ("storage", kind, key, "cpu", array.size)


def torch_file(path, content):
    """What ``torch.save`` writes of nested dicts of arrays and whatever else."""
    numbers = {}

    class Pickler(pickle._Pickler):
        dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

        def persistent_id(self, value):
            return value.pid if isinstance(value, Stored) else None

        def reducer_override(self, value):
            if not isinstance(value, np.ndarray):
                return NotImplemented
            key = str(len(numbers))
            numbers[key] = np.ascontiguousarray(value).tobytes()
            steps = tuple(s // value.itemsize for s in np.ascontiguousarray(value).strides)
            arguments = (Stored(key, value), 0, value.shape, steps if value.ndim else (), False, {})
            return Name("torch._utils", "_rebuild_tensor_v2"), arguments

        def save_name(self, name):
            self.write(pickle.GLOBAL + f"{name.module}\n{name.name}\n".encode())

    Pickler.dispatch[Name] = Pickler.save_name
    out = io.BytesIO()
    Pickler(out, 2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", out.getvalue())
        for key, data in numbers.items():
            archive.writestr(f"x/data/{key}", data)
    return path


def prefixed(prefix, tensors=CLIP):
    return {f"{prefix}{name}": array for name, array in tensors.items()}


OPTIMIZER = {"state": {0: {"exp_avg": np.zeros(3, np.float32)}}, "param_groups": [{"lr": 0.1}]}
OPTIONS = argparse.Namespace(lr=1.0, logs=pathlib.PurePosixPath("logs"), best=np.float64(0.5))
TRAINERS = {
    "epoch_5.pt": {"epoch": 5, "name": "run", "state_dict": prefixed("module."),
                   "optimizer": OPTIMIZER, "scaler": {"scale": 65536.0}},
    "compiled.pt": {"state_dict": prefixed("module._orig_mod.")},
    "one_tower_compiled.pt": {
        name.replace("visual.", "visual._orig_mod."): array for name, array in CLIP.items()
    },
    "half.pt": {name: array.astype(np.float16) for name, array in CLIP.items()},
    "averages.pt": {"ema": CLIP, "optimizer": OPTIMIZER, "args": OPTIONS},
    "averaged_model.pt": {"n_averaged": np.int64(3), **prefixed("module.")},
    "swa.pt": {"n_averaged": np.zeros((), np.int64), **prefixed("module.")},
    "mp_rank_00_model_states.pt": {
        "module": CLIP, "sparse_tensor_module_names": set(), "ds_version": "0.9",
    },
    "last.ckpt": {"state_dict": prefixed("model."), "hyper_parameters": {"args": OPTIONS},
                  "pytorch-lightning_version": "2.1", "callbacks": {}},
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINERS)
def test_checkpoints_of_trainers_are_read(name, tmp_path):
    shutil.copy(GOLDEN / "open_clip" / "open_clip_config.json", tmp_path)
    opened = open_checkpoint(torch_file(tmp_path / name, TRAINERS[name]))
    expected = open_checkpoint(GOLDEN / "open_clip")
    assert (opened.family, opened.sizes) == ("open_clip", expected.sizes)
    found, wanted = opened.read(), expected.read()
    rtol = 1e-3 if name == "half.pt" else 0
    for path in (("image", "projection", "kernel"), ("text", "positions")):
        one, other = found, wanted
        for key in path:
            one, other = one[key], other[key]
        np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-6 if rtol else 0)


def test_beside_averages_the_weights_are_taken_and_it_is_said(tmp_path, caplog):
    content = {"state_dict": CLIP, "state_dict_ema": {name: 2 * x for name, x in CLIP.items()}}
    opened = files.open_file(torch_file(tmp_path / "a.pt", content))
    np.testing.assert_array_equal(opened.tensors["visual.proj"].read(), CLIP["visual.proj"])
    assert "the weights of 'state_dict' are taken; it holds averages, too, as 'st" in caplog.text


def test_what_a_trainer_keeps_beside_the_model_is_listed(tmp_path):
    content = {"state_dict": {**prefixed("model."), "loss.weight": np.zeros(2, np.float32)}}
    with pytest.raises(mapping.MappingError, match=r"not used: loss\.weight \[2\]$"):
        open_checkpoint(torch_file(tmp_path / "last.ckpt", content))


def hub_cache(folder):
    """As huggingface_hub lays it out; links where the file system has them."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "abc123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc123")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "hf_clip" / name, blobs / name[:4])
        os.symlink(f"../../blobs/{name[:4]}", snapshot / name)
    return folder, snapshot


def test_a_folder_of_the_hubs_cache_is_its_snapshot(tmp_path):
    for folder in hub_cache(tmp_path):
        opened = open_checkpoint(folder)
        np.testing.assert_array_equal(
            opened.read()["text"]["positions"],
            HF["text_model.embeddings.position_embedding.weight"],
        )
    (tmp_path / "refs" / "main").write_text("..")  # a way out of the folder
    with pytest.raises(files.FileError, match="holds no weights"):
        open_checkpoint(tmp_path)


def test_safetensors_under_a_name_of_torchs_are_read(tmp_path):
    shutil.copy(GOLDEN / "hf_clip" / "model.safetensors", tmp_path / "pytorch_model.bin")
    assert open_checkpoint(tmp_path).family == "hf_clip"


def quantized(**more):
    tensors = dict(HF)
    name = "text_model.encoder.layers.0.mlp.fc1"
    del tensors[f"{name}.weight"]
    return {**tensors, **{f"{name}.{key}": array for key, array in more.items()}}


def channels_last():
    name = "vision_model.embeddings.patch_embedding.weight"
    return {**HF, name: np.ascontiguousarray(HF[name].transpose(0, 2, 3, 1))}


EIGHT_BITS = {
    name: array.astype(np.int8) if array.ndim == 2 else array for name, array in HF.items()
}
REFUSED = {
    "GPTQ": (quantized(qweight=np.zeros((2, 4), np.int32)), {}, r"is quantized \(it holds .*qwei"),
    "bitsandbytes": (HF, {"quantization_config": {"quant_method": "bitsandbytes"}},
                     r"is quantized \(by bitsandbytes\), which is not read; take the original"),
    "eight bits under the same names": (EIGHT_BITS, {}, r"is of int8, so quantized"),
    "MLX": (channels_last(), {}, r"\[16, 4, 4, 3\] has its channels last, as MLX keeps"),
    "ZeRO-3": ({name: np.zeros(0, np.float32) for name in HF}, {},
               r"holds \d+ empty tensors, as DeepSpeed's ZeRO-3 .* zero_to_fp32\.py"),
    "BERT": ({"bert.x": np.zeros(2, np.float32)}, {"model_type": "bert"},
             r"of no known family .* its configuration says model_type 'bert'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_model_as_it_was_trained_is_refused(name, tmp_path):
    from safetensors.numpy import save_file

    tensors, config, message = REFUSED[name]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(mapping.MappingError, match=message) as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_the_nearest_family_and_what_it_expects_are_named(tmp_path):
    """A fork of a library that names its norms otherwise."""
    from safetensors.numpy import save_file

    renamed = {name.replace("pre_layrnorm", "norm_in").replace("token_emb", "words"): array
               for name, array in HF.items()}  # fmt: skip
    save_file(renamed, tmp_path / "model.safetensors")
    message = (
        r"the nearest is hf_clip, of whose names 9\d% are there, but not text_model\.embeddings\."
        r"token_embedding\.weight, vision_model\.pre_layrnorm\.bias, "
    )
    with pytest.raises(mapping.MappingError, match=message):
        open_checkpoint(tmp_path)


def test_axes_in_another_order_are_no_patch_embedding():
    """Of equal numbers of elements, which alone would tell nothing."""
    layout = mapping.convolution(4)
    assert layout.to_ours(np.zeros((16, 3, 4, 4)))[0].shape == (48, 16)
    for shape in ((16, 4, 4, 3), (16, 12, 4, 1), (16, 48)):
        with pytest.raises(ValueError, match="is no "):
            layout.to_ours(np.zeros(shape))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.gguf", b"GGUF", r"llama\.cpp's GGUF .* take the safetensors file"),
        ("tf_model.h5", b"\x89HDF", r"Keras's HDF5 is not read; load it in transformers 4"),
        ("model.onnx", b"\x08", "ONNX holds a program"),
        ("__0_0.distcp", b"", r"distributed checkpoint of torch; .*dcp_to_torch_save"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("model.pt", b"<!DOCTYPE html><html>", "is a web page, not the file"),
    ],
)
def test_other_kinds_of_files_say_what_they_are(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(files.FileError, match=message) as error:
            open_checkpoint(path)
        assert "\n" not in str(error.value)


def test_a_folder_within_and_a_name_on_the_hub_are_pointed_out(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "hf_clip", tmp_path / "model" / "0_CLIPModel")
    with pytest.raises(files.FileError, match=r"but 0_CLIPModel; give .*model/0_CLIPModel$"):
        open_checkpoint(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(files.FileError, match=r"hf download openai/clip-vit-base-patch32 --local"):
        open_checkpoint("openai/clip-vit-base-patch32")
    with pytest.raises(files.FileError, match=r"there is no such file or folder$"):
        open_checkpoint(tmp_path / "nothing.pt")
