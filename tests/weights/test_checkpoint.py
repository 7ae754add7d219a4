"""Published checkpoints: the numbers of other people's code, round trips, and what does not fit."""

import dataclasses
import functools
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
from tests.weights.test_conv_families import NAMES

GOLDEN = pathlib.Path(__file__).parent / "golden"


def leaves(tree):
    return state_io.named_leaves(tree)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("clipa", "open_clip"),
        ("eva02", "open_clip_timm"),
        ("hf_clip", "hf_clip"),
        ("hf_siglip", "hf_siglip"),
        ("open_clip", "open_clip"),
        ("open_clip_coca", "open_clip_coca"),
        ("open_clip_roberta", "open_clip_roberta"),
        ("open_clip_siglip", "open_clip_siglip"),
        ("pe_core", "open_clip_timm"),
    ],
)
def test_embeddings_are_those_of_the_code_that_made_the_file(name, family):
    opened = open_checkpoint(GOLDEN / name)
    assert opened.family == family and opened.parts == ("image", "text")
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
    "open_clip": (
        "vit_b32", "vit_l14", "vit_h14", "vit_g14", "vit_bigg14", "clipa_l14", "clipa_h14_336",
        "clipa_bigg14",
    ),
    "hf_clip_flax": ("vit_b32_quickgelu",),
    "alpha_clip": ("alphaclip_b16",),
    "hf_siglip": ("siglip_b16",),
    "hf_siglip2": ("siglip2_b16_naflex", "siglip2_so400m_16_naflex"),
    "open_clip_siglip": ("siglip_b16", "siglip_so400m_14"),
    "eva_clip": ("eva01_g14", "eva02_b16", "eva_8b"),
    "open_clip_coca": ("coca_vit_b32", "coca_vit_l14", "coca_base"),
    "open_clip_roberta": ("roberta_vit_b32", "xlm_roberta_large_vit_h14"),
    "open_clip_timm": (
        "eva01_g14", "eva02_b16", "eva02_l14_336", "eva02_e14_plus", "pe_core_t16", "pe_core_s16",
        "pe_core_b16", "pe_core_l14", "pe_core_bigg14",
    ),
    "big_vision": ("siglip_b16", "siglip_l16_256", "siglip_so400m_14"),
}  # fmt: skip


@pytest.mark.parametrize("family", FULL)
def test_every_family_is_tested(family):
    assert set(FULL) | set(NAMES) == set(FAMILIES.names())


# Deep, in families of which shallower ones are there, too.
DEEP = {
    "clipa_bigg14", "clipa_h14_336", "coca_vit_l14", "eva02_e14_plus", "eva02_l14_336", "eva_8b",
    "pe_core_bigg14", "pe_core_l14", "pe_core_s16", "siglip2_so400m_16_naflex", "siglip_l16_256",
    "siglip_so400m_14", "vit_bigg14", "vit_g14", "vit_l14", "vit_l14_336_quickgelu",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        pytest.param(f, p, marks=pytest.mark.slow) if p in DEEP else (f, p)
        for f, presets_of in FULL.items()
        for p in presets_of
    ],
)
def test_published_sizes_are_told_from_shapes_and_every_tensor_is_used_once(name, preset):
    """Full sizes, without their memory: shapes alone."""
    sizes, family = presets.get(preset), FAMILIES.get(name)
    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    own = jax.eval_shape(functools.partial(family.init_terms, sizes), jax.random.key(0))
    shapes |= {"objective": own} if own else {}
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
    if name in ("hf_siglip", "hf_siglip2"):
        towers = {"num_attention_heads": sizes.image.num_heads}
        config = {"vision_config": towers, "text_config": towers}
    if name == "open_clip_coca":  # heads of the decoder
        config = {"model_cfg": {"multimodal_cfg": {"heads": sizes.text.num_heads}}}
    if name == "open_clip_roberta" or (name == "open_clip" and preset.startswith("vit")):
        config = {"model_cfg": {"quick_gelu": sizes.image.activation == "quick_gelu"}}
    if name == "open_clip_siglip":  # these compute the exact GELU in open_clip
        sizes = with_activation(sizes, "gelu")
    assert family.sizes(checkpoint._replace(config=config)) == sizes
    mapping.check(entries, theirs, ours)


def with_activation(sizes, image, text=None):
    tower = {"image": image, "text": text or image}
    changed = {k: dataclasses.replace(getattr(sizes, k), activation=v) for k, v in tower.items()}
    return dataclasses.replace(sizes, **changed)


@pytest.mark.parametrize(
    ("tower", "expected"),
    [
        ("vit_base_patch16_siglip_224.webli", "gelu"),
        ("vit_so400m_patch14_siglip_378", "gelu"),
        ("vit_base_patch32_siglip_256", "gelu_tanh"),
        ("vit_large_patch16_siglip_384", "gelu"),
        ("vit_large_patch16_siglip_512", "gelu_tanh"),
        ("vit_so400m_patch16_siglip_256", "gelu_tanh"),
        ("vit_giantopt_patch16_siglip_384", "gelu_tanh"),
    ],
)
def test_open_clips_siglip_computes_the_gelu_of_timms_tower(tower, expected):
    from jaxclip.weights.families import open_clip_siglip

    assert open_clip_siglip._image_activation({"timm_model_name": tower}, 0, 0, 0) == expected


@pytest.mark.parametrize(
    ("width", "patch", "size", "expected"),
    [(768, 16, 224, "gelu"), (768, 32, 256, "gelu_tanh"), (1024, 16, 512, "gelu_tanh"),
     (1152, 14, 378, "gelu"), (1152, 16, 384, "gelu_tanh"), (1536, 16, 256, "gelu_tanh")],
)  # fmt: skip
def test_without_a_configuration_timms_tower_is_told_by_its_shape(width, patch, size, expected):
    from jaxclip.weights.families import open_clip_siglip

    assert open_clip_siglip._image_activation({}, width, patch, size) == expected


def test_open_clips_text_activation_is_that_of_act_kwargs(tmp_path):
    folder = pathlib.Path(shutil.copytree(GOLDEN / "open_clip_siglip", tmp_path / "model"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"].pop("act_kwargs")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert open_checkpoint(folder).sizes.text.activation == "gelu"
    config["model_cfg"]["text_cfg"]["act_kwargs"] = {"approximate": "cubic"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(mapping.MappingError, match=r"act_kwargs=.*cubic.* known: .*tanh"):
        open_checkpoint(folder)


def small_big_vision():
    """Random arrays of a small model by big_vision's names, and the parameters they are."""
    small = {"width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 24}
    base = presets.get("siglip_b16").to_dict()
    base["image"] |= {"image_size": 8, "patch_size": 4, **small}
    base["text"] |= {"vocab_size": 32, "context_length": 6, **small}
    sizes = presets.CLIPConfig.from_dict({**base, "embed_dim": 16})
    rng = np.random.default_rng(0)
    shapes = leaves(jax.eval_shape(models.build(sizes).init, jax.random.key(0)))
    ours = {key: rng.standard_normal(s.shape).astype(np.float32) for key, s in shapes.items()}
    return sizes, ours, dict(mapping.to_theirs(FAMILIES.get("big_vision").entries(sizes), ours))


def scanned(theirs, tower):
    """The blocks of a tower stacked, as big_vision's ``scan=True`` keeps them."""
    names = [n for n in theirs if f"{tower}/encoderblock_0/" in n]
    rest = {n: a for n, a in theirs.items() if f"{tower}/encoderblock_" not in n}
    for name in names:
        parts = [theirs[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(3)]
        rest[name.replace("encoderblock_0", "encoderblock")] = np.stack(parts)
    return rest


BIG_VISION_FILES = {
    "alone": lambda t: {n.removeprefix("params/"): a for n, a in t.items()},
    "with optax's state": lambda t: {**t, "opt/0/count": np.zeros(()), "chrono/x": np.ones(2),
                                     "opt/1/mu/img/embedding/kernel": np.ones((2, 2))},
    "old optimizer": lambda t: {f"opt/target/{n.removeprefix('params/')}": a for n, a in t.items()}
    | {"opt/state/step": np.zeros(())},
    "scan": lambda t: scanned(scanned(t, "Transformer"), "Encoder_0"),
    "scan of the image tower": lambda t: scanned(t, "Transformer"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BIG_VISION_FILES)
def test_every_way_big_vision_keeps_its_parameters(tmp_path, kind):
    sizes, ours, theirs = small_big_vision()
    file = tmp_path / "model.npz"
    np.savez(file, **BIG_VISION_FILES[kind](theirs))
    opened = open_checkpoint(file)
    assert opened.family == "big_vision" and opened.sizes == sizes
    read = leaves(opened.read())
    assert read.keys() == ours.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(read[name], array, err_msg=name)


def test_a_stack_of_another_number_of_layers_is_refused(tmp_path):
    _, _, theirs = small_big_vision()
    stacked = scanned(theirs, "Transformer")
    name = "params/img/Transformer/encoderblock/LayerNorm_0/scale"
    stacked[name] = stacked[name][:2]
    np.savez(tmp_path / "model.npz", **stacked)
    with pytest.raises(mapping.MappingError, match=r"encoderblock/LayerNorm_0/scale \[2, 16\]"):
        open_checkpoint(tmp_path / "model.npz")


def test_bfloat16_in_npz_which_numpy_writes_as_void(tmp_path):
    import ml_dtypes

    _, ours, theirs = small_big_vision()
    halved = {name: array.astype(ml_dtypes.bfloat16) for name, array in theirs.items()}
    np.savez(tmp_path / "model.npz", **halved)
    read = leaves(open_checkpoint(tmp_path / "model.npz").read())
    for name, array in ours.items():
        expected = array.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(read[name], expected, err_msg=name)


def test_siglip_2_of_fixed_resolution_in_hugging_faces_files(tmp_path):
    """g-opt's layout: a text tower narrower than the image tower, projected to its width."""
    from safetensors.numpy import save_file

    base = presets.get("siglip_b16").to_dict()
    base["image"] |= {"image_size": 8, "patch_size": 4, "width": 24, "depth": 2, "num_heads": 2}
    base["text"] |= {"vocab_size": 256, "context_length": 6, "width": 16, "depth": 3}
    base["text"] |= {"num_heads": 4}
    sizes = presets.CLIPConfig.from_dict({**base, "embed_dim": 24})
    shapes = leaves(jax.eval_shape(models.build(sizes).init, jax.random.key(0)))
    ours = {key: np.zeros(s.shape, np.float32) for key, s in shapes.items()}
    save_file(
        dict(mapping.to_theirs(FAMILIES.get("hf_siglip").entries(sizes), ours)),
        tmp_path / "model.safetensors",
    )
    config = {"architectures": ["SiglipModel"], "model_type": "siglip"}
    config["vision_config"] = {"num_attention_heads": 2, "hidden_size": 24}
    config["text_config"] = {"num_attention_heads": 4, "projection_size": 24}
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(tmp_path)
    assert opened.family == "hf_siglip" and opened.sizes == sizes


# Convolutional towers have tests of their own.
ROUND_TRIPS = [(name, None) for name in FULL if name not in ("open_clip_timm", "eva_clip")]
ROUND_TRIPS += [("open_clip_timm", p) for p in ("eva02_b16", "eva02_e14", "pe_core_b16")]
ROUND_TRIPS += [("eva_clip", "eva02_b16"), ("eva_clip", "eva_8b"), ("open_clip", "clipa_l14")]


@pytest.mark.parametrize(("name", "preset"), ROUND_TRIPS)
def test_a_round_trip_is_exact(name, preset):
    small = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
    base = presets.get(preset or FULL[name][0]).to_dict()
    # Where there is no projection; and CoCa's decoder is as wide as what it looks at.
    equal = base["image"]["projection"] == "none" or base["image"]["pool"] == "queries"
    base["image"] |= {"image_size": 8, "patch_size": 4, **small}
    base["text"] |= {"vocab_size": 32, "context_length": 6, **small}
    sizes = presets.CLIPConfig.from_dict({**base, "embed_dim": 16 if equal else 12})
    rng = np.random.default_rng(0)
    family = FAMILIES.get(name)
    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    own = jax.eval_shape(functools.partial(family.init_terms, sizes), jax.random.key(0))
    shapes = leaves(shapes | ({"objective": own} if own else {}))
    ours = {key: rng.standard_normal(s.shape).astype(np.float32) for key, s in shapes.items()}
    entries = family.entries(sizes)
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


@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip", "open_clip", "open_clip_siglip"])
def test_the_preprocessing_is_a_chain_that_can_be_built(name):
    from jaxclip.data import image_chain

    opened = open_checkpoint(GOLDEN / name)
    chain = image_chain.build(opened.preprocess.image_ops, 8)
    picture = np.full((20, 30, 3), 7, np.uint8)
    assert chain([picture], np.zeros((1, chain.num_draws), np.float32)).shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "resize_small|center_crop(rounding='down')"),
        (
            {"size": {"shortest_edge": 8}, "resample": 3},
            "resize_small|center_crop(rounding='down')",
        ),
        (
            {"size": 8, "resample": 2},
            "resize_small(method='bilinear')|center_crop(rounding='down')",
        ),
        ({"size": {"height": 8, "width": 8}, "do_center_crop": False}, "resize"),
    ],
)
def test_hugging_faces_preprocessing_is_read(copied, given, expected):
    (copied / "preprocessor_config.json").write_text(json.dumps(given))
    assert open_checkpoint(copied).preprocess.image_ops == expected


def test_big_visions_resize_and_open_clips_are_ops_that_exist():
    from jaxclip.data import image_chain
    from jaxclip.weights.families import _layouts

    chains = [
        _layouts.resize_ops(m, i) for m in ("shortest", "squash") for i in ("bicubic", "bilinear")
    ]
    chains.append(
        FAMILIES.get("big_vision")
        .preprocess(Checkpoint("x", {}), presets.get("siglip_b16"))
        .image_ops
    )
    for chain in chains:
        image_chain.build(chain, 8)
