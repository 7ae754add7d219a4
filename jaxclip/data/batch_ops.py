"""Image ops on a batch of equally sized images, vectorised with TensorFlow.

Every function here takes ``images`` f32[n, H, W, 3] in [0, 255] and uniform numbers ``u`` f32[n, k],
and treats each row by itself: what comes out for an example does not depend on its batch, to the last
bit. For that, per-pixel work is exactly rounded arithmetic only (no matrix products, no
exponentials, whose vectorised and scalar versions differ), and functions of a row's few random
numbers are computed in float64 and rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jaxclip.data._tfds import tensorflow
from jaxclip.data.image_ops import BatchFn, register

# Luma of Rec. 601, as everywhere in image augmentation.
_LUMA = (0.299, 0.587, 0.114)


def _probability(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p={p} must be between 0 and 1")


def _column(u: Any, index: int) -> Any:
    """f32[n, 1, 1, 1] out of f32[n, k]."""
    return u[:, index][:, None, None, None]


def _exact(function: Callable[..., Any], *values: Any) -> Any:
    """Evaluate in float64 and round to float32, so that the last bits of libraries do not show."""
    tf = tensorflow()
    return tf.cast(function(*(tf.cast(value, tf.float64) for value in values)), tf.float32)


def _sometimes(p: float, apply: BatchFn) -> BatchFn:
    """Run ``apply`` on the rows whose first number is below ``p``, and on those alone.

    ``apply`` is given the remaining numbers of these rows.
    """
    _probability(p)

    def maybe(images: Any, u: Any) -> Any:
        if p == 1.0:
            return apply(images, u[:, 1:])
        tf = tensorflow()
        chosen = tf.where(u[:, 0] < p)
        rows = chosen[:, 0]
        changed = apply(tf.gather(images, rows), tf.gather(u[:, 1:], rows))
        changed = tf.clip_by_value(changed, 0.0, 255.0)
        return tf.tensor_scatter_nd_update(images, chosen, changed)

    return maybe


def _gray(images: Any) -> Any:
    """f32[n, H, W, 1], the luma."""
    r, g, b = images[..., 0:1], images[..., 1:2], images[..., 2:3]
    return r * _LUMA[0] + g * _LUMA[1] + b * _LUMA[2]


@register("flip", level="batch", draws=1)
def flip(p: float = 0.5) -> BatchFn:
    """Mirror left and right."""
    return _sometimes(p, lambda images, u: images[:, :, ::-1])


@register("affine", level="batch", draws=6)
def affine(
    degrees: float = 0.0,
    translate: float = 0.0,
    scale_min: float = 1.0,
    scale_max: float = 1.0,
    shear: float = 0.0,
    fill: int = 255,
    p: float = 1.0,
) -> BatchFn:
    """Rotate, shear, scale and shift, in one bilinear interpolation.

    Args:
      degrees: rotation is drawn from [-degrees, degrees].
      translate: shift in each direction, as a fraction of the side, from [-translate, translate].
      scale_min: zoom is drawn from [scale_min, scale_max], log-uniform; above 1 enlarges.
      scale_max: see scale_min.
      shear: horizontal shear angle in degrees, from [-shear, shear].
      fill: grey level of what comes in from outside, or -1 to repeat the edge.
      p: probability that anything is done at all.
    """
    if degrees < 0 or translate < 0 or not 0 <= shear < 90:
        raise ValueError("degrees, translate and shear must not be negative, and shear below 90")
    if not 0 < scale_min <= scale_max:
        raise ValueError(f"need 0 < scale_min={scale_min} <= scale_max={scale_max}")
    if not -1 <= fill <= 255:
        raise ValueError(f"fill={fill} must be between 0 and 255, or -1 for the edge")
    log_min, log_max = math.log(scale_min), math.log(scale_max)

    def apply(images: Any, u: Any) -> Any:
        tf = tensorflow()
        height, width = tf.shape(images)[1], tf.shape(images)[2]
        side_y, side_x = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
        signed = 2.0 * u - 1.0
        angle = signed[:, 0] * math.radians(degrees)
        skew = _exact(tf.tan, signed[:, 1] * math.radians(shear))
        zoom = _exact(tf.exp, log_min + u[:, 2] * (log_max - log_min))
        cos, sin = _exact(tf.cos, angle) / zoom, _exact(tf.sin, angle) / zoom
        # The kernel wants the inverse map, output -> input, about the centre of the image.
        a, b = cos, sin + skew * cos
        c, d = -sin, cos - skew * sin
        center_x, center_y = (side_x - 1.0) / 2.0, (side_y - 1.0) / 2.0
        out_x = center_x + signed[:, 3] * translate * side_x
        out_y = center_y + signed[:, 4] * translate * side_y
        shift_x = center_x - a * out_x - b * out_y
        shift_y = center_y - c * out_x - d * out_y
        zero = tf.zeros_like(a)
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=tf.stack([a, b, shift_x, c, d, shift_y, zero, zero], axis=1),
            output_shape=tf.stack([height, width]),
            fill_value=tf.constant(float(max(fill, 0))),
            interpolation="BILINEAR",
            fill_mode="NEAREST" if fill < 0 else "CONSTANT",
        )

    return _sometimes(p, apply)


@register("rotate", level="batch", draws=6)
def rotate(degrees: float = 15.0, fill: int = 255, p: float = 1.0) -> BatchFn:
    """Rotate by an angle drawn from [-degrees, degrees]."""
    return affine(degrees=degrees, fill=fill, p=p)


@register("color_jitter", level="batch", draws=5)
def color_jitter(
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
    p: float = 1.0,
) -> BatchFn:
    """Change brightness, contrast, saturation and hue, in this order.

    Factors are drawn from [1 - x, 1 + x]. Hue turns the chroma plane of YIQ by up to ``hue`` full
    turns, which is linear in RGB and so costs a tenth of the way through HSV.
    """
    for name, value in (("brightness", brightness), ("contrast", contrast)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}={value} must be between 0 and 1")
    if saturation < 0.0:
        raise ValueError(f"saturation={saturation} must not be negative")
    if not 0.0 <= hue <= 0.5:
        raise ValueError(f"hue={hue} must be between 0 and 0.5 (half a turn)")

    def apply(images: Any, u: Any) -> Any:
        tf = tensorflow()
        signed = 2.0 * u - 1.0
        bright = 1.0 + brightness * _column(signed, 0)
        if contrast:
            images = tf.clip_by_value(images * bright, 0.0, 255.0)
            amount = 1.0 + contrast * _column(signed, 1)
            mean = tf.reduce_mean(_gray(images), axis=(1, 2), keepdims=True)
            images = images * amount + (1.0 - amount) * mean
        else:
            images = images * bright
        if not saturation and not hue:
            return images
        images = tf.clip_by_value(images, 0.0, 255.0)
        strength = tf.maximum(0.0, 1.0 + saturation * _column(signed, 2))
        return _turn_chroma(images, strength, _column(signed, 3) * (2.0 * math.pi * hue))

    return _sometimes(p, apply)


def _turn_chroma(images: Any, strength: Any, angle: Any) -> Any:
    """Scale chroma by ``strength`` and turn it by ``angle`` (radians), both f32[n, 1, 1, 1].

    With luma Y, the colour differences B-Y and R-Y (scaled to U, V) span the chroma plane.
    """
    tf = tensorflow()
    y = _gray(images)
    scale_u, scale_v = 0.492, 0.877
    chroma_u = (images[..., 2:3] - y) * scale_u
    chroma_v = (images[..., 0:1] - y) * scale_v
    cos, sin = _exact(tf.cos, angle) * strength, _exact(tf.sin, angle) * strength
    turned_u = chroma_u * cos - chroma_v * sin
    turned_v = chroma_u * sin + chroma_v * cos
    red = y + turned_v / scale_v
    blue = y + turned_u / scale_u
    green = (y - _LUMA[0] * red - _LUMA[2] * blue) / _LUMA[1]
    return tf.concat([red, green, blue], axis=-1)


@register("grayscale", level="batch", draws=1)
def grayscale(p: float = 0.1) -> BatchFn:
    """Remove all colour."""
    tile: Callable[[Any], Any] = lambda gray: tensorflow().repeat(gray, 3, axis=-1)  # noqa: E731
    return _sometimes(p, lambda images, u: tile(_gray(images)))


@register("invert", level="batch", draws=1)
def invert(p: float = 0.1) -> BatchFn:
    """Turn into the negative."""
    return _sometimes(p, lambda images, u: 255.0 - images)


@register("channel_shuffle", level="batch", draws=2)
def channel_shuffle(p: float = 0.1) -> BatchFn:
    """Permute red, green and blue."""

    def apply(images: Any, u: Any) -> Any:
        tf = tensorflow()
        orders = tf.constant([[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
        chosen = tf.gather(orders, tf.cast(u[:, 0] * 5.0, tf.int32))
        return tf.gather(images, chosen, axis=3, batch_dims=1)

    return _sometimes(p, apply)


@register("posterize", level="batch", draws=2)
def posterize(levels: int = 4, p: float = 0.1) -> BatchFn:
    """Keep only ``levels`` to ``4 * levels`` evenly spaced values in each channel."""
    if levels < 2:
        raise ValueError(f"levels={levels} must be at least 2")

    def apply(images: Any, u: Any) -> Any:
        tf = tensorflow()
        steps = _exact(lambda v: tf.floor(levels * tf.exp(v * math.log(4.0))), _column(u, 0)) - 1.0
        return tf.round(images * (steps / 255.0)) * (255.0 / steps)

    return _sometimes(p, apply)


@register("solarize", level="batch", draws=2)
def solarize(threshold: int = 128, p: float = 0.1) -> BatchFn:
    """Invert what is brighter than a threshold drawn from [threshold, 255]."""
    if not 0 <= threshold <= 255:
        raise ValueError(f"threshold={threshold} must be between 0 and 255")

    def apply(images: Any, u: Any) -> Any:
        limit = threshold + _column(u, 0) * (255.0 - threshold)
        return tensorflow().where(images > limit, 255.0 - images, images)

    return _sometimes(p, apply)


@register("gamma", level="batch", draws=2)
def gamma(limit: float = 1.5, p: float = 0.5) -> BatchFn:
    """Raise values to a power drawn from [1 / limit, limit], log-uniform."""
    if limit < 1.0:
        raise ValueError(f"limit={limit} must be at least 1")

    def apply(images: Any, u: Any) -> Any:
        tf = tensorflow()
        grid = tf.range(256, dtype=tf.float64)[None, :] / 255.0
        power = tf.exp((2.0 * tf.cast(u[:, :1], tf.float64) - 1.0) * math.log(limit))
        table = tf.cast(255.0 * tf.pow(grid, power), tf.float32)  # f32[n, 256]
        level = tf.cast(tf.round(images), tf.int32)
        flat = tf.reshape(level, [tf.shape(images)[0], -1])
        return tf.reshape(tf.gather(table, flat, batch_dims=1), tf.shape(images))

    return _sometimes(p, apply)


@register("autocontrast", level="batch", draws=1)
def autocontrast(p: float = 0.1) -> BatchFn:
    """Stretch each channel to the full range."""

    def apply(images: Any, u: Any) -> Any:
        tf = tensorflow()
        low = tf.reduce_min(images, axis=(1, 2), keepdims=True)
        high = tf.reduce_max(images, axis=(1, 2), keepdims=True)
        stretched = (images - low) * (255.0 / tf.maximum(high - low, 1.0))
        return tf.where(high - low >= 1.0, stretched, images)

    return _sometimes(p, apply)


@register("blur", level="batch", draws=2)
def blur(sigma_max: float = 1.5, p: float = 0.1) -> BatchFn:
    """Gaussian blur with a standard deviation in pixels drawn from [0.1, sigma_max]."""
    if not 0.1 <= sigma_max <= 20.0:
        raise ValueError(f"sigma_max={sigma_max} must be between 0.1 and 20 pixels")
    radius = max(1, math.ceil(2.0 * sigma_max))

    def apply(images: Any, u: Any) -> Any:
        tf = tensorflow()
        sigma = 0.1 + u[:, 0] * (sigma_max - 0.1)
        offsets = [float(k) for k in range(-radius, radius + 1)]
        weights = [_exact(lambda s, k=k: tf.exp(-0.5 * (k / s) ** 2), sigma) for k in offsets]
        total = tf.add_n(weights)
        kernel = [(weight / total)[:, None, None, None] for weight in weights]
        for axis in (1, 2):
            images = _convolve(images, kernel, radius, axis)
        return images

    return _sometimes(p, apply)


def _convolve(images: Any, kernel: list[Any], radius: int, axis: int) -> Any:
    """Weighted sum of shifted copies along one axis; beyond the border the edge is repeated."""
    tf = tensorflow()
    size = tf.shape(images)[axis]
    index = tf.range(size)
    parts = [
        weight * tf.gather(images, tf.clip_by_value(index + shift, 0, size - 1), axis=axis)
        for shift, weight in zip(range(-radius, radius + 1), kernel, strict=True)
    ]
    return tf.add_n(parts)


@register("edges", level="batch", draws=2)
def edges(strength: float = 1.0, p: float = 0.1) -> BatchFn:
    """Draw dark contours on white, as a pencil would: the gradient magnitude of the luma."""
    if strength <= 0:
        raise ValueError(f"strength={strength} must be above 0")

    def apply(images: Any, u: Any) -> Any:
        tf = tensorflow()
        gray = _gray(images)
        padded = tf.pad(gray, [[0, 0], [0, 1], [0, 1], [0, 0]], mode="SYMMETRIC")
        dx = padded[:, :-1, 1:] - gray
        dy = padded[:, 1:, :-1] - gray
        lines = tf.sqrt(dx * dx + dy * dy) * (strength * (1.0 + 2.0 * _column(u, 0)))
        return tf.repeat(255.0 - tf.minimum(lines, 255.0), 3, axis=-1)

    return _sometimes(p, apply)


@register("random_erasing", level="batch", draws=8)
def random_erasing(
    area_min: float = 0.02, area_max: float = 0.2, ratio_max: float = 3.0, p: float = 0.25
) -> BatchFn:
    """Cover a random rectangle with a random colour (Zhong et al., 2017, arXiv:1708.04896).

    Args:
      area_min: the rectangle has at least this fraction of the image's area.
      area_max: and at most this.
      ratio_max: its aspect ratio lies between 1 / ratio_max and ratio_max.
      p: probability.
    """
    if not 0 < area_min <= area_max < 1:
        raise ValueError(f"need 0 < area_min={area_min} <= area_max={area_max} < 1")
    if ratio_max < 1:
        raise ValueError(f"ratio_max={ratio_max} must be at least 1")

    def apply(images: Any, u: Any) -> Any:
        tf = tensorflow()
        area = area_min + _column(u, 0) * (area_max - area_min)
        ratio = _exact(lambda v: tf.exp((2.0 * v - 1.0) * math.log(ratio_max)), _column(u, 1))
        tall, wide = tf.minimum(tf.sqrt(area * ratio), 1.0), tf.minimum(tf.sqrt(area / ratio), 1.0)
        top, left = _column(u, 2) * (1.0 - tall), _column(u, 3) * (1.0 - wide)
        height, width = tf.shape(images)[1], tf.shape(images)[2]
        y = (tf.range(height, dtype=tf.float32) + 0.5) / tf.cast(height, tf.float32)
        x = (tf.range(width, dtype=tf.float32) + 0.5) / tf.cast(width, tf.float32)
        y, x = y[None, :, None, None], x[None, None, :, None]
        inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
        return tf.where(inside, 255.0 * u[:, None, None, 4:7], images)

    return _sometimes(p, apply)


@register("background", level="batch", draws=4)
def background(p: float = 0.5, white: int = 250) -> BatchFn:
    """Give pictures on a white ground a random colour behind them.

    Ground is what is white (every channel at least ``white``) in a straight line to an edge of the
    picture. It and the pixels beside it are multiplied by the colour, so that the soft edge of the
    thing in front blends into its new ground.
    """
    if not 1 <= white <= 255:
        raise ValueError(f"white={white} must be between 1 and 255")

    def apply(images: Any, u: Any) -> Any:
        tf = tensorflow()
        is_white = tf.cast(tf.reduce_min(images, axis=-1, keepdims=True) >= float(white), tf.float32)
        ground = tf.zeros_like(is_white)
        for axis in (1, 2):
            for reverse in (False, True):
                ground = tf.maximum(ground, tf.math.cumprod(is_white, axis=axis, reverse=reverse))
        ground = tf.nn.max_pool2d(ground, ksize=3, strides=1, padding="SAME")
        color = u[:, None, None, 0:3]
        return images * (1.0 - ground + ground * color)

    return _sometimes(p, apply)
