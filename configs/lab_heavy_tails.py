"""Wrong captions and heavy tails: median estimates of the gradient beside clipping and momentum.

    jaxclip lab --config configs/lab_heavy_tails.py --workdir workdir/lab_heavy_tails

Each rule has the best rate of a coarse search without anything injected (1, 3, 10, …; seed 0). From
step 100 on a tenth or a fifth of the batches have the captions of other pictures (`labels`), or the
gradient has noise of Student's t with 1.5 degrees of freedom, of its own size (arXiv:2402.12828).
"""

SGD = {"name": "sgd", "weight_decay": 0.0}


def clipped(name, **options):
    """A clipper's section."""
    return {"clip": {"name": name, **options}}


def get_config():
    rules = {
        "sgd": (3e-3, {**SGD, "momentum": 0.9}),
        "sgd_clip1": (3e-2, {**SGD, "momentum": 0.9, **clipped("global_norm", max_norm=1.0)}),
        "median": (0.1, {**SGD, **clipped("median_clip", tau=3e-3)}),
        "median_vector": (0.1, {**SGD, **clipped("median_clip", tau=1.0, kind="vector")}),
        "adamw": (1e-3, {}),
        "adamw_clip1": (1e-3, clipped("global_norm", max_norm=1.0)),
        "adamw_zclip": (1e-3, clipped("zclip", max_norm=None)),
    }
    return {
        "title": "Wrong captions and heavy tails",
        "train": {"total_steps": 400, "optim": {"b2": 0.999}},
        "rules": {name: section for name, (_, section) in rules.items()},
        "rates": sorted({rate for rate, _ in rules.values()}),
        "damage_steps": 300,
        "injectors": {
            "labels10": {"name": "labels", "share": 0.1, "start": 100},
            "labels20": {"name": "labels", "share": 0.2, "start": 100},
            "tail": {"name": "heavy_tail", "k": 1.0, "df": 1.5, "start": 100},
        },
        "grid": [{"rules": [name], "rates": [rate]} for name, (rate, _) in rules.items()],
    }
