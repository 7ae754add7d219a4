"""configs/finetune_*.py: each starts from weights and does a step."""

import pathlib
import re

import jax
import numpy as np
import pytest

from jaxclip import cli, models
from jaxclip import config as config_lib
from jaxclip.inference import convert
from jaxclip.models import part_masks, presets
from jaxclip.train import checks, dry_run, init_from, loop, setup, state_io, towers

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
NAMES = sorted(file.stem for file in CONFIGS.glob("finetune_*.py"))
SMALL = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}
OVERRIDES = ("global_batch_size=16", "data.name=emoji", "precision.compute_dtype=float32")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A workdir with random weights of ViT-B/32's layout, small."""
    base = presets.get("vit_b32_quickgelu").to_dict()
    base["image"] |= {**SMALL, "image_size": 64}
    base["text"] |= {**SMALL, "vocab_size": 4096}
    sizes = presets.CLIPConfig.from_dict({**base, "embed_dim": 16})
    tokenizer = {"kind": "emoji_bpe", "path": "", "context_length": 77}
    config = config_lib.resolve(
        {"model": {"preset": "vit_b32_quickgelu", **sizes.to_dict()}, "tokenizer": tokenizer}
    )
    target = tmp_path_factory.mktemp("weights") / "b32"
    convert.write_workdir(config, models.build(sizes).init(jax.random.key(3)), target)
    return target


def resolve(name, weights, *overrides):
    phase = "lp:" if name == "finetune_lp_ft" else ""
    spec = f"{CONFIGS / name}.py:{phase}{weights}"
    teacher = (f"teacher.path={weights}",) if name == "finetune_pruned" else ()
    return config_lib.resolve(config_lib.load_file(spec), (*OVERRIDES, *teacher, *overrides))


TRAINED = {
    "finetune_full": ("image/", "objective/"),
    "finetune_flyp": ("image/", "text/", "logit_scale"),
    "finetune_lit": ("text/", "logit_scale"),
    "finetune_lora": ("low_rank/",),
    "finetune_lp_ft": ("objective/",),
    "finetune_long_clip": ("image/", "text/", "logit_scale"),
    "finetune_clip_refine": ("image/", "text/"),
    "finetune_pruned": ("image/", "text/", "logit_scale"),
}


def test_every_way_is_here():
    assert sorted(TRAINED) == NAMES


def test_none_sets_a_key_without_effect(weights):
    for name in NAMES:
        assert config_lib.unused(resolve(name, weights)) == [], name


@pytest.mark.parametrize("name", NAMES)
def test_it_is_traced_with_the_weights_and_trains_what_it_says(name, weights):
    """Shapes alone: nothing is compiled."""
    experiment = setup.build(resolve(name, weights), devices=jax.devices()[:1])
    checks.trace(experiment)
    config = experiment.config
    names = state_io.named_leaves(experiment.abstract_state.params)
    from jaxclip import config_check

    trained = {n for n in names if not config_check.is_frozen(config, n)}
    starts = TRAINED[name]
    assert all(n.startswith(starts) or n.startswith("logit_scale") for n in trained)
    assert all(any(n.startswith(start) for n in trained) for start in starts)
    shapes = state_io.named_leaves(init_from.open_source(weights).read(None))
    assert {n for n in shapes if np.shape(shapes[n]) != names[n].shape} == (
        {"text/positions"} if name == "finetune_long_clip" else set()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_dry(name, weights, capsys):
    result = dry_run.dry_run(resolve(name, weights), batch_size=16)
    assert np.isfinite(result["loss"])
    assert "start from" in capsys.readouterr().out


def test_factors_of_layers_are_the_papers():
    from jaxclip.optim.groups import layer_factors

    sizes = presets.get("vit_b16")
    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    factors = layer_factors(shapes, 0.6)
    assert factors["image/positions"] == pytest.approx(0.6**13)  # .001306
    assert factors["image/blocks_11/mlp/up/kernel"] == pytest.approx(0.6)
    assert factors["image/norm_post/scale"] == 1.0


def test_weights_must_be_named():
    for name in NAMES:
        phase = ":lp:" if name == "finetune_lp_ft" else ""
        with pytest.raises(ValueError, match=re.escape(f"configs/{name}") + ".*PATH"):
            config_lib.load_file(f"{CONFIGS / name}.py{phase}")
    with pytest.raises(ValueError, match="begin with 'lp:' or 'ft:'"):
        config_lib.load_file(f"{CONFIGS / 'finetune_lp_ft.py'}:weights")


# The commands that mix.


def run(*arguments):
    return cli.main(["weights", *map(str, arguments)])


def leaves(workdir):
    return state_io.named_leaves(init_from.open_source(workdir).read(None))


@pytest.fixture(scope="module")
def other(weights, tmp_path_factory):
    source = init_from.open_source(weights)
    target = tmp_path_factory.mktemp("weights") / "other"
    params = jax.tree.map(lambda x: x + 1.0, source.read(None))
    convert.write_workdir(source.config, params, target)
    return target


def test_wise_ft_and_soup(weights, other, tmp_path, capsys):
    assert run("wise-ft", "--before", weights, "--after", other, "--alpha", 0.25,
               "--to", tmp_path / "mixed") == 0  # fmt: skip
    assert "0.75 x" in capsys.readouterr().out
    assert run("soup", "--from", weights, other, other, "--to", tmp_path / "soup") == 0
    before, mixed, soup = (leaves(x) for x in (weights, tmp_path / "mixed", tmp_path / "soup"))
    for name, leaf in before.items():
        np.testing.assert_allclose(mixed[name], leaf + 0.25, atol=1e-6)
        np.testing.assert_allclose(soup[name], leaf + 2 / 3, atol=1e-6)


def test_prune_takes_out_what_trained_masks_have_at_zero(weights, tmp_path, capsys):
    source = init_from.open_source(weights)
    params, sizes = source.read(None), towers.model_sizes(source.config)
    masks = {
        tower: {
            name: np.full(shape, 4.6, np.float32)
            for name, shape in part_masks.shapes(getattr(sizes, tower)).items()
        }
        for tower in ("image", "text")
    }
    masks["text"]["units"][:, ::2] = -4.6
    masks["image"]["heads"][:, 0] = -4.6
    config = {**source.config, "objective": [{"name": "tinyclip", "as": "masks"}]}
    own = {**params, "objective": {"masks": masks}}
    convert.write_workdir(config, own, tmp_path / "masked")
    arguments = ("prune", "--from", tmp_path / "masked", "--score", "masks")
    assert run(*arguments, "--to", tmp_path / "cut") == 0
    told = capsys.readouterr().out
    assert (
        "image: heads 2 -> 1, MLP 64 -> 64" in told and "text: heads 2 -> 2, MLP 64 -> 32" in told
    )
    before, after = leaves(weights), leaves(tmp_path / "cut")
    name = "text/blocks_0/mlp/down/kernel"
    np.testing.assert_array_equal(after[name], before[name][1::2])
    name = "image/blocks_1/attention/out/kernel"
    np.testing.assert_array_equal(after[name], before[name][16:])
    assert after.keys() == before.keys()
    assert run(*arguments, "--keep_heads", 0.5, "--to", tmp_path / "x") == 2
    assert "give no shares" in capsys.readouterr().err


def test_mixing_mistakes_are_one_line(weights, tmp_path, trained, capsys):
    for arguments, message in (
        (("wise-ft", "--before", weights, "--after", trained, "--to", tmp_path / "x"),
         "only models of one architecture mix"),
        (("wise-ft", "--before", weights, "--after", weights, "--alpha", 2, "--to", tmp_path / "x"),
         "--alpha 2.0 must be from 0"),
        (("merge-lora", "--from", weights, "--to", tmp_path / "x"), "merged already"),
        (("prune", "--from", weights, "--score", "masks", "--to", tmp_path / "x"),
         "has no trained masks"),
        (("soup", "--from", weights, "--to", weights), "nothing is overwritten"),
    ):  # fmt: skip
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_greedy_soup_keeps_what_helps(weights, other, tmp_path, capsys, tiny_dataset):
    task = f"zero_shot data={tiny_dataset} split=test templates=name"
    assert run("soup", "--from", weights, weights, "--to", tmp_path / "soup", "--task", task) == 0
    assert "2 of 2 models" in capsys.readouterr().out
    assert run("soup", "--from", weights, "--to", tmp_path / "x", "--task", task,
               "--metric", "top7") == 2  # fmt: skip
    assert "no metric 'top7'" in capsys.readouterr().err


@pytest.mark.slow
def test_lp_then_ft_takes_the_head_and_wise_ft_mixes_it(weights, tmp_path):
    small = ("total_steps=2", "optim.schedule.warmup_steps=0",
             "objective=[{'name': 'class_head', 'num_classes': 4000}]",
             "log_every_steps=1", "writers=['jsonl']", "data.image_ops=resize")  # fmt: skip
    assert loop.train(resolve("finetune_lp_ft", weights, *small), tmp_path / "lp").finished
    spec = f"{CONFIGS / 'finetune_lp_ft.py'}:ft:{tmp_path / 'lp'}"
    config = config_lib.resolve(config_lib.load_file(spec), (*OVERRIDES, *small))
    experiment = setup.build(config)
    head = init_from.open_source(tmp_path / "lp").read_own(["class_head"])["class_head"]
    start = experiment.init_state().params["objective"]["class_head"]
    np.testing.assert_array_equal(start["kernel"], head["kernel"])
    assert loop.train(config, tmp_path / "ft").finished
    assert run("wise-ft", "--before", tmp_path / "lp", "--after", tmp_path / "ft",
               "--to", tmp_path / "mixed") == 0  # fmt: skip
    mixed, tuned = (
        init_from.open_source(tmp_path / name).read_own(["class_head"])["class_head"]["kernel"]
        for name in ("mixed", "ft")
    )
    np.testing.assert_allclose(mixed, (head["kernel"] + tuned) / 2, atol=1e-7)


def test_pruning_by_magnitude(weights, tmp_path, capsys):
    small = tmp_path / "small"
    options = ("--keep_heads", "0.5", "--keep_units", "0.25")
    assert run("prune", "--from", weights, "--to", small, *options, "--tower", "image") == 0
    printed = capsys.readouterr().out
    assert "image: heads 2 -> 1, MLP 64 -> 16, layers 2 -> 2" in printed and "text" not in printed
    source = init_from.open_source(small)
    image = source.config["model"]["image"]
    assert (image["num_heads"], image["head_dim"], image["mlp_dim"]) == (1, 16, 16)
    before, after = (init_from.open_source(w).read(None) for w in (weights, small))
    jax.tree.map(np.testing.assert_array_equal, before["text"], after["text"])
    # The units that stay are the largest.
    up, down = (before["image"]["blocks_0"]["mlp"][n] for n in ("up", "down"))
    sizes = (up["kernel"] ** 2).sum(0) + up["bias"] ** 2 + (down["kernel"] ** 2).sum(1)
    kept = np.sort(np.argsort(-sizes)[:16])
    found = after["image"]["blocks_0"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(found, np.asarray(up["kernel"])[:, kept])
    # Other libraries have no heads of their own size.
    assert run("export", "--from", small, "--to", tmp_path / "hf", "--format", "hf") == 2
    assert "head_dim" in capsys.readouterr().err


def test_mistakes_of_pruning(weights, tmp_path, capsys):
    base = ("prune", "--from", weights, "--to", tmp_path / "new")
    assert run(*base, "--keep_heads", "0") == 2
    assert run(*base, "--score", "hope") == 2
    assert run(*base, "--score", "mope", "--keep_heads", "0.5") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("--keep_heads 0 must be above 0 and at most 1")
    assert lines[1].endswith("--score 'hope' is none of magnitude, hap, mope, masks")
    assert "--score mope needs a --task on held-out data" in lines[2] and len(lines) == 3
    assert not (tmp_path / "new").exists()


def test_the_number_of_a_task():
    from jaxclip.inference import mix

    recalls = {"test/retrieval/image_to_text_r1": 0.2, "test/retrieval/text_to_image_r5": 0.6}
    assert mix.chosen({**recalls, "test/retrieval/num_images": 9.0}, "retrieval") == 0.4
    assert mix.chosen(recalls, "retrieval", "text_to_image_r5") == 0.6
    assert mix.chosen({"x/top1": 0.3, "x/top5": 0.5}, "zero_shot") == 0.3
    with pytest.raises(ValueError, match="--task 'retrieval' has no metric 'top1'"):
        mix.chosen({"test/retrieval/num_images": 9.0}, "retrieval")
