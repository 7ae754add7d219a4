"""Published models with convolutions in their image towers, as rows of a table.

OpenAI's ResNets (Radford et al., 2021, table 19), OpenCLIP's ConvNeXts, and MobileCLIP and
MobileCLIP2 (Vasu et al., 2024, arXiv:2311.17049; Faghri et al., 2025, arXiv:2508.20691) as OpenCLIP
has them.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """A published model.

    Attributes:
      kind: of the image tower.
      image: its sizes.
      text: width, depth and heads of the text tower.
      embed_dim: size of the joint space.
      text_activation: of the text tower.
      causal: whether the text tower is.
    """

    kind: str
    image: dict[str, Any]
    text: tuple[int, int, int]
    embed_dim: int
    text_activation: str = "gelu"
    causal: bool = True


def _resnet(
    depths: tuple[int, ...], stem_width: int, size: int, text_width: int, embed_dim: int
) -> Row:
    image = {"image_size": size, "depths": depths, "stem_width": stem_width}
    image |= {"num_heads": stem_width // 2}
    return Row("resnet", image, (text_width, 12, text_width // 64), embed_dim)


def _convnext(
    depths: tuple[int, ...],
    width: int,
    size: int,
    text: tuple[int, int],
    embed_dim: int,
    **more: Any,
) -> Row:
    image = {"image_size": size, "depths": depths, **more}
    image["widths"] = tuple(width * 2**stage for stage in range(4))
    return Row("convnext", image, (*text, text[0] // 64), embed_dim)


def _mobile(
    depths: tuple[int, ...], width: int, text_width: int, embed_dim: int, **more: Any
) -> Row:
    image = {"depths": depths, **more}
    image["widths"] = tuple(width * 2**stage for stage in range(len(depths)))
    text = (text_width, 12, text_width // 64)
    return Row("fastvit", image, text, embed_dim, causal=False)


_LARGER: dict[str, Any] = {
    "mlp_ratio": 4,
    "attention_stages": 2,
    "squeeze_stages": 0,
    "attention_norm": "layer",
}
_LARGER |= {"stem_scale": False}
_VIT_B: dict[str, Any] = {
    "stem": "conv_bn",
    "stem_widths": (192, 192, 768),
    "stem_depth": 0,
    "pre_norm": False,
}
_VIT_B |= {"class_position": False, "norm_eps": 1e-6, "projection": "linear_bias"}
_VIT_L: dict[str, Any] = {
    "patch_size": 14,
    "width": 1024,
    "depth": 24,
    "num_heads": 16,
    "mlp_dim": 4096,
}
_VIT_L |= {"projection": "linear_bias"}
_BASE, _XXLARGE = (3, 3, 27, 3), (3, 4, 30, 3)

ROWS: dict[str, Row] = {
    "rn50": _resnet((3, 4, 6, 3), 64, 224, 512, 1024),
    "rn101": _resnet((3, 4, 23, 3), 64, 224, 512, 512),
    "rn50x4": _resnet((4, 6, 10, 6), 80, 288, 640, 640),
    "rn50x16": _resnet((6, 8, 18, 8), 96, 384, 768, 768),
    "rn50x64": _resnet((3, 15, 36, 10), 128, 448, 1024, 1024),
    "convnext_base_w": _convnext(_BASE, 128, 256, (640, 12), 640),
    "convnext_base_w_320": _convnext(_BASE, 128, 320, (640, 12), 640),
    "convnext_large_d": _convnext(_BASE, 192, 256, (768, 16), 768, projection="mlp"),
    "convnext_large_d_320": _convnext(_BASE, 192, 320, (768, 16), 768, projection="mlp"),
    "convnext_xxlarge": _convnext(_XXLARGE, 384, 256, (1024, 24), 1024, norm_eps=1e-5),
    "mobileclip_s1": _mobile((4, 12, 20, 4), 64, 512, 512),
    "mobileclip_s2": _mobile((4, 12, 24, 4), 80, 512, 512),
    "mobileclip_b": Row("vit", _VIT_B, (512, 12, 8), 512),
    "mobileclip2_s0": _mobile((2, 6, 10, 2), 64, 512, 512),
    "mobileclip2_s3": _mobile((2, 12, 24, 4, 2), 96, 768, 768, **_LARGER),
    "mobileclip2_s4": _mobile((2, 12, 24, 4, 4), 128, 768, 768, **_LARGER),
    "mobileclip2_l14": Row("vit", _VIT_L, (768, 12, 12), 768, causal=False),
}
# OpenAI's own weights want quick-GELU in the text tower; the ResNets themselves have ReLU.
ROWS |= {
    f"{name}_quickgelu": dataclasses.replace(row, text_activation="quick_gelu")
    for name, row in ROWS.items()
    if row.kind == "resnet"
}
