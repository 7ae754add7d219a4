"""Few bits: AdamW, SPAM and Stable-SPAM with its parts, over rates and emulated precisions.

    jaxclip lab --config configs/lab_low_bit.py --workdir workdir/lab_low_bit

The blocks' linear layers multiply rounded numbers (docs/stability_lab.md says how). Stable-SPAM is
AdaClip, AdaGN and a reset of the moments before Adam; the parts stand alone before AdamW.
"""


def get_config():
    return {
        "title": "Training in few bits",
        "train": {"total_steps": 400, "optim": {"b2": 0.999}},
        "rules": {
            "adamw": {},
            "adamw_clip1": {"clip": {"name": "global_norm", "max_norm": 1.0}},
            "spam": {"name": "spam", "b2": 0.999, "reset_interval": 200, "warmup_steps": 50},
            "stable_spam": {"name": "stable_spam", "b2": 0.999, "reset_interval": 200},
            "adamw_adaclip": {"clip": {"name": "adaclip"}},
            "adamw_adagn": {"clip": {"name": "adagn"}},
            "adamw_adaclip_adagn": {"clip": [{"name": "adaclip"}, {"name": "adagn"}]},
        },
        "rates": [1e-3, 4e-3, 1.6e-2],
        "precisions": ["float32", "int4", "mxfp4"],
        "grid": [
            {"rules": ["adamw", "adamw_clip1", "stable_spam"], "precisions": ["float32"]},
            {"precisions": ["int4"]},
            {"rules": ["adamw", "stable_spam"], "precisions": ["mxfp4"]},
        ],
    }
