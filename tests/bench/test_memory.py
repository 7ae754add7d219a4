"""Memory of a long run."""

import pytest

from jaxclip.bench import memory


def test_growth_sees_a_leak_and_forgives_the_start():
    flat = [memory.Sample(step, 100.0 + min(step, 20)) for step in range(100)]
    assert memory.growth(flat) == 0.0
    leak = [memory.Sample(step, 100.0 + step) for step in range(100)]
    assert memory.growth(leak) == pytest.approx(57.5, abs=1)


@pytest.mark.slow
def test_memory_stays_flat(tmp_path, tiny_config, compilation_cache):
    config = tiny_config("evaluate.every_steps=0", "log_every_steps=10")
    with compilation_cache():
        samples = memory.measure(tmp_path, 2000, config)
    assert [sample.step for sample in samples] == list(range(1, 2001))
    assert memory.growth(samples) < 20  # MiB; a leaked batch of this size would be 24
