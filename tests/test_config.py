"""Configurations: merging, overrides, nearest-key errors, resume differences."""

import dataclasses
import json
import pathlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxclip import config as config_lib
from jaxclip import config_check, config_unused, objectives, registry
from jaxclip.models import presets
from jaxclip.train import checks

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def base():
    return config_lib.resolve({})


def test_resolve_expands_the_preset_to_every_field(base):
    assert base["model"]["image"]["width"] > 0
    assert base["model"]["text"]["vocab_size"] > 0
    larger = config_lib.resolve({}, ["model.preset=vit_b16", "data.image_size=224"])
    assert larger["model"]["image"]["width"] == 768


def test_override_wins_over_file_wins_over_defaults():
    config = config_lib.resolve({"seed": 3, "total_steps": 7}, ["total_steps=9"])
    assert (config["seed"], config["total_steps"]) == (3, 9)
    assert config["global_batch_size"] == config_lib.defaults()["global_batch_size"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optm.learning_rate=1", r"unknown config key 'optm.learning_rate'.*optim.learning_rate"),
        ("model.image.widht=64", r"unknown config key 'model.image.widht'.*model.image.width"),
        ("sede=1", r"unknown config key 'sede'.*'seed'"),
        ("learning_rate=1", r"unknown config key 'learning_rate'.*optim.learning_rate"),
        ("total_steps=ten", r"'total_steps' wants int.*'ten'"),
        ("seed=true", r"'seed' wants int.*bool"),
        ("mesh=8", r"'mesh' is a section.*mesh.data"),
        ("seed", r"not of the form key.path=value"),
        ("total_steps=0", r"total_steps=0 must be at least 1"),
        ("num_micro_batches=3", r"num_micro_batches=3 does not divide"),
        ("precision.compute_dtype=float8", r"compute_dtype='float8'"),
        ("precision.residual_dtype=float8", r"residual_dtype='float8'; use None, 'float32'"),
        ("checkpoint.best_mode=up", r"best_mode='up'"),
        ("ema_decay=1.0", r"ema_decay=1.0"),
        ("model.preset=vit_b61", r"vit_b16"),
    ],
)
def test_mistakes_name_the_way_out(override, message):
    with pytest.raises(ValueError, match=message):
        config_lib.resolve({}, [override])


def test_unknown_key_in_a_file_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown config key 'checkpoint.evry_steps'.*every_s"):
        config_lib.resolve({"checkpoint": {"evry_steps": 3}})


def test_patch_size_must_divide_the_image():
    with pytest.raises(ValueError, match=r"patch_size=16 does not divide data.image_size=100"):
        config_lib.resolve({}, ["model.preset=vit_b16", "data.image_size=100"])


def test_naming_another_algorithm_drops_the_default_options():
    config = config_lib.resolve({"optim": {"schedule": {"name": "constant"}}})
    assert config["optim"]["schedule"] == {"name": "constant"}
    config = config_lib.resolve({"optim": {"schedule": {"warmup_steps": 5}}})
    assert config["optim"]["schedule"] == {"name": "cosine", "warmup_steps": 5}


def test_none_is_a_name_where_a_name_is_wanted():
    config = config_lib.resolve(
        {}, ["optim.clip=none", "remat=none", "attention_implementation=none"]
    )
    assert config["optim"]["clip"] == {"name": "none"} and config["remat"] == "none"
    assert config["attention_implementation"] is None
    config = config_lib.resolve({}, ["optim.clip=zclip", "optim.clip.alpha=0.9"])
    assert config["optim"]["clip"] == {"name": "zclip", "alpha": 0.9}
    chain = [{"name": "zclip"}, {"name": "elementwise", "max_delta": 1.0}]
    assert config_lib.resolve({"optim": {"clip": chain}})["optim"]["clip"] == chain
    assert config_lib.resolve({"optim": {"clip": "adagc"}})["optim"]["clip"] == {"name": "adagc"}


def test_what_differs_from_the_defaults():
    config = config_lib.resolve({"optim": {"clip": {"name": "zclip", "alpha": 0.9}}}, ["seed=3"])
    assert config_lib.changed_from_defaults(config) == [
        ("seed", 0, 3),
        ("optim.clip.name", "none", "zclip"),
        ("optim.clip.alpha", None, 0.9),
    ]


def test_image_size_has_one_home():
    config = config_lib.resolve({}, ["data.image_size=32"])
    assert config["model"]["image"]["image_size"] == 32
    config = config_lib.resolve({}, ["model.image.image_size=32"])
    assert config["data"]["image_size"] == 32
    with pytest.raises(ValueError, match=r"data.image_size=32 and model.image.image_size=64"):
        config_lib.resolve({}, ["model.image.image_size=64", "data.image_size=32"])


@pytest.mark.parametrize(
    ("overrides", "length", "pad_id"),
    [
        ([], 32, 0),
        (["tokenizer.kind=clip"], 77, 0),
        (["tokenizer.kind=clip", "tokenizer.context_length=20"], 20, 0),
        (["tokenizer.kind=clip", "model.text.context_length=20"], 20, 0),
        (["tokenizer.kind=siglip", "model.preset=siglip_b16"], 64, 1),
        (["tokenizer.kind=gemma", "model.text.pad_id=0"], 64, 0),
    ],
)
def test_what_follows_from_the_kind_of_tokenizer(overrides, length, pad_id):
    config = config_lib.resolve({}, overrides)
    text = config["model"]["text"]
    assert config["tokenizer"]["context_length"] == text["context_length"] == length
    assert text["pad_id"] == pad_id
    assert config_lib.resolve(config) == config


def test_padding_that_the_tokenizer_does_not_make():
    with pytest.raises(ValueError, match=r"model.text.pad_id=1, but tokenizer.kind='clip' pads"):
        config_lib.resolve({}, ["tokenizer.kind=clip", "model.text.pad_id=1"])


def test_differences_ignore_how_a_run_is_carried_out(base):
    changed = config_lib.resolve({}, ["mesh.fsdp=2", "log_every_steps=3", "checkpoint.keep_last=9"])
    assert config_lib.differences(base, changed) == []
    changed = config_lib.resolve({}, ["optim.learning_rate=0.5"])
    (line,) = config_lib.differences(base, changed)
    assert line.startswith("optim.learning_rate: 0.001 -> 0.5")


def test_saved_config_resolves_to_itself(base, tmp_path):
    config_lib.save(base, tmp_path / "config.json")
    assert config_lib.resolve(config_lib.load(tmp_path / "config.json")) == base


# Not configurations of a run: parts that are shared, recipes of `jaxclip curate`, grids of
# `jaxclip lab`. Tuning starts from weights, own_data.py wants data: they have tests of their own.
OTHERS = ("common", "curate", "finetune", "lab", "own")
RUNS = [p.name for p in CONFIGS.glob("*.py") if p.stem.split("_")[0] not in OTHERS]


@pytest.mark.parametrize("file", sorted(RUNS))
def test_every_config_file_resolves_and_is_json(file):
    config = config_lib.resolve(config_lib.load_file(CONFIGS / file))
    assert json.loads(json.dumps(config)) == config


def test_the_short_emoji_recipe():
    whole, short = (
        config_lib.resolve(config_lib.load_file(f"{CONFIGS / 'emoji.py'}{arg}"))
        for arg in ("", ":short")
    )
    assert short["total_steps"] <= 0.3 * whole["total_steps"]
    assert (whole["model"], whole["data"]) == (short["model"], short["data"])
    with pytest.raises(ValueError, match="has no variant 'shrt'; there is 'short'"):
        config_lib.load_file(f"{CONFIGS / 'emoji.py'}:shrt")


def test_the_recipe_for_data_of_your_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "photos").mkdir(parents=True)
    config = config_lib.resolve(config_lib.load_file(f"{CONFIGS / 'own_data.py'}:data/photos"))
    assert config["data"]["name"] == str(tmp_path / "data" / "photos")
    assert checks.load_tokenizer(config).vocab_size == config["model"]["text"]["vocab_size"]
    assert config["evaluate"]["retrieval"] == ["val"] and not config["evaluate"]["zero_shot"]
    with pytest.raises(ValueError, match=r"name the data.* configs/own_data\.py:data/"):
        config_lib.load_file(CONFIGS / "own_data.py")


def test_the_decay_of_a_teacher_is_a_number_or_a_schedule():
    points = [[0, 0.9], [10, 1.0]]
    assert config_lib.resolve({"teacher": {"decay": points}})["teacher"]["decay"] == points
    config = config_lib.resolve({"teacher": {"decay": points}}, ["teacher.decay=0.5"])
    assert config["teacher"]["decay"] == 0.5
    with pytest.raises(ValueError, match=r"'teacher\.decay' wants float"):
        config_lib.resolve({"teacher": {"decay": "slow"}})


def test_missing_config_file_names_its_neighbour():
    with pytest.raises(FileNotFoundError, match=r"emoji\.py"):
        config_lib.load_file(CONFIGS / "emojis.py")


def test_each_folder_of_configs_has_its_own_shared_parts(tmp_path):
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "common.py").write_text(f"SEED = {number}\n")
        (folder / "c.py").write_text(
            "import common\ndef get_config(arg=''):\n    return {'seed': common.SEED}\n"
        )
    seeds = [config_lib.load_file(tmp_path / str(n) / "c.py")["seed"] for n in (1, 2)]
    assert seeds == [1, 2] and "common" not in sys.modules


def test_config_file_without_get_config(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="defines no get_config"):
        config_lib.load_file(tmp_path / "empty.py")


@given(
    st.one_of(
        st.integers(-(10**12), 10**12),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.lists(st.integers(), max_size=3),
        st.none(),
    )
)
def test_override_values_round_trip(value):
    assert config_lib.parse_override(f"a.b={value!r}") == ("a.b", value)


@given(st.text(max_size=40))
def test_any_text_is_an_override_or_a_clear_error(text):
    try:
        key, _ = config_lib.parse_override(text)
    except ValueError as error:
        assert "key.path=value" in str(error)
    else:
        assert key and text.startswith(key)


def test_relative_paths_count_from_the_folder_where_they_were_given(tmp_path, monkeypatch):
    for name in ("data", "there"):
        (tmp_path / name).mkdir()
    for name in ("names.txt", "simple"):
        (tmp_path / name).write_text("cat\ndog\n")
    monkeypatch.chdir(tmp_path)
    task = {"name": "zero_shot", "data": "data", "class_names": "names.txt"}
    other = {"name": "zero_shot", "data": "emoji", "class_names": ["a"], "templates": "simple"}
    config = config_lib.resolve(
        {
            "init_from": "run",
            "teacher": {"path": "teacher"},
            "evaluate": {"tasks": [{**task, "templates": "a {}"}, other], "templates": "names.txt"},
        }
    )
    monkeypatch.chdir(tmp_path / "there")
    config = config_lib.resolve(config)  # they stay what they are
    assert config["init_from"] == str(tmp_path / "run")
    assert config["teacher"]["path"] == str(tmp_path / "teacher")
    section = config["evaluate"]
    assert section["templates"] == str(tmp_path / "names.txt")
    assert section["tasks"][0]["data"] == str(tmp_path / "data")
    assert section["tasks"][0]["class_names"] == str(tmp_path / "names.txt")
    assert section["tasks"][0]["templates"] == "a {}"
    assert section["tasks"][1] == other, "names of what is built in are no paths"


def test_what_may_be_written_in_two_forms():
    def of(**given):
        return config_lib.resolve(given)

    assert of(writers="jsonl")["writers"] == "jsonl"
    assert config_lib.resolve({}, ["writers=jsonl"])["writers"] == "jsonl"
    wandb = {"name": "wandb", "project": "clip"}
    assert of(writers=["jsonl", wandb])["writers"] == ["jsonl", wandb]
    assert of(teacher={"decay": [[0, 0.9], [10, 1]]})["teacher"]["decay"] == [[0, 0.9], [10, 1]]


def test_frozen_by_pattern_or_by_the_first_group():
    groups = [{"pattern": "bias$"}, {"pattern": "^image/", "frozen": True}]
    config = config_lib.resolve({"optim": {"freeze": ["^text/embed"], "groups": groups}})
    frozen = [
        name
        for name in ("text/embedding", "text/kernel", "image/kernel", "image/bias")
        if config_check.is_frozen(config, name)
    ]
    assert frozen == ["text/embedding", "image/kernel"]


def test_paths_in_sampling_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = config_lib.resolve({}, ["data.sampling=curated('runs/c')"])
    assert whole["data"]["sampling"] == f"curated({str(tmp_path / 'runs/c')!r})"
    given = {"data": {"mixture": [{"name": "emoji", "sampling": 'file(path="w.npy")'}]}}
    source = config_lib.resolve(given)["data"]["mixture"][0]
    assert source["sampling"] == f"file({str(tmp_path / 'w.npy')!r})"
    assert config_lib.resolve({}, ["data.sampling=classes(5)"])["data"]["sampling"] == "classes(5)"


def test_tables_of_few_words_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pos.json").write_text('{"dog": 1}')
    ops = "few_words(2, 'syntax', 'pos.json')|few_words(how='syntax', ranks=\"none.json\")"
    terms = [{"name": "clipa", "ranks": "pos.json"}, {"name": "mammo_clip", "text_ops": ops}]
    found = config_lib.resolve({"objective": terms})["objective"]
    assert found[0]["ranks"] == str(tmp_path / "pos.json")
    assert found[1]["text_ops"] == ops.replace("pos.json", str(tmp_path / "pos.json"))


def test_a_section_given_as_one_override_keeps_its_other_keys():
    whole = config_lib.resolve(
        {"optim": {"name": "lion", "clip": {"name": "zclip"}}},
        [
            "teacher={'kind': 'frozen', 'path': '/t'}",
            "optim={'learning_rate': 1, 'schedule': {'warmup_steps': 0}}",
            "model={'preset': 'tiny', 'image': {'kind': 'resnet'}}",
        ],
    )
    keys = [
        "teacher.kind=frozen",
        "teacher.path=/t",
        "optim.learning_rate=1",
        "optim.schedule.warmup_steps=0",
        "model.preset=tiny",
        "model.image.kind=resnet",
    ]
    given = {"optim": {"name": "lion", "clip": {"name": "zclip"}}}
    assert whole == config_lib.resolve(given, keys)
    with pytest.raises(ValueError, match=r"unknown config key 'teacher\.pth'; did you mean"):
        config_lib.resolve({}, ["teacher={'pth': 1}"])


@pytest.mark.parametrize(
    ("overrides", "said", "mended"),
    [
        (["objective=['slip']", "loss.name=sigmoid"], "loss.name='sigmoid' has", "objective=[]"),
        (["teacher.decay=0.5"], "teacher.decay=0.5 has", "teacher.kind=ema"),
        (["teacher.size=8", "teacher.kind=ema"], "teacher.size=8 has", "teacher.kind=stored"),
        (["init_from_exclude=['a']"], "init_from_exclude=['a'] has", "init_from=w"),
        (
            ["model.logit_scale_init=1.0", "init_from=w"],
            "model.logit_scale_init=1.0 has",
            "init_from_exclude=['logit']",
        ),
        (["logit_scale_max=2.0", "optim.freeze='logit_scale'"], "logit_scale_max", "optim.freeze="),
        (["low_rank.scaling=2.0"], "low_rank.scaling=2.0 has", "low_rank.rank=2"),
        (["watch.window=200"], "watch.window=200 has", "on_spike.actions=skip"),
        (["watch.probe_examples=4"], "watch.probe_examples=4 has", "watch.enabled=true"),
        (
            ["on_spike.rewind_limit=9", "on_spike.rewind_beyond=2"],
            "on_spike.rewind_beyond=2, on_spike.rewind_limit=9 have",
            "on_spike.actions=rewind",
        ),
        (["checkpoint.keep_best=3"], "checkpoint.keep_best=3", "checkpoint.best_metric=m"),
        (["evaluate.every_steps=5"], "evaluate.every_steps=5 has", "evaluate.retrieval=test"),
        (["evaluate.templates=['a {}']"], "evaluate.templates", "evaluate.zero_shot=test"),
        (["profile.start_step=3"], "profile.start_step=3 has", "profile.num_steps=2"),
        (["model.image.rope_grid=3"], "model.image.rope_grid=3 has", "model.image.rope=yx"),
        (
            ["model.text.experts_per_token=1"],
            "model.text.experts_per_token=1 has",
            "model.text.num_experts=2",
        ),
        (["model.text.eos_id=3"], "model.text.eos_id=3 has", "model.text.pool=eos"),
    ],
)
def test_keys_that_another_one_leaves_without_effect_are_named(overrides, said, mended):
    (line,) = config_lib.unused(config_lib.resolve({}, overrides))
    assert line.startswith(said)
    assert " no effect: " in line
    assert not config_lib.unused(config_lib.resolve({}, [*overrides, mended]))


def test_no_shipped_config_sets_a_key_without_effect():
    names = ("emoji", "emoji_long", "clip_vit_b16", "siglip_vit_b16", "own_data", "methods")
    for name, arg in zip(names, ("", "", "", "", ":pairs", ":llm2clip"), strict=True):
        given = config_lib.load_file(f"{CONFIGS / name}.py{arg}")
        assert config_lib.unused(config_lib.resolve(given)) == [], name


def test_rules_of_keys_without_effect_name_keys_that_there_are():
    """One that was renamed would never be told of."""
    known = {key for key, _ in config_lib.flatten(config_lib.resolve({}))}
    known |= {key.rpartition(".")[0] for key in known}
    for rule in config_unused._RULES:
        assert set(rule.keys) <= known, rule


def test_options_of_towers_depend_on_options_that_there_are():
    for sizes in (presets.ImageConfig(), presets.TextConfig()):
        names = [field.name for field in dataclasses.fields(sizes)]
        assert registry.without_effect(sizes, names, "model.image")  # reads each `on`


def test_keys_of_towers_with_the_same_cause_are_one_line():
    overrides = ["model.image.pool_mlp_dim=4", "model.image.pool_heads=3"]
    (line,) = config_lib.unused(config_lib.resolve({}, overrides))
    assert line.startswith("model.image.pool_heads=3, model.image.pool_mlp_dim=4 have no effect")
    assert line.endswith("that is for model.image.pool='map' or 'queries'")


@pytest.mark.parametrize("kind", ["roberta", "transformer"])
def test_other_kinds_of_text_towers_read_what_they_like_of_the_sizes(kind):
    overrides = [f"model.text.kind={kind}", "model.text.num_positions=99"]
    lines = config_lib.unused(config_lib.resolve({}, overrides))
    assert len(lines) == (kind == "transformer")


def test_objectives_may_be_named_alone():
    assert config_lib.resolve({}, ["objective=slip"])["objective"] == ["slip"]
    given = config_lib.resolve({"objective": "contrastive|dcl"})["objective"]
    assert [term.name for term in objectives.listed(given)] == ["contrastive", "dcl"]
    with pytest.raises(ValueError, match="'objective' wants list"):
        config_lib.resolve({}, ["objective=3"])


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ({"data": {"batch_size": 3}}, "global_batch_size"),
        ({"data": {"imge_size": 3}}, "data.image_size"),
        ({"model": {"learning_rate": 3}}, "optim.learning_rate"),
        ({"checkpoint": {"ema": 0.1}}, "ema_decay"),
        ({"model": {"image": {"num_layers": 3}}}, "model.image.depth"),
        ({"model": {"image": {"dept": 3}}}, "model.image.depth"),
        ({"watch": {"enable": True}}, "watch.enabled"),
    ],
)
def test_a_key_in_the_wrong_section_of_a_file_names_the_right_one(given, near):
    with pytest.raises(ValueError, match=rf"did you mean '{near}'\?$"):
        config_lib.resolve(given)


def test_infinity_is_a_number_where_one_is_wanted():
    """Neither is a Python literal."""
    assert config_lib.resolve({}, ["logit_scale_max=inf"])["logit_scale_max"] == float("inf")
    assert config_lib.resolve({}, ["data.name=inf"])["data"]["name"].endswith("inf")
    for override, message in (
        ("optim.learning_rate=-inf", "must be at least 0"),
        ("optim.learning_rate=nan", "is not a number"),
        ("total_steps=inf", "wants int"),
    ):
        with pytest.raises(ValueError, match=message):
            config_lib.resolve({}, [override])
