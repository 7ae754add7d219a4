"""The tables of docs/scale.md."""

import dataclasses
import pathlib

import pytest

from jaxclip.plan import chips, planner, table
from jaxclip.plan.cost import Cost, Kernel
from jaxclip.plan.program import Cache, Memory, Refusal
from jaxclip.plan.roofline import Roofline

ROOT = pathlib.Path(__file__).parents[2]


def fake_plan(name="v5e:4x4", pairs=16_384):
    ring = planner.Traffic("collective-permute", ("data",), "f32", True, 16, 8, pairs * 1e3, 0.001)
    sums = planner.Traffic("all-reduce", ("data",), "bf16", False, 3, 8, 5e6, 0.001)
    work = Cost((Kernel("k", "", 1, 0, 0, 0),), (), (), ())
    chip = chips.get("v5e")
    return planner.Plan(
        topology=name,
        chip=chip,
        num_devices=16,
        mesh={"data": 16, "fsdp": 1, "tensor": 1},
        switches={"global_batch_size": pairs, "model": "vit_b16"},
        parameters=1,
        model_flops=int(chip.matmul_flops * 16 * 0.5),
        lower_seconds=1.0,
        compile_seconds=1.0,
        memory=Memory(2**30, 0, 0, 0, 12 * 2**30, 0),
        refusal=None,
        cost=work,
        # 0.5 s of the model, 0.1 s more computed, 0.2 s of waiting, 0.2 s of sending.
        roofline=Roofline(0.6, 0.4, 0.2, 0.8),
        traffic=(ring, sums),
        parts=(planner.Part("loss", 0.0003, 0.0, 0.0003),),
    )


def test_a_row_says_where_the_time_goes():
    refused = dataclasses.replace(fake_plan(), memory=None, refusal=Refusal(17 * 2**30, None, "no"))
    text = table.model_table([(table.MODELS[0], fake_plan(), refused)])
    row = [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]
    assert row[4:] == [
        "full",
        "12.00 of 15.75",
        "attention: refused, 17.00",
        "1000 to 600",
        "16,384 to 27,307",
        "50% to 83%",
        "50%, 10%, 20%, 20%",
    ]


def test_a_lighter_policy_may_fit_or_be_unknown():
    first, *_ = table.MODELS
    for other, cell in ((fake_plan(), "attention: 12.00"), (None, "")):
        text = table.model_table([(first, fake_plan(), other)])
        assert text.splitlines()[2].strip("|").split("|")[6].strip() == cell
    everything = first._replace(remat=table.LADDER[0])
    assert everything.lighter() is None


def test_weak_scaling_tells_parameters_from_embeddings():
    plans = [fake_plan("v5e:4x4", 16_384), fake_plan("v5e:8x8", 65_536)]
    rows = table.weak_table(plans).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[2] for row in cells] == ["5.0", "5.0"]
    assert [row[3:7] for row in cells] == [
        ["16.4", "100%", "1.0", "0.3"],
        ["65.5", "100%", "1.0", "0.3"],
    ]


def test_the_file_is_written_between_its_marks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "plan_of_loss", lambda cache: fake_plan())
    monkeypatch.chdir(ROOT)
    file = tmp_path / "scale.md"
    file.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    arguments = ["--file", str(file), "--cache", str(tmp_path), "--cached"]
    assert table.main(arguments) == 0
    text = file.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\n") and text.endswith(f"{table.END}\nafter\n")
    assert "old" not in text and "1,048,576 pairs" in text and "| model" not in text
    assert (
        "vit_l14 on v5e:16x16, remat=attention+mlp, is not in the cache" in capsys.readouterr().err
    )
    assert table.main(arguments) == 0
    assert file.read_text() == text
    file.write_text("no marks\n")
    with pytest.raises(SystemExit, match="no marks"):
        table.main(arguments)


def test_rows_are_configurations_of_the_targets(monkeypatch):
    monkeypatch.chdir(ROOT)
    keys = set()
    for row in table.MODELS:
        config = table.config_of(row)
        assert config["model"]["preset"] == row.preset
        assert config["precision"]["compute_dtype"] == "bfloat16"
        assert config["loss"] == {"name": "softmax_blockwise"}
        assert config["scan_layers"] and config["attention_implementation"] == "fused"
        assert config["remat"] == row.remat != table.config_of(row.lighter())["remat"]
        keys.add(Cache(None).key(config, row.topology))
    assert len(keys) == len(table.MODELS)
    targets = {(row.preset, row.global_batch_size, row.topology) for row in table.MODELS}
    assert {("vit_l14", 32_768, "v5e:16x16"), ("vit_b16", 16_384, "v5e:4x4")} <= targets
