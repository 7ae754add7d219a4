"""Every model that open_clip has a configuration of: read and equal, or refused in one line.

Slow, and only where torch and open_clip are installed. ``open_clip_models.py`` writes the table of
what was seen into docs/weights.md.
"""

import pytest

pytest.importorskip("open_clip")
pytest.importorskip("transformers")

import open_clip

from tests.weights import open_clip_models as sweep

# Tokens after the last norm are of the order of 1, with single values up to 10.
TOLERANCE = {"image_tokens": 2e-5, "text_tokens": 2e-5}


@pytest.mark.slow
@pytest.mark.parametrize("name", open_clip.list_models())
def test_a_model_is_read_and_equal_or_refused_in_one_line(name, tmp_path):
    result, family = sweep.compare(name, tmp_path)
    if family is None:
        assert "\n" not in result and len(result) < 400, result
        pytest.skip(f"refused: {result}")
    assert {"image", "text", "logits"} <= result.keys()
    for output, difference in result.items():
        assert difference <= TOLERANCE.get(output, 1e-5), (output, difference)
