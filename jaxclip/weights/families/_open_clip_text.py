"""The text tower of open_clip: read from names, shapes and ``text_cfg``, and written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.models.presets import CLIPConfig, TextConfig
from jaxclip.weights.families._base import SpecialIds
from jaxclip.weights.families._layouts import ratio
from jaxclip.weights.families._parts import count_blocks, norm_eps, read_number, torch_gelu
from jaxclip.weights.mapping import SAME, SCALAR, Entry, dense, fused_attention, norm

# Blocks that open_clip can build and no published model has.
_BLOCK_OPTIONS = (
    "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc",
)  # fmt: skip
_TEXT_NAME = re.compile(
    r"(token_embedding\.|positional_embedding(_res)?$|transformer\.resblocks\.|ln_final\.|"
    r"text_projection|attn_mask$)"
)


def model_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """``model_cfg`` of an ``open_clip_config.json``, or the file itself where it is that alone."""
    found: Mapping[str, Any] = config.get("model_cfg", config)
    return found


def flat_name(name: str) -> str:
    """A text tensor's name without ``text.``, which open_clip's ``custom_text`` models have."""
    rest = name.removeprefix("text.")
    return rest if rest != name and _TEXT_NAME.match(rest) else name


def custom_name(name: str) -> str:
    """A text tensor's name with ``text.``."""
    return f"text.{name}" if _TEXT_NAME.match(name) else name


def refuse_options(tower: Mapping[str, Any], what: str) -> None:
    """Refuse what our blocks do not have.

    Raises:
      ValueError: names the option.
    """
    for name in _BLOCK_OPTIONS:
        if tower.get(name):
            raise ValueError(f"{what}.{name}={tower[name]!r} is not supported")


def read_text(
    shapes: Mapping[str, tuple[int, ...]],
    text: Mapping[str, Any],
    *,
    prefix: str = "",
    quick: bool = False,
    head_width: int = 64,
    activation: str | None = None,
    eps: float = 1e-5,
    clipa: bool = False,
) -> TextConfig:
    """A text tower.

    Args:
      shapes: of all tensors.
      text: ``text_cfg``.
      prefix: ``"text."`` or ``""``.
      quick: whether the model computes quick-GELU.
      head_width: channels of a head, where ``text_cfg`` does not tell heads.
      activation: where ``text_cfg`` says nothing; None for the exact GELU.
      eps: likewise, of the norms.
      clipa: without a ``text_cfg``, whether it is CLIPA's.

    Raises:
      ValueError: a tower that we do not have.
    """
    refuse_options(text, "text_cfg")
    if text.get("embed_cls") or text.get("ls_init_value") or f"{prefix}cls_emb" in shapes:
        name = "ls_init_value" if text.get("ls_init_value") else "embed_cls"
        raise ValueError(f"text_cfg.{name}={text.get(name)!r} is not supported")
    pools = {"argmax": "last", "last": "final", "eos": "eos"}
    pool = text.get("pool_type", "last" if clipa else "argmax")
    if pool not in pools:
        raise ValueError(f"text_cfg.pool_type={pool!r} is not supported; known: {', '.join(pools)}")
    vocab_size, width = shapes[f"{prefix}token_embedding.weight"]
    causal = not text.get("no_causal_mask", clipa)
    projection = "linear" if f"{prefix}text_projection" in shapes else "linear_bias"
    if projection == "linear_bias" and f"{prefix}text_projection.weight" not in shapes:
        projection = "none"
    return TextConfig(
        vocab_size=vocab_size,
        context_length=shapes[f"{prefix}positional_embedding"][0],
        width=width,
        depth=count_blocks(shapes, f"{prefix}transformer.resblocks."),
        num_heads=read_number(text, "heads", max(1, width // head_width)),
        mlp_dim=shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0],
        causal=causal,
        pool=pools[pool],
        mask_padding=causal,
        activation="quick_gelu" if quick else torch_gelu(text) if text else activation or "gelu",
        norm_eps=norm_eps(text, 1e-5 if text else eps),
        projection=projection,
        eos_id=int(text.get("eos_id", 2)) if pool == "eos" else 0,
    )


def logit_entries(sizes: CLIPConfig) -> list[Entry]:
    """``logit_scale``, and ``logit_bias`` where the model has one."""
    names = ["logit_scale"] + ([] if sizes.logit_bias_init is None else ["logit_bias"])
    return [Entry(name, (name,), SCALAR) for name in names]


def text_entries(sizes: CLIPConfig, prefix: str = "") -> Iterator[Entry]:
    """The table of a text tower."""
    yield Entry(f"{prefix}token_embedding.weight", ("text/token_embedding/embedding",), SAME)
    yield Entry(f"{prefix}positional_embedding", ("text/positions",), SAME)
    yield from blocks(f"{prefix}transformer.resblocks", "text", sizes.text.depth)
    yield from norm(f"{prefix}ln_final", "text/norm_post")
    if sizes.text.projection == "linear":
        yield Entry(f"{prefix}text_projection", ("text/projection/kernel",), SAME)
    elif sizes.text.projection == "linear_bias":
        yield from dense(f"{prefix}text_projection", "text/projection")


def blocks(theirs: str, ours: str, depth: int, *, layer_scale: bool = False) -> Iterator[Entry]:
    """``ResidualAttentionBlock`` of OpenAI and open_clip."""
    for index in range(depth):
        at, to = f"{theirs}.{index}", f"{ours}/blocks_{index}"
        yield from norm(f"{at}.ln_1", f"{to}/attention_norm")
        yield from fused_attention(
            f"{at}.attn.in_proj_weight",
            f"{at}.attn.in_proj_bias",
            f"{to}/attention",
            ("query", "key", "value"),
        )
        yield from dense(f"{at}.attn.out_proj", f"{to}/attention/out")
        yield from norm(f"{at}.ln_2", f"{to}/mlp_norm")
        yield from dense(f"{at}.mlp.c_fc", f"{to}/mlp/up")
        yield from dense(f"{at}.mlp.c_proj", f"{to}/mlp/down")
        if layer_scale:
            yield Entry(f"{at}.ls_1.gamma", (f"{to}/attention_scale",), SAME)
            yield Entry(f"{at}.ls_2.gamma", (f"{to}/mlp_scale",), SAME)


def text_cfg(text: TextConfig, ids: SpecialIds) -> dict[str, Any]:
    """``text_cfg`` of a tower.

    Raises:
      ValueError: one that open_clip does not have.
    """
    found: dict[str, Any] = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.num_heads,
        "layers": text.depth,
        "mlp_ratio": ratio(text.mlp_dim, text.width),
        **arithmetic(text),
    }
    if not text.causal:
        if text.mask_padding:
            raise ValueError(
                "model.text.mask_padding=True can't be expressed by open_clip, whose texts without "
                "a causal mask see their padding"
            )
        found["no_causal_mask"] = True
    if text.projection == "linear_bias":
        found["proj_bias"] = True
    elif text.projection == "none":
        found["proj_type"] = "none"
    if text.pool == "final":
        found["pool_type"] = "last"
    elif text.pool == "eos":
        found |= {"pool_type": "eos", "eos_id": text.eos_id, "pad_id": ids.pad}
    elif text.pool != "last":
        raise ValueError(
            f"model.text.pool={text.pool!r} can't be expressed by open_clip, which has 'last', "
            "'eos' and 'final'"
        )
    elif ids.end != text.vocab_size - 1:  # by default the largest id is the end
        found |= {"pool_type": "eos", "eos_id": ids.end, "pad_id": ids.pad}
    return found


def arithmetic(tower: Any) -> dict[str, Any]:
    """Epsilon and approximation, where they are not open_clip's defaults."""
    found: dict[str, Any] = {}
    if tower.norm_eps != 1e-5:
        found["norm_kwargs"] = {"eps": tower.norm_eps}
    if tower.activation == "gelu_tanh":
        found["act_kwargs"] = {"approximate": "tanh"}
    return found
