"""Nothing injected: rates that are too high, depth, no warm-up, and cures in the towers.

    jaxclip lab --config configs/lab_cures.py --workdir workdir/lab_cures
    jaxclip lab --config configs/lab_cures.py:towers --workdir workdir/lab_towers
    jaxclip lab --config configs/lab_cures.py:z_loss --workdir workdir/lab_z_loss

What breaks by itself at this size, and what holds it together (arXiv:2309.14322 for the proxies).
"""


def both(**options):
    """Options of both towers."""
    return {"image": options, "text": options}


def get_config(arg=""):
    """The experiment; ``arg`` is empty, ``"towers"`` or ``"z_loss"``."""
    models = {
        "": {
            "plain": {},
            "deep": {"image": {"depth": 6}},
            "tract": {"image": {"first_layer": "tract"}},
            "sincos": {"image": {"positions": "sincos"}},
        },
        "towers": {
            "plain": {},
            "qk_norm": both(qk_norm=True),
            "soft_cap": both(attention_soft_cap=20.0),
            "layer_scale": both(layer_scale=0.1),
        },
        "z_loss": {"plain": {}},
    }
    if arg not in models:
        known = ", ".join(repr(name) for name in models if name)
        raise ValueError(f"configs/lab_cures.py has no variant {arg!r}; there is {known}")
    grid = [{"rules": ["adamw"], "precisions": ["float32"]}]
    if not arg:
        grid.append({"rules": ["adamw_no_warmup"], "models": ["plain"], "precisions": ["float32"]})
        # MoCo v3's cure: a patch embedding that stays at its initial values.
        grid.append({"rules": ["frozen_patch"], "models": ["sincos"], "precisions": ["float32"]})
        grid.append({"rules": ["adamw"], "models": ["plain"], "precisions": ["bfloat16"]})
    train = {"total_steps": 400, "optim": {"b2": 0.999}}
    if arg == "z_loss":
        # The weight of PaLM and of arXiv:2309.14322. The losses shown have the term in them.
        train["objective"] = [{"name": "z_loss", "z": 1e-4}]
    return {
        "title": "What breaks by itself, and cures in the towers",
        "train": train,
        "rules": {
            "adamw": {},
            "adamw_no_warmup": {"schedule": {"name": "constant", "warmup_steps": 0}},
            "frozen_patch": {"groups": [{"pattern": "^image/patch_embedding", "frozen": True}]},
        },
        "precisions": ["float32", "bfloat16"],
        "rates": [1e-3, 4e-3, 1.6e-2, 6.4e-2],
        "models": models[arg],
        "grid": grid,
    }
