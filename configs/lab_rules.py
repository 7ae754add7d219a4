"""Which rule survives what: rules over learning rates, then under spikes of the gradient.

    jaxclip lab --config configs/lab_rules.py --workdir workdir/lab_rules
    jaxclip lab --config configs/lab_rules.py:clippers --workdir workdir/lab_clippers
    jaxclip lab --config configs/lab_rules.py:zclip --workdir workdir/lab_zclip
    jaxclip lab --config configs/lab_rules.py:percentiles --workdir workdir/lab_percentiles
    jaxclip lab --config configs/lab_rules.py:agc --workdir workdir/lab_agc

Tiny CLIPs on the built-in emoji; what came out is in docs/stability_lab.md.
"""

RATES = [1e-3, 4e-3, 1.6e-2, 6.4e-2]
PERCENTILES = (1, 10, 25, 50, 90, 100)
AGC = (0.0025, 0.01, 0.04, 0.16, 0.64)


def clipped(name, **options):
    """AdamW behind a clipper."""
    return {"clip": {"name": name, **options}}


def get_config(arg=""):
    """The experiment; ``arg`` is empty or a variant that the module's docstring names."""
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
        # Fixed clips at 1 and at the 90th percentile of AdamW's own norms at rates 0.001 and 0.016.
        "zclip": {
            "adamw": {},
            "adamw_clip1": clipped("global_norm", max_norm=1.0),
            "adamw_clip3": clipped("global_norm", max_norm=3.0),
            "adamw_clip16": clipped("global_norm", max_norm=16.0),
            "adamw_zclip": clipped("zclip", max_norm=None),
            "adamw_zclip_max1": clipped("zclip", max_norm=1.0),
        },
        "percentiles": {
            "adamw": {},
            **{f"autoclip{q}": clipped("autoclip", percentile=float(q)) for q in PERCENTILES},
        },
        "agc": {
            "adamw": {},
            **{f"agc{value}": clipped("agc", clipping=value) for value in AGC},
        },
    }
    if arg not in rules:
        raise ValueError(
            f"configs/lab_rules.py has no variant {arg!r}; there is "
            + ", ".join(repr(name) for name in rules if name)
        )
    at = {"k": 100.0, "share": 0.01, "start": 100}  # one step in a hundred, behind the warm-up
    spiked = {"rates": [4e-3], "injectors": ["none", "scale", "direction"]}
    one_tensor = {"rates": [4e-3], "injectors": ["scale_patch"]}
    return {
        "title": "Rules over learning rates and under spikes",
        "train": {"total_steps": 400, "optim": {"b2": 0.999}},
        "rules": rules[arg],
        "rates": RATES[:3] if arg == "zclip" else RATES,
        "injectors": {
            "scale": {"name": "scale", **at},
            "direction": {"name": "direction", **at},
            "scale_patch": {"name": "scale", **at, "path": "^image/patch_embedding"},
        },
        "grid": {
            "zclip": [{"injectors": ["none"]}],
            "percentiles": [spiked],
            "agc": [spiked, {"injectors": ["none"]}],
        }.get(arg, [spiked, {"injectors": ["none"]}, one_tensor]),
    }
