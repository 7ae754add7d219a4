"""What a lab's configuration holds: its keys, its cells, and what makes a cell what it is."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip import config as config_lib
from jaxclip import optim
from jaxclip.lab import injectors, precision
from jaxclip.registry import hint
from jaxclip.train import guard as guard_lib
from jaxclip.train import setup_checks

Config = dict[str, Any]

AXES = ("model", "precision", "rule", "rate", "injector", "seed")
_PLURAL = {axis: f"{axis}s" for axis in AXES}

# `train` where a lab says nothing: some milliseconds a step on one core.
TRAIN: Config = {
    "global_batch_size": 32,
    "total_steps": 600,
    "data": {"name": "emoji", "image_size": 16},
    "tokenizer": {"kind": "emoji_bpe", "context_length": 12},
    "model": {
        "preset": "tiny",
        "image": {"patch_size": 4, "width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 128},
        "text": {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 128},
        "embed_dim": 32,
    },
    # A constant rate: a falling one would hide what comes late.
    "optim": {
        "name": "adamw",
        "b1": 0.9,
        "weight_decay": 0.1,
        "schedule": {"name": "constant", "warmup_steps": 50},
    },
}

# Keys of `jaxclip train` that mean something here.
TRAIN_KEYS = (
    *TRAIN,
    "objective",
    "loss",
    "logit_scale_max",
    "precision",
    "remat",
    "scan_layers",
    "attention_implementation",
    "watch",
    "on_spike",
    "checkpoint",
)

DEFAULTS: Config = {
    "title": "",
    "note": "",
    "train": {},  # keys of `jaxclip train`, over TRAIN
    # name -> keys of `optim`, over train.optim; and "on_spike", its keys over train.on_spike
    "rules": {},
    "rates": [],
    "injectors": {"none": "none"},  # name -> section of jaxclip.lab.injectors
    "precisions": ["float32"],
    "models": {"plain": {}},  # name -> keys of `model`, over train.model
    "seeds": [0, 1, 2],
    # Parts of the grid: {"rules": [names], "rates": [...], …}; an axis that is not named is whole.
    "grid": [],
    "baseline": "",  # the rule that others are compared with; default: the first
    "last_steps": 50,  # whose mean is a cell's final loss
    "damage_steps": 200,  # after the first injection, over which the damage is summed
    "watch": [],  # patterns of tensors whose RMS is recorded
}


class Cell(NamedTuple):
    """One run of a grid, by the names that the configuration gives."""

    model: str
    precision: str
    rule: str
    rate: float
    injector: str
    seed: int

    def __str__(self) -> str:
        return ",".join(f"{axis}={value}" for axis, value in self._asdict().items())

    @property
    def program(self) -> tuple[str, str, str]:
        """What has to be compiled for it."""
        return self.model, self.precision, self.rule

    def clean(self) -> Cell:
        """The same run without anything injected."""
        return self._replace(injector="none")


def resolve(given: Mapping[str, Any]) -> Config:
    """Lay a lab's configuration over the defaults and check it, before anything compiles.

    Raises:
      ValueError: an unknown key, name or option, a missing part, or a value that can't be.
    """
    given = config_lib.to_plain(given)
    for key in given:
        if key not in DEFAULTS:
            way = "; put it into 'train'" if key in TRAIN_KEYS else hint(key, DEFAULTS)
            raise ValueError(f"unknown lab config key {key!r}{way}")
    config = {**copy.deepcopy(DEFAULTS), **given}
    for key, default in DEFAULTS.items():
        if type(config[key]) is not type(default):
            raise ValueError(
                f"lab config key {key!r} wants {type(default).__name__}, got {config[key]!r}"
            )
    for key in config["train"]:
        if key not in TRAIN_KEYS:
            raise ValueError(f"train.{key} has no meaning in the lab{hint(key, TRAIN_KEYS)}")
    config["train"] = _over(TRAIN, config["train"])
    for key in ("total_steps", "model", "optim"):
        value = config["train"][key]
        if type(value) is not type(TRAIN[key]):
            raise ValueError(f"train.{key} wants {type(TRAIN[key]).__name__}, got {value!r}")
    for key in ("rules", "rates", "seeds", "precisions", "models"):
        if not config[key]:
            raise ValueError(f"lab config key {key!r} is empty; name at least one")
    config["injectors"] = {"none": "none", **config["injectors"]}
    config["baseline"] = config["baseline"] or next(iter(config["rules"]))
    _check_values(config)
    for part in config["grid"]:
        _check_part(part, config)
    for model in config["models"]:
        for rule in config["rules"]:
            training(config, model, rule)
    return config


def training(config: Config, model: str, rule: str) -> Config:
    """The training configuration of a cell, with a learning rate of 1.

    Raises:
      ValueError: what ``jaxclip train`` refuses, or an option that has no meaning in the lab.
    """
    given = copy.deepcopy(config["train"])
    options = config["models"][model]
    if not isinstance(options, Mapping):
        raise ValueError(f"models.{model}={options!r} must be a mapping with keys of model")
    given["model"] = _over(given["model"], options)
    own = config["rules"][rule]
    if not isinstance(own, Mapping):
        raise ValueError(f"rules.{rule}={own!r} must be a mapping with keys of optim")
    own = dict(own)
    if "on_spike" in own:
        given["on_spike"] = _over(given.get("on_spike", {}), own.pop("on_spike"))
    if "learning_rate" in own or "learning_rate" in given["optim"]:
        raise ValueError(f"rules.{rule}: the learning rate is an axis of its own; set 'rates'")
    if own.get("update_clip") or own.get("sam"):
        raise ValueError(
            f"rules.{rule}: update_clip and sam are not for the lab, where updates are multiplied "
            "by the rate behind the rule; use clip or direction"
        )
    # Another optimizer has other options: of the base's only what all take.
    base = given["optim"]
    if own.get("name", base["name"]) != base["name"]:
        base = {key: base[key] for key in ("weight_decay", "schedule") if key in base}
    given["optim"] = {**base, **own, "learning_rate": 1.0}
    try:
        resolved = config_lib.resolve(given)
        rule_of_optim = optim.from_config(resolved["optim"], resolved["total_steps"])
        guard = guard_lib.from_config(resolved)
        if guard is not None and "reset_moments" in guard.actions:
            state = jax.eval_shape(rule_of_optim.init, {"w": jnp.zeros((2, 2))})
            setup_checks.check_guard(resolved, guard, state)
    except ValueError as error:
        raise ValueError(f"rules.{rule}, models.{model}: {error}") from error
    return resolved


def cells(config: Config) -> list[Cell]:
    """All cells of a resolved configuration, part by part; none twice.

    In a part those of a program stand together, as model, precision and rule are the first axes.
    """
    found: dict[Cell, None] = {}
    for part in config["grid"] or [{}]:
        axes = [list(part.get(_PLURAL[axis], config[_PLURAL[axis]])) for axis in AXES]
        for values in itertools.product(*axes):
            found[Cell(*values)._replace(rate=float(values[AXES.index("rate")]))] = None
    return list(found)


def parse_cell(text: str, config: Config) -> Cell:
    """The cell that ``"rule=adamw,rate=0.001,injector=none,seed=0"`` names.

    An axis with one value in the configuration may be left out.

    Raises:
      ValueError: an unknown axis or value, or one that is missing.
    """
    given: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        axis, equals, value = part.partition("=")
        if not equals or axis not in AXES:
            raise ValueError(f"--cell: {part!r} is no AXIS=VALUE{hint(axis, AXES)}")
        given[axis] = value
    for axis in AXES:
        choices = list(config[_PLURAL[axis]])
        if axis not in given and len(choices) > 1:
            raise ValueError(f"--cell: {axis} is missing; one of {', '.join(map(str, choices))}")
        value = given.get(axis, choices[0])
        if axis in ("rate", "seed"):
            try:  # any rate and seed will do, not only those of the grid
                given[axis] = float(value) if axis == "rate" else int(value)
            except ValueError:
                raise ValueError(f"--cell: {axis}={value!r} must be a number") from None
        elif value not in choices:
            raise ValueError(f"--cell: unknown {axis}={value!r}{hint(value, choices)}")
        else:
            given[axis] = value
    return Cell(**given)


def digest(config: Config, cell: Cell) -> str:
    """Eight hex digits of everything that decides what a cell computes."""
    train = training(config, cell.model, cell.rule)
    # Not all keys of `jaxclip train`: a new one, which says nothing here, makes no other cell.
    keys = set(TRAIN_KEYS) | {"seed"}
    if guard_lib.from_config(train) is None:
        keys -= {"watch", "on_spike", "checkpoint"}
    content = {
        "train": {key: train[key] for key in keys & train.keys()},
        "injector": config["injectors"][cell.injector],
        "watch": config["watch"],
        "cell": [cell.precision, cell.rate, cell.seed],
    }
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _over(base: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    """Nested mappings laid over each other; a named algorithm replaces another one whole."""
    result = copy.deepcopy(dict(base))
    for key, value in given.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            other = "name" in value and "name" in old and value["name"] != old["name"]
            result[key] = dict(value) if other and key != "data" else _over(old, value)
        else:
            result[key] = value
    return result


def _check_values(config: Config) -> None:
    for rate in config["rates"]:
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1e6:
            raise ValueError(f"rates: {rate!r} must be a number above 0")
    for seed in config["seeds"]:
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise ValueError(f"seeds: {seed!r} must be an integer >= 0")
    for name in config["precisions"]:
        if not isinstance(name, str):
            raise ValueError(f"precisions: {name!r} must be the name of a number format")
        precision.lookup(name)
    for name, section in config["injectors"].items():
        try:
            injectors.build(section)
        except (ValueError, TypeError) as error:
            raise ValueError(f"injectors.{name}: {error}") from error
    if config["baseline"] not in config["rules"]:
        raise ValueError(
            f"unknown baseline={config['baseline']!r}{hint(config['baseline'], config['rules'])}"
        )
    for key in ("last_steps", "damage_steps"):
        if not 1 <= config[key] <= config["train"]["total_steps"]:
            raise ValueError(
                f"{key}={config[key]} must be from 1 to train.total_steps="
                f"{config['train']['total_steps']}"
            )
    for kind in ("rules", "injectors", "models"):
        for name in config[kind]:
            if not str(name).replace("_", "").replace(".", "").replace("+", "").isalnum():
                raise ValueError(f"{kind}: name {name!r}; use letters, digits, '_', '.' and '+'")


def _check_part(part: Any, config: Config) -> None:
    if not isinstance(part, Mapping):
        raise ValueError(f"grid: {part!r} must be a mapping such as {{'rules': ['adamw']}}")
    plural = list(_PLURAL.values())
    for key, values in part.items():
        if key not in plural:
            raise ValueError(f"grid: unknown axis {key!r}{hint(key, plural)}")
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ValueError(f"grid: {key}={values!r} must be a list")
        known = config[key]
        for value in values:
            if key not in ("rates", "seeds") and value not in known:
                raise ValueError(f"grid: {key}: {value!r} is not among them{hint(value, known)}")
    _check_values({**config, **{key: list(part[key]) for key in ("rates", "seeds") if key in part}})
