"""``jaxclip.load`` and ``jaxclip weights``: the same numbers, in one line, from any source."""

import dataclasses
import io
import json
import logging
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxclip
from jaxclip import cli, models, storage
from jaxclip import config as config_lib
from jaxclip.data import clip_bpe
from jaxclip.inference import convert, inputs
from jaxclip.models import presets
from jaxclip.train import init_from, state_io
from jaxclip.weights import export
from jaxclip.weights.checkpoint import open_checkpoint

GOLDEN = pathlib.Path(__file__).parents[1] / "weights" / "golden"
MERGES = pathlib.Path(clip_bpe.__file__).parent.joinpath(
    "clip_vocabulary", "bpe_simple_vocab_16e6.txt.gz"
)


@pytest.fixture(scope="module")
def model():
    return jaxclip.load(GOLDEN / "hf_clip")


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_embeddings_are_those_of_normalised_pictures(model):
    images, tokens = noise(8, 8)[None], np.array([[1, 2, 47, 0, 0, 0, 0, 0]], np.int32)
    mean, std = (np.array(model.config["data"][key]) for key in ("image_mean", "image_std"))
    clip = models.build(model.sizes)
    expected = clip.encode_image(model.params, jnp.asarray((images / 255 - mean) / std))
    np.testing.assert_allclose(model.encode_image(images), expected, atol=2e-6)
    text = clip.encode_text(model.params, tokens)
    np.testing.assert_allclose(model.encode_text(tokens), text, atol=2e-6)
    scale = np.exp(model.params["logit_scale"])
    np.testing.assert_allclose(model.logits(images, tokens), scale * expected @ text.T, rtol=1e-5)


def test_a_models_bias_is_in_its_logits():
    model = jaxclip.load(GOLDEN / "hf_siglip")
    images, tokens = noise(8, 8)[None], np.ones((2, 8), np.int32)
    cosine = model.encode_image(images) @ model.encode_text(tokens).T
    expected = np.exp(model.params["logit_scale"]) * cosine + model.params["logit_bias"]
    np.testing.assert_allclose(model.logits(images, tokens), expected, rtol=1e-5)


def test_underneath_are_pure_functions(model):
    images, tokens = noise(8, 8)[None], np.ones((2, 8), np.int32)

    @jax.jit
    def loss(params):
        return model.logits(images, tokens, params=params).sum()

    gradient = jax.grad(loss)(model.params)
    norms = jax.tree.leaves(jax.tree.map(jnp.linalg.norm, gradient["image"]))
    assert all(np.isfinite(norms)) and max(norms) > 0
    zero = jax.tree.map(jnp.zeros_like, model.params)
    assert float(loss(zero)) != float(loss(model.params))


def test_preprocess_takes_paths_pictures_and_arrays(model, tmp_path):
    array = noise(30, 20)
    picture = Image.fromarray(array)
    picture.save(tmp_path / "x.png")
    expected = model.preprocess(array)
    assert expected.shape == (1, 8, 8, 3) and expected.dtype == np.uint8
    wide = np.asarray(picture.resize((8, 12), Image.Resampling.BICUBIC))[2:10]
    assert np.abs(expected[0].astype(int) - wide).max() <= 1
    together = model.preprocess([str(tmp_path / "x.png"), tmp_path / "x.png", picture, array])
    np.testing.assert_array_equal(together, np.repeat(expected, 4, axis=0))
    transparent = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    assert (model.preprocess(transparent) == 255).all()
    assert model.preprocess([]).shape == (0, 8, 8, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"uint8\[H, W, 3\], not uint8\[8, 8\]"),
        (np.zeros((8, 8, 3), np.float32), r"not float32\[8, 8, 3\]"),
        (b"no picture", "the picture can't be decoded: undecodable"),
        (7, "int is no picture"),
    ],
)
def test_what_is_no_picture(model, value, message):
    with pytest.raises(ValueError, match=message):
        model.preprocess(value)


def test_unknown_sources_and_missing_tokenizers(model, tmp_path):
    with pytest.raises(ValueError, match=r"'vit_b23' is neither .* did you mean 'vit_b32'"):
        jaxclip.load("vit_b23")
    with pytest.raises(ValueError, match=r"neither the workdir of a run nor published weights"):
        jaxclip.load(tmp_path)
    with pytest.raises(ValueError, match=r"the tokenizer of .*hf_clip can't be made.*tokenizer="):
        model.tokenize("a cat")


def test_what_a_model_is_given_by_mistake(model):
    with pytest.raises(
        ValueError, match=r"dtype='float33'; use 'float32', 'bfloat16', 'float16', "
    ):
        jaxclip.load(GOLDEN / "hf_clip", dtype="float33")
    with pytest.raises(ValueError, match=r"str is not tokens int32\[B, L\]; model.tokenize makes"):
        model.encode_text("a cat")
    with pytest.raises(ValueError, match=r"str is not pictures uint8\[B, S, S, 3\]; model.prep"):
        model.encode_image("cat.jpg")
    for texts in (None, [1], ["a", 2]):
        with pytest.raises(ValueError, match="is no text; tokenize takes a string or a list of"):
            model.tokenize(texts)


def test_numbers_of_another_range_than_the_models_are_refused(model):
    """They would be normalised twice, or be other words."""
    pixels = model.preprocess(noise(40, 50))
    for pictures in (pixels / 255.0, (pixels / 255.0 - 0.45) / 0.27):
        with pytest.raises(ValueError, match=r"pictures of float32 from .* takes 0 to 255"):
            model.encode_image(pictures)
    same = model.encode_image(pixels.astype(np.float32))
    np.testing.assert_array_equal(same, model.encode_image(pixels))
    dark = (pixels * (6 / 255)).astype(np.float32)  # as a film fades to
    assert np.isfinite(model.encode_image(dark)).all()
    vocabulary = model.sizes.text.vocab_size
    for tokens, message in (
        ([1, 2, 3], r"tokens of shape \[3\] and dtype int32, where int32\[B, L\] is wanted"),
        ([[1.0, 2.0]], "and dtype float32, where int32"),
        ([[1, vocabulary]], rf"tokens from 1 to {vocabulary}: the model has tokens 0 to"),
        ([[-1, 2]], "tokens from -1 to 2: the model has"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode_text(np.asarray(tokens, np.float32 if "float" in message else np.int32))


def test_arrays_of_the_host_are_looked_at_there(monkeypatch):
    """The device may be at work on the batch before: to ask it would be to wait for that."""
    with monkeypatch.context() as patch:
        patch.setattr(jax, "device_get", None)
        inputs.as_pixels(np.full((1, 2, 2, 3), 200.0, np.float32))
        inputs.as_tokens(np.ones((1, 2), np.int32), 2)
        with pytest.raises(ValueError, match="takes 0 to 255"):
            inputs.as_pixels(np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 2, 2, 3))
    with pytest.raises(ValueError, match="takes 0 to 255"):
        inputs.as_pixels(jnp.linspace(0, 1, 12).reshape(1, 2, 2, 3))
    with pytest.raises(ValueError, match="tokens from 1 to 1: the model has tokens 0 to 0"):
        inputs.as_tokens(jnp.ones((1, 2), int), 1)


def test_what_was_interrupted_is_removed_also_while_another_thread_is_at_it(tmp_path, monkeypatch):
    """A save in the background renames what it could not finish."""
    folder = tmp_path / "checkpoints"
    (folder / "step_0").mkdir(parents=True)
    real = shutil.rmtree

    def raced(path, ignore_errors):
        (folder / "step_0").rename(folder / "step_0.removed")
        monkeypatch.setattr(shutil, "rmtree", real)

    monkeypatch.setattr(shutil, "rmtree", raced)
    storage.discard(folder)
    assert not folder.exists()


def test_a_failed_import_leaves_what_another_wrote_meanwhile(tmp_path, monkeypatch):
    """The folder was free when the command began, hours ago."""
    theirs = tmp_path / "w" / "checkpoints" / "step_9" / "data"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("precious")
    monkeypatch.setattr(convert.Checkpointer, "save", lambda *_: (_ for _ in ()).throw(OSError()))
    with pytest.raises(OSError):
        convert.write_workdir({}, {}, tmp_path / "w")
    assert theirs.read_text() == "precious"


def test_a_preset_has_random_parameters_and_our_tokenizer(caplog):
    model = jaxclip.load("tiny", dtype="bfloat16")
    assert "its parameters are random" in caplog.text
    tokens = model.tokenize(["a red car", "a dog"])
    assert tokens.shape == (2, model.sizes.text.context_length) and tokens.dtype == np.int32
    assert model.encode_text(tokens).dtype == jnp.float32
    np.testing.assert_array_equal(model.tokenize("a dog"), tokens[1:])


def test_import_jaxclip_is_light_and_load_needs_no_tensorflow():
    code = (
        "import sys, jaxclip; assert 'jax' not in sys.modules; "
        f"m = jaxclip.load({str(GOLDEN / 'hf_clip')!r}); "
        "import numpy as np; m.preprocess(np.zeros((9, 9, 3), np.uint8)); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The command line.


def run(*arguments):
    return cli.main(["weights", *map(str, arguments)])


def test_info_shows_the_architecture(capsys):
    assert run("info", GOLDEN / "hf_siglip") == 0
    out = capsys.readouterr().out
    for part in (
        "hf_siglip",
        "11,866 in 88 tensors",
        "88 float32",
        "8 px in patches of 4",
        "48 tokens, length 8",
        "pool map, gelu_tanh",
        "resize, mean 0.5/0.5/0.5",
    ):
        assert part in out  # fmt: skip


def test_import_and_export_are_exact(tmp_path, capsys):
    before = state_io.named_leaves(open_checkpoint(GOLDEN / "hf_siglip").read())
    assert run("import", "--from", GOLDEN / "hf_siglip", "--to", tmp_path / "w") == 0
    assert run("info", tmp_path / "w") == 0
    assert "workdir of a run" in capsys.readouterr().out
    source = init_from.open_source(tmp_path / "w")
    for name, leaf in state_io.named_leaves(source.read(None)).items():
        np.testing.assert_array_equal(leaf, before[name], err_msg=name)
    arguments = ("export", "--from", tmp_path / "w", "--to", tmp_path / "hf", "--format", "hf")
    assert run(*arguments) == 0
    after = state_io.named_leaves(open_checkpoint(tmp_path / "hf").read())
    assert before.keys() == after.keys()
    for name, leaf in after.items():
        np.testing.assert_array_equal(leaf, before[name], err_msg=name)
    capsys.readouterr()
    assert run(*arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert run("import", "--from", tmp_path / "w", "--to", tmp_path / "x") == 2
    assert "is a workdir already" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "x.txt").touch()
    for arguments, message in (
        (("info", tmp_path / "nothing"), "there is no such file or folder"),
        (("info", tmp_path), "holds no weights"),
        (("import", "--from", tmp_path, "--to", tmp_path / "w"), "holds no weights"),
        (("import", "--from", GOLDEN / "hf_clip", "--to", tmp_path), "is there already"),
        (
            ("import", "--from", GOLDEN / "hf_clip", "--to", tmp_path / "w", "--tokenizer", MERGES),
            "has 49408 tokens, the text tower embeds 48",
        ),
    ):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("jaxclip: error: ")
        assert "Traceback" not in error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.txt"]


def test_what_a_full_disk_or_an_interrupt_leaves_is_not_in_the_way(tmp_path, monkeypatch, capsys):
    arguments = ("import", "--from", GOLDEN / "hf_clip", "--to", tmp_path / "w")
    with monkeypatch.context() as patch:

        def interrupted(*args):
            raise KeyboardInterrupt

        patch.setattr(config_lib, "save", interrupted)
        assert run(*arguments) == 130
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:

        def full(*args, **kwargs):
            raise RuntimeError("I/O error: No space left on device (os error 28)")  # safetensors'

        patch.setattr("safetensors.numpy.save_file", full)
        export = ("export", "--from", GOLDEN / "hf_clip", "--to", tmp_path / "x", "--format", "hf")
        assert run(*export) == 1
    error = capsys.readouterr().err
    assert re.search(r"error: .*/x: no space left on the device .* nothing was written", error)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_can_not_be_made_is_said_before_any_picture(tmp_path, capsys, caplog):
    folder = tmp_path / "weights"
    shutil.copytree(GOLDEN / "hf_clip", folder)
    Image.fromarray(noise(20, 20)).save(tmp_path / "a.png")
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    status = cli.main(["search", "--weights", str(folder), "--images", str(tmp_path), "a cat"])
    assert status == 2 and "give it by --tokenizer" in capsys.readouterr().err
    assert "left out" not in caplog.text


def test_imported_weights_are_evaluated(tmp_path, tiny_dataset, capsys, caplog):
    """open_clip's file of a model with our tokenizer, imported, through ``jaxclip eval``."""
    base = presets.get("tiny").to_dict()
    small = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24}
    base["image"] |= {**small, "image_size": 16, "patch_size": 8, "pool": "cls", "pre_norm": True}
    base["image"] |= {"positions": "learned", "patch_bias": False, "projection": "linear"}
    base["text"] |= {**small, "vocab_size": 4096, "context_length": 16, "causal": True}
    base["text"] |= {"pool": "last", "projection": "linear"}
    sizes = presets.CLIPConfig.from_dict(base)
    params = models.build(sizes).init(jax.random.key(0))
    preprocess = open_checkpoint(GOLDEN / "open_clip").preprocess._replace(
        tokenizer={"kind": "emoji_bpe", "context_length": 16}
    )
    export.export_checkpoint(params, sizes, "open_clip", tmp_path / "theirs", preprocess)
    assert run("import", "--from", tmp_path / "theirs", "--to", tmp_path / "w") == 0
    tokenizer = '{"kind": "emoji_bpe", "path": "", "context_length": 16}'
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    config["tokenizer"] = json.loads(tokenizer)
    (tmp_path / "w" / "config.json").write_text(json.dumps(config))
    task = f"zero_shot data={tiny_dataset} split=test"
    assert cli.main(["eval", "--workdir", str(tmp_path / "w"), "--task", task]) == 0
    assert "zero_shot/top1" in capsys.readouterr().out
    evaluate = ["eval", "--workdir", str(tmp_path / "w"), "--task", task]
    with caplog.at_level(logging.WARNING, "jaxclip"):
        assert cli.main([*evaluate, "--config.tokenizer.kind=clip"]) == 2
    assert "were trained with tokenizer.kind='emoji_bpe', not 'clip'" in caplog.text
    assert "the tokenizer has 49408 tokens" in capsys.readouterr().err
    loaded = jaxclip.load(tmp_path / "w")
    # It reads the end of text by its number now, which is the same place.
    read = dataclasses.replace(loaded.sizes.text, pool="last", eos_id=0)
    assert dataclasses.asdict(read) == dataclasses.asdict(sizes.text)
    with io.BytesIO() as file:
        Image.fromarray(noise(16, 16)).save(file, "PNG")
        images = loaded.preprocess(file.getvalue())
    assert loaded.logits(images, loaded.tokenize(["a", "b"])).shape == (1, 2)


def test_weights_that_are_not_there_are_looked_for_beside(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match=r"neither a workdir.*did you mean '.*/photos'\?"):
        jaxclip.load(tmp_path / "photo")
    with pytest.raises(ValueError, match=r"neither a workdir.*did you mean 'vit_b16'"):
        jaxclip.load("vit-b16")
