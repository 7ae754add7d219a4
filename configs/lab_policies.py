"""What to do about a spike: the policies of `on_spike`, beside nothing and a clipper.

    jaxclip lab --config configs/lab_policies.py --workdir workdir/lab_policies

What goes wrong comes at step 250 of 400: a gradient 100 times too large, five batches with the
captions of other pictures, five of noise, a weight 2^20 times too large.
"""


def policy(actions, **options):
    """AdamW with actions against spikes."""
    return {"on_spike": {"actions": actions, **options}}


def get_config():
    at = 250
    return {
        "title": "Policies against spikes",
        "train": {
            "total_steps": 400,
            "optim": {"b2": 0.999},
            # Short runs: a history of a thousand steps would hold the fall from the start.
            "watch": {"enabled": True, "window": 100, "min_history": 50, "threshold": 7.0},
            "checkpoint": {"every_steps": 20},
        },
        "rules": {
            "adamw": {},
            "skip": policy("skip"),
            "clip": policy("clip"),
            "lower_rate": policy("lower_rate", rate_steps=20),
            "reset_moments": policy("reset_moments"),
            "rewind": policy("rewind", rewind_steps=10),
            "rewind_beyond": policy("rewind", rewind_steps=10, rewind_beyond=10),
            "adamw_zclip": {"clip": {"name": "zclip", "max_norm": None}},
        },
        "rates": [4e-3],
        "injectors": {
            "scale": {"name": "scale", "k": 100.0, "steps": [at]},
            "labels": {"name": "labels", "start": at, "count": 5},
            "pixels": {"name": "pixels", "start": at, "count": 5},
            "bitflip": {
                "name": "bitflip",
                "exponent": 20,
                "steps": [at],
                "path": "^image/blocks_1/mlp/up",
            },
        },
    }
