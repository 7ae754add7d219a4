"""How much of the captions is cut or repeated is in a run's metrics."""

import numpy as np

from jaxclip.train import loop, metrics


def test_shares_of_counts():
    counts = {"drawn": 8, "fill": 2, "equal": 4}
    assert loop.caption_shares(counts) == {"captions_full": 0.25, "captions_equal": 0.5}
    assert loop.caption_shares({"drawn": 0, "fill": 0, "equal": 0}) == {}


def test_a_run_reports_them(trained):
    """16 kinds of two captions each in batches of 16: some are equal, none fills eight tokens."""
    curves = metrics.curves(metrics.read_metrics(trained))
    _, equal = curves["captions_equal"]
    _, full = curves["captions_full"]
    assert 0 < np.max(equal) < 1 and np.all((full >= 0) & (full <= 1))
