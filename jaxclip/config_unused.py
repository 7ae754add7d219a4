"""Keys that a configuration sets without effect, because of the value of another key.

They are no mistake that stops a run: ``--config.low_rank.rank=0`` on a file with patterns is how
one compares. But whoever sets ``loss`` beside ``objective`` may believe that it trains.

What keys of the configuration itself depend on is listed here. Options of a tower say it where they
are defined, by :func:`jaxclip.registry.dependent`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxclip import config_check
from jaxclip.registry import without_effect
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
            key
            for key in changed
            if any(key == name or key.startswith(f"{name}.") for name in rule.keys)
        ]
        if given and not rule.is_read(config):
            lines.append(_line(given, changed, rule.way))
    for section, sizes in _towers(config):
        names = [key.removeprefix(f"{section}.") for key in changed if key.startswith(section)]
        for way, unread in without_effect(sizes, names, section).items():
            lines.append(_line([f"{section}.{name}" for name in unread], changed, way))
    return lines


def _line(keys: list[str], changed: Mapping[str, Any], way: str) -> str:
    verb = "has" if len(keys) == 1 else "have"
    return f"{', '.join(f'{key}={changed[key]!r}' for key in keys)} {verb} no effect: {way}"


def _towers(config: Config) -> Iterator[tuple[str, Any]]:
    """The dataclasses of the towers' sizes, whose options say themselves what they depend on."""
    from jaxclip.models.sizes import CLIPConfig, TextConfig

    sizes = {key: value for key, value in config["model"].items() if key != "preset"}
    try:
        model = CLIPConfig.from_dict(sizes)
    except ValueError:
        return  # refused where it is built
    yield "model.image", model.image
    # All kinds of text towers have one dataclass; other kinds than its own read of it what they
    # like.
    if model.text.kind == TextConfig.kind:
        yield "model.text", model.text
