"""The emoji recipe with another training method, to compare methods at one size.

    bash launch/local.sh configs/methods.py:slip
    bash launch/local.sh configs/methods.py:flip
    bash launch/local.sh configs/methods.py:flip_unmasked --config.init_from=workdir/methods-flip

What follows the colon is an objective of docs/methods.md, several of them (RECIPES), or a further
phase of a recipe (SECOND_PHASES). The run goes to ``workdir/methods-<name>``, or where
``WORKDIR=… bash launch/local.sh …`` says.

Distillation wants a teacher, which is a finished run, and takes its architecture from there:

    bash launch/local.sh configs/emoji_long.py
    bash launch/local.sh configs/methods.py:mobileclip --config.teacher.path=workdir/emoji_long
    bash launch/local.sh configs/methods.py:affinity --config.teacher.path=workdir/emoji_long

Or its vectors are stored first, of augmentations that are replayed (docs/methods.md):

    jaxclip data reinforce --data emoji --to data/strong --teacher workdir/emoji_long
    bash launch/local.sh configs/methods.py:mobileclip_reinforced --config.teacher.path=data/strong

Pictures as patches, of which a batch has 16, 36 or 64 (NaFlex):

    bash launch/local.sh configs/methods.py:naflex

Some want what the emoji records do not have: boxes (alpha_clip), vectors of other models
(llm2clip, sam_clip), cluster numbers (mlcd), maps (cliptex). ``--config.data.name`` names a data
set that has them; ``--dry_run`` runs any of them.

Two methods go on with a trained model, which is also their teacher:

    bash launch/local.sh configs/methods.py:clip_refine \\
        --config.teacher.path=workdir/emoji --config.init_from=workdir/emoji
    bash launch/local.sh configs/methods.py:mod_x \\
        --config.teacher.path=workdir/emoji --config.init_from=workdir/emoji
"""

import emoji
from ml_collections import ConfigDict

# Strong views of 64 pixels: nearer and farther than the recipe's, and not mirrored.
STRONG_OPS = (
    "affine(degrees=25, translate=0.15, scale_min=0.6, scale_max=1.5, shear=10)"
    "|color_jitter(0.4, 0.4, 0.4, 0.1, p=0.8)|grayscale(0.2)|blur(1.5, 0.5)"
    "|random_erasing(p=0.2)"
)

ROCKET = {"image_ops": STRONG_OPS, "width": 512, "features": 128}

SELF_DISTILLATION = {
    **{"num_local": 4, "local_size": 32, "prototypes": 1024, "width": 512, "features": 64},
    "local_ops": (
        "affine(degrees=25, translate=0.3, scale_min=1.5, scale_max=3.0)"
        "|color_jitter(0.4, 0.4, 0.2, 0.1, p=0.8)|grayscale(0.2)"
    ),
}

# Options that suit towers of 192 and 128 channels; a method that is not here has its defaults.
OPTIONS = {
    "slip": {"image_ops": STRONG_OPS, "width": 512, "features": 128},
    # The recipe's text tower is bidirectional.
    "coca": {"from_embeddings": True, "num_queries": 16},
    "sycoca": {"from_embeddings": True, "num_queries": 0, "rebuild_depth": 1},
    "filip": {"features": 128, "tile_size": 64},
    "a_clip": {"image_ops": STRONG_OPS, "width": 512, "features": 128},
    "sparc": {"features": 128},
    "clip_rocket": ROCKET,
    "byolip": {**ROCKET, "predict_width": 512, "predict_features": 64},
    "siamlip": {**ROCKET, "predict_width": 512, "predict_features": 64},
    "barlip": {**ROCKET, "bar_width": 512, "bar_features": 512},
    "swalip": ROCKET,
    # One teacher, at its own scale. It sees the same crop and caption, so captions may be drawn.
    "mobileclip": {
        "sizes": [256],
        "scales": [None],
        "captions": "random",
        "contrastive": 0.25,
        "distill": 0.75,
    },
    "affinity": {"scale": None, "teacher_scale": None},
    "cloc": {"num_regions": 4},
    "grain": {"num_regions": 4, "width": 128, "depth": 2, "num_heads": 4, "mlp_dim": 256},
    "villa": {"num_regions": 4},
    "mammo_clip": {"image_ops": STRONG_OPS},
    "tinyclip": {"scale": None, "teacher_scale": None, "target": [[0, 0.0], [1000, 0.25]]},
    "maccap": {"contrastive": 1.0},
    # British names and keywords stand for synthetic captions.
    "alip": {"source": "en-gb"},
    # A third of the captions are German, French or Spanish names and keywords of the same pictures.
    "laclip": {"shares": {"en": 0.7, "de": 0.1, "fr": 0.1, "es": 0.1}},
    "silc": SELF_DISTILLATION,
    "tips": {**SELF_DISTILLATION, "patch_prototypes": 1024},
    "llm2clip": {"size": 384},  # of a small sentence encoder
    "mlcd": {"num_classes": 256, "labels": 4, "negatives": 0.5},
    "unipt": {"image_layers": [0, 1], "text_layers": [0, 1]},
    "light_clip": {"features": 128, "depth": 1, "softness": [[0, 0.0], [2000, 0.2]]},
    "sam_clip": {"teachers": [{"key": "clip", "size": 512}, {"key": "sam", "size": 256}]},
    "cliptex": {"grid": 4},
    "dc_clip": {"shares": {"en": 1, "de": 1}, "contrastive": 1.0},
    # Two tokens less than half of the recipe's; pictures of 32 pixels.
    "clipa": {"text_tokens": 6},
    # An episode is a pass over the 3488 pictures of 1744 ideas.
    "protoclip": {"num_clusters": 256, "episode_size": 3488, "hidden": 512},
}

DISTILLED = ("mobileclip", "affinity", "tinyclip", "clip_refine", "mod_x", "dc_clip", "eva")
FROZEN = {"kind": "frozen"}  # teacher.path is given on the command line

TEACHERS = {
    "byolip": {"kind": "ema", "decay": 0.99},
    "a_clip": {"kind": "ema", "decay": [[0, 0.996], [2000, 1.0]]},
    **{name: {"kind": "ema", "decay": 0.966} for name in ("silc", "tips")},
    **dict.fromkeys(DISTILLED, FROZEN),
}

# Emoji on a coloured ground, with boxes and texts; evaluation goes on with `data.name`.
SCENES = {"data.mixture": [{"name": "scenes:emoji"}], "data.image_ops": "random_resized_crop(0.5)"}

# Patches of 8 pixels without a stem, of which a batch has one of three counts.
NAFLEX = {
    "model.image": {
        "patch_size": 8,
        "max_patches": 64,
        "pool": "map",
        "width": 192,
        "depth": 4,
        "num_heads": 4,
        "mlp_dim": 768,
    },
    "data.patch_counts": [16, 36, 64],
    "data.image_ops": "random_part(0.6, 1.0)|color_jitter|grayscale(0.1)",
}

# Other keys of the recipe that a method needs.
CHANGES = {
    **dict.fromkeys(("cloc", "grain", "villa"), SCENES),
    "naflex": NAFLEX,
    # Both pictures of an idea, with captions of their own, stand in a batch of 64 ideas.
    "unicl": {"data.examples_per_class": 2},
    "euclip": {"model.logit_scale_init": 0.0},
    # Products of three unit vectors are smaller than cosines, by about the root of 256.
    "symile": {"logit_scale_max": 7.0},
    "llm2clip": {
        **{"model.text.kind": "vector", "model.text.width": 384, "model.text.depth": 4},
        **{"model.text.mlp_dim": 768, "model.text.num_heads": 1},
        "model.text.projection": "linear_bias",
        # Names and captions have no vectors here.
        **{"evaluate.zero_shot": [], "evaluate.retrieval": [], "evaluate.gallery_split": ""},
        **{"evaluate.every_steps": 0, "checkpoint.best_metric": ""},
    },
    # The text tower and the temperature stay as they are, all else moves little.
    "alpha_clip": {
        "model.image.alpha": True,
        "optim.groups": [
            {"pattern": r"^image/.*alpha_embedding", "learning_rate_factor": 1.0},
            {"pattern": r"^image/", "learning_rate_factor": 0.01},
            {"pattern": r"^(text/|logit_scale)", "frozen": True},
        ],
    },
    "tinyclip": {
        "optim.groups": [{"pattern": r"^objective/tinyclip", "learning_rate_factor": 20.0}]
    },
    "clippings": {"data.examples_per_class": 2},
    "unipt": {"optim.groups": [{"pattern": r"^(?!objective/)", "frozen": True}]},
    "clipa": {"data.image_size": 32, "model.image.positions": "sincos"},
    "clipa_full": {"model.image.positions": "sincos"},
    # The text tower waits for its vectors; only the image tower learns.
    "basic_labels": {"optim.groups": [{"pattern": r"^(text/|logit_scale)", "frozen": True}]},
    "basic_texts": {"optim.groups": [{"pattern": r"^image/", "frozen": True}]},
}

# Several terms together.
RECIPES = {
    # SigLIP 2 (arXiv:2502.14786): sigmoid loss and decoder, and, in the last fifth of the run,
    # self-distillation with masked patches.
    "siglip2": [
        {"name": "contrastive", "kind": "sigmoid"},
        {"name": "locca", "contrastive": 0.0},
        {
            **{"name": "tips", **OPTIONS["tips"], "contrastive": 0.0, "masked": 2.5},
            "weight": [[1600, 0.0], [1601, 0.25]],
        },
    ],
    # RS-M-CLIP (arXiv:2410.23370): captions in several languages, and self-distillation.
    "rs_m_clip": [
        {"name": "laclip", "shares": {"en": 1, "de": 1, "fr": 1, "es": 1}},
        {"name": "silc", **SELF_DISTILLATION, "contrastive": 0.0},
    ],
}
CHANGES["siglip2"] = {"model.logit_bias_init": -10.0, "model.logit_scale_init": 2.3}
TEACHERS |= {"siglip2": TEACHERS["tips"], "rs_m_clip": TEACHERS["silc"]}

# Objective, its options, and the share of the recipe's steps and learning rate; a share of 1 is
# another way to train, not a second phase.
SECOND_PHASES = {
    "naflex": ("contrastive", {}, 1.0),
    "mobileclip_reinforced": (
        "mobileclip",
        {**OPTIONS["mobileclip"], "scales": [100.0]},
        1.0,
    ),
    "flip_unmasked": ("flip", {"mask_ratio": 0.0}, 0.1),
    "clip_refine": ("clip_refine", {}, 0.1),
    "mod_x": ("mod_x", {}, 0.1),
    # CLIPA: all of the picture and of the text, from the weights of configs/methods.py:clipa.
    "clipa_full": ("contrastive", {}, 0.1),
    # BASIC (arXiv:2111.10050): the image tower on labels, then the text tower with it frozen, then
    # both slowly; each from the weights of the one before (--config.init_from).
    "basic_labels": ("class_head", {"num_classes": 1906}, 1.0),
    "basic_texts": ("contrastive", {}, 1.0),
    "basic_both": ("contrastive", {}, 0.1),
}


def get_config(arg: str = "contrastive") -> ConfigDict:
    """The experiment; ``arg`` is the name of the method."""
    config = emoji.get_config()
    name, options, share = SECOND_PHASES.get(arg, (arg, OPTIONS.get(arg, {}), 1.0))
    config.objective = RECIPES.get(arg) or [{"name": name, **options}]
    if arg == "mobileclip_reinforced":
        config.teacher = {"kind": "reinforced"}  # teacher.path is given on the command line
    elif name in TEACHERS:
        config.teacher = TEACHERS[name]
    for key, value in CHANGES.get(arg, CHANGES.get(name, {})).items():
        *sections, last = key.split(".")
        target = config
        for section in sections:
            target = target[section]
        target[last] = value
    if share < 1.0:
        config.total_steps = int(share * config.total_steps)
        config.optim.learning_rate *= share
        config.optim.schedule.warmup_steps = int(share * config.optim.schedule.warmup_steps)
        config.evaluate.every_steps = config.checkpoint.every_steps = config.total_steps
    return config
