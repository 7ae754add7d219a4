"""Claims of papers whose direction a small run on the built-in pictures can show, and their arms.

What is compared, and by which measure, stands here before anything is run: :mod:`.claims` reports
every claim of the list, whichever way it comes out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxclip import fields as field_lib
from jaxclip.objectives.contrastive import Contrastive

# Splits of :func:`jaxclip.bench.claim_arm.write_data`: one artist's pictures, half of them, and
# another artist's, which judge.
TRAIN, HALF, JUDGE = "noto", "noto_half", "twemoji"

# Of configs/emoji.py: pictures of half the size, a narrower stem, and no end of the schedule, so
# that a run may be judged after any number of steps, by the average of its weights.
SMALL: Mapping[str, Any] = {
    "data.image_size": 32,
    "model.image.patch_size": 8,
    "model.image.stem_widths": [32, 64],
    "model.text.width": 128,
    "ema_decay": 0.98,
}

# 64 patches without a stem, for what is about patches.
PATCHES: Mapping[str, Any] = {
    "model.image.stem": "patch",
    "model.image.patch_size": 4,
    "model.image.width": 96,
    "model.image.num_heads": 3,
    "model.image.mlp_dim": 384,
    "model.image.depth": 2,
}


@dataclasses.dataclass(frozen=True)
class OneCaption(Contrastive):
    """CLIP's loss on one of a record's captions, always the same one.

    Attributes:
      policy: which (:class:`jaxclip.fields.Captions`).
    """

    policy: str = "first"

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {"text": field_lib.Captions(policy=self.policy)}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
      method: variant of ``configs/methods.py``.
      changes: keys that differ from it and from :data:`SMALL`.
      split: what is trained on.
      share: of the steps of the comparison.
      taught: ``teacher.path`` is the teacher's run.
      goes_on: starts from the teacher's run.
      metric: by which embeddings are compared: ``"cosine"`` or ``"squared"`` (distance).
    """

    method: str = "contrastive"
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    split: str = TRAIN
    share: float = 1.0
    taught: bool = False
    goes_on: bool = False
    metric: str = "cosine"


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says of its method, as a direction.

    Attributes:
      says: in words.
      source: arXiv number of the paper.
      baselines: arms that it is compared with.
      arm: the method.
      wanted: measure -> ``"up"``, ``"down"``, ``"kept"`` (not clearly worse).
      basis: ``"pictures"`` or ``"time"``: of which the paper speaks. Both are reported.
    """

    says: str
    source: str
    arm: str
    wanted: Mapping[str, str]
    baselines: tuple[str, ...] = ("contrastive",)
    basis: str = "pictures"


def _of_class(name: str, **options: Any) -> dict[str, Any]:
    return {"objective": [{"name": f"jaxclip.bench.claim_list:{name}", **options}]}


def _few_words(reduction: str) -> Arm:
    return Arm("contrastive", {"objective": [{"name": "clipa", **_FEW, "reduction": reduction}]})


_FEW = {"text_tokens": 5}
_LANGUAGES = {"en": 1, "de": 1, "fr": 1, "es": 1}
_SLOWLY = {"optim.learning_rate": 1e-4}

ARMS: Mapping[str, Arm] = {
    "contrastive": Arm(),
    "dcl": Arm("dcl"),
    "sigmoid": Arm(
        changes={
            "objective": [{"name": "contrastive", "kind": "sigmoid"}],
            "model.logit_bias_init": -10.0,
            "model.logit_scale_init": 2.3,
        }
    ),
    "align_uniform": Arm("align_uniform"),
    "negclip": Arm("negclip"),
    "euclip": Arm("euclip", metric="squared"),
    "names": Arm(changes=_of_class("OneCaption", policy="first")),
    "long": Arm(changes=_of_class("OneCaption", policy="longest")),
    "languages": Arm(
        changes={"objective": [{"name": "laclip", "shares": _LANGUAGES, "min_words": 0}]}
    ),
    "first_words": _few_words("first"),
    "syntax_words": _few_words("syntax"),
    "plain_pictures": Arm(changes={"data.image_ops": "resize"}),
    "half_augmented": Arm(split=HALF),
    "patches": Arm(changes=PATCHES),
    "tract": Arm(changes={**PATCHES, "model.image.first_layer": "tract"}),
    "flip": Arm("flip", PATCHES),
    "mobileclip": Arm("mobileclip", taught=True),
    "gone_on": Arm(changes=_SLOWLY, share=0.2, goes_on=True),
    "clip_refine": Arm("clip_refine", _SLOWLY, share=0.2, taught=True, goes_on=True),
    "slip": Arm("slip"),
    "clip_rocket": Arm("clip_rocket"),
}

# In the order in which they are run.
CLAIMS: Mapping[str, Claim] = {
    "dcl": Claim(
        "leaving the pair out of the denominator helps small batches",
        "2110.06848",
        "dcl",
        {"top5": "up"},
    ),
    "captions": Claim(
        "drawing one of several wordings beats one fixed caption",
        "2305.20088",
        "contrastive",
        {"top5": "up"},
        baselines=("names",),
    ),
    "mixture": Claim(
        "a mixture of short and enriched captions beats either alone on zero-shot and retrieval "
        "together",
        "2310.07699",
        "contrastive",
        {"both5": "up"},
        baselines=("names", "long"),
    ),
    "augmented": Claim(
        "augmentation of pictures helps where there are few",
        "2404.08197",
        "contrastive",
        {"top5": "up"},
        baselines=("plain_pictures",),
    ),
    "languages": Claim(
        "captions in other languages help English, too",
        "2410.23370",
        "languages",
        {"top5": "up"},
    ),
    "augmentation": Claim(
        "augmentation of half of the data is worth all of the data without",
        "2404.08197",
        "half_augmented",
        {"top5": "kept"},
        baselines=("plain_pictures",),
    ),
    "gap": Claim(
        "alignment and uniformity terms narrow the gap and spread the embeddings; zero-shot is "
        "kept",
        "2405.18570",
        "align_uniform",
        {"gap": "down", "uniform": "down", "top5": "kept"},
    ),
    "sigmoid": Claim(
        "sigmoid loss beats softmax at small batches", "2303.15343", "sigmoid", {"top5": "up"}
    ),
    "negclip": Claim(
        "hard negatives teach the order of words; retrieval is kept",
        "2210.01936",
        "negclip",
        {"order": "up", "long5": "kept"},
    ),
    "euclip": Claim(
        "distances are no worse than cosines", "2409.13079", "euclip", {"top5": "kept"}
    ),
    "clip_refine": Claim(
        "a short refinement narrows the gap and does better than going on",
        "2504.12717",
        "clip_refine",
        {"gap": "down", "top5": "up"},
        baselines=("gone_on",),
    ),
    "few_words": Claim(
        "of short texts the telling words are better than the first ones",
        "2305.07017",
        "syntax_words",
        {"top5": "up"},
        baselines=("first_words",),
    ),
    "mobileclip": Claim(
        "a teacher's soft targets help a student of as many steps",
        "2311.17049",
        "mobileclip",
        {"top5": "up"},
    ),
    "flip": Claim(
        "leaving out half of the patches is better in the same time",
        "2212.00794",
        "flip",
        {"top5": "up"},
        baselines=("patches",),
        basis="time",
    ),
    "tract": Claim(
        "whitening the first layer's gradient needs fewer steps",
        "2410.23970",
        "tract",
        {"top5": "up"},
        baselines=("patches",),
    ),
    "stem": Claim(
        "with little data a plain vision transformer is behind a convolutional stem",
        "2404.08197",
        "patches",
        {"top5": "down"},
    ),
    "slip": Claim(
        "self-supervision beside CLIP helps with few pictures", "2112.12750", "slip", {"top5": "up"}
    ),
    "rocket": Claim(
        "strong views of both sides help on small data", "2305.08675", "clip_rocket", {"top5": "up"}
    ),
}
