"""Export: exact round trips, other people's code on our files, and what is refused."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxclip import models
from jaxclip.inference import convert
from jaxclip.models import presets
from jaxclip.train import state_io
from jaxclip.weights import export
from jaxclip.weights.checkpoint import open_checkpoint
from jaxclip.weights.families import open_clip_roberta

GOLDEN = pathlib.Path(__file__).parent / "golden"
WRITTEN = ["hf_clip", "hf_siglip", "hf_siglip2", "open_clip", "open_clip_coca"]


def small(preset, **image):
    base = presets.get(preset).to_dict()
    base["image"] |= {"image_size": 8, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2}
    base["image"] |= {"mlp_dim": 24, **image}
    base["text"] |= {"vocab_size": 48, "context_length": 8, "width": 16, "depth": 2}
    base["text"] |= {"num_heads": 2, "mlp_dim": 24}
    embed_dim = 16 if base["image"]["projection"] == "none" else 12
    return presets.CLIPConfig.from_dict({**base, "embed_dim": embed_dim})


def random_params(sizes):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    return jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape).astype(np.float32), shapes)


def preprocess_of(name):
    return open_checkpoint(GOLDEN / name).preprocess


def assert_same(ours, theirs):
    ours, theirs = state_io.named_leaves(ours), state_io.named_leaves(theirs)
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_exported_is_read_as_the_same_bits(name, tmp_path):
    opened = open_checkpoint(GOLDEN / name)
    params = opened.read()
    export.export_checkpoint(params, opened.sizes, name, tmp_path / "to", opened.preprocess)
    again = open_checkpoint(tmp_path / "to")
    assert again.family == name
    for ours, theirs in zip(again.preprocess, opened.preprocess, strict=True):
        assert ours == (list(theirs) if isinstance(theirs, tuple) else theirs)
    shapes = {key: tensor.shape for key, tensor in again.tensors.items()}
    assert shapes == {
        key: tensor.shape for key, tensor in opened.tensors.items() if key != "attn_mask"
    }
    changed = {"logit_scale_init": opened.sizes.logit_scale_init}
    assert dataclasses.replace(again.sizes, **changed) == opened.sizes
    assert_same(again.read(), params)


def test_a_roberta_is_exported_by_the_name_that_open_clip_makes_it_of(tmp_path, monkeypatch):
    opened = open_checkpoint(GOLDEN / "open_clip_roberta")
    params, text = opened.read(), opened.sizes.text
    args = (params, opened.sizes, "open_clip_roberta", tmp_path / "to", opened.preprocess)
    with pytest.raises(
        ValueError, match=r"model\.text \(vocab_size, .* by a name of transformers'"
    ):
        export.export_checkpoint(*args)
    shape = (text.vocab_size, text.num_positions, text.width, text.depth, text.mlp_dim)
    monkeypatch.setitem(open_clip_roberta._PUBLISHED, shape, "roberta-tiny")
    export.export_checkpoint(*args)
    config = json.loads((tmp_path / "to" / "open_clip_config.json").read_text())["model_cfg"]
    assert config["text_cfg"]["hf_model_name"] == "roberta-tiny"
    again = open_checkpoint(tmp_path / "to")
    assert (again.family, again.sizes) == ("open_clip_roberta", opened.sizes)
    assert_same(again.read(), params)


@pytest.mark.parametrize(
    ("preset", "name"),
    [("roberta_vit_b32", "roberta-base"), ("xlm_roberta_base_vit_b32", "xlm-roberta-base"),
     ("xlm_roberta_large_vit_h14", "xlm-roberta-large")],
)  # fmt: skip
def test_published_robertas_have_their_names(preset, name):
    sizes = presets.get(preset)
    assert export.family_of(sizes, "open_clip") == "open_clip_roberta"
    files = export.FAMILIES.get("open_clip_roberta").config_files(
        sizes, preprocess_of("open_clip_roberta"), export.tokenizer_files.SpecialIds(0, 2, 1)
    )
    text = files["open_clip_config.json"]["model_cfg"]["text_cfg"]
    assert text["hf_model_name"] == name and text["hf_proj_type"] == sizes.text.projection
    assert not text["hf_model_pretrained"] and text["context_length"] == sizes.text.context_length


def test_coca_without_its_decoder_is_refused(tmp_path):
    opened = open_checkpoint(GOLDEN / "open_clip_coca")
    assert export.family_of(opened.sizes, "open_clip") == "open_clip_coca"
    params = {key: value for key, value in opened.read().items() if key != "objective"}
    args = (opened.sizes, "open_clip_coca", tmp_path / "to", opened.preprocess)
    with pytest.raises(ValueError, match=r"no parameters of objective 'coca', .* text decoder"):
        export.export_checkpoint(params, *args)
    text = dataclasses.replace(opened.sizes.text, mlp_dim=24)
    changed = dataclasses.replace(opened.sizes, text=text)
    with pytest.raises(ValueError, match=r"model\.text\.mlp_dim=24 .* decoder of captions has 48"):
        export.export_checkpoint(opened.read(), changed, *args[1:])


@pytest.mark.slow
def test_the_decoder_of_an_imported_coca_is_exported(tmp_path):
    """A workdir keeps it apart from the towers."""
    convert.import_weights(GOLDEN / "open_clip_coca", tmp_path / "run")
    convert.export_weights(tmp_path / "run", tmp_path / "to", form="open_clip", tokenizer_path="")
    again, opened = open_checkpoint(tmp_path / "to"), open_checkpoint(GOLDEN / "open_clip_coca")
    assert_same(again.read(), opened.read())


def test_siglip_of_a_size_in_timm_is_exported_to_open_clip():
    base = presets.get("siglip_b16").to_dict()
    base["image"] |= {"image_size": 256, "patch_size": 32}
    base["text"] |= {"vocab_size": 48, "context_length": 8, "depth": 1}
    sizes = presets.CLIPConfig.from_dict(base)
    files = export.FAMILIES.get("open_clip_siglip").config_files(
        sizes, preprocess_of("hf_siglip"), export.tokenizer_files.SpecialIds(None, 1, 1)
    )
    config = files["open_clip_config.json"]["model_cfg"]
    assert config["vision_cfg"]["timm_model_name"] == "vit_base_patch32_siglip_256"
    assert config["text_cfg"]["act_kwargs"] == {"approximate": "tanh"}


@pytest.mark.parametrize(
    ("family", "preset", "change", "message"),
    [
        ("hf_clip", "vit_b32", {"pool": "mean"}, r"model\.image\.pool='mean' .*has 'cls'"),
        ("open_clip", "vit_b32", {"num_registers": 2}, r"model\.image\.num_registers=2"),
        ("hf_clip", "vit_b32", {"positions": "sincos"}, r"model\.image\.positions='sincos'"),
        ("hf_clip", "siglip_b16", {}, r"model\.image\.pool='map' can't .* by hf_clip"),
        ("hf_siglip", "vit_b32", {}, r"model\.image\.pool='cls' can't .* by hf_siglip"),
        ("open_clip", "vit_b32", {"activation": "quick_gelu"},
         r"model\.text\.activation='gelu' can't be expressed by open_clip, .* 'quick_gelu'"),
        ("open_clip_siglip", "siglip_b16", {}, r"model\.image\.width=16 .* export it as hf_siglip"),
        ("big_vision", "siglip_b16", {}, r"big_vision is only read; written are .*hf_clip"),
    ],
)  # fmt: skip
def test_what_a_family_has_no_words_for_is_refused(family, preset, change, message, tmp_path):
    sizes = small(preset, **change)
    name = "hf_siglip" if "siglip" in preset else "hf_clip"
    with pytest.raises(ValueError, match=message):
        export.export_checkpoint(
            random_params(sizes), sizes, family, tmp_path / "to", preprocess_of(name)
        )
    assert not list(tmp_path.iterdir())


def test_a_logit_bias_of_a_clip_model_is_refused(tmp_path):
    sizes = dataclasses.replace(small("vit_b32"), logit_bias_init=-10.0)
    with pytest.raises(ValueError, match=r"model\.logit_bias_init=-10\.0 .* without a logit_bias"):
        export.export_checkpoint(
            random_params(sizes), sizes, "hf_clip", tmp_path / "to", preprocess_of("hf_clip")
        )


@pytest.mark.parametrize(
    ("ops", "message"),
    [("resize_small|flip", r"data\.eval_image_ops='resize_small\|flip' can't be expressed"),
     ("center_crop", r"data\.eval_image_ops='center_crop'")],
)  # fmt: skip
def test_preprocessing_without_words_is_refused(ops, message, tmp_path):
    opened = open_checkpoint(GOLDEN / "hf_clip")
    preprocess = opened.preprocess._replace(image_ops=ops)
    with pytest.raises(ValueError, match=message):
        export.export_checkpoint(
            opened.read(), opened.sizes, "hf_clip", tmp_path / "to", preprocess
        )


def test_nothing_is_overwritten_and_what_fails_leaves_nothing(tmp_path, monkeypatch):
    opened = open_checkpoint(GOLDEN / "hf_clip")
    params = opened.read()
    args = (params, opened.sizes, "hf_clip", tmp_path / "to", opened.preprocess)

    def full(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export, "_write_tensors", full)
        with pytest.raises(OSError, match="no space"):
            export.export_checkpoint(*args)
    assert not list(tmp_path.iterdir())
    (tmp_path / "to").mkdir()
    assert export.export_checkpoint(*args) == [
        "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"to is there already \(config.json.*nothing is overwr"):
        export.export_checkpoint(*args)


def test_parameters_of_objectives_are_left_out_and_others_refused(tmp_path):
    opened = open_checkpoint(GOLDEN / "hf_clip")
    params = opened.read()
    params["objective"] = {"coca": {"kernel": np.zeros(2)}}
    args = (opened.sizes, "hf_clip", tmp_path / "to", opened.preprocess)
    export.export_checkpoint(params, *args)
    del params["objective"]
    assert_same(open_checkpoint(tmp_path / "to").read(), params)
    (tmp_path / "other").mkdir()
    args = (opened.sizes, "hf_clip", tmp_path / "other", opened.preprocess)
    with pytest.raises(ValueError, match="the model has no parameter adapter/x"):
        export.export_checkpoint({**params, "adapter": {"x": np.zeros(2)}}, *args)
    del params["logit_scale"]
    with pytest.raises(ValueError, match="parameter logit_scale is missing"):
        export.export_checkpoint(params, *args)


def test_our_own_tokenizer_ends_texts_with_2_which_transformers_misreads(tmp_path):
    """``CLIPModel`` takes an ``eos_token_id`` of 2 for "the largest id of the row"."""
    base = small("vit_b32").to_dict()
    base["text"]["vocab_size"] = 4096
    sizes = presets.CLIPConfig.from_dict(base)
    preprocess = preprocess_of("hf_clip")._replace(
        tokenizer={"kind": "emoji_bpe", "context_length": 8}
    )
    params = random_params(sizes)
    with pytest.raises(ValueError, match=r"end of text has id 2.*export it as open_clip"):
        export.export_checkpoint(params, sizes, "hf_clip", tmp_path / "to", preprocess)
    files = export.export_checkpoint(params, sizes, "open_clip", tmp_path / "to", preprocess)
    assert "tokenizer.json" in files
    config = json.loads((tmp_path / "to" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["eos_id"] == 2
    assert config["model_cfg"]["text_cfg"]["pool_type"] == "eos"


def test_the_family_of_an_architecture():
    assert export.family_of(small("vit_b32"), "hf") == "hf_clip"
    assert export.family_of(small("siglip_b16"), "open_clip") == "open_clip_siglip"
    assert export.family_of(presets.get("eva02_b16"), "original") == "eva_clip"
    assert export.family_of(presets.get("alphaclip_b16"), "original") == "alpha_clip"
    with pytest.raises(
        ValueError, match="original is for Alpha-CLIP's and EVA-CLIP's image towers"
    ):
        export.family_of(small("vit_b32"), "original")
    for preset in ("coca_vit_b32", "roberta_vit_b32"):
        with pytest.raises(
            ValueError, match=r"transformers has no class .* use --format open_clip"
        ):
            export.family_of(presets.get(preset), "hf")
    for preset, field in (("eva_8b", "norm='rms'"), ("alphaclip_b16", "alpha=True")):
        with pytest.raises(
            ValueError, match=rf"image\.{field} can't .* --format original writes it"
        ):
            export.family_of(presets.get(preset), "open_clip")
    with pytest.raises(
        ValueError, match="format 'onnx' is unknown; use hf or open_clip or original"
    ):
        export.family_of(small("vit_b32"), "onnx")


# With other people's code, where it is installed.


def live_inputs(size, vocabulary, length=8):
    rng = np.random.default_rng(1)
    images = rng.standard_normal((3, size, size, 3)).astype(np.float32)
    tokens = rng.integers(3, vocabulary - 1, (3, length)).astype(np.int32)
    return images, tokens


def unit(output):
    array = (output if hasattr(output, "norm") else output.pooler_output).detach().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def ours(params, sizes, images, tokens):
    model = models.build(sizes)
    return model.encode_image(params, images), model.encode_text(params, tokens)


@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip"])
def test_transformers_computes_the_same_on_our_files(name, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = small("siglip_b16" if name == "hf_siglip" else "vit_b32_quickgelu")
    params = random_params(sizes)
    export.export_checkpoint(params, sizes, name, tmp_path / "to", preprocess_of(name))
    theirs, info = transformers.AutoModel.from_pretrained(tmp_path / "to", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images, tokens = live_inputs(8, 48)
    if name == "hf_clip":
        tokens[:, 5], tokens[:, 6:] = 47, 0
    with torch.no_grad():
        image = theirs.eval().get_image_features(torch.from_numpy(images).permute(0, 3, 1, 2))
        text = theirs.get_text_features(torch.from_numpy(tokens).long())
    expected = ours(params, sizes, images, tokens)
    np.testing.assert_allclose(unit(image), expected[0], atol=2e-6)
    np.testing.assert_allclose(unit(text), expected[1], atol=2e-6)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "to")
    picture = np.random.default_rng(2).integers(0, 256, (30, 20, 3), np.uint8)
    pixels = processor(picture, return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("tokenizer", ["clip", "emoji_bpe"])
def test_open_clip_computes_the_same_on_our_files(tokenizer, tmp_path):
    torch, open_clip = pytest.importorskip("torch"), pytest.importorskip("open_clip")
    base = small("vit_b32").to_dict()
    base["text"] |= {"vocab_size": 4096, "activation": "gelu_tanh", "norm_eps": 1e-6}
    base["image"] |= {"activation": "gelu_tanh"}
    sizes = presets.CLIPConfig.from_dict(base)
    params = random_params(sizes)
    preprocess = preprocess_of("open_clip")._replace(
        tokenizer={"kind": tokenizer, "context_length": 8}
    )
    export.export_checkpoint(params, sizes, "open_clip", tmp_path / "to", preprocess)
    theirs, _, pictures = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'to'}")
    images, tokens = live_inputs(8, 4096)
    tokens[:, 5], tokens[:, 6:] = (4095 if tokenizer == "clip" else 2), 0
    with torch.no_grad():
        image = theirs.eval().encode_image(torch.from_numpy(images).permute(0, 3, 1, 2))
        text = theirs.encode_text(torch.from_numpy(tokens).long())
    expected = ours(params, sizes, images, tokens)
    np.testing.assert_allclose(unit(image), expected[0], atol=2e-6)
    np.testing.assert_allclose(unit(text), expected[1], atol=2e-6)
    assert "Resize" in str(pictures)


@pytest.mark.slow
def test_open_clip_computes_the_same_on_our_siglip_b32(tmp_path):
    torch, open_clip = pytest.importorskip("torch"), pytest.importorskip("open_clip")
    base = presets.get("siglip_b16").to_dict()
    base["image"] |= {"image_size": 256, "patch_size": 32}
    base["text"] |= {"vocab_size": 48, "context_length": 8, "depth": 1}
    sizes = presets.CLIPConfig.from_dict(base)
    params = models.build(sizes).init(jax.random.key(0))
    preprocess = preprocess_of("hf_siglip")
    export.export_checkpoint(params, sizes, "open_clip_siglip", tmp_path / "to", preprocess)
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'to'}").eval()
    images, tokens = live_inputs(256, 48)
    with torch.no_grad():
        image = theirs.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2))
        text = theirs.encode_text(torch.from_numpy(tokens).long())
    expected = ours(params, sizes, images, tokens)
    np.testing.assert_allclose(unit(image), expected[0], atol=2e-6)
    np.testing.assert_allclose(unit(text), expected[1], atol=2e-6)


def test_transformers_reads_our_clip_vocabulary_as_the_same_ids(tmp_path):
    transformers = pytest.importorskip("transformers")
    open_clip = pytest.importorskip("open_clip")
    from jaxclip.data import tokenizers

    path = pathlib.Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    config = {"kind": "clip", "path": str(path), "context_length": 16}
    export.tokenizer_files.write(config, tmp_path, "hf_clip")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    texts = ["a photo of a cat", "It's 12 o'clock — naïve café", "", "x" * 99]
    ids = theirs(texts, padding="max_length", max_length=16, truncation=True)["input_ids"]
    np.testing.assert_array_equal(ids, tokenizers.load(config)(texts))
    found = export.tokenizer_files.find(tmp_path, {"kind": "clip", "context_length": 16})
    np.testing.assert_array_equal(tokenizers.load(found)(texts), tokenizers.load(config)(texts))
