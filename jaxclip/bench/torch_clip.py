"""The opponent of ``jaxclip.bench step --against torch``: the same two towers in plain PyTorch.

Written as one writes PyTorch today: ``scaled_dot_product_attention``, one matrix for queries, keys
and values, fused layer norms, ``torch.optim.AdamW`` with its ``foreach`` path. Shapes, biases,
norms, activation and pooling are those of :mod:`jaxclip.models`, so that :func:`load` can copy the
weights over and both must name the same loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "--against torch needs PyTorch, which jaxclip does not install: pip install torch"
    ) from error

from jaxclip.models.presets import CLIPConfig, ImageConfig, TextConfig


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int, eps: float, causal: bool):
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, mlp_dim)
        self.down = nn.Linear(mlp_dim, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, L, C] -> [B, L, C]."""
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x))
        qkv = qkv.view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class ImageTower(nn.Module):
    """CLIP's Vision Transformer: patches, class token, norm, blocks, norm, projection."""

    def __init__(self, config: ImageConfig, embed_dim: int):
        super().__init__()
        c = self.config = config
        self.patch = nn.Conv2d(3, c.width, c.patch_size, c.patch_size, bias=False)
        self.class_token = nn.Parameter(torch.zeros(c.width))
        self.positions = nn.Parameter(torch.zeros(c.grid * c.grid + 1, c.width))
        self.norm_pre = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.blocks = nn.Sequential(
            *(Block(c.width, c.num_heads, c.mlp_dim, c.norm_eps, False) for _ in range(c.depth))
        )
        self.norm_post = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.projection = nn.Linear(c.width, embed_dim, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float[B, 3, H, W] -> float[B, embed_dim]."""
        x = self.patch(images).flatten(2).transpose(1, 2)
        token = self.class_token.expand(len(x), 1, -1)
        x = self.norm_pre(torch.cat([token, x], dim=1) + self.positions)
        return self.projection(self.norm_post(self.blocks(x)[:, 0]))


class TextTower(nn.Module):
    """CLIP's text Transformer: causal, pooled at the last token."""

    def __init__(self, config: TextConfig, embed_dim: int):
        super().__init__()
        c = config
        self.token_embedding = nn.Embedding(c.vocab_size, c.width)
        self.positions = nn.Parameter(torch.zeros(c.context_length, c.width))
        self.blocks = nn.Sequential(
            *(Block(c.width, c.num_heads, c.mlp_dim, c.norm_eps, True) for _ in range(c.depth))
        )
        self.norm_post = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.projection = nn.Linear(c.width, embed_dim, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int[B, L], 0 = padding -> float[B, embed_dim]."""
        x = self.norm_post(self.blocks(self.token_embedding(tokens) + self.positions))
        last = (tokens != 0).sum(dim=1) - 1
        return self.projection(x[torch.arange(len(x)), last])


class Trainer:
    """Model and optimizer; :meth:`step` does one update.

    Args:
      config: sizes; the layout must be CLIP's (class token, causal text, exact GELU).
      params: our parameter tree, copied.
      optimizer: keyword arguments of ``torch.optim.AdamW``.
      mean, std: of the pixels, as in ``config.data``.
    """

    def __init__(
        self,
        config: CLIPConfig,
        params: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        mean: list[float],
        std: list[float],
    ):
        self.image = ImageTower(config.image, config.embed_dim)
        self.text = TextTower(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(float(params["logit_scale"])))
        load(self.image, params["image"])
        load(self.text, params["text"])
        self.mean = 255 * torch.tensor(mean).view(3, 1, 1)
        self.std = 255 * torch.tensor(std).view(3, 1, 1)
        parameters = [*self.image.parameters(), *self.text.parameters(), self.logit_scale]
        decay = [p for p in parameters if p.ndim > 1]
        rest = [p for p in parameters if p.ndim <= 1]
        options = dict(optimizer)
        weight_decay = options.pop("weight_decay")
        groups = [
            {"params": decay, "weight_decay": weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, **options)

    def step(self, images: np.ndarray, tokens: np.ndarray) -> float:
        """One update on uint8[B, H, W, 3] and int32[B, L]; returns the loss before it."""
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        pixels = (pixels.float() - self.mean) / self.std
        image = F.normalize(self.image(pixels), dim=-1)
        text = F.normalize(self.text(torch.from_numpy(tokens)), dim=-1)
        logits = self.logit_scale.exp() * image @ text.T
        target = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.logit_scale.clamp_(max=float(np.log(100.0)))
        return loss.item()

    def parameter_count(self) -> int:
        """Number of scalars that are trained."""
        return sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])


def set_num_threads(count: int) -> None:
    """Let PyTorch use this many cores."""
    torch.set_num_threads(count)


@torch.no_grad()
def load(tower: ImageTower | TextTower, params: Mapping[str, Any]) -> None:
    """Copy a tower's parameters from our tree."""

    def put(target: torch.Tensor, value: Any) -> None:
        target.copy_(torch.from_numpy(np.array(value)))

    def linear(target: nn.Linear, *sources: Mapping[str, Any]) -> None:
        put(target.weight, np.concatenate([np.asarray(s["kernel"]).T for s in sources]))
        if target.bias is not None:
            put(target.bias, np.concatenate([np.asarray(s["bias"]) for s in sources]))

    def norm(target: nn.LayerNorm, source: Mapping[str, Any]) -> None:
        put(target.weight, source["scale"])
        put(target.bias, source["bias"])

    if isinstance(tower, ImageTower):
        c = tower.config
        kernel = np.asarray(params["patch_embedding"]["kernel"])  # [patch * patch * 3, width]
        kernel = kernel.reshape(c.patch_size, c.patch_size, 3, c.width)
        put(tower.patch.weight, kernel.transpose(3, 2, 0, 1))
        put(tower.class_token, params["class_token"])
        norm(tower.norm_pre, params["norm_pre"])
    else:
        put(tower.token_embedding.weight, params["token_embedding"]["embedding"])
    put(tower.positions, params["positions"])
    for index, block in enumerate(tower.blocks):
        source = params[f"blocks_{index}"]
        attention = source["attention"]
        linear(block.qkv, attention["query"], attention["key"], attention["value"])
        linear(block.out, attention["out"])
        linear(block.up, source["mlp"]["up"])
        linear(block.down, source["mlp"]["down"])
        norm(block.attention_norm, source["attention_norm"])
        norm(block.mlp_norm, source["mlp_norm"])
    norm(tower.norm_post, params["norm_post"])
    linear(tower.projection, params["projection"])
