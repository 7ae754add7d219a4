"""Text ops: what they do to a caption, and that it is a function of their numbers."""

import numpy as np
import pytest

from jaxclip.data import order, text_ops

EXAMPLES = {
    "delete_words": "delete_words(0.4)",
    "corrupt_words": "corrupt_words(0.9)",
    "drop_words": "drop_words(0.5)",
    "few_words": "few_words(3, 'random')",
    "swap_words": "swap_words(p=0.7)",
}
# These do something else than leave words out or move them.
OTHERS = {"first_sentence", "template"}
CAPTION = "a red cat on the green mat"


def run(ops, text, *draws):
    chain = text_ops.build(ops)
    assert chain.num_draws == len(draws)
    return chain(text, np.float32(draws))


def test_every_op_has_an_example_here():
    assert sorted({*EXAMPLES, *OTHERS}) == text_ops.names()


def test_first_sentence():
    assert run("first_sentence", "A cat. It sits. Twice") == "A cat"
    assert run("first_sentence", "v1.5 of a cat.") == "v1.5 of a cat."
    assert run("first_sentence", "") == ""


def test_template():
    assert run("template", "tabby", 0.3) == "a photo of a tabby."
    two = 'template("an icon of {}; {}, drawn")'
    assert run(two, "{} cat", 0.49) == "an icon of {} cat"
    assert run(two, "cat", 0.5) == "cat, drawn" and run(two, "cat", 1.0) == "cat, drawn"
    for bad in ('template("a cat")', 'template("{} {}")', 'template("")'):
        with pytest.raises(ValueError, match=r"sentences with one \{\}"):
            text_ops.build(bad)


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_op_leaves_nothing_or_makes_words_up(name):
    chain = text_ops.build(EXAMPLES[name])
    u = order.uniforms(0, np.arange(300), chain.num_draws)
    for text in (CAPTION, "the", "cat", "a a", "  two  words "):
        results = [chain(text, row) for row in u]
        assert results == [chain(text, row) for row in u]
        assert all(result.split() for result in results)
        assert all(set(result.split()) <= set(text.split()) for result in results)
    assert len({chain(CAPTION, row) for row in u}) > 1


def test_swap_words():
    assert run("swap_words", "red cat", 0, 0, 0) == "cat red"
    # Word 1 of 4, and the last of the three others.
    assert run("swap_words", "a red big cat", 0, 0.3, 0.99) == "a cat big red"
    # "the" is not swapped with "The".
    assert run("swap_words", "The cat the", 0, 0, 0) == "cat The the"
    for text in ("cat", "cat Cat", ""):
        assert run("swap_words", text, 0, 0, 0) == text
    assert run("swap_words(p=0.5)", "red cat", 0.5, 0, 0) == "red cat"


def test_swap_words_reaches_all_pairs_evenly():
    chain = text_ops.build("swap_words")
    u = order.uniforms(1, np.arange(3000), 3)
    results = [chain("a b c", row) for row in u]
    counts = [results.count(each) for each in ("b a c", "c b a", "a c b")]
    assert sum(counts) == 3000
    assert max(abs(count - 1000) for count in counts) < 5 * np.sqrt(3000 * 2 / 9)


def test_drop_words():
    assert run("drop_words(1.0)", CAPTION, 0.99) == "red cat green mat"
    assert run("drop_words(0.5)", CAPTION, 0.5) == CAPTION
    assert run("drop_words(1.0)", "The end, of the.", 0) == "end,"
    assert run("drop_words(1.0)", "on the", 0) == "on the"  # nothing would be left
    assert run("drop_words(1.0, 'red, cat')", CAPTION, 0) == "a on the green mat"


def test_delete_words_has_the_rate():
    chain = text_ops.build("delete_words(0.25)")
    u = order.uniforms(2, np.arange(2000), 3)
    left = sum(len(chain(CAPTION, row).split()) for row in u)
    # 14 000 words, three quarters of which stay.
    assert abs(left - 10500) < 5 * np.sqrt(14000 * 3 / 16)
    assert len(run("delete_words(1.0)", CAPTION, 0, 0.3, 0.6).split()) == 1


def test_ops_run_one_after_the_other():
    assert run("drop_words(1.0)|swap_words", "a red cat", 0, 0, 0, 0) == "cat red"
    assert text_ops.build("").num_draws == 0 and run("", CAPTION) == CAPTION


def test_an_op_of_ones_own():
    @text_ops.register("shout_for_test", draws=1)
    def shout(mark: str = "!"):
        return lambda text, u: text.upper() + (mark if u[0] < 0.5 else "")

    try:
        assert run("shout_for_test('?')", "cat", 0.2) == "CAT?"
    finally:
        del text_ops.TEXT_OPS._registered["shout_for_test"]


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ("swap_word", "unknown text op 'swap_word'; did you mean 'swap_words'"),
        ("swap_words(q=1)", "text op 'swap_words' has no option 'q'"),
        ("swap_words(p=2)", "text op swap_words.p=2.0.: p=2.0 must be between 0 and 1"),
        ("delete_words(rate=-1)", "rate=-1.0 must be between 0 and 1"),
        ("swap_words(", "text ops 'swap_words.' do not parse"),
        ([3], "neither a string nor a mapping"),
    ],
)
def test_mistakes_are_named(ops, message):
    with pytest.raises(ValueError, match=message):
        text_ops.build(ops)


def test_spread_is_uniform_and_depends_on_both_numbers():
    u = order.uniforms(3, np.arange(500), 2)
    numbers = np.stack([order.spread(row, 20) for row in u])
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 / np.sqrt(12 * numbers.size)
    assert len(np.unique(numbers)) == numbers.size
    np.testing.assert_array_equal(order.spread(u[0], 5), numbers[0, :5])


DOG = "a red dog runs in the old park"


def test_few_words_by_syntax(tmp_path):
    table = tmp_path / "ranks.json"
    table.write_text('{"dog": 1, "park": 1, "red": 2, "Old": 2, "runs": 3}')
    chain = text_ops.build([{"op": "few_words", "count": 4, "how": "syntax", "ranks": str(table)}])
    u = np.full(chain.num_draws, 0.5, np.float32)
    assert chain(DOG, u) == "red dog old park"
    assert chain("in the old park", u) == "in the old park"
    # Without a table function words go first.
    chain = text_ops.build("few_words(5, 'syntax')")
    assert chain(DOG, u) == "red dog runs old park"


def test_few_words_by_chance():
    rng, words = np.random.default_rng(0), DOG.split()
    first, block, drawn = (
        text_ops.build(f"few_words(3, '{h}')") for h in ("first", "block", "random")
    )
    blocks, orders, kept = set(), set(), np.zeros(len(words))
    for _ in range(400):
        u = rng.random(2).astype(np.float32)
        assert first(DOG, u) == "a red dog"
        blocks.add(block(DOG, u))
        some = drawn(DOG, u).split()
        assert len(set(some)) == 3
        kept += [word in some for word in words]
        orders.add(
            tuple(words.index(word) for word in some) == tuple(sorted(map(words.index, some)))
        )
    assert blocks == {" ".join(words[i : i + 3]) for i in range(6)}
    assert orders == {True, False} and np.abs(kept / 400 - 3 / 8).max() < 5 * np.sqrt(0.24 / 400)


def test_few_words_refuses(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text("[1]")
    for ops, message in (
        ("few_words(0)", "count=0 must be at least 1"),
        ("few_words(3, 'syntex')", "did you mean 'syntax'"),
        ([{"op": "few_words", "ranks": str(bad), "how": "syntax"}], "is no JSON {word: rank}"),
        ([{"op": "few_words", "ranks": str(bad)}], "is for how='syntax', not 'first'"),
    ):
        with pytest.raises(ValueError, match=message):
            text_ops.build(ops)


def test_corrupt_words_always_changes_a_caption():
    chain = text_ops.build("corrupt_words(longest=2)")
    u = order.uniforms(0, np.arange(400), chain.num_draws)
    words, lengths = CAPTION.split(), set()
    for row in u:
        made = chain(CAPTION, row).split()
        assert made != words
        lengths.add(len(made) - len(words))
        assert chain("cat", row) == "cat cat" and chain("", row) == ""
    assert lengths == {-2, -1, 0, 1, 2}
    kept = sum(text_ops.build("corrupt_words(0.5)")(CAPTION, row) == CAPTION for row in u)
    assert abs(kept / 400 - 0.5) < 5 * np.sqrt(0.25 / 400)
    with pytest.raises(ValueError, match="longest=0 must be at least 1"):
        text_ops.build("corrupt_words(longest=0)")
