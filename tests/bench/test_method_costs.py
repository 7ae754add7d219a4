"""The costs of methods: measured once each, kept, and told as ratios."""

import json
import types

import pytest

from jaxclip.bench import method_costs


def test_what_is_measured_is_kept(tmp_path, monkeypatch, capsys):
    built, now = [], [0.0]

    def build(configs, name):
        built.append(name)
        seconds = 2.0 if name == "slip" else 1.0
        return method_costs.Built(lambda: now.__setitem__(0, now[0] + seconds), 100 * len(name), 7)

    clock = types.SimpleNamespace(process_time=lambda: now[0])
    monkeypatch.setattr(method_costs, "time", clock)
    monkeypatch.setattr(method_costs, "build", build)
    assert method_costs.run(tmp_path, tmp_path, ["slip"], 3) == 0
    assert built == ["contrastive", "slip"]
    kept = json.loads((tmp_path / "method_costs.json").read_text())
    assert kept["contrastive"] == {"step": 1.0, "temporary": 1.0, "state": 1.0}
    assert kept["slip"]["step"] == 2.0
    assert kept["slip"]["temporary"] == pytest.approx(4 / 11, 0.01)
    assert "| slip        |" in capsys.readouterr().out
    assert method_costs.run(tmp_path, tmp_path, ["slip", "dcl"], 1) == 0
    assert built == ["contrastive", "slip", "contrastive", "dcl"]


@pytest.mark.slow
def test_a_method_is_compiled_and_compared(tmp_path):
    import pathlib

    configs = pathlib.Path(__file__).parents[2] / "configs"
    assert method_costs.run(tmp_path, configs, ["mobileclip"], 1) == 0
    kept = json.loads((tmp_path / "method_costs.json").read_text())
    assert kept["mobileclip"]["step"] > 1 and kept["mobileclip"]["state"] > 1
