"""CLIPA: short texts beside small pictures, and a short tuning at full length."""

from __future__ import annotations

import dataclasses

from jaxclip import fields as field_lib
from jaxclip.objectives._checks import check_choice, check_count
from jaxclip.objectives.contrastive import Contrastive

WAYS = ("first", "random", "block", "syntax")


@dataclasses.dataclass(frozen=True)
class CLIPA(Contrastive):
    """Li et al. 2023, an inverse scaling law for CLIP training (arXiv:2305.07017), and CLIPA-v2
    (arXiv:2306.15658): the loss of :class:`Contrastive` on captions of few tokens.

    The larger the model, the fewer tokens it needs in most of its training. Pictures are small, not
    masked: ``data.image_size`` and ``model.image.positions = "sincos"``, whose table fits any size.
    Texts of more words than there is room for keep the first ones, a random subset, a block, or the
    most telling ones (``syntax``), then are cut to ``text_tokens``. A second run from those weights
    (``init_from``) has the full size and length: ``configs/methods.py:clipa`` and ``clipa_full``.

    CLIPA-v2 H/14: 84 px and 8 tokens, batch 65,536, 12.8 billion samples, 8e-6 * B / 256, weight
    decay 0.2, betas 0.9 and 0.95, 3200 steps of warm-up (with fewer it collapses), crops of 0.4 of
    the area or more; then 224 px and 32 tokens, 4e-7 * B / 256, 512 million samples, 30% of the
    patches masked; then 336 px, 128 million, 40%. Its pool is ``model.image.norm_after_pool``: the
    mean of the patches, then the norm, with a class token that is not in the mean.

    The other options are those of :class:`Contrastive`.

    Attributes:
      text_tokens: tokens of a text, start and end among them; 0 for ``tokenizer.context_length``.
      reduction: ``"first"``, ``"random"``, ``"block"`` or ``"syntax"``.
      ranks: of words, for ``"syntax"``: a JSON file, see ``few_words``
        (:mod:`jaxclip.data.text_ops.few_words`).
      special: tokens beside those of words: 2 for a start and an end (CLIP's BPE), 1 for one.
    """

    text_tokens: int = 8
    reduction: str = "syntax"
    ranks: str = ""
    special: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("clipa.text_tokens", self.text_tokens, 0)
        check_count("clipa.special", self.special, 0)
        check_choice("clipa.reduction", self.reduction, WAYS)
        if self.text_tokens and self.text_tokens <= self.special:
            raise ValueError(
                f"clipa.text_tokens={self.text_tokens} has no room for a word beside special="
                f"{self.special} tokens"
            )
        if '"' in self.ranks:
            raise ValueError(f"clipa.ranks={self.ranks!r} must have no double quotes")

    @property
    def fields(self) -> field_lib.BatchSpec:
        if not self.text_tokens:
            return {}
        ranks = f', ranks="{self.ranks}"' if self.ranks else ""
        ops = f'few_words({self.text_tokens - self.special}, "{self.reduction}"{ranks})'
        return {"text": field_lib.Captions(length=self.text_tokens, ops=ops)}
