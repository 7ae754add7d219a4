"""Keys that a configuration sets without effect, because of the value of another key.

They are no mistake that stops a run: ``--config.low_rank.rank=0`` on a file with patterns is how
one compares. But whoever sets ``loss`` beside ``objective`` may believe that it trains.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxclip import config_check
from jaxclip.spike_actions import REWIND, as_actions

Config = Mapping[str, Any]


class _Rule(NamedTuple):
    """When some keys are read.

    Attributes:
      keys: keys or sections.
      is_read: of a resolved configuration; anything true where they are.
      way: what makes them count.
    """

    keys: tuple[str, ...]
    is_read: Callable[[Config], Any]
    way: str


def _acts(action: str) -> Callable[[Config], bool]:
    return lambda config: action in as_actions(config["on_spike"]["actions"])


def _watches(config: Config) -> bool:
    return config["watch"]["enabled"]


def _evaluates(config: Config) -> bool:
    keys = ("zero_shot", "retrieval", "gallery_split", "tasks")
    return any(config["evaluate"][key] for key in keys)


def _starts_anew(config: Config) -> bool:
    """Whether the model's ``logit_scale`` is made, not taken from elsewhere."""
    patterns = config["init_from_exclude"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return not config["init_from"] or any(re.search(each, "logit_scale") for each in patterns)


def _teacher_is(*kinds: str) -> Callable[[Config], bool]:
    return lambda config: config["teacher"]["kind"] in kinds


def _tower(name: str, kind: str, is_read: Callable[[Config], Any]) -> Callable[[Config], Any]:
    """The same of a tower's sizes; towers of other kinds read what they like."""
    return lambda config: config["model"][name]["kind"] != kind or is_read(config["model"][name])


def _image(keys: str, is_read: Callable[[Config], Any], way: str) -> _Rule:
    names = tuple(f"model.image.{key}" for key in keys.split())
    return _Rule(names, _tower("image", "vit", is_read), way)


def _experts(tower: str, kind: str) -> _Rule:
    keys = ("expert_blocks", "experts_per_token", "expert_capacity")
    return _Rule(
        tuple(f"model.{tower}.{key}" for key in keys),
        _tower(tower, kind, lambda sizes: sizes["num_experts"]),
        f"set model.{tower}.num_experts",
    )


_RULES = (
    _Rule(
        ("loss",),
        lambda config: not config["objective"],
        "objective alone says what is trained; there it is "
        "{'name': 'contrastive', 'kind': 'sigmoid'}, say",
    ),
    _Rule(
        ("teacher.path",),
        _teacher_is("frozen", "reinforced"),
        "that is for teacher.kind='frozen' or 'reinforced'",
    ),
    _Rule(("teacher.decay",), _teacher_is("ema"), "that is for teacher.kind='ema'"),
    _Rule(
        ("teacher.size", "teacher.image_key", "teacher.text_key"),
        _teacher_is("stored"),
        "that is for teacher.kind='stored'",
    ),
    _Rule(("init_from_exclude",), lambda config: config["init_from"], "set init_from"),
    _Rule(
        ("model.logit_scale_init",),
        _starts_anew,
        "logit_scale comes from init_from; init_from_exclude=['logit_scale'] starts it anew",
    ),
    _Rule(
        ("logit_scale_max",),
        lambda config: not config_check.is_frozen(config, "logit_scale"),
        "optim freezes logit_scale",
    ),
    _Rule(
        ("low_rank.scaling", "low_rank.patterns"),
        lambda config: config["low_rank"]["rank"],
        "set low_rank.rank",
    ),
    _Rule(
        ("watch.threshold", "watch.window", "watch.min_history"),
        lambda config: _watches(config) or config["on_spike"]["actions"],
        "set watch.enabled=True or on_spike.actions",
    ),
    _Rule(
        ("watch.steps_kept", "watch.probe_every_steps", "watch.max_events"),
        _watches,
        "set watch.enabled=True",
    ),
    _Rule(
        ("watch.probe_examples",),
        lambda config: _watches(config) and config["watch"]["probe_every_steps"],
        "set watch.enabled=True and watch.probe_every_steps",
    ),
    _Rule(
        ("on_spike.rate_factor", "on_spike.rate_steps"),
        _acts("lower_rate"),
        "add 'lower_rate' to on_spike.actions",
    ),
    _Rule(
        tuple(f"on_spike.rewind_{key}" for key in ("steps", "batches", "beyond", "limit")),
        _acts(REWIND),
        "set on_spike.actions='rewind'",
    ),
    _Rule(
        ("checkpoint.keep_best", "checkpoint.best_mode"),
        lambda config: config["checkpoint"]["best_metric"] or not config["checkpoint"]["keep_best"],
        "set checkpoint.best_metric",
    ),
    _Rule(
        ("evaluate.every_steps",),
        _evaluates,
        "nothing is evaluated; set evaluate.zero_shot, retrieval or tasks",
    ),
    _Rule(
        ("evaluate.templates",),
        lambda config: config["evaluate"]["zero_shot"],
        "that is for the splits of evaluate.zero_shot; a task has templates of its own",
    ),
    _Rule(
        ("profile.start_step",),
        lambda config: config["profile"]["num_steps"],
        "set profile.num_steps",
    ),
    _image(
        "stem_widths stem_depth",
        lambda sizes: sizes["stem"] != "patch",
        "that is for model.image.stem='conv'",
    ),
    _image(
        "num_queries",
        lambda sizes: sizes["pool"] == "queries",
        "that is for model.image.pool='queries'",
    ),
    _image(
        "pool_heads pool_mlp_dim",
        lambda sizes: sizes["pool"] in ("map", "queries"),
        "that is for model.image.pool='map' or 'queries'",
    ),
    _image(
        "rope_grid rope_offset",
        lambda sizes: sizes["rope"] != "none",
        "that is for model.image.rope='yx' or 'xy'",
    ),
    _image(
        "class_position",
        lambda sizes: sizes["class_token"] or sizes["pool"] in ("cls", "queries"),
        "there is no class token",
    ),
    _image(
        "tract_lambda",
        lambda sizes: sizes["first_layer"] == "tract",
        "that is for model.image.first_layer='tract'",
    ),
    _experts("image", "vit"),
    _experts("text", "transformer"),
    _Rule(
        ("model.text.eos_id",),
        _tower("text", "transformer", lambda sizes: sizes["pool"] == "eos"),
        "that is for model.text.pool='eos'",
    ),
    _Rule(
        ("model.text.num_positions",),
        _tower("text", "transformer", lambda sizes: False),
        "that is for model.text.kind='roberta'",
    ),
)


def unused(config: Config, changed: Mapping[str, Any]) -> list[str]:
    """One line for each group of keys that are set and that nothing reads.

    Args:
      config: resolved configuration.
      changed: ``{key: value}`` of what is not as the defaults have it; keys at their default are
        not looked at.

    Returns:
      Lines such as ``"teacher.decay=0.9 has no effect: that is for teacher.kind='ema'"``.
    """
    lines = []
    for rule in _RULES:
        given = [
            f"{key}={value!r}"
            for key, value in changed.items()
            if any(key == name or key.startswith(f"{name}.") for name in rule.keys)
        ]
        if given and not rule.is_read(config):
            verb = "has" if len(given) == 1 else "have"
            lines.append(f"{', '.join(given)} {verb} no effect: {rule.way}")
    return lines
