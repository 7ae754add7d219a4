"""Both towers once more, in NumPy and float64, written from the papers and not from our code."""

import math

import numpy as np


def encode_image(params, config, images):
    """float[B, H, W, 3 or 4] -> float64[B, embed_dim] of unit length (patch stem only)."""
    c, p = config.image, _float64(params["image"])
    size, grid = c.patch_size, c.grid
    rows = []
    for image in np.asarray(images, np.float64):
        alpha = image[..., 3:] if image.shape[-1] == 4 else np.ones((*image.shape[:2], 1))
        x = _dense(p["patch_embedding"], _cut(image[..., :3], size, grid))
        if c.alpha:
            x = x + _dense(p["alpha_embedding"], _cut((alpha - 0.5) / 0.26, size, grid))
        prefix = int(c.pool == "cls" or c.class_token)
        if prefix:
            x = np.concatenate([p["class_token"][None], x])
        x = x + p["positions"]
        if c.pre_norm:
            x = _norm(p["norm_pre"], x, c.norm_eps)
        turn = _rotation(c, prefix)
        for index in range(c.depth):
            x = _block(p[f"blocks_{index}"], c, x, np.ones((len(x), len(x)), bool), turn)
        if c.norm_after_pool:
            x = _norm(p["norm_post"], x[prefix:].mean(axis=0, keepdims=True), c.norm_eps)[0]
        else:
            x = _norm(p["norm_post"], x, c.norm_eps)
            x = x if c.pool == "cls" or c.pool_prefix else x[prefix:]
            x = _pool(p, c, c.pool, x, np.ones(len(x), bool), 0)
        rows.append(x)
    x = np.stack(rows)
    if c.projection != "none":
        x = _dense(p["projection"], x)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _cut(image, size, grid):
    return np.stack(
        [
            image[y * size : (y + 1) * size, x * size : (x + 1) * size].ravel()
            for y in range(grid)
            for x in range(grid)
        ]
    )


def _rotation(c, prefix):
    """A function of one head's channels [L, d]: pairs turned as complex numbers; or None."""
    if c.rope == "none":
        return None
    size = c.width // c.num_heads
    frequencies = 10_000.0 ** (-4 * np.arange(size // 4) / size)
    turns = np.ones((prefix + c.grid**2, size // 2), complex)
    for y in range(c.grid):
        for x in range(c.grid):
            places = [(t + c.rope_offset) / c.grid * (c.rope_grid or c.grid) for t in (y, x)]
            first, second = places if c.rope == "yx" else places[::-1]
            angles = np.concatenate([first * frequencies, second * frequencies])
            turns[prefix + y * c.grid + x] = np.exp(1j * angles)

    def turn(channels):
        turned = (channels[:, 0::2] + 1j * channels[:, 1::2]) * turns
        return np.stack([turned.real, turned.imag], axis=-1).reshape(channels.shape)

    return turn


def encode_text(params, config, tokens):
    """int[B, L] -> float64[B, embed_dim] of unit length."""
    c, p = config.text, _float64(params["text"])
    rows = []
    for row in np.asarray(tokens):
        length = len(row)
        end = int(np.flatnonzero(row)[-1])
        real = np.arange(length) <= end
        mask = np.ones((length, length), bool)
        if c.causal:
            mask = np.tril(mask)
        elif c.mask_padding:
            mask = mask & real[None, :]
        x = p["token_embedding"]["embedding"][row] + p["positions"][:length]
        for index in range(c.depth):
            x = _block(p[f"blocks_{index}"], c, x, mask)
        x = _norm(p["norm_post"], x, c.norm_eps)
        rows.append(_pool(p, c, c.pool, x, real if c.mask_padding else np.ones(length, bool), end))
    x = _dense(p["projection"], np.stack(rows))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _pool(p, c, pool, x, keep, end):
    if pool == "cls":
        return x[0]
    if pool == "last":
        return x[end]
    if pool == "final":
        return x[-1]
    if pool == "mean":
        return x[keep].mean(axis=0)
    head = p["attention_pool"]
    heads = getattr(c, "pool_heads", 0) or c.num_heads
    x = _attention(head["attention"], heads, head["probe"][0], x, keep[None, :])
    return (x + _mlp(head["mlp"], c, _norm(head["norm"], x, c.norm_eps)))[0]


def _block(p, c, x, mask, turn=None):
    post = getattr(c, "norm_place", "pre") == "post"
    eps = c.norm_eps
    y = x if post else _norm(p["attention_norm"], x, eps)
    y = _attention(p["attention"], c.num_heads, y, y, mask, turn, eps)
    y = _norm(p["attention_norm"], y, eps) if post else y
    x = x + y * p.get("attention_scale", 1.0)
    y = _mlp(p["mlp"], c, x if post else _norm(p["mlp_norm"], x, eps))
    y = _norm(p["mlp_norm"], y, eps) if post else y
    return x + y * p.get("mlp_scale", 1.0)


def _attention(p, num_heads, queries, keys, mask, turn=None, eps=0.0):
    q, k, v = _dense(p["query"], queries), _dense(p["key"], keys), _dense(p["value"], keys)
    size = q.shape[1] // num_heads
    heads = []
    for h in range(num_heads):
        part = slice(h * size, (h + 1) * size)
        one, other = (x[:, part] if turn is None else turn(x[:, part]) for x in (q, k))
        scores = np.where(mask, one @ other.T / math.sqrt(size), -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        heads.append(weights / weights.sum(axis=1, keepdims=True) @ v[:, part])
    x = np.concatenate(heads, axis=1)
    return _dense(p["out"], _norm(p["sub_norm"], x, eps) if "sub_norm" in p else x)


def _mlp(p, c, x):
    hidden = _dense(p["up"], x)
    if "gate" in p:
        hidden = hidden * _activation(c, _dense(p["gate"], x))
    else:
        hidden = _activation(c, hidden)
    return _dense(
        p["down"], _norm(p["sub_norm"], hidden, c.norm_eps) if "sub_norm" in p else hidden
    )


def _activation(c, x):
    if c.activation == "silu":
        return x / (1 + np.exp(-x))
    if c.activation == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    if c.activation == "gelu":
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _norm(p, x, eps):
    if "bias" not in p:  # root mean square
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps) * p["scale"]
    centred = x - x.mean(axis=1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    return centred / scale * p["scale"] + p["bias"]


def _dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def _float64(tree):
    if isinstance(tree, dict):
        return {name: _float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)
