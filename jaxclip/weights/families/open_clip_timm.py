"""open_clip's files with a tower of timm that has EVA's blocks or Perception Encoder's pool."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.models.presets import CLIPConfig, ImageConfig
from jaxclip.models.variants import TIMM_TOWERS
from jaxclip.registry import hint
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess, SpecialIds
from jaxclip.weights.families._layouts import TIMM_LAYOUT, open_clip_preprocess
from jaxclip.weights.families._open_clip_text import (
    custom_name,
    logit_entries,
    model_config,
    read_text,
    text_cfg,
    text_entries,
)
from jaxclip.weights.families._parts import CLIP_MEAN, CLIP_STD, count_blocks, square_grid
from jaxclip.weights.families.open_clip import read_preprocess
from jaxclip.weights.mapping import (
    BATCH_AXIS,
    ROW,
    SAME,
    Entry,
    convolution,
    dense,
    fused_attention,
    norm,
    rows_apart,
)

TRUNK = "visual.trunk"
_QKV = ("query", "key", "value")
_POOLS = {"cls": "token", "map": "map", "mean": "avg"}


class OpenCLIPTimm(Family):
    """``custom_text`` models of open_clip on :data:`jaxclip.models.variants.TIMM_TOWERS`: EVA-CLIP
    (Sun et al., 2023, arXiv:2303.15389), PE-Core (Bolya et al., 2025, arXiv:2504.13181).
    """

    example = "eva02_b16"

    @staticmethod
    def canonical(name: str) -> str | None:
        return custom_name(name)

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        names = checkpoint.shapes
        trunk = {f"{TRUNK}.{part}" for part in ("patch_embed.proj.weight", "pos_embed")}
        heads = ("head.weight", "head.proj.weight")
        # CLIP's own blocks and class token: MobileCLIP's, which open_clip_timm_vit reads.
        plain = (
            f"{TRUNK}.blocks.0.attn.qkv.bias" in names and f"{TRUNK}.attn_pool.q.bias" not in names
        )
        return (
            trunk <= set(names)
            and not plain
            and f"{TRUNK}.blocks.0.norm1.weight" in names
            and "text.token_embedding.weight" in names
            and (f"{TRUNK}.{heads[0]}" in names or f"visual.{heads[1]}" in names)
        )

    @staticmethod
    def ignore(name: str) -> bool:
        return name == "text.attn_mask" or name.endswith(".attn.k_bias")

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes, config = checkpoint.shapes, model_config(checkpoint.config)
        vision, text = dict(config.get("vision_cfg") or {}), dict(config.get("text_cfg") or {})
        image = read_tower(shapes, vision)
        _check_pool(image, vision)
        head = "visual.head.proj" if "visual.head.proj.weight" in shapes else f"{TRUNK}.head"
        projection = "linear_bias" if f"{head}.bias" in shapes else "linear"
        return CLIPConfig(
            image=dataclasses.replace(image, projection=projection),
            text=read_text(shapes, text, prefix="text.", quick=bool(config.get("quick_gelu"))),
            embed_dim=shapes[f"{head}.weight"][0],
            logit_scale_init=math.log(1 / 0.07),
            logit_bias_init=-10.0 if "logit_bias" in shapes else None,
        )

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        return [
            *_image_entries(sizes.image),
            *text_entries(sizes, "text."),
            *logit_entries(sizes),
        ]

    layout = TIMM_LAYOUT
    weights_file = "open_clip_model.safetensors"

    @staticmethod
    def config_files(
        sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        name, image = _timm_name(sizes.image), sizes.image
        model_cfg: dict[str, Any] = {
            "embed_dim": sizes.embed_dim,
            "custom_text": True,
            "quick_gelu": sizes.text.activation == "quick_gelu",
            "vision_cfg": {
                "image_size": image.image_size,
                "timm_model_name": name,
                "timm_model_pretrained": False,
                "timm_pool": _POOLS[image.pool],
                # timm's own head has a bias, open_clip's has none.
                "timm_proj": "linear" if image.projection == "linear" else None,
            },
            "text_cfg": text_cfg(sizes.text, ids),
        }
        if sizes.logit_bias_init is not None:
            model_cfg["init_logit_bias"] = sizes.logit_bias_init
        cfg = open_clip_preprocess(preprocess, image.image_size)
        return {"open_clip_config.json": {"model_cfg": model_cfg, "preprocess_cfg": cfg}}

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return read_preprocess(checkpoint.config, CLIP_MEAN, CLIP_STD, sizes, {"kind": "clip"})


def read_tower(
    shapes: Mapping[str, tuple[int, ...]], vision: Mapping[str, Any], trunk: str = TRUNK
) -> ImageConfig:
    """The image tower: its arithmetic by its name in timm, its sizes from its tensors.

    Raises:
      ValueError: a tower that we do not have.
    """
    width, _, patch_size, _ = shapes[f"{trunk}.patch_embed.proj.weight"]
    depth = count_blocks(shapes, f"{trunk}.blocks.")
    name = str(vision.get("timm_model_name") or "").split(".")[0]
    if not name:
        name = _name_by_shape(
            shapes, trunk, {"width": width, "depth": depth, "patch_size": patch_size}
        )
    if name not in TIMM_TOWERS:
        known = ", ".join(TIMM_TOWERS)
        raise ValueError(
            f"timm's image tower {name!r} is not supported{hint(name, list(TIMM_TOWERS))}; "
            f"known: {known}"
        )
    fields = dict(TIMM_TOWERS[name])
    prefix = int(f"{trunk}.cls_token" in shapes)
    grid = square_grid(shapes[f"{trunk}.pos_embed"][1], prefix, trunk)
    first = f"{trunk}.blocks.0.mlp"
    up = "fc1_x" if f"{first}.fc1_x.weight" in shapes else "fc1"
    fields |= {
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "mlp_dim": shapes[f"{first}.{up}.weight"][0],
    }
    if width != TIMM_TOWERS[name]["width"]:  # heads as wide as they are there
        head_width = TIMM_TOWERS[name]["width"] // TIMM_TOWERS[name]["num_heads"]
        fields["num_heads"] = max(1, width // head_width)
    if f"{trunk}.attn_pool.mlp.fc1.weight" in shapes:
        pool_dim = shapes[f"{trunk}.attn_pool.mlp.fc1.weight"][0]
        fields["pool_mlp_dim"] = 0 if pool_dim == fields["mlp_dim"] else pool_dim
    return ImageConfig(**fields)


def _name_by_shape(
    shapes: Mapping[str, tuple[int, ...]], trunk: str, sizes: Mapping[str, int]
) -> str:
    """The tower in timm that a file without a configuration holds.

    Raises:
      ValueError: there is none.
    """
    found: dict[str, Any] = {
        **sizes,
        "pre_norm": f"{trunk}.norm_pre.weight" in shapes,
        "mlp": "gated" if f"{trunk}.blocks.0.mlp.fc1_g.weight" in shapes else "plain",
        "class_token": f"{trunk}.cls_token" in shapes,
        "pool": "map" if f"{trunk}.attn_pool.latent" in shapes else "",
    }
    for name, fields in TIMM_TOWERS.items():
        image = ImageConfig(**fields)
        known = {key: getattr(image, key) for key in found}
        known["class_token"] = image.has_class_token
        known["pool"] = "map" if image.pool == "map" else ""
        if known == found:
            return name
    told = ", ".join(f"{key}={value}" for key, value in sizes.items())
    raise ValueError(
        f"no image tower of timm that is known here has {told} and these tensors; put an "
        "open_clip_config.json beside the file, which names it"
    )


def _check_pool(image: ImageConfig, vision: Mapping[str, Any]) -> None:
    pool = vision.get("timm_pool") or _POOLS[image.pool]
    if pool != _POOLS[image.pool]:
        raise ValueError(
            f"timm_pool={pool!r} of {vision.get('timm_model_name')!r} is not supported; known: "
            f"{_POOLS[image.pool]}"
        )
    if vision.get("timm_proj") not in (None, "", "linear"):
        raise ValueError(f"timm_proj={vision['timm_proj']!r} is not supported; known: linear")


def _timm_name(image: ImageConfig) -> str:
    """The name of a tower in timm's registry.

    Raises:
      ValueError: there is none like it; open_clip's configurations can't describe one.
    """
    differences = {}
    for name, fields in TIMM_TOWERS.items():
        other = ImageConfig(**fields)
        differences[name] = [
            field.name
            for field in dataclasses.fields(ImageConfig)
            if field.name not in ("projection", "dropout", "patch_dropout", "layer_scale")
            and getattr(image, field.name) != getattr(other, field.name)
        ] + (["layer_scale"] if (image.layer_scale is None) != (other.layer_scale is None) else [])
    name = min(differences, key=lambda name: len(differences[name]))
    if differences[name]:
        field = differences[name][0]
        raise ValueError(
            f"model.image.{field}={getattr(image, field)!r} is of no tower in timm that open_clip "
            f"could name; the nearest is {name} with "
            f"{getattr(ImageConfig(**TIMM_TOWERS[name]), field)!r}"
        )
    if image.projection == "none":
        raise ValueError(
            "model.image.projection='none' can't be expressed by open_clip_timm, which has "
            "'linear' and 'linear_bias'"
        )
    return name


def _image_entries(image: ImageConfig) -> Iterator[Entry]:
    yield Entry(
        f"{TRUNK}.patch_embed.proj.weight",
        ("image/patch_embedding/kernel",),
        convolution(image.patch_size),
    )
    if image.patch_bias:
        yield Entry(f"{TRUNK}.patch_embed.proj.bias", ("image/patch_embedding/bias",), SAME)
    if image.has_class_token:
        yield Entry(f"{TRUNK}.cls_token", ("image/class_token",), ROW)
    yield Entry(f"{TRUNK}.pos_embed", ("image/positions",), BATCH_AXIS)
    if image.pre_norm:
        yield from norm(f"{TRUNK}.norm_pre", "image/norm_pre")
    for index in range(image.depth):
        yield from _block(image, f"{TRUNK}.blocks.{index}", f"image/blocks_{index}")
    yield from norm(f"{TRUNK}.norm", "image/norm_post")
    if image.pool == "map":
        yield from attention_pool(f"{TRUNK}.attn_pool", "image/attention_pool")
    has_bias = image.projection == "linear_bias"
    head = f"{TRUNK}.head" if has_bias else "visual.head.proj"
    yield from dense(head, "image/projection", bias=has_bias)


def _block(image: ImageConfig, at: str, to: str) -> Iterator[Entry]:
    yield from norm(f"{at}.norm1", f"{to}/attention_norm")
    attention, ours = f"{at}.attn", f"{to}/attention"
    if image.mlp == "gated":  # EVA-02: three layers, biases in them
        for name in _QKV:
            has_bias = image.qkv_bias == "all" or (image.qkv_bias == "qv" and name != "key")
            yield from dense(f"{attention}.{name[0]}_proj", f"{ours}/{name}", bias=has_bias)
    elif image.qkv_bias == "all":
        yield from fused_attention(f"{attention}.qkv.weight", f"{attention}.qkv.bias", ours, _QKV)
    else:
        kernels = tuple(f"{ours}/{name}/kernel" for name in _QKV)
        yield Entry(f"{attention}.qkv.weight", kernels, rows_apart(3, transpose=True))
        if image.qkv_bias == "qv":
            yield Entry(f"{attention}.q_bias", (f"{ours}/query/bias",), SAME)
            yield Entry(f"{attention}.v_bias", (f"{ours}/value/bias",), SAME)
    if image.sub_norm:
        yield from norm(f"{attention}.norm", f"{ours}/sub_norm")
        yield from norm(f"{at}.mlp.norm", f"{to}/mlp/sub_norm")
    yield from dense(f"{attention}.proj", f"{ours}/out")
    yield from norm(f"{at}.norm2", f"{to}/mlp_norm")
    if image.mlp == "gated":
        yield from dense(f"{at}.mlp.fc1_g", f"{to}/mlp/gate")
        yield from dense(f"{at}.mlp.fc1_x", f"{to}/mlp/up")
    else:
        yield from dense(f"{at}.mlp.fc1", f"{to}/mlp/up")
    yield from dense(f"{at}.mlp.fc2", f"{to}/mlp/down")
    if image.layer_scale is not None:
        yield Entry(f"{at}.ls1.gamma", (f"{to}/attention_scale",), SAME)
        yield Entry(f"{at}.ls2.gamma", (f"{to}/mlp_scale",), SAME)


def attention_pool(theirs: str, ours: str) -> Iterator[Entry]:
    """timm's ``AttentionPoolLatent``."""
    yield Entry(f"{theirs}.latent", (f"{ours}/probe",), SAME)
    yield from dense(f"{theirs}.q", f"{ours}/attention/query")
    yield from fused_attention(
        f"{theirs}.kv.weight", f"{theirs}.kv.bias", f"{ours}/attention", ("key", "value")
    )
    yield from dense(f"{theirs}.proj", f"{ours}/attention/out")
    yield from norm(f"{theirs}.norm", f"{ours}/norm")
    yield from dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/up")
    yield from dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")
