"""How much of the captions is cut or repeated is told once a run."""

from jaxclip.train import describe


def test_shares_of_counts():
    text = describe.describe_captions({"drawn": 8, "fill": 2, "equal": 4})
    assert "25.0% fill their row" in text and "50.0% equal another one of their batch" in text
    assert describe.describe_captions({}) == "  captions: none drawn yet"
