"""Nothing injected: rates that are too high, depth, no warm-up, and cures in the towers.

    jaxclip lab --config configs/lab_cures.py --workdir workdir/lab_cures

What breaks by itself at this size, and what holds it together (arXiv:2309.14322 for the proxies).
"""


def get_config():
    deep = {"image": {"depth": 6}}
    return {
        "title": "What breaks by itself, and cures in the towers",
        "train": {"total_steps": 400, "optim": {"b2": 0.999}},
        "rules": {
            "adamw": {},
            "adamw_no_warmup": {"schedule": {"name": "constant", "warmup_steps": 0}},
        },
        "rates": [1e-3, 4e-3, 1.6e-2, 6.4e-2],
        "models": {
            "plain": {},
            "deep": deep,
            "tract": {"image": {"first_layer": "tract"}},
        },
        "grid": [
            {"rules": ["adamw"]},
            {"rules": ["adamw_no_warmup"], "models": ["plain"]},
        ],
    }
