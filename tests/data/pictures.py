"""Pictures to compare preprocessing on."""

import numpy as np
from PIL import Image

# (width, height): odd, even, tall, wide, smaller than a model's input, and extreme.
SIZES = (
    (224, 224), (225, 224), (224, 225), (227, 229), (333, 250), (250, 333), (500, 375), (375, 501),
    (641, 427), (427, 640), (100, 100), (99, 101), (31, 57), (57, 31), (223, 400), (400, 223),
    (225, 451), (1021, 300), (300, 1023), (10, 300), (299, 7), (768, 512), (513, 769), (223, 223),
)  # fmt: skip


def photo(width, height, seed=0):
    """Like a photo: smooth shading, edges, texture and noise; an RGB image."""
    rng = np.random.default_rng([seed, width, height])
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    pixels = np.zeros((height, width, 3))
    for channel in range(3):
        angle, period = rng.uniform(0, np.pi), rng.uniform(20, 200)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / period)
        pixels[..., channel] = 128 + 70 * wave
    for _ in range(12):
        center, radius = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.02, 0.3) * width
        inside = (x - center[0]) ** 2 + (y - center[1]) ** 2 < radius**2
        pixels[inside] = 0.4 * pixels[inside] + 0.6 * rng.uniform(0, 255, 3)
    pixels += rng.normal(0, 12, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
