"""Surgery on trees of parameters: pure functions, each the identity where nothing is asked."""

from jaxclip.weights.surgery.alpha import add_alpha
from jaxclip.weights.surgery.branches import fold_branches
from jaxclip.weights.surgery.inherit import inherit
from jaxclip.weights.surgery.lora import init_lora, merge_lora
from jaxclip.weights.surgery.masks import (
    TowerMasks,
    apply_masks,
    check_prunable,
    full_masks,
    remove_masked,
    sums_by_module,
)
from jaxclip.weights.surgery.net_trim import net_trim
from jaxclip.weights.surgery.positions import (
    resize_image,
    resize_table,
    stretch_positions,
    stretch_text,
)
from jaxclip.weights.surgery.registers import add_registers
from jaxclip.weights.surgery.scores import (
    hap_scores,
    keep_best,
    magnitude_scores,
    mope_scores,
)
from jaxclip.weights.surgery.soft_masks import remove_soft
from jaxclip.weights.surgery.soups import greedy_soup, uniform_soup, wise_ft
from jaxclip.weights.surgery.upcycle import upcycle
from jaxclip.weights.surgery.vocabulary import resize_vocabulary, rows_by_name

__all__ = [
    "TowerMasks",
    "add_alpha",
    "add_registers",
    "apply_masks",
    "check_prunable",
    "fold_branches",
    "full_masks",
    "greedy_soup",
    "hap_scores",
    "inherit",
    "init_lora",
    "keep_best",
    "magnitude_scores",
    "merge_lora",
    "mope_scores",
    "net_trim",
    "remove_masked",
    "remove_soft",
    "resize_image",
    "resize_table",
    "resize_vocabulary",
    "rows_by_name",
    "stretch_positions",
    "stretch_text",
    "sums_by_module",
    "uniform_soup",
    "upcycle",
    "wise_ft",
]
