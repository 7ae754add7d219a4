"""The emoji recipe with another training method, to compare methods at one size.

    bash launch/local.sh configs/methods.py:slip
    bash launch/local.sh configs/methods.py:flip
    bash launch/local.sh configs/methods.py:flip_unmasked --config.init_from=workdir/methods-flip

What follows the colon is an objective of docs/methods.md, or a second phase of SECOND_PHASES. The
run goes to ``workdir/methods-<name>``, or where ``WORKDIR=… bash launch/local.sh …`` says.

Distillation wants a teacher, which is a finished run, and takes its architecture from there:

    bash launch/local.sh configs/emoji_long.py
    bash launch/local.sh configs/methods.py:mobileclip --config.teacher.path=workdir/emoji_long
    bash launch/local.sh configs/methods.py:affinity --config.teacher.path=workdir/emoji_long

Or its vectors are stored first, of augmentations that are replayed (docs/methods.md):

    jaxclip data reinforce --data emoji --to data/strong --teacher workdir/emoji_long
    bash launch/local.sh configs/methods.py:mobileclip_reinforced --config.teacher.path=data/strong

Pictures as patches, of which a batch has 16, 36 or 64 (NaFlex):

    bash launch/local.sh configs/methods.py:naflex

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

# Options that suit towers of 192 and 128 channels; a method that is not here has its defaults.
OPTIONS = {
    "slip": {"image_ops": STRONG_OPS, "width": 512, "features": 128},
    # The recipe's text tower is bidirectional.
    "coca": {"from_embeddings": True, "num_queries": 16},
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
    # British names and keywords stand for synthetic captions.
    "alip": {"source": "en-gb"},
    # An episode is a pass over the 3488 pictures of 1744 ideas.
    "protoclip": {"num_clusters": 256, "episode_size": 3488, "hidden": 512},
}

FROZEN = {"kind": "frozen"}  # teacher.path is given on the command line

TEACHERS = {
    "byolip": {"kind": "ema", "decay": 0.99},
    "a_clip": {"kind": "ema", "decay": [[0, 0.996], [2000, 1.0]]},
    **dict.fromkeys(("mobileclip", "affinity", "clip_refine", "mod_x"), FROZEN),
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
    # Both pictures of an idea, with captions of their own, stand in a batch of 64 ideas.
    "unicl": {"data.examples_per_class": 2},
    "euclip": {"model.logit_scale_init": 0.0},
    # Products of three unit vectors are smaller than cosines, by about the root of 256.
    "symile": {"logit_scale_max": 7.0},
}

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
}


def get_config(arg: str = "contrastive") -> ConfigDict:
    """The experiment; ``arg`` is the name of the method."""
    config = emoji.get_config()
    name, options, share = SECOND_PHASES.get(arg, (arg, OPTIONS.get(arg, {}), 1.0))
    config.objective = [{"name": name, **options}]
    if arg == "mobileclip_reinforced":
        config.teacher = {"kind": "reinforced"}  # teacher.path is given on the command line
    elif name in TEACHERS:
        config.teacher = TEACHERS[name]
    for key, value in {"naflex": NAFLEX, **CHANGES}.get(arg, {}).items():
        section, _, last = key.rpartition(".")
        target = config[section] if section else config
        target[last] = value
    if share < 1.0:
        config.total_steps = int(share * config.total_steps)
        config.optim.learning_rate *= share
        config.optim.schedule.warmup_steps = int(share * config.optim.schedule.warmup_steps)
        config.evaluate.every_steps = config.checkpoint.every_steps = config.total_steps
    return config
