"""Surgery on trees of parameters: pure functions, each the identity where nothing is asked."""

from jaxclip.weights.surgery.branches import fold_branches
from jaxclip.weights.surgery.inherit import inherit
from jaxclip.weights.surgery.lora import init_lora, merge_lora
from jaxclip.weights.surgery.positions import (
    resize_image,
    resize_table,
    stretch_positions,
    stretch_text,
)
from jaxclip.weights.surgery.prune import prune
from jaxclip.weights.surgery.registers import add_registers
from jaxclip.weights.surgery.soups import greedy_soup, uniform_soup, wise_ft
from jaxclip.weights.surgery.upcycle import upcycle
from jaxclip.weights.surgery.vocabulary import resize_vocabulary, rows_by_name

__all__ = [
    "add_registers",
    "fold_branches",
    "greedy_soup",
    "inherit",
    "init_lora",
    "merge_lora",
    "prune",
    "resize_image",
    "resize_table",
    "resize_vocabulary",
    "rows_by_name",
    "stretch_positions",
    "stretch_text",
    "uniform_soup",
    "upcycle",
    "wise_ft",
]
