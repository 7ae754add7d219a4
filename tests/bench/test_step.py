import sys

import pytest

from jaxclip import config as config_lib
from jaxclip.bench import step

SMALL = {
    **step._SMALL,
    "model": {
        "preset": "vit_b16",
        "image": {"patch_size": 8, "width": 64, "depth": 2, "num_heads": 2, "mlp_dim": 256},
        "text": {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 128, "vocab_size": 300},
        "embed_dim": 32,
    },
    "data": {"image_size": 32},
    "tokenizer": {"context_length": 8},
    "global_batch_size": 16,
}


@pytest.fixture(scope="module")
def config():
    return config_lib.resolve(SMALL)


def linear_flops(tokens, width, depth, mlp_dim):
    """Multiply-adds of the blocks' matrices and of attention, both as 2 operations, one example."""
    matrices = depth * (4 * width * width + 2 * width * mlp_dim)
    return 2 * tokens * matrices + depth * 4 * tokens * tokens * width


def test_report_counts_the_operations_of_the_step(config, capsys):
    result = step.report(config, rounds=2)
    image = linear_flops(17, 64, 2, 256) + 2 * 16 * (8 * 8 * 3) * 64
    text = linear_flops(8, 32, 1, 128)
    by_hand = 3 * 16 * (image + text)  # the backward pass has two products for each one
    assert by_hand < result["flops"] < 1.5 * by_hand  # norms, softmax, optimizer on top
    assert result["images_per_second"] == pytest.approx(16 / result["step_seconds"])
    assert result["mfu"] > 0
    printed = capsys.readouterr().out
    assert "images/s" in printed
    assert "MiB" in printed


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5 lite", 197e12), ("NVIDIA H100 80GB HBM3", 989e12), ("cpu", None), ("abacus", None)],
)
def test_known_peaks(kind, peak):
    assert step.known_peak(kind) == peak


def test_unknown_preset_ends_in_one_line(capsys):
    with pytest.raises(SystemExit) as exit_info:
        step.main(["--preset", "vit_b33"])
    assert exit_info.value.code == 2
    assert "vit_b32" in capsys.readouterr().err


def test_missing_torch_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "jaxclip.bench.torch_clip", raising=False)
    with pytest.raises(SystemExit) as exit_info:
        step.main(["--against", "torch"])
    assert exit_info.value.code == 2
    assert "pip install torch" in capsys.readouterr().err


def test_torch_computes_the_same_losses(config, capsys):
    pytest.importorskip("torch")
    timings = step.against_torch(config, rounds=1)  # raises where losses differ
    assert set(timings) == {"jax", "torch"}
    assert "ratio" in capsys.readouterr().out
