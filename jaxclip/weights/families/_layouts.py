"""What other people's formats can express: fixed choices, and preprocessing in their words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxclip.models import mup
from jaxclip.models.presets import CLIPConfig
from jaxclip.weights.families._base import Preprocess, SpecialIds
from jaxclip.weights.families._parts import CLIP_MEAN, CLIP_STD

# Fields that a family fixes, and whether its models have a logit_bias. What is not here is in its
# tensors' shapes or its configuration.
_COMMON: dict[str, Any] = {
    "image.stem": "patch",
    "image.positions": "learned",
    "image.num_registers": 0,
    "image.alpha": False,
    "image.max_patches": 0,
    **{
        f"{tower}.{name}": value
        for tower in ("image", "text")
        for name, value in (
            ("qk_norm", False),
            ("attention_soft_cap", 0.0),
            ("mup_base_heads", 0),
        )
    },
    "text.layer_scale": False,
    "image.kind": "vit",
    "image.class_position": True,
}
# Fields of ImageConfig that say how a block or a pool is made, with those of the plain ones.
_PLAIN: dict[str, Any] = {
    "image.rope": "none",
    "image.mlp": "plain",
    "image.norm": "layer",
    "image.norm_place": "pre",
    "image.sub_norm": False,
    "image.qkv_bias": "all",
    "image.pool_prefix": False,
    "image.pool_heads": 0,
    "image.pool_mlp_dim": 0,
}
_NO_SCALE: dict[str, Any] = {
    "image.layer_scale": False,
    "image.class_token": False,
    "image.norm_after_pool": False,
}
# Of models with CLIP's text tower, causal or not, behind another image tower.
TEXT_LAYOUT: Mapping[str, Any] = {"text.pool": "last", "text.projection": "linear"}
# Of formats that have no words for a bias of the logits, nor for how a text tower's MLPs and norms
# compute.
TEXT_WITHOUT_OPTIONS: Mapping[str, Any] = {
    "logit_bias": False,
    "text.activation": "gelu",
    "text.norm_eps": 1e-5,
}
OPEN_CLIP_LAYOUT: Mapping[str, Any] = (
    _COMMON
    | _PLAIN
    | {
        "image.patch_bias": False,
        "image.projection": "linear",
        "text.projection": "linear",
    }
)
# What timm registers under one name is compared with that name's tower.
TIMM_LAYOUT: Mapping[str, Any] = _COMMON
CLIP_LAYOUT: Mapping[str, Any] = (
    _COMMON
    | _PLAIN
    | _NO_SCALE
    | {
        "logit_bias": False,
        "image.pool": "cls",
        "image.pre_norm": True,
        "image.patch_bias": False,
        "image.projection": "linear",
        "text.causal": True,
        "text.pool": "last",
        "text.projection": "linear",
    }
)
SIGLIP_LAYOUT: Mapping[str, Any] = (
    _COMMON
    | _PLAIN
    | _NO_SCALE
    | {
        "logit_bias": True,
        "image.pool": "map",
        "image.pre_norm": False,
        "image.patch_bias": True,
        "image.projection": "none",
        "text.causal": False,
        "text.pool": "final",
        "text.mask_padding": False,
    }
)
# What is of training alone, or says how parameters began.
_NOT_COMPARED = (
    "image.dropout", "image.patch_dropout", "image.first_layer", "image.tract_lambda",
    "image.stem_depth", "text.dropout", "text.pad_id", "text.eos_id", "logit_scale_init",
    "logit_bias_init", "image.mup_base_width", "text.mup_base_width",
)  # fmt: skip


def fields(sizes: CLIPConfig) -> dict[str, Any]:
    """An architecture as ``{"image.width": 768, …}``, without what an output does not depend on."""
    flat: dict[str, Any] = {}
    for key, value in sizes.to_dict().items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    if flat["text.causal"]:  # padding stands behind the token that is read
        del flat["text.mask_padding"]
    if flat["text.pool"] == "eos":  # the same place of any text that a tokenizer makes
        flat["text.pool"] = "last"
    if flat.get("image.pool") == "cls":  # it has one anyway
        flat["image.class_token"] = False
    for tower in ("image", "text"):
        # The initial value alone, and what muP does to scores.
        if f"{tower}.layer_scale" in flat:
            flat[f"{tower}.layer_scale"] = flat[f"{tower}.layer_scale"] is not None
        if mup.attention_scale(getattr(sizes, tower)) == 1.0:
            flat[f"{tower}.mup_base_heads"] = 0
    return {key: value for key, value in flat.items() if key not in _NOT_COMPARED}


def check_layout(sizes: CLIPConfig, layout: Mapping[str, Any], family: str) -> None:
    """Refuse an architecture that a family has no words for.

    Raises:
      ValueError: names the field, its value and the family's.
    """
    ours = fields(sizes)
    for key, value in layout.items():
        if key == "logit_bias":
            continue
        if ours.get(key, value) != value:
            raise ValueError(
                f"model.{key}={ours[key]!r} can't be expressed by {family}, which has {value!r}"
            )
    has_bias = sizes.logit_bias_init is not None
    wanted = layout.get("logit_bias", has_bias)
    if has_bias != wanted:
        word = "without" if has_bias else "with"
        raise ValueError(
            f"model.logit_bias_init={sizes.logit_bias_init} can't be expressed by {family}, whose "
            f"models are {word} a logit_bias"
        )


def resize_ops(mode: str, method: str = "bicubic") -> str:
    """The chain of ops of a mode: ``"shortest"`` (and centre crop), ``"longest"``, ``"squash"``."""
    argument = "" if method == "bicubic" else f"(method='{method}')"
    if mode == "longest":
        return f"resize_longest{argument}|pad(fill=0)"
    return f"resize_small{argument}|center_crop" if mode == "shortest" else f"resize{argument}"


def resizing(preprocess: Preprocess) -> tuple[str, str]:
    """``(mode, method)`` of a chain of ops: mode ``"shortest"`` (and centre crop) or ``"squash"``.

    Raises:
      ValueError: a chain that other people's formats have no words for.
    """
    chain = str(preprocess.image_ops).replace(" ", "") or "resize"
    found = re.fullmatch(
        r"(resize|resize_small)(?:\((?:method=)?['\"]?(\w+)['\"]?\))?"
        r"(\|center_crop(?:\(rounding='?\w+'?\))?)?",
        chain,
    )
    if not found or (found[1] == "resize_small") != bool(found[3]):
        raise ValueError(
            f"data.eval_image_ops={preprocess.image_ops!r} can't be expressed by other people's "
            "preprocessing; use 'resize' or 'resize_small|center_crop', with a method or without"
        )
    return ("shortest" if found[3] else "squash"), found[2] or "bicubic"


def hf_preprocessor(preprocess: Preprocess, image_size: int, kind: str) -> dict[str, Any]:
    """``preprocessor_config.json`` of ``transformers``.

    Args:
      preprocess: ours.
      image_size: side of the images that the tower sees.
      kind: ``"CLIP"`` or ``"Siglip"``.
    """
    mode, method = resizing(preprocess)
    square = {"height": image_size, "width": image_size}
    content: dict[str, Any] = {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image_size} if mode == "shortest" else square,
        "resample": {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}[method],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [float(x) for x in preprocess.image_mean],
        "image_std": [float(x) for x in preprocess.image_std],
        "do_convert_rgb": True,
    }
    if kind == "CLIP":
        content |= {"do_center_crop": mode == "shortest", "crop_size": square}
    elif mode == "shortest":
        raise ValueError(
            f"data.eval_image_ops={preprocess.image_ops!r} can't be expressed by hf_siglip, whose "
            "images are resized without a crop; use 'resize'"
        )
    return content


def hf_image_ops(given: Mapping[str, Any], default: str) -> str:
    """The chain of ops of a ``preprocessor_config.json``; ``default`` where it says nothing.

    Raises:
      ValueError: a way of resizing that we do not have.
    """
    if "size" not in given:
        return default
    methods = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    resample = given.get("resample", 3)
    if resample not in methods:
        raise ValueError(
            f"resample={resample!r} of the checkpoint; known: {', '.join(map(str, methods))}"
        )
    size = given["size"]
    # The oldest files say a number, which is that of the shorter side.
    shortest = not isinstance(size, Mapping) or "shortest_edge" in size
    if shortest == bool(given.get("do_center_crop", shortest)):
        ops = resize_ops("shortest" if shortest else "squash", methods[resample])
        # transformers cuts a half pixel down, torchvision to the even one.
        return ops.replace("center_crop", "center_crop(rounding='down')")
    return default


def open_clip_preprocess(preprocess: Preprocess, image_size: int) -> dict[str, Any]:
    """``preprocess_cfg`` of an ``open_clip_config.json``."""
    mode, method = resizing(preprocess)
    return {
        "size": image_size,
        "mode": "RGB",
        "mean": [float(x) for x in preprocess.image_mean],
        "std": [float(x) for x in preprocess.image_std],
        "interpolation": method,
        "resize_mode": mode,
    }


def check_clip_preprocess(
    preprocess: Preprocess, sizes: CLIPConfig, ids: SpecialIds, family: str
) -> None:
    """Refuse all but CLIP's own pixels and end of texts, for code that has these fixed.

    Raises:
      ValueError: names what differs.
    """
    if resizing(preprocess) != ("shortest", "bicubic"):
        raise ValueError(
            f"data.eval_image_ops={preprocess.image_ops!r} can't be expressed by {family}, which "
            "has 'resize_small|center_crop'"
        )
    for name, wanted in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
        given = tuple(float(x) for x in getattr(preprocess, name))
        if any(abs(x - y) > 1e-6 for x, y in zip(given, wanted, strict=True)):
            raise ValueError(f"data.{name}={given} can't be expressed by {family}, whose is CLIP's")
    if ids.end != sizes.text.vocab_size - 1:
        raise ValueError(
            f"the tokenizer's end of text has id {ids.end}, but {family} reads a text at its "
            f"largest id, {sizes.text.vocab_size - 1}"
        )


def ratio(hidden: int, width: int) -> float:
    """``mlp_ratio`` of which ``int(width * ratio)`` is the hidden width."""
    value = hidden / width
    return value if int(width * value) == hidden else (hidden + 0.5) / width
