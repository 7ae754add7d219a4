"""Few bits: AdamW, SPAM and Stable-SPAM with its parts, over rates and emulated precisions.

    jaxclip lab --config configs/lab_low_bit.py --workdir workdir/lab_low_bit
    jaxclip lab --config configs/lab_low_bit.py:octav --workdir workdir/lab_octav

The blocks' linear layers multiply rounded numbers (docs/stability_lab.md says how). Stable-SPAM is
AdaClip, AdaGN and a reset of the moments before Adam; the parts stand alone before AdamW. `octav`
is about where to clip before rounding: at the largest number or at the least square error (OCTAV),
with three gradients of what is clipped: 1, 0 (`clipped`) and s / |x| (`mad`).
"""


def octav():
    """AdamW in 4, 3 and 2 bits, with scales of rows and channels."""
    ways = ["", "_octav", "_octav_clipped", "_octav_mad"]
    return {
        "title": "Where to clip before rounding",
        "train": {"total_steps": 400, "optim": {"b2": 0.999}},
        "rules": {"adamw": {}},
        "rates": [1e-3],
        "precisions": ["float32", *(f"int{bits}{way}" for bits in (4, 3, 2) for way in ways)],
    }


def get_config(arg=""):
    """The experiment; ``arg`` is empty or ``"octav"``."""
    if arg == "octav":
        return octav()
    if arg:
        raise ValueError(f"configs/lab_low_bit.py has no variant {arg!r}; there is 'octav'")
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
            {"precisions": ["int4", "mxfp4"]},
        ],
    }
