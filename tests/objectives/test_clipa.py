"""Short texts."""

import pytest

from jaxclip import fields
from jaxclip.data import text_op
from jaxclip.objectives.clipa import CLIPA
from tests.objectives import fixture_g as g


def test_the_loss_is_clip():
    assert float(g.value(CLIPA(), {"image": g.I, "text": g.T})[0]) == pytest.approx(
        0.1081597, rel=1e-5
    )


@pytest.mark.parametrize("reduction", ["first", "random", "block", "syntax"])
def test_words_that_fit_and_no_more_tokens(reduction):
    (field,) = CLIPA(text_tokens=6, reduction=reduction).fields.values()
    assert isinstance(field, fields.Captions) and field.length == 6
    chain = text_op.build(field.ops)
    words = chain("one two three four five six", [0.3] * chain.num_draws).split()
    assert len(words) == 4
    assert CLIPA(text_tokens=0).fields == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_tokens": 2}, r"clipa\.text_tokens=2 has no room for a word beside special=2"),
        ({"reduction": "last"}, r"clipa\.reduction='last'; use 'first', 'random', 'block' or"),
        ({"ranks": 'a"b'}, "must have no double quotes"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CLIPA(**options)
