"""Every key of a configuration with values that can't be: one line, never a traceback."""

import math
import re
import types

import jax
import pytest

from jaxclip import config as config_lib
from jaxclip import objectives, parallel
from jaxclip.errors import RunError
from jaxclip.train import checks, dry_run

# What the command line shows as a line (tests/test_cli.py).
REFUSED = (ValueError, OSError, RunError)

# Wrong for every key of their kind.
WRONG = {
    bool: ["maybe", 2, 0.5, [1], {}, None],
    int: ["many", 1.5, True, [1], {}, None, math.nan, math.inf, -math.inf],
    float: ["much", True, [1.0], {}, None, math.nan, -math.inf],
    str: [5, 0.5, True, {}, ["x", 3], "no such thing"],
    list: [5, 0.5, True, {}, None, [None], [{}], [[]]],
    type(None): [5, True, {}, ["x"], "no such thing"],
}
# May be wrong: whatever happens must be a line, and quick.
SUSPECT = {
    int: [0, -1, -5, 10**12],
    float: [0.0, -1.0, 1e30, math.inf],
    str: ["", "\0", "/", "x" * 300],
    list: [[], "", "no such thing", [0], [-1, 2, 3], [1e30] * 3, [""], ["\0"]],
    bool: [],
    type(None): [0.0, -1e30, math.nan, ""],
}
# What is right all the same.
MEANT = {
    ("logit_scale_max", -math.inf),
    ("model.logit_bias_init", 5),
    ("model.image.layer_scale", 5),
    ("model.text.layer_scale", 5),
    ("optim.weight_decay", None),  # for an optimizer that has none
    ("data.languages", "no such thing"),  # refused by the data set
}
# Any text will do: a place that may not exist yet (or any more, once the run has begun), a name
# that the data set has to know, or what is read with another teacher.kind alone.
FREE_TEXT = (
    "compilation_cache_dir", "evaluate.gallery_split", "data.train_split", "data.name",
    "init_from", "teacher.path", "teacher.image_key", "teacher.text_key",
)  # fmt: skip


@pytest.fixture(scope="module")
def resolved(tiny_config):
    return tiny_config()


def leaves(config):
    return [key for key, _ in config_lib.flatten(config)]


KEYS = leaves(config_lib.resolve({}))


def put(config, key, value):
    """A copy of a configuration as a file would give it, with one value replaced."""
    result = {k: dict(v) if isinstance(v, dict) else v for k, v in config.items()}
    *sections, last = key.split(".")
    node = result
    for section in sections:
        node[section] = dict(node[section])
        node = node[section]
    node[last] = value
    if key == "data.image_size":
        result["model"]["image"] = {**result["model"]["image"], "image_size": value}
    if key == "tokenizer.context_length":
        result["model"]["text"] = {**result["model"]["text"], "context_length": value}
    return result


def attempt(config, key, value):
    """All that a run does before it touches its workdir, but for tracing; the message, or None."""
    try:
        resolved = config_lib.resolve(put(config, key, value))
        checks.build(resolved)
        checks.load_tokenizer(resolved)
        checks.check_data(resolved)
    except REFUSED as error:
        return str(error)
    return None


@pytest.mark.parametrize("key", KEYS)
def test_no_value_of_a_key_ends_in_a_traceback(key, resolved):
    flat = dict(config_lib.flatten(resolved))
    kind = type(flat[key])
    for value in [*WRONG[kind], *SUSPECT[kind]]:
        message = attempt(resolved, key, value)
        if message is None:
            wrong = any(value is each for each in WRONG[kind])
            meant = (key, value) in MEANT if not isinstance(value, (list, dict)) else False
            assert not wrong or meant or key in FREE_TEXT, f"{key}={value!r} is taken"
        else:
            assert message.strip() and "\n" not in message, (key, value, message)
            assert "Error: " not in message or "JAXCLIP_TRACEBACK" in message, (key, value, message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.image_size", 0, "data.image_size=0 must be at least 1"),
        ("model.image.patch_size", 0, "patch_size=0 must be at least 1"),
        ("model.image.num_heads", 0, "num_heads=0 must be at least 1"),
        ("tokenizer.context_length", -1, "context_length=-1 must be at least 1"),
        ("num_micro_batches", 0, "num_micro_batches=0 must be at least 1"),
        ("model", 5, "'model' is a section"),
        ("model.preset", ["tiny"], "'model.preset' wants str"),
        ("tokenizer.kind", ["clip"], "'tokenizer.kind' wants str"),
        ("profile.start_step", 0, "profile.start_step=0 must be at least 1"),
        ("distributed.heartbeat_timeout_seconds", 0, "must be at least 1"),
        ("teacher.decay", 1.5, "teacher.decay=1.5 must be in [0, 1]"),
        ("teacher.decay", [[0, 0.9], [10, 1.5]], "teacher.decay=[[0, 0.9], [10, 1.5]] must be in"),
        ("teacher.decay", [0.9, 1.0], "is neither a number nor [[step, decay], ...]"),
        ("teacher.size", -1, "teacher.size=-1 must be at least 0"),
        ("init_from_exclude", ["("], "init_from_exclude: '(' is no regular expression"),
        ("init_from_exclude", "text", "'init_from_exclude' wants list"),
        ("writers", [{"project": "clip"}], "writers has {'project': 'clip'}; give names, or"),
        ("model.image.tract_lambda", -1.0, "tract_lambda=-1.0 must be at least 0"),
    ],
)
def test_values_that_can_not_be(key, value, message, resolved):
    config = put(resolved, key, value) if "." in key or key in resolved else {key: value}
    with pytest.raises(ValueError, match="(?s).*" + re.escape(message)):
        config_lib.resolve(config)


def test_a_model_that_no_device_holds_is_refused_by_its_size(tiny_config):
    tower = [f"model.{tower}.{key}" for tower in ("image", "text") for key in ("width", "mlp_dim")]
    config = tiny_config(*(f"{key}=65536" for key in tower), "model.image.depth=20")
    with pytest.raises(ValueError, match=r"parameters and optimizer state have [\d,.]+ GiB a dev"):
        checks.build(config)


def test_moments_and_averages_count(tiny_config, monkeypatch):
    whole = checks.build(tiny_config()).abstract_state
    size = sum(leaf.size * 4 for leaf in jax.tree.leaves(whole.params))
    # Parameters, their average, and two moments.
    monkeypatch.setattr(checks, "host_memory", lambda: 3 * size * 8)
    with pytest.raises(ValueError, match="parameters and optimizer state"):
        checks.check_state_memory(checks.setup.build(tiny_config()))


def test_out_of_memory_on_a_device_is_said_in_one_line():
    error = RuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 68719476736 bytes.\nmore"
    )
    line = checks.explain_memory(error)
    assert "68719476736" in line and "raise num_micro_batches" in line and "\n" not in line
    assert checks.explain_memory(RuntimeError("INTERNAL: something else")) == ""


def test_a_fault_of_ours_says_where_to_look():
    line = r"it fails: KeyError: 'x' \(JAXCLIP_TRACEBACK=1"
    with pytest.raises(ValueError, match=line), checks.in_one_line("it fails"):
        raise KeyError("x")


def test_the_step_is_traced_once(tiny_config):
    """The trace that looks for mistakes is the one that the first step then compiles."""
    experiment = checks.build(tiny_config())
    traced = []
    encode = experiment.model.__class__.encode_image

    def counting(self, *args, **kwargs):
        traced.append(1)
        return encode(self, *args, **kwargs)

    experiment.model.__class__.encode_image = counting
    try:
        checks.trace(experiment)
        count = len(traced)
        state = experiment.init_state()
        before = len(traced)
        batch = parallel.to_global(dry_run.made_up_batch(experiment.config), experiment.mesh)
        experiment.train_step.lower(state, batch)
    finally:
        experiment.model.__class__.encode_image = encode
    assert count > 0 and len(traced) == before


def test_a_dry_run_knows_image_ops_without_any_data(tiny_config):
    config = tiny_config("data.name=/nowhere", "data.image_ops=rezise")
    with pytest.raises(ValueError, match=r"'rezise'; did you mean 'resize'"):
        dry_run.dry_run(config)


@pytest.mark.parametrize(
    ("objective", "said"), [("contrastive", True), ("slip", True), ("silc", False)]
)
def test_a_teacher_that_no_objective_asks_is_said_to_have_no_effect(
    resolved, caplog, objective, said
):
    config = {**resolved, "teacher": {**resolved["teacher"], "kind": "ema"}}
    total = objectives.from_config([objective], config["loss"])
    checks.warn_of_unused(config, types.SimpleNamespace(total=total))
    assert ("teacher.kind='ema' has no effect" in caplog.text) == said


@pytest.mark.parametrize(
    ("objective", "size", "named"),
    [
        ("contrastive", 1, "'contrastive'"),
        ("contrastive", 2, ""),
        (["slip", "class_head"], 1, "'slip'"),
        ("class_head", 1, ""),
        ({"name": "maccap", "contrastive": 0.0}, 1, ""),
    ],
)
def test_a_batch_of_one_pair_is_said_to_teach_a_contrast_nothing(
    resolved, caplog, objective, size, named
):
    config = {**resolved, "global_batch_size": size, "num_micro_batches": size}
    terms = objective if isinstance(objective, list) else [objective]
    total = objectives.from_config(terms, config["loss"])
    checks.warn_of_training(config, types.SimpleNamespace(total=total))
    assert caplog.text.count("\n") == bool(named)
    assert named in caplog.text and ("use at least 2" in caplog.text) == bool(named)


def test_what_only_the_report_needs_is_missed_before_the_first_step(resolved, monkeypatch):
    find = checks.importlib.util.find_spec
    monkeypatch.setattr(
        checks.importlib.util,
        "find_spec",
        lambda name: None if name == "matplotlib" else find(name),
    )
    monkeypatch.setattr(checks.setup, "build", lambda config: pytest.fail("it was built"))
    with pytest.raises(ModuleNotFoundError, match="'matplotlib'") as missing:
        checks.build(resolved)
    assert missing.value.name == "matplotlib"
