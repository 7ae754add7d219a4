"""``jaxclip weights export --format stablehlo``: programs that run where only JAX and NumPy are."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxclip
from jaxclip import cli
from jaxclip.inference import programs

GOLDEN = pathlib.Path(__file__).parents[1] / "weights" / "golden"
DOCS = pathlib.Path(__file__).parents[2] / "docs" / "weights.md"

# Whatever is not JAX, NumPy or what JAX itself needs can't be imported.
_ALONE = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jaxclip", "flax", "optax", "ml_collections", "tensorflow"):
            raise ModuleNotFoundError(f"no {name} here")

sys.meta_path.insert(0, Nothing())
"""


def export(source, to, form="stablehlo"):
    return cli.main(["weights", "export", "--from", str(source), "--to", str(to), "--format", form])


def loader():
    """The loader that the documentation shows."""
    found = re.search(r"```python\n(import json, jax.*?)```", DOCS.read_text(), re.DOTALL)
    assert found and len(found[1].splitlines()) <= 12
    return found[1]


@pytest.mark.parametrize("name", [pytest.param("hf_clip", marks=pytest.mark.slow), "hf_siglip"])
def test_a_process_with_jax_alone_computes_the_same(tmp_path, name, capsys):
    folder = tmp_path / "mine"
    assert export(GOLDEN / name, folder) == 0
    assert "image.stablehlo" in capsys.readouterr().out
    model, rng = jaxclip.load(GOLDEN / name), np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, 8, 3), np.uint8)
    tokens = rng.integers(1, 46, (3, 8)).astype(np.int32)
    np.savez(tmp_path / "inputs.npz", images=images, tokens=tokens)
    use = """
        inputs = np.load("inputs.npz")
        np.savez("out.npz", image=image(inputs["images"]), text=text(inputs["tokens"]),
                 one=image(inputs["images"][:1]), logits=logits(inputs["images"], inputs["tokens"]))
    """
    code = _ALONE + loader() + re.sub("^ {8}", "", use, flags=re.M)
    # Isolated: neither this folder nor an environment variable puts jaxclip on the path.
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=tmp_path)
    out = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(out["image"], model.encode_image(images), atol=2e-6)
    np.testing.assert_allclose(out["one"], out["image"][:1], atol=2e-6)
    np.testing.assert_allclose(out["text"], model.encode_text(tokens), atol=2e-6)
    np.testing.assert_allclose(out["logits"], model.logits(images, tokens), rtol=1e-4, atol=1e-4)


def test_the_description_says_how_inputs_are_made(tmp_path, capsys):
    assert export(GOLDEN / "hf_siglip", tmp_path / "mine") == 0
    content = json.loads((tmp_path / "mine" / "model.json").read_text())
    model = jaxclip.load(GOLDEN / "hf_siglip")
    assert content["image"]["image_size"] == 8 and content["text"]["context_length"] == 8
    assert content["image"]["image_mean"] == [0.5] * 3
    assert content["image"]["image_ops"] == model.inputs.image_ops
    assert content["text"]["tokenizer"]["kind"] == "siglip"
    assert content["logit_scale"] == pytest.approx(float(np.exp(model.params["logit_scale"])))
    assert content["logit_bias"] == pytest.approx(float(model.params["logit_bias"]))
    capsys.readouterr()
    assert export(GOLDEN / "hf_siglip", tmp_path / "mine") == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_programs_hold_no_parameters_and_serve_every_platform():
    model = jaxclip.load(GOLDEN / "hf_clip")
    for tower in programs.towers_of(model.config, model.params):
        program = jax.export.deserialize(bytearray(programs.serialized(tower)))
        assert set(program.platforms) == set(programs.PLATFORMS)
        assert len(program.in_avals) == len(tower.params) + 1
        assert str(program.in_avals[-1].shape[0]) == "b"


@pytest.mark.parametrize(
    ("name", "wanted"), [("open_clip_coca", ("image", "text")), ("open_clip_roberta", ("text",))]
)
def test_programs_of_other_towers_take_any_number_of_rows(name, wanted):
    model, rng = jaxclip.load(GOLDEN / name), np.random.default_rng(0)
    side, text = model.sizes.image.image_size, model.sizes.text
    inputs = {
        "image": rng.integers(0, 256, (3, side, side, 3), np.uint8),
        "text": rng.integers(3, text.vocab_size, (3, text.context_length)).astype(np.int32),
    }
    inputs["text"][0, 5:] = text.pad_id
    encode = {"image": model.encode_image, "text": model.encode_text}
    for tower in programs.towers_of(model.config, model.params):
        if tower.name not in wanted:  # RoBERTa's image tower is CLIP's
            continue
        program = jax.export.deserialize(bytearray(programs.serialized(tower, ("cpu",))))
        given = inputs[tower.name]
        expected = np.asarray(encode[tower.name](given))
        for rows in (3, 1):
            found = program.call(tower.params, given[:rows])
            np.testing.assert_allclose(found, expected[:rows], atol=2e-6, err_msg=tower.name)


def test_onnx_without_its_extra_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert export(GOLDEN / "hf_clip", tmp_path / "mine", "onnx") == 2
    assert "pip install '.[onnx]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip"])
def test_onnxruntime_computes_the_same(tmp_path, name):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    assert export(GOLDEN / name, tmp_path / "mine", "onnx") == 0
    model, rng = jaxclip.load(GOLDEN / name), np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, 8, 3), np.uint8)
    tokens = rng.integers(1, 46, (3, 8)).astype(np.int32)
    for tower, inputs, expected in (
        ("image", images, model.encode_image(images)),
        ("text", tokens, model.encode_text(tokens)),
    ):
        session = onnxruntime.InferenceSession(str(tmp_path / "mine" / f"{tower}.onnx"))
        (found,) = session.run(None, {"inputs": inputs})
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.slow
def test_what_jax2onnx_lacks_or_gets_wrong_is_refused(tmp_path, capsys, monkeypatch):
    pytest.importorskip("jax2onnx")
    from jaxclip.inference import onnx_files

    model = jaxclip.load("tiny")
    inputs = model.inputs
    with pytest.raises(ValueError, match=r"can't write the text tower: .*stablehlo"):
        onnx_files.write_onnx(model.config, model.params, tmp_path / "mine", inputs)
    assert not list(tmp_path.iterdir())
    model = jaxclip.load(GOLDEN / "hf_clip")
    monkeypatch.setattr(onnx_files, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match=r"image.onnx .* differs from the model by .*e-0[678]"):
        onnx_files.write_onnx(model.config, model.params, tmp_path / "mine", inputs)
    assert not list(tmp_path.iterdir())


def test_what_other_people_have_no_class_for_names_this_way_out(tmp_path, capsys):
    """A ResNet in transformers, say; where another format has the model, that is named."""
    assert export(GOLDEN / "open_clip_resnet", tmp_path / "to", "hf") == 2
    said = capsys.readouterr().err
    assert re.search(r"can't be expressed by hf_clip.*; --format stablehlo writes any model", said)
    assert export(GOLDEN / "open_clip_coca", tmp_path / "to", "hf") == 2
    assert "use --format open_clip" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()
