"""Experiment configurations: defaults, validation, command-line overrides, JSON.

A config file defines ``get_config(arg="")`` and returns a (partial) ``ml_collections.ConfigDict``
or a plain mapping. :func:`resolve` lays it over :func:`defaults`, expands the model preset to every
one of its fields, and refuses what it does not know, naming the nearest key that it does. What
comes out is a plain nested dict: the whole truth of a run, saved as ``config.json`` in its workdir,
from which alone the run can be restarted.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxclip import config_unused, registry, storage
from jaxclip.config_changes import EXTENDABLE_KEYS as EXTENDABLE_KEYS
from jaxclip.config_changes import RUNTIME_KEYS as RUNTIME_KEYS
from jaxclip.config_changes import changes as changes
from jaxclip.config_changes import differences as differences
from jaxclip.config_changes import is_extendable as is_extendable
from jaxclip.config_check import check as check
from jaxclip.config_defaults import defaults as defaults
from jaxclip.config_file import flatten as flatten
from jaxclip.config_file import load_file as load_file
from jaxclip.config_file import to_plain as to_plain
from jaxclip.config_paths import absolute_data_name as absolute_data_name
from jaxclip.config_paths import absolute_paths as absolute_paths

Config = dict[str, Any]

# Sections whose keys depend on a choice made inside them (which optimizer, which loss, …): their
# owner checks the keys when it builds the thing, with the same nearest-name error.
_OPEN_SECTIONS = ("optim", "loss", "tokenizer")
_OPEN_SUBSECTIONS = ("evaluate.token_reduction",)

# Lists of names, which may be written "a|b", too.
_SPLIT_LISTS = ("objective", "data.languages", "evaluate.zero_shot", "evaluate.retrieval")

# None where the optimizer has no such option.
_NULLABLE = ("optim.weight_decay",)

# Other types that a value may have; its owner reads either.
_EITHER_FORM = (
    "data.image_ops",
    "data.eval_image_ops",
    "evaluate.templates",
    "writers",
    "on_spike.actions",
)
_OTHER_FORMS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_EITHER_FORM, (str, list)),
    "teacher.decay": (list,),  # [[step, decay], ...]
    "precision.products": (str,),
    "sparsity": (str,),
}

# Sections that name an algorithm: naming another one drops the options of the default's.
_NAMED_SECTIONS = ("optim.clip", "optim.schedule", "loss")

# Floats that are no Python literals.
_NO_LITERALS = ("inf", "+inf", "-inf", "infinity", "nan")

# Keys that take [[step, value], ...], too; what uses them checks it.
_SCHEDULES = ("teacher.decay",)


def resolve(config: Any, overrides: Sequence[str] = ()) -> Config:
    """Lay a partial configuration and overrides over the defaults and check the result.

    Args:
      config: mapping with any subset of the keys of :func:`defaults`.
      overrides: strings ``"optim.learning_rate=3e-4"``; values are Python literals, anything else
        is taken as a string.

    Returns:
      The complete configuration, a plain nested dict.

    Raises:
      ValueError: an unknown key (naming the nearest known one), a value of the wrong type, or
        values that do not fit together.
    """
    given = to_plain(config)
    parsed = [leaf for text in overrides for leaf in _leaves(*parse_override(text))]
    preset = _preset_of(given, parsed)
    base = defaults()
    base["model"] = _model_defaults(preset, _image_kind_of(given, parsed))
    base["data"] = _data_defaults()
    result = _merge(base, given, "", [*base, *(key for key, _ in flatten(base))])
    for key, value in parsed:
        _set(result, key, value)
    _tie(result, given, {key for key, _ in parsed})
    check(result)
    return absolute_paths(result)


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key.path=value``; the value is a Python literal where it parses as one.

    Raises:
      ValueError: it has no ``=`` or no key.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise ValueError(f"override {text!r} is not of the form key.path=value")
    lowered = {"true": True, "false": False, "none": None}
    if raw.lower() in lowered:
        return key, lowered[raw.lower()]
    try:
        return key, to_plain(ast.literal_eval(raw))
    except (ValueError, SyntaxError):
        return key, raw


def save(config: Config, path: str | pathlib.Path) -> None:
    """Write the configuration as JSON (sorted keys, so that files can be compared).

    Raises:
      OSError: it can't be written; what was there stays.
    """
    storage.write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def load(path: str | pathlib.Path) -> Config:
    """Read a configuration written by :func:`save`.

    Raises:
      ValueError: it is no JSON, or no object.
    """
    config = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"a {type(config).__name__}, where an object with keys is wanted")
    return config


def changed_from_defaults(config: Config) -> list[tuple[str, Any, Any]]:
    """``(key, default, value)`` of each key that is not as the defaults of its preset have it.

    Args:
      config: resolved configuration; keys that it has beyond the defaults count as changed from
        None.
    """
    model: Config = {"preset": config["model"]["preset"]}
    kind = config["model"].get("image", {}).get("kind")
    if kind is not None:
        model["image"] = {"kind": kind}
    base = dict(flatten(resolve({"model": model})))
    return [
        (key, base.get(key), value)
        for key, value in flatten(config)
        if key not in base or base[key] != value
    ]


def unused(config: Config) -> list[str]:
    """A line for each group of keys that are set but that another key leaves without effect.

    Args:
      config: resolved configuration.
    """
    changed = {key: value for key, _, value in changed_from_defaults(config)}
    return config_unused.unused(config, changed)


def nearest(key: str, known: Sequence[str], listed: Iterable[str] | None = None) -> str:
    """The hint of an error: ``"; did you mean 'x'?"`` or the list of what there is.

    Args:
      key: what is not there.
      known: what is.
      listed: what to list where nothing is near, if that is not all of it.
    """
    section, _, last = key.rpartition(".")
    here = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    # A right name in the wrong section counts as near, too.
    elsewhere = next((name for name in known if name.rpartition(".")[2] == last), "")
    near = (
        registry.meant(key, here.values())
        or registry.meant(key, known)
        or here.get(registry.nearest(last, here, cutoff=0.6))
        or elsewhere
        or registry.nearest(key, known, cutoff=0.6)
    )
    return registry.hint(near, [near]) if near else registry.hint(key, listed or known)


def _leaves(key: str, value: Any) -> list[tuple[str, Any]]:
    """``model={'image': {'width': 8}}`` as its keys: the preset and the kind stand among them."""
    if key.split(".")[0] != "model" or not isinstance(value, Mapping):
        return [(key, value)]
    return [leaf for name, each in value.items() for leaf in _leaves(f"{key}.{name}", each)]


def _preset_of(given: Config, parsed: list[tuple[str, Any]]) -> str:
    model = given.get("model", {})
    if not isinstance(model, Mapping):
        raise ValueError(f"config key 'model' is a section, got {model!r}; set its keys")
    preset = model.get("preset", defaults()["model"]["preset"])
    for key, value in parsed:
        if key == "model.preset":
            preset = value
    return _typed("model.preset", "tiny", preset)


def _image_kind_of(given: Config, parsed: list[tuple[str, Any]]) -> str | None:
    """``model.image.kind`` where it is set; the keys of its section depend on it."""
    image = given.get("model", {}).get("image", {})
    kind = image.get("kind") if isinstance(image, Mapping) else None
    for key, value in parsed:
        if key == "model.image.kind":
            kind = value
    return kind


def _model_defaults(preset: str, image_kind: str | None = None) -> Config:
    from jaxclip.models import presets

    model = {"preset": preset, **to_plain(presets.get(preset).to_dict())}
    if image_kind is not None and image_kind != model["image"]["kind"]:
        sizes = dataclasses.asdict(presets.image_class(image_kind)())
        model["image"] = {k: list(v) if isinstance(v, tuple) else v for k, v in sizes.items()}
    return model


def _data_defaults() -> Config:
    from jaxclip.data import defaults

    return to_plain(defaults.DEFAULTS)


def _merge(base: Config, given: Config, prefix: str, everything: Sequence[str]) -> Config:
    result = copy.deepcopy(base)
    for key, value in given.items():
        path = f"{prefix}{key}"
        if key not in base and not _is_open(path):
            here = [f"{prefix}{name}" for name in base]
            near = nearest(path, [*here, *everything], listed=here)
            raise ValueError(f"unknown config key {path!r}{near}")
        if path in _NAMED_SECTIONS and isinstance(value, (str, list)):
            # A name alone, or a list of algorithms to be chained: their owner reads either.
            result[key] = {"name": value} if isinstance(value, str) else value
        elif isinstance(base.get(key), Mapping) and isinstance(value, Mapping):
            if _names_another(path, base[key], value):
                result[key] = copy.deepcopy(dict(value))
            else:
                result[key] = _merge(base[key], dict(value), f"{path}.", everything)
        else:
            result[key] = _typed(path, base.get(key), value)
    return result


def _names_another(path: str, base: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    return path in _NAMED_SECTIONS and given.get("name", base["name"]) != base["name"]


def _is_open(path: str) -> bool:
    section, _, rest = path.partition(".")
    inside = any(path.startswith(f"{name}.") for name in _OPEN_SUBSECTIONS)
    return inside or (bool(rest) and section in _OPEN_SECTIONS)


def _set(config: Config, key: str, value: Any) -> None:
    node, parts = config, key.split(".")
    for depth, part in enumerate(parts[:-1]):
        child = node.get(part) if isinstance(node, Mapping) else None
        if child is None and _is_open(".".join(parts[: depth + 1])):
            child = node[part] = {}
        if not isinstance(child, dict):
            known = [name for name, _ in flatten(config)]
            raise ValueError(f"unknown config key {key!r}{nearest(key, known, listed=node)}")
        node = child
    if parts[-1] not in node and not _is_open(key):
        known = [name for name, _ in flatten(config)]
        raise ValueError(f"unknown config key {key!r}{nearest(key, known, listed=node)}")
    old = node.get(parts[-1])
    if key in _NAMED_SECTIONS and value is None:
        value = "none"
    if key in _NAMED_SECTIONS and isinstance(value, (str, list)):
        node[parts[-1]] = {"name": value} if isinstance(value, str) else value
        return
    if isinstance(old, Mapping) and not isinstance(value, Mapping):
        raise ValueError(
            f"config key {key!r} is a section; set one of its keys: "
            f"{', '.join(f'{key}.{name}' for name in old)}"
        )
    if isinstance(old, Mapping) and not _names_another(key, old, value):
        # As in a file: what is not given stays.
        for name, each in value.items():
            _set(config, f"{key}.{name}", each)
        return
    node[parts[-1]] = _typed(key, old, value)


def _typed(key: str, old: Any, value: Any) -> Any:
    """Return ``value`` if it has the type of the default, else raise; ints pass as floats."""
    if value is None and isinstance(old, str):
        return "none" if old else ""  # on a command line the word, where a word is wanted
    if old is None or (value is None and key in (*_NAMED_SECTIONS, *_NULLABLE)):
        return value
    if key in _SCHEDULES and (isinstance(value, list) or isinstance(old, list)):
        return value
    if isinstance(old, bool) or isinstance(value, bool):
        if isinstance(old, bool) and isinstance(value, bool):
            return value
    elif isinstance(old, float) and isinstance(value, (int, float)):
        return float(value)
    elif isinstance(old, float) and isinstance(value, str) and value.lower() in _NO_LITERALS:
        return float(value)  # what it is, where a number is wanted; the ranges judge it
    elif isinstance(old, int) and isinstance(value, float) and value.is_integer():
        return int(value)
    elif isinstance(old, list) and isinstance(value, str) and key in _SPLIT_LISTS:
        return [part.strip() for part in value.split("|") if part.strip()]
    elif isinstance(value, (type(old), *_OTHER_FORMS.get(key, ()))):
        return value
    raise ValueError(
        f"config key {key!r} wants {type(old).__name__} (as {old!r}), got "
        f"{type(value).__name__} {value!r}"
    )


def _tie(config: Config, given: Config, overridden: set[str]) -> None:
    """Values that have one home and are needed in two places, or follow from a choice."""
    from jaxclip.data import defaults as data_defaults

    ties = (
        ("data.image_size", "model.image.image_size"),
        ("tokenizer.context_length", "model.text.context_length"),
    )
    explicit = {key for key, _ in flatten(given)} | overridden
    kind = config["tokenizer"]["kind"]
    if not explicit & set(ties[1]):
        config["tokenizer"]["context_length"] = data_defaults.context_length(kind)
    _tie_padding(config, explicit)
    for home, copy_key in ties:
        flat = dict(flatten(config))
        if copy_key in explicit and home not in explicit:
            _set(config, home, flat[copy_key])
        elif copy_key in explicit and flat[home] != flat[copy_key]:
            raise ValueError(
                f"{home}={flat[home]} and {copy_key}={flat[copy_key]} differ; set only {home}"
            )
        elif copy_key in flat:
            _set(config, copy_key, flat[home])


def _tie_padding(config: Config, explicit: set[str]) -> None:
    """The text tower takes for padding what the tokenizer pads with."""
    from jaxclip.data import defaults as data_defaults

    key, kind = "model.text.pad_id", config["tokenizer"]["kind"]
    wanted = data_defaults.pad_id(kind)
    if "pad_id" not in config["model"].get("text", {}):
        return
    if key in explicit and config["model"]["text"]["pad_id"] != wanted:
        raise ValueError(
            f"{key}={config['model']['text']['pad_id']}, but tokenizer.kind={kind!r} pads with "
            f"{wanted}; leave {key} unset"
        )
    _set(config, key, wanted)
