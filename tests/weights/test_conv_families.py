"""Published towers with convolutions: the numbers of open_clip, branches folded, round trips."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import conv_presets, presets
from jaxclip.train import state_io
from jaxclip.weights import export, mapping
from jaxclip.weights.checkpoint import open_checkpoint
from jaxclip.weights.families import FAMILIES, Checkpoint, detect
from jaxclip.weights.surgery import fold_branches

GOLDEN = pathlib.Path(__file__).parent / "golden"
NAMES = ["open_clip_resnet", "open_clip_convnext", "open_clip_fastvit", "open_clip_timm_vit"]


@pytest.fixture(scope="module")
def fastvit():
    opened = open_checkpoint(GOLDEN / "open_clip_fastvit")
    return opened.sizes, opened.read()


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_and_places_are_those_of_open_clip(name):
    opened = open_checkpoint(GOLDEN / name)
    assert opened.family == name
    params, model = opened.read(), models.build(opened.sizes)
    expected = np.load(GOLDEN / name / "expected.npz")
    features = jax.jit(model.image_features)(params, expected["images"])
    text = jax.jit(model.encode_text)(params, expected["tokens"])
    np.testing.assert_allclose(features.embedding, expected["image"], atol=2e-6)
    np.testing.assert_allclose(text, expected["text"], atol=2e-6)
    np.testing.assert_allclose(features.tokens, expected["places"], atol=1e-5)


def test_statistics_matter_and_are_read(fastvit):
    """Else a batch norm left out would not be seen in the golden numbers."""
    for name in NAMES:
        ours = state_io.named_leaves(open_checkpoint(GOLDEN / name).read())
        variances = [leaf for path, leaf in ours.items() if path.endswith("running_var")]
        assert bool(variances) == (name != "open_clip_convnext")
        assert all(np.ptp(leaf) > 0.01 for leaf in variances if leaf.size > 1)


def test_folded_branches_are_the_same_function(fastvit):
    sizes, params = fastvit
    folded, new = fold_branches(params, sizes)
    assert new.image.form == "folded" and new.text == sizes.text
    model = models.build(new)
    ours, wanted = state_io.named_leaves(folded), jax.eval_shape(model.init, jax.random.key(0))
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in state_io.named_leaves(wanted).items()
    }
    expected = np.load(GOLDEN / "open_clip_fastvit" / "expected.npz")
    features = jax.jit(model.image_features)(folded, expected["images"])
    np.testing.assert_allclose(features.embedding, expected["image"], atol=2e-6)
    np.testing.assert_allclose(features.tokens, expected["places"], atol=1e-5)
    again, same = fold_branches(folded, new)
    assert again is folded and same is new


def test_folding_wants_branches():
    opened = open_checkpoint(GOLDEN / "open_clip_resnet")
    with pytest.raises(ValueError, match=r"kind='resnet' has no branches to fold; 'fastvit' has"):
        fold_branches({}, opened.sizes)


def test_folded_towers_are_read_and_told_from_branches(fastvit, tmp_path):
    """The names of timm's ``reparameterize_model``; open_clip makes no such model to load."""
    folded, sizes = fold_branches(fastvit[1], fastvit[0])
    family = FAMILIES.get("open_clip_fastvit")
    theirs = dict(mapping.to_theirs(family.entries(sizes), state_io.named_leaves(folded)))
    assert "visual.trunk.stages.1.downsample.proj.0.reparam_conv.weight" in theirs
    np.savez(tmp_path / "model.npz", **theirs)
    config = {"vision_cfg": {"image_size": 64}, "text_cfg": {"no_causal_mask": True, "heads": 2}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    opened = open_checkpoint(tmp_path)
    assert opened.sizes == sizes
    read, folded = state_io.named_leaves(opened.read()), state_io.named_leaves(folded)
    jax.tree.map(np.testing.assert_array_equal, read, folded)
    with pytest.raises(
        ValueError, match=r"image.form='folded' can't be expressed by open_clip_fas"
    ):
        export.export_checkpoint({}, sizes, "open_clip_fastvit", tmp_path / "x", opened.preprocess)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_exported_is_read_as_the_same_bits(name, tmp_path, monkeypatch):
    opened = open_checkpoint(GOLDEN / name)
    params = opened.read()
    if name in ("open_clip_convnext", "open_clip_fastvit"):  # too small for timm's registry
        with pytest.raises(ValueError, match=r"of no ConvNeXt in timm|is no FastViT of timm's"):
            export.export_checkpoint(params, opened.sizes, name, tmp_path / "x", opened.preprocess)
        module = __import__(f"jaxclip.weights.families.{name}", fromlist=["_timm_name"])
        monkeypatch.setattr(module, "_timm_name", lambda image: "convnext_base")
    if name == "open_clip_timm_vit":
        with pytest.raises(ValueError, match="is no Vision Transformer of MobileCLIP's in timm"):
            export.export_checkpoint(params, opened.sizes, name, tmp_path / "x", opened.preprocess)
        module = __import__(f"jaxclip.weights.families.{name}", fromlist=["_TIMM"])
        monkeypatch.setitem(module._TIMM, (16, 1, "conv_bn", 16, 32), "vit_base_mci_224")
    assert export.family_of(opened.sizes, "open_clip") == name
    export.export_checkpoint(params, opened.sizes, name, tmp_path / "to", opened.preprocess)
    again = open_checkpoint(tmp_path / "to")
    assert (again.family, again.sizes) == (name, opened.sizes)
    assert (again.preprocess.image_ops, list(again.preprocess.image_mean)) == (
        opened.preprocess.image_ops,
        list(opened.preprocess.image_mean),
    )
    ours, theirs = state_io.named_leaves(params), state_io.named_leaves(again.read())
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    written = {key: tensor.shape for key, tensor in again.tensors.items()}
    buffers = ("num_batches_tracked", "attn_mask")
    assert written == {k: t.shape for k, t in opened.tensors.items() if not k.endswith(buffers)}


def test_hugging_face_has_no_words_for_convolutions(tmp_path):
    opened = open_checkpoint(GOLDEN / "open_clip_resnet")
    assert export.family_of(opened.sizes, "hf") == "hf_clip"
    with pytest.raises(ValueError, match=r"model.image.kind='resnet' can't be expressed by hf_cl"):
        export.export_checkpoint({}, opened.sizes, "hf_clip", tmp_path / "x", opened.preprocess)


FAST = ("rn50", "mobileclip_b")
SHAPES = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name in conv_presets.ROWS
    if not name.endswith(("_320", "_quickgelu"))
]


@pytest.mark.parametrize("preset", SHAPES)
def test_published_sizes_are_told_from_shapes_and_every_tensor_is_used_once(preset):
    """Full sizes, without their memory; the image size of timm's towers is in the configuration."""
    sizes = presets.get(preset)
    name = export.family_of(sizes, "open_clip")
    family = FAMILIES.get(name)
    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    ours = {key: leaf.shape for key, leaf in state_io.named_leaves(shapes).items()}
    views = {key: np.broadcast_to(np.zeros((), np.uint8), shape) for key, shape in ours.items()}
    entries = family.entries(sizes)
    theirs = {e.theirs: e.layout.to_theirs([views[path] for path in e.ours]).shape for e in entries}
    config = {"text_cfg": {"no_causal_mask": not sizes.text.causal}}
    checkpoint = Checkpoint("x", theirs, {"model_cfg": config})
    assert detect(checkpoint)[0] == name
    assert family.sizes(checkpoint) == sizes
    mapping.check(entries, theirs, ours)


def test_sizes_of_both_generations_of_open_clips_files(tmp_path):
    """``CLIP`` keeps the text tower's tensors bare, ``CustomTextCLIP`` under ``text.``."""
    source = open_checkpoint(GOLDEN / "open_clip_resnet")
    arrays = {name: tensor.read() for name, tensor in source.tensors.items()}
    vision = ("visual.", "logit_scale")
    np.savez(
        tmp_path / "model.npz",
        **{n if n.startswith(vision) else f"text.{n}": a for n, a in arrays.items()},
    )
    shutil.copy(GOLDEN / "open_clip_resnet" / "open_clip_config.json", tmp_path)
    again = open_checkpoint(tmp_path)
    assert (again.family, again.sizes) == (source.family, source.sizes)


def test_openais_resnet_has_quick_gelu_in_its_text_tower(tmp_path):
    source = open_checkpoint(GOLDEN / "open_clip_resnet")
    arrays = {name: tensor.read() for name, tensor in source.tensors.items()}
    numbers = {"input_resolution": 64, "context_length": 8, "vocab_size": 48}
    np.savez(tmp_path / "model.npz", **arrays, **{k: np.array(v) for k, v in numbers.items()})
    opened = open_checkpoint(tmp_path / "model.npz")
    assert opened.sizes.text.activation == "quick_gelu"
    assert opened.preprocess.image_ops == "resize_small|center_crop"


def test_a_tensor_too_many_is_named(tmp_path):
    source = open_checkpoint(GOLDEN / "open_clip_resnet")
    arrays = {name: tensor.read() for name, tensor in source.tensors.items()}
    arrays["visual.layer2.0.conv4.weight"] = np.ones((2, 2), np.float32)
    np.savez(tmp_path / "model.npz", **arrays)
    with pytest.raises(
        mapping.MappingError, match=r"not used: visual.layer2.0.conv4.weight \[2, 2"
    ):
        open_checkpoint(tmp_path / "model.npz")


def test_a_projection_of_another_kind_is_refused(tmp_path):
    source = open_checkpoint(GOLDEN / "open_clip_convnext")
    arrays = {n: t.read() for n, t in source.tensors.items() if not n.startswith("visual.head")}
    np.savez(tmp_path / "model.npz", **arrays)
    with pytest.raises(
        mapping.MappingError, match=r"timm_proj=None is not supported; known: linea"
    ):
        open_checkpoint(tmp_path / "model.npz")


def test_mobileclip_sees_pixels_as_they_are():
    found = open_checkpoint(GOLDEN / "open_clip_fastvit").preprocess
    assert (list(found.image_mean), list(found.image_std)) == ([0.0] * 3, [1.0] * 3)
    assert found.image_ops == "resize_small(method='bilinear')|center_crop"


def test_another_image_size_is_a_change_of_one_field():
    sizes = presets.get("convnext_base_w")
    image = dataclasses.replace(sizes.image, image_size=320)
    assert dataclasses.replace(sizes, image=image) == presets.get("convnext_base_w_320")
