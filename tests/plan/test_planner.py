"""Plans, remedies, sweeps, reports and the command, most of it without a compiler."""

import dataclasses
import html.parser
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip import cli, plan
from jaxclip import config as config_lib
from jaxclip.plan import chips, command, measure, model_flops, planner, program, report, topology
from jaxclip.plan.cost import Cost
from jaxclip.plan.program import Memory, Refusal
from jaxclip.plan.roofline import Roofline

GIB = 2**30
TOWER = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 64}
SMALL = {
    "global_batch_size": 8,
    "data": {"image_size": 16},
    "tokenizer": {"context_length": 8},
    "model": {
        "preset": "tiny",
        "embed_dim": 12,
        "image": {**TOWER, "patch_size": 8},
        "text": {**TOWER, "vocab_size": 32},
    },
}


def small_config(**changes):
    return config_lib.resolve({**SMALL, **changes})


def fake_plan(config=None, *, peak=1.0, worst=2.0, refusal=None):
    """A plan on a v5e:4x4; ``peak`` in GiB, ``worst`` in seconds."""
    memory = None if refusal else Memory(GIB, GIB, GIB, 0, int(peak * GIB), 0)
    return planner.Plan(
        topology="v5e:4x4",
        chip=chips.get("v5e"),
        num_devices=16,
        mesh={"data": 16, "fsdp": 1, "tensor": 1},
        switches=planner.switches_of(config or small_config()),
        parameters=10**6,
        model_flops=int(16 * 197e12),
        lower_seconds=1.0,
        compile_seconds=2.0,
        memory=memory,
        refusal=refusal,
        cost=None if refusal else Cost((), (), (), ()),
        roofline=None if refusal else Roofline(1.0, 0.5, 0.0, worst),
        traffic=(),
        parts=(),
    )


REFUSAL = Refusal(20 * GIB, 16 * GIB, "does not fit <really>")


def test_what_fits_and_how_well():
    fits = fake_plan(worst=2.0)
    assert fits.fits and fits.mfu == (0.5, 1.0) and fits.images_per_second == (4.0, 8.0)
    assert not fake_plan(peak=15.8).fits
    refused = fake_plan(refusal=REFUSAL)
    assert not refused.fits and refused.mfu is None and refused.images_per_second is None


def model_flops_by_hand(config):
    """Products of both towers, forward and backward, on one pair."""
    image, text = config["model"]["image"], config["model"]["text"]

    def blocks(c, length):
        linear = length * c["width"] * (4 * c["width"] + 2 * c["mlp_dim"])
        attention = 2 * length * length * c["width"]
        return 2 * c["depth"] * (linear + attention)

    patches = (16 // 8) ** 2
    stem = 2 * patches * (8 * 8 * 3) * image["width"]
    heads = 2 * (image["width"] + text["width"]) * config["model"]["embed_dim"]
    towers = blocks(image, patches) + blocks(text, 8)
    # The pixels' gradient is not needed: the stem has one backward product, all else two.
    return 3 * (towers + heads) + 2 * stem


def test_model_flops_are_those_of_the_products():
    config = small_config()
    assert model_flops.of_config(config) == model_flops_by_hand(config)
    # Switches of the step do not change what the model needs.
    other = small_config(remat="full", scan_layers=True, num_micro_batches=4)
    assert model_flops.of_config(other) == model_flops_by_hand(config)


def test_model_flops_of_loops_branches_and_convolutions():
    x = jnp.ones((4, 4))
    once = 2 * 4**3
    loop = lambda x: jax.lax.scan(lambda y, _: (y @ x, None), x, None, length=5)[0]  # noqa: E731
    assert model_flops.of_function(loop, x) == 5 * once
    branch = lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x)  # noqa: E731
    assert model_flops.of_function(branch, x) == 2 * once
    assert model_flops.of_function(jax.jit(jax.checkpoint(lambda x: x @ x)), x) == once
    image, kernel = jnp.ones((1, 3, 6, 6)), jnp.ones((5, 3, 2, 2))
    convolve = lambda a, b: jax.lax.conv(a, b, (1, 1), "VALID")  # noqa: E731
    assert model_flops.of_function(convolve, image, kernel) == 2 * 5 * 5 * 5 * 3 * 2 * 2


def test_frozen_towers_need_no_backward_pass():
    config = small_config()
    config["optim"]["freeze"] = ["^image/"]
    assert model_flops.of_config(config) < model_flops_by_hand(config)


def test_remedies_try_the_cheapest_first_and_then_together():
    tried = []

    def plan_of(config):
        small = config["remat"] == "mlp" and config["sharding"] == "fsdp"
        return fake_plan(config, peak=1.0) if small else fake_plan(config, refusal=REFUSAL)

    config = small_config()
    change = plan.remedies(config, plan_of, on_try=lambda c, p: tried.append((c, p.fits)))
    assert change is not None and change["remat"] == "mlp" and change["sharding"] == "fsdp"
    alone = [c for c, _ in tried[: len(planner.REMEDIES)]]
    assert alone == list(planner.REMEDIES)
    assert [fits for _, fits in tried].count(True) == 1

    by_loss = plan.remedies(
        config,
        lambda c: fake_plan(c) if "blockwise" in c["loss"]["name"] else fake_plan(refusal=REFUSAL),
    )
    assert by_loss == {"loss": "blockwise"}
    assert plan.remedies(config, lambda c: fake_plan(refusal=REFUSAL)) is None


def test_remedies_skip_what_is_set_and_what_cannot_be_built():
    config = small_config(remat="full")
    tried = []

    def plan_of(changed):
        if changed["num_micro_batches"] > 1:
            raise ValueError("does not divide")
        return fake_plan(refusal=REFUSAL)

    assert plan.remedies(config, plan_of, on_try=lambda c, p: tried.append((c, p))) is None
    assert ({"remat": "full"}, None) not in [(c, None) for c, _ in tried]
    cut = [str(p) for c, p in tried if c.get("num_micro_batches", 1) > 1]
    assert set(cut) == {"does not divide"}


def test_changes_leave_the_rest_alone():
    config = small_config(loss={"name": "sigmoid"})
    new = planner.changed(config, {"loss": "blockwise", "remat": "full"})
    assert new["loss"]["name"] == "sigmoid_blockwise" and new["remat"] == "full"
    assert config["loss"]["name"] == "sigmoid" and config["remat"] == "none"
    assert planner.changed(new, {"loss": "blockwise"}) == new


def test_sweep_ranks_what_fits_by_its_slow_end():
    seconds = {"none": None, "dots": 3.0, "mlp": 2.0, "full": 2.5}

    def plan_of(config):
        if config["num_micro_batches"] == 3:
            raise ValueError("does not divide")
        worst = seconds[config["remat"]]
        if worst is None:
            return fake_plan(config, refusal=REFUSAL)
        return fake_plan(config, worst=worst + (config["mesh"]["fsdp"] > 1) / 10)

    changes = list(planner.sweep_changes(16, list(seconds), [1, 3]))
    assert len(changes) == 3 * 4 * 2
    assert {c["mesh"]["fsdp"] for c in changes} == {1, 4, 16}
    ranked = plan.sweep(small_config(), changes, plan_of)
    assert [c["remat"] for c, _ in ranked] == 3 * ["mlp"] + 3 * ["full"] + 3 * ["dots"]
    assert ranked[0][0]["sharding"] == "dp"
    rows = report.sweep_rows(ranked)
    assert len(rows) == 10 and rows[1][1] == "mlp" and "50.0% to 100.0%" in rows[1]


def compiled_plan():
    """A plan of a small sharded product with a reduction, on a pretended v5e:2x4."""
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4, 1), ("data", "fsdp", "tensor"))
    args = [
        jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp"))),
        jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=NamedSharding(mesh, P("fsdp"))),
    ]
    step = jax.jit(jnp.matmul, out_shardings=NamedSharding(mesh, P()))
    chip = dataclasses.replace(chips.get("v5e"), name="pretended", torus_dims=0)
    place = topology.Topology("8 x pretended", chip, (), jax.devices()[:8])
    compiled = program.compile_step(step, *args)
    return planner.describe(
        compiled, mesh, place, 7, 2 * 64 * 32 * 16, {"global_batch_size": 64, "model": "<a&b>"}
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.2345, "1,234"), (0.1, "100"), (0.09994, "99.9"), (0.00123, "1.23"), (2e-6, "0.00")],
)
def test_milliseconds(seconds, text):
    assert report.milliseconds(seconds) == text


def test_a_program_described_and_reported(tmp_path):
    described = compiled_plan()
    assert described.cost.flops == 2 * 64 * 32 * 16 // 4
    assert described.recomputed == pytest.approx(8 / 4 - 1)  # both rows of the mesh do the same
    (traffic,) = described.traffic
    assert (traffic.kind, traffic.axes, traffic.runs) == ("all-reduce", ("fsdp",), 1)
    assert traffic.seconds == pytest.approx(traffic.sent / described.chip.link_bandwidth)
    assert described.fits
    text = report.text(described)
    assert "a model, not a measurement" in text and "all-reduce" in text
    paths = report.write(tmp_path / "out", described, ["a < b"])
    data = json.loads(paths[0].read_text())
    assert data["fits"] and data["flops"] == described.cost.flops
    assert data["model"]["mfu"] == list(described.mfu)
    assert data["collectives"][0]["axes"] == ["fsdp"] and data["notes"] == ["a < b"]
    assert_well_formed(paths[1].read_text())


def assert_well_formed(page):
    open_tags = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "p"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            if tag != "p":
                assert open_tags.pop() == tag

    Reader().feed(page)
    assert not open_tags
    assert "&lt;a&amp;b&gt;" in page and "<a&b>" not in page


def test_a_refused_plan_says_by_how_much():
    text = report.text(fake_plan(refusal=REFUSAL))
    assert "does not fit <really>" in text
    assert any(line.split() == ["too", "much", "by", "4.00"] for line in text.splitlines())
    assert report.to_dict(fake_plan(refusal=REFUSAL))["refusal"]["needed"] == 20 * GIB
    assert "&lt;really&gt;" in report.page(fake_plan(refusal=REFUSAL))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1.5, "inside"), (4.0, "2.00 times slower"), (0.5, "2.00 times faster")],
)
def test_the_model_against_the_clock(seconds, words):
    assert words in command.describe_check(measure.Check(seconds, 1.0, 2.0))


def config_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(f"def get_config(arg=''):\n    return {SMALL!r}\n")
    return str(path)


def test_command_on_the_devices_at_hand(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "matmul_rate", lambda dtype: 1e12)
    monkeypatch.setattr(measure, "memory_rate", lambda: 1e11)
    out = tmp_path / "out"
    arguments = ["plan", "--config", config_file(tmp_path), "--output", str(out)]
    overrides = ["optim.name=sgd", "optim.weight_decay=None", "loss={'name':'sigmoid'}"]
    overrides += ["model.image.depth=1", "model.text.depth=1", "model.logit_bias_init=-5.0"]
    assert cli.main([*arguments, *(f"--config.{text}" for text in overrides)]) == 0
    printed = capsys.readouterr().out
    assert "8 x cpu" in printed and "the model says" in printed
    data = json.loads((out / "plan.json").read_text())
    assert data["parameters"] > 1000 and data["num_devices"] == 8
    assert data["recomputed"] == pytest.approx(0.0, abs=0.2)
    assert data["model"]["worst"] >= data["model"]["best"] > 0
    assert "measured" in data["notes"][0]
    # Gradients of replicated parameters are summed over the whole mesh.
    assert any(c["kind"] == "all-reduce" and c["axes"] == ["data"] for c in data["collectives"])


def test_command_names_the_switch_that_makes_it_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        topology, "get", lambda name: topology.Topology(name, None, (), [None] * 16)
    )

    def plan_of(config, place, *, cache):
        return fake_plan(config) if config["remat"] == "full" else fake_plan(refusal=REFUSAL)

    monkeypatch.setattr(planner, "make_plan", plan_of)
    arguments = ["plan", "--config", config_file(tmp_path), "--topology", "v5e:4x4"]
    assert cli.main([*arguments, "--output", str(tmp_path / "o")]) == 1
    assert "not fit as it is, but with remat=full." in capsys.readouterr().out
    assert "remat=full" in (tmp_path / "o" / "plan.html").read_text()
    assert cli.main([*arguments, "--no_remedies"]) == 1
    assert "but with" not in capsys.readouterr().out
    assert cli.main([*arguments, "--sweep", "--output", str(tmp_path / "o")]) == 0
    assert "full" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "o" / "sweep.json").read_text())) == 6
    page = (tmp_path / "o" / "sweep.html").read_text()
    assert page.index("6 combinations fit") < page.index("Ranking") < page.index("<h2>Step")
    assert page.count("16x1x1 dp") == 2


def test_topology_names():
    assert topology.parse("v5p:4x4x8") == (chips.get("v5p"), (4, 4, 8))
    for name, words in [
        ("v5:4x4", "did you mean 'v5[ep]'"),
        ("v5e", "for instance v5e:4x4"),
        ("v5e:4xx4", "not of the form"),
        ("v5e:0x4", "not of the form"),
        ("v5e:4x4x4", "2: v5e:AxB"),
        ("v5p:4x4", "3: v5p:AxBxC"),
    ]:
        with pytest.raises(ValueError, match=words):
            topology.parse(name)


def test_without_libtpu_the_error_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[tpu\]'"):
        topology.get("v5e:4x4")
    arguments = ["plan", "--config", config_file(tmp_path), "--topology", "v5e:4x4"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "pip install '.[tpu]'" in error and "[train]" not in error
