"""Which rule survives what: every rule over learning rates, then under spikes of the gradient.

    jaxclip lab --config configs/lab_rules.py --workdir workdir/lab_rules

Tiny CLIPs on the built-in emoji; the tables made of it are in docs/stability_lab.md.
"""

RATES = [1e-3, 4e-3, 1.6e-2, 6.4e-2]


def clipped(name, **options):
    """AdamW behind a clipper."""
    return {"clip": {"name": name, **options}}


def get_config():
    rules = {
        "adamw": {},
        "adamw_clip1": clipped("global_norm", max_norm=1.0),
        "adamw_zclip": clipped("zclip", max_norm=None),
        "adamw_adagc": clipped("adagc", warmup_steps=50),
        "stable_adamw": {"name": "stable_adamw", "b2": 0.999},
        "stable_spam": {"name": "stable_spam", "b2": 0.999, "reset_interval": 200},
        "adamw_b2_095": {"b2": 0.95},
        "adamw_zclip1": clipped("zclip", max_norm=1.0),
        "adamw_autoclip90": clipped("autoclip", percentile=90.0),
        "adamw_autoclip10": clipped("autoclip", percentile=10.0),
        "adamw_agc": clipped("agc", clipping=0.04),
        "adamw_coordinate": clipped("clip_by_coordinate", fraction=0.1),
        "spam": {"name": "spam", "b2": 0.999, "reset_interval": 200, "warmup_steps": 50},
    }
    return {
        "title": "Rules over learning rates and under spikes",
        "train": {"total_steps": 400, "optim": {"b2": 0.999}},
        "rules": rules,
        "rates": RATES,
        "injectors": {
            # One step in a hundred, behind the warm-up.
            "scale": {"name": "scale", "k": 100.0, "share": 0.01, "start": 100},
            "direction": {"name": "direction", "k": 100.0, "share": 0.01, "start": 100},
            # One tensor alone.
            "scale_patch": {
                "name": "scale", "k": 100.0, "share": 0.01, "start": 100,
                "path": "^image/patch_embedding",
            },
        },
        "grid": [
            {"injectors": ["none"]},
            {"rates": [4e-3], "injectors": ["scale", "direction", "scale_patch"]},
        ],
    }  # fmt: skip
