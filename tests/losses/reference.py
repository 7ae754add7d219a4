"""Both losses and their gradients in closed form, in NumPy and float64."""

import numpy as np


def softmax(images, texts, *, logit_scale, logit_bias=0.0, label_smoothing=0.0):
    """``(loss, gradients by name)``."""
    size = len(images)
    logits = np.exp(logit_scale) * images @ texts.T
    target = (1 - label_smoothing) * np.eye(size) + label_smoothing / size
    log_rows, log_columns = _log_softmax(logits, 1), _log_softmax(logits, 0)
    loss = -np.sum(target * (log_rows + log_columns)) / (2 * size)
    to_logits = (np.exp(log_rows) + np.exp(log_columns) - 2 * target) / (2 * size)
    return loss, _chain(images, texts, logits, 0.0, to_logits, logit_scale, bias_matters=False)


def sigmoid(images, texts, *, logit_scale, logit_bias=0.0):
    """``(loss, gradients by name)``."""
    size = len(images)
    logits = np.exp(logit_scale) * images @ texts.T + logit_bias
    sign = 2 * np.eye(size) - 1
    loss = np.sum(np.logaddexp(0, -sign * logits)) / size
    to_logits = -sign * np.exp(-np.logaddexp(0, sign * logits)) / size
    return loss, _chain(images, texts, logits, logit_bias, to_logits, logit_scale)


def accuracies(images, texts):
    """Shares of rows and of columns whose strictly largest cosine is on the diagonal."""
    cosines = images @ texts.T
    others = np.where(np.eye(len(images), dtype=bool), -np.inf, cosines)
    own = np.diagonal(cosines)
    return np.mean(own > others.max(axis=1)), np.mean(own > others.max(axis=0))


def _chain(images, texts, logits, bias, to_logits, logit_scale, bias_matters=True):
    scale = np.exp(logit_scale)
    return {
        "images": scale * to_logits @ texts,
        "texts": scale * to_logits.T @ images,
        "logit_scale": np.sum(to_logits * (logits - bias)),
        "logit_bias": np.sum(to_logits) if bias_matters else 0.0,
    }


def _log_softmax(x, axis):
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
