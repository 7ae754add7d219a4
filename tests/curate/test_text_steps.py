"""Rules on captions: gates, MetaCLIP's matching and balance, against closed forms."""

import numpy as np
import pytest

from jaxclip.curate import matcher
from jaxclip.curate.hashing import uniforms
from jaxclip.curate.rows import Ragged, Rows
from jaxclip.curate.steps import balance, captions


def reasons(step, *texts):
    return [captions.REASONS[c - 1] if (c := step.code(text)) else "" for text in texts]


def test_each_gate_says_why():
    step = captions.Captions(
        min_words=2, max_words=6, min_characters=6, max_characters=40, min_letters=0.6,
        max_repeated=0.5, scripts=("latin",), alt_text=True, banned=("click here",),
    )  # fmt: skip
    assert reasons(
        step, "dog", "a b", "one two three four five six seven", "a dog" + "o" * 40,
        "12 34 ab", "dog dog dog cat", "рыжая собака", "a red dog", "Click here, a dog",
        "to-click hereby",
    ) == [
        "too_few_words", "too_few_characters", "too_many_words", "too_many_characters",
        "few_letters", "repeated_words", "other_script", "", "banned", "",
    ]  # fmt: skip


def test_alt_texts_that_say_nothing():
    step = captions.Captions(alt_text=True)
    assert reasons(
        step, "IMG_2041.JPG", "dsc 0001", "screenshot-2020-01-01", "https://a.b/c.png", "me@a.org",
        "Featured Image", "image", "a photo", "IMG_2041.JPG of a dog", "0123456789abcdef",
    ) == [
        "file_name", "file_name", "file_name", "file_name", "address", "placeholder",
        "placeholder", "", "", "file_name",
    ]  # fmt: skip


def test_a_record_keeps_the_captions_that_pass():
    texts = [("a", "one two"), ("b",), ("three four", "c", "five six"), (), ("d",)]
    found = captions.Captions(min_words=2).verdict(Rows.of(texts=texts))
    # A record that had none has no reason, whatever that of the next one is.
    assert found["reason"].tolist() == [0, 1, 0, 0, 1]
    assert found["captions"].row.tolist() == [0, 2, 2]
    assert found["captions"].value.tolist() == [1, 0, 2]


def test_matching_is_that_of_the_paper():
    find = matcher.Matcher(["dog", "cat", "big dog", "3"])
    # Seven marks are put between spaces; brackets and letter case are not looked at.
    assert find("a dog.") == {0} and find("dog") == {0} and find("a big dog!") == {0, 2}
    assert find("(dog)") == find("Dog") == find("hotdog") == find("dogs") == set()
    assert find("dog cat,3") == {0, 1, 3} and find("dog dog dog") == {0}
    assert find("a\tdog\nand a\rcat") == {0, 1}
    assert matcher.Matcher(["Dog"], lowercase=True)("a DOG") == {0}
    assert find.of_all(["a cat", "a dog", "a cat"]).tolist() == [0, 1]


def test_matching_is_that_of_a_plain_search():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(12)]
    entries = [*words, *(f"{a} {b}" for a in words[:5] for b in words[5:])]
    find = matcher.Matcher(entries)
    for _ in range(200):
        text = " ".join(rng.choice(words, rng.integers(0, 9))).replace("w3", "w3.")
        spaced = f" {text} ".replace(".", " . ")
        assert find(text) == {n for n, entry in enumerate(entries) if f" {entry} " in spaced}


def test_probabilities_of_the_balance():
    p = balance.keep_probability(np.array([5, 40, 400]), 20)
    np.testing.assert_allclose(p, [1, 0.5, 0.05])
    groups = Ragged.of([[1, 2], [2], [0, 2], []])
    np.testing.assert_allclose(balance.keep_any(groups, p, 4), [0.525, 0.05, 1, 1])
    root = balance.keep_probability(np.array([5, 80]), 20, "sqrt")
    np.testing.assert_allclose(root, [1, 0.5])


def test_t_of_a_share_of_the_tail():
    counts = np.array([1, 1, 2, 4, 12])
    # Below 4 are 4 of 20 matches: t and share are each other's inverse.
    assert balance.t_of_share(counts, 0.2) == 4
    assert balance.t_of_share(counts, 0.05) == 2
    assert balance.t_of_share(counts, 0.21) == 12
    assert balance.t_of_share(counts, 1.0) == 13


def test_the_draw_keeps_tails_and_caps_heads():
    # Made-up captions with Zipf frequencies: entry e is in about n / (e + 1) records.
    rng = np.random.default_rng(1)
    n, t = 20_000, 200
    ids = [np.flatnonzero(rng.random(60) < 0.5 / np.arange(1, 61) ** 1.5) for _ in range(n)]
    groups = Ragged.of(ids)
    counts = np.bincount(groups.value, minlength=60)
    p = balance.keep_probability(counts, t)
    weight = balance.keep_any(groups, p, n)
    kept = uniforms([f"key{i}" for i in range(n)], "balance") < weight
    after = np.bincount(groups.value[kept[groups.row]], minlength=60)
    tail = counts <= t
    assert tail.any() and (after[tail] == counts[tail]).all()
    expected = np.bincount(groups.value, weight[groups.row], minlength=60)
    spread = np.sqrt(np.bincount(groups.value, (weight * (1 - weight))[groups.row], minlength=60))
    assert (np.abs(after - expected) <= 4 * spread + 1e-9).all()
    assert (expected >= np.minimum(counts, t) - 1e-6).all()


@pytest.mark.parametrize("salt", ["", "a"])
def test_random_numbers_are_those_of_the_key(salt):
    keys = [f"k{i}" for i in range(5000)]
    u = uniforms(keys, salt)
    assert ((u >= 0) & (u < 1)).all() and abs(u.mean() - 0.5) < 0.02
    np.testing.assert_array_equal(uniforms(keys[::-1], salt), u[::-1])
    assert abs(np.corrcoef(u, uniforms(keys, salt + "b"))[0, 1]) < 0.06


def test_entries_of_files_and_of_wordnet(tmp_path):
    (tmp_path / "list.txt").write_text("a dog\n\ncat \na dog\n")
    assert matcher.read_entries(str(tmp_path / "list.txt")) == ["a dog", "cat"]
    (tmp_path / "list.json").write_text('["cat", "Ünder"]')
    assert matcher.read_entries(str(tmp_path / "list.json")) == ["cat", "Ünder"]
    for name in ("noun", "verb", "adj", "adv"):
        word = {"adj": "galore(ip)", "noun": "living_thing"}.get(name, name)
        line = f"00001740 03 n 01 {word} 0 003 ~ 00001930 n 0000 | a gloss\n"
        (tmp_path / f"data.{name}").write_text("  1 This licence\n" + line)
    found = matcher.read_entries(str(tmp_path))
    assert found[:100] == [str(n) for n in range(100)]
    assert found[100:] == ["living thing", "verb", "galore", "adv"]
    for text, said in (("", "holds no entries"), ("[1]", "list of strings"), ("[", "no JSON")):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(ValueError, match=said):
            matcher.read_entries(str(tmp_path / "list.txt"))


def test_weights_in_place_of_a_draw(pools, tmp_path):
    from jaxclip.curate import curate

    (tmp_path / "entries.txt").write_text("dog\ncat\n")
    texts = [["a dog"]] * 40 + [["a cat"]] * 10 + [["a dog and a cat"]] * 10
    source = pools.write(tmp_path / "pool.parquet", pools.rows(60, texts))
    match = {"name": "match", "entries": str(tmp_path / "entries.txt")}
    steps = [match, {"name": "balance", "t": 10, "output": "weight"}]
    assert curate({"source": source, "steps": steps}, tmp_path / "run").kept == 60
    # Dogs are 50, cats 20: p is 1/5 and 1/2.
    expected = [0.2] * 40 + [0.5] * 10 + [1 - 0.8 * 0.5] * 10
    kept = sorted(pools.table(tmp_path / "run", "kept"), key=lambda row: row["index"])
    np.testing.assert_allclose([row["weight"] for row in kept], expected, atol=1e-6)
