"""Which rule survives what: rules over learning rates, then under spikes of the gradient.

    jaxclip lab --config configs/lab_rules.py --workdir workdir/lab_rules
    jaxclip lab --config configs/lab_rules.py:clippers --workdir workdir/lab_clippers

Tiny CLIPs on the built-in emoji; what came out is in docs/stability_lab.md.
"""

RATES = [1e-3, 4e-3, 1.6e-2, 6.4e-2]


def clipped(name, **options):
    """AdamW behind a clipper."""
    return {"clip": {"name": name, **options}}


def get_config(arg=""):
    """The experiment; ``arg`` is empty or ``"clippers"``."""
    rules = {
        "": {
            "adamw": {},
            "adamw_clip1": clipped("global_norm", max_norm=1.0),
            "adamw_zclip": clipped("zclip", max_norm=None),
            "stable_adamw": {"name": "stable_adamw", "b2": 0.999},
            "adamw_adagc": clipped("adagc", warmup_steps=50),
            "stable_spam": {"name": "stable_spam", "b2": 0.999, "reset_interval": 200},
        },
        "clippers": {
            "adamw": {},
            "adamw_autoclip10": clipped("autoclip", percentile=10.0),
            "adamw_autoclip90": clipped("autoclip", percentile=90.0),
            "adamw_agc": clipped("agc", clipping=0.04),
            "adamw_coordinate": clipped("clip_by_coordinate", fraction=0.1),
        },
    }
    if arg not in rules:
        raise ValueError(f"configs/lab_rules.py has no variant {arg!r}; there is 'clippers'")
    at = {"k": 100.0, "share": 0.01, "start": 100}  # one step in a hundred, behind the warm-up
    return {
        "title": "Rules over learning rates and under spikes",
        "train": {"total_steps": 400, "optim": {"b2": 0.999}},
        "rules": rules[arg],
        "rates": RATES,
        "injectors": {
            "scale": {"name": "scale", **at},
            "direction": {"name": "direction", **at},
            "scale_patch": {"name": "scale", **at, "path": "^image/patch_embedding"},
        },
        "grid": [
            {"rates": [4e-3], "injectors": ["none", "scale", "direction"]},
            {"injectors": ["none"]},
            {"rates": [4e-3], "injectors": ["scale_patch"]},
        ],
    }
