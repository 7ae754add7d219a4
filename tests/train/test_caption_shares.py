"""How much of the captions is cut or repeated is told once a run."""

from jaxclip.train import loop


def test_shares_of_counts():
    text = loop.describe_captions({"drawn": 8, "fill": 2, "equal": 4})
    assert "25.0% fill their row" in text and "50.0% equal another one of their batch" in text
    assert loop.describe_captions({}) == "  captions: none drawn yet"
