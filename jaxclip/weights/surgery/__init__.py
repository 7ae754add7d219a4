"""Surgery on trees of parameters: pure functions, each the identity where nothing is asked."""

from jaxclip.weights.surgery.branches import fold_branches
from jaxclip.weights.surgery.lora import init_lora, merge_lora
from jaxclip.weights.surgery.positions import (
    resize_image,
    resize_table,
    stretch_positions,
    stretch_text,
)
from jaxclip.weights.surgery.soups import greedy_soup, uniform_soup, wise_ft

__all__ = [
    "fold_branches",
    "greedy_soup",
    "init_lora",
    "merge_lora",
    "resize_image",
    "resize_table",
    "stretch_positions",
    "stretch_text",
    "uniform_soup",
    "wise_ft",
]
