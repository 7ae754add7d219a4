"""Spikes behind a second moment that lags: `stale_v` and a shift of the data, over beta2.

    jaxclip lab --config configs/lab_stale_v.py --workdir workdir/lab_stale_v

Up to step 1000 the image tower's gradients are a thirtieth of what they are, which Adam does not
see. Then they are as they are: Wortsman et al.'s cause of CLIP's loss spikes (arXiv:2304.13013).
"""


def get_config():
    return {
        "title": "A second moment that lags behind",
        "train": {"total_steps": 1100, "optim": {"b2": 0.999}},
        "rules": {
            "adamw_b2_0999": {},
            "stable_adamw_b2_0999": {"name": "stable_adamw", "b2": 0.999},
            "adamw_b2_099": {"b2": 0.99},
            "adamw_b2_095": {"b2": 0.95},
            "adamw_b2_09": {"b2": 0.9},
            "adamw_clip1": {"clip": {"name": "global_norm", "max_norm": 1.0}},
            "adamw_zclip": {"clip": {"name": "zclip", "max_norm": None}},
            "adamw_adagc": {"clip": {"name": "adagc", "warmup_steps": 50}},
        },
        "rates": [4e-3],
        "damage_steps": 100,
        "injectors": {
            "stale_v": {"name": "stale_v", "k": 30.0, "start": 1000, "path": "^image/"},
            # Nothing made up: Noto's pictures up to step 1000, Twemoji's from then on.
            "shift": {"name": "shift", "start": 1000},
        },
        "grid": [
            {"injectors": ["none", "stale_v"]},
            {
                "rules": ["adamw_b2_0999", "adamw_b2_095", "stable_adamw_b2_0999"],
                "injectors": ["shift"],
            },
        ],
        # The patch embedding, and a layer in the middle, which the paper has for comparison.
        "watch": ["^image/patch_embedding", "^image/blocks_1/mlp/up/kernel"],
    }
