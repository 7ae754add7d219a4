"""Both towers once more, in NumPy and float64, written from the papers and not from our code."""

import math

import numpy as np


def encode_image(params, config, images):
    """float[B, H, W, 3] -> float64[B, embed_dim] of unit length (patch stem only)."""
    c, p = config.image, _float64(params["image"])
    size, grid = c.patch_size, c.grid
    rows = []
    for image in np.asarray(images, np.float64):
        tokens = [
            image[y * size : (y + 1) * size, x * size : (x + 1) * size].ravel()
            for y in range(grid)
            for x in range(grid)
        ]
        x = _dense(p["patch_embedding"], np.stack(tokens))
        if c.pool == "cls":
            x = np.concatenate([p["class_token"][None], x])
        x = x + p["positions"]
        if c.pre_norm:
            x = _norm(p["norm_pre"], x, c.norm_eps)
        for index in range(c.depth):
            x = _block(p[f"blocks_{index}"], c, x, np.ones((len(x), len(x)), bool))
        x = _norm(p["norm_post"], x, c.norm_eps)
        rows.append(_pool(p, c, c.pool, x, np.ones(len(x), bool), 0))
    x = np.stack(rows)
    if c.projection == "linear":
        x = x @ p["projection"]["kernel"]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


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
    x = _attention(head["attention"], c.num_heads, head["probe"][0], x, keep[None, :])
    return (x + _mlp(head["mlp"], c, _norm(head["norm"], x, c.norm_eps)))[0]


def _block(p, c, x, mask):
    y = _norm(p["attention_norm"], x, c.norm_eps)
    x = x + _attention(p["attention"], c.num_heads, y, y, mask)
    return x + _mlp(p["mlp"], c, _norm(p["mlp_norm"], x, c.norm_eps))


def _attention(p, num_heads, queries, keys, mask):
    q, k, v = _dense(p["query"], queries), _dense(p["key"], keys), _dense(p["value"], keys)
    size = q.shape[1] // num_heads
    heads = []
    for h in range(num_heads):
        part = slice(h * size, (h + 1) * size)
        scores = np.where(mask, q[:, part] @ k[:, part].T / math.sqrt(size), -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        heads.append(weights / weights.sum(axis=1, keepdims=True) @ v[:, part])
    return _dense(p["out"], np.concatenate(heads, axis=1))


def _mlp(p, c, x):
    x = _dense(p["up"], x)
    if c.activation == "quick_gelu":
        x = x / (1 + np.exp(-1.702 * x))
    elif c.activation == "gelu":
        x = x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    else:
        x = x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return _dense(p["down"], x)


def _norm(p, x, eps):
    centred = x - x.mean(axis=1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    return centred / scale * p["scale"] + p["bias"]


def _dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def _float64(tree):
    if isinstance(tree, dict):
        return {name: _float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)
