"""Published checkpoints: the numbers of other people's code, round trips, and what does not fit."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import presets
from jaxclip.train import state_io
from jaxclip.weights import files, mapping
from jaxclip.weights.checkpoint import open_checkpoint
from jaxclip.weights.families import FAMILIES, Checkpoint, detect

GOLDEN = pathlib.Path(__file__).parent / "golden"


def leaves(tree):
    return state_io.named_leaves(tree)


@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip", "open_clip"])
def test_embeddings_are_those_of_the_code_that_made_the_file(name):
    opened = open_checkpoint(GOLDEN / name)
    assert opened.family == name
    params, model = opened.read(), models.build(opened.sizes)
    expected = np.load(GOLDEN / name / "expected.npz")
    image = jax.jit(model.encode_image)(params, expected["images"])
    text = jax.jit(model.encode_text)(params, expected["tokens"])
    np.testing.assert_allclose(image, expected["image"], atol=2e-6)
    np.testing.assert_allclose(text, expected["text"], atol=2e-6)


def test_a_torchscript_archive_holds_the_same_tensors():
    opened = open_checkpoint(GOLDEN / "openai" / "model.pt")
    assert opened.family == "open_clip" and opened.sizes.image.activation == "quick_gelu"
    ours, expected = leaves(opened.read()), leaves(open_checkpoint(GOLDEN / "open_clip").read())
    assert ours.keys() == expected.keys()
    for name, leaf in ours.items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-3, atol=1e-3, err_msg=name)


FULL = {
    "hf_clip": ("vit_b32_quickgelu", "vit_l14_336_quickgelu"),
    "open_clip": ("vit_b32", "vit_l14", "vit_h14", "vit_g14", "vit_bigg14"),
    "hf_siglip": ("siglip_b16",),
    "open_clip_siglip": ("siglip_b16", "siglip_so400m_14"),
    "big_vision": ("siglip_b16", "siglip_l16_256", "siglip_so400m_14"),
}


@pytest.mark.parametrize("family", FULL)
def test_every_family_is_tested(family):
    assert set(FULL) == set(FAMILIES.names())


@pytest.mark.parametrize(("name", "preset"), [(f, p) for f, ps in FULL.items() for p in ps])
def test_published_sizes_are_told_from_shapes_and_every_tensor_is_used_once(name, preset):
    """Full sizes, without their memory: shapes alone."""
    sizes, family = presets.get(preset), FAMILIES.get(name)
    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    ours = {key: leaf.shape for key, leaf in leaves(shapes).items()}
    views = {key: np.broadcast_to(np.zeros((), np.uint8), shape) for key, shape in ours.items()}
    entries = family.entries(sizes)
    theirs = {
        entry.theirs: entry.layout.to_theirs([views[path] for path in entry.ours]).shape
        for entry in entries
    }
    checkpoint = Checkpoint("x", theirs)
    assert detect(checkpoint)[0] == name
    config = {}
    if name == "hf_siglip":
        towers = {"num_attention_heads": sizes.image.num_heads}
        config = {"vision_config": towers, "text_config": towers}
    if name == "open_clip":
        config = {"model_cfg": {"quick_gelu": "quickgelu" in preset}}
    assert family.sizes(checkpoint._replace(config=config)) == sizes
    mapping.check(entries, theirs, ours)


@pytest.mark.parametrize("name", FAMILIES.names())
def test_a_round_trip_is_exact(name):
    small = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
    siglip = "siglip" in name or name == "big_vision"
    base = presets.get("siglip_b16" if siglip else "vit_b32").to_dict()
    base["image"] |= {"image_size": 8, "patch_size": 4, **small}
    base["text"] |= {"vocab_size": 32, "context_length": 6, **small}
    sizes = presets.CLIPConfig.from_dict({**base, "embed_dim": 16 if siglip else 12})
    rng = np.random.default_rng(0)
    shapes = leaves(jax.eval_shape(models.build(sizes).init, jax.random.key(0)))
    ours = {key: rng.standard_normal(s.shape).astype(np.float32) for key, s in shapes.items()}
    entries = FAMILIES.get(name).entries(sizes)
    theirs = dict(mapping.to_theirs(entries, ours))
    back = dict(mapping.to_ours(entries, theirs.__getitem__))
    assert back.keys() == ours.keys()
    for key, array in ours.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_tensors_go_straight_to_the_shards_of_a_mesh():
    from jaxclip import parallel

    opened = open_checkpoint(GOLDEN / "hf_clip")
    whole = leaves(opened.read())
    mesh = parallel.make_mesh({"fsdp": 8})
    shapes = jax.eval_shape(models.build(opened.sizes).init, jax.random.key(0))
    rules = parallel.sharding_rules([["kernel$", ["fsdp"]], ["", []]])
    sharded = leaves(opened.read(parallel.specs_for(shapes, rules, mesh)))
    assert len(sharded["image/projection/kernel"].sharding.device_set) == 8
    for name, leaf in sharded.items():
        np.testing.assert_array_equal(leaf, whole[name], err_msg=name)


@pytest.fixture
def copied(tmp_path):
    return pathlib.Path(shutil.copytree(GOLDEN / "hf_clip", tmp_path / "model"))


def test_a_missing_a_superfluous_and_a_misshapen_tensor_are_listed(copied):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copied / "model.safetensors")
    del tensors["visual_projection.weight"]
    tensors["lora.weight"] = np.zeros((2, 3), np.float32)
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(mapping.MappingError, match=r"can't be told: lacks 'visual_projection"):
        open_checkpoint(copied)
    tensors["visual_projection.weight"] = np.zeros((12, 16), np.float32)
    tensors["text_model.final_layer_norm.bias"] = np.zeros(7, np.float32)
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(mapping.MappingError) as error:
        open_checkpoint(copied)
    assert "not used: lora.weight [2, 3]" in str(error.value)
    assert "text_model.final_layer_norm.bias [7] does not hold text/norm_post/bias" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": -3}, "num_attention_heads=-3 .* is no positive number"),
        ({"num_attention_heads": 5}, "num_heads=5 does not divide width=16"),
        ({"hidden_act": "swish9"}, "activation 'swish9' is not supported"),
        ({"image_size": 12}, "image_size=12, but its positions are for 8 pixels"),
    ],
)
def test_a_configuration_that_lies(copied, change, message):
    config = json.loads((copied / "config.json").read_text())
    config["vision_config"] |= change
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(mapping.MappingError, match=message):
        open_checkpoint(copied)


def test_a_language_models_weights_are_of_no_family(tmp_path):
    from safetensors.numpy import save_file

    save_file({"lm_head.weight": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(mapping.MappingError, match=r"is of no known family .*lm_head\.weight"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "holds no weights .* but nothing"),
        (lambda folder: (folder / "x.txt").touch(), "holds no weights .* but x.txt"),
        (lambda folder: [(folder / n).touch() for n in ("a.pt", "b.pt")], "several files of weigh"),
    ],
)
def test_folders_without_weights(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(files.FileError, match=message):
        open_checkpoint(tmp_path)
