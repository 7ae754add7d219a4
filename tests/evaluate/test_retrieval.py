"""Recall against a naive count, with several captions an image and captions that images share."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from jaxclip.evaluate import retrieval

KS = (1, 2, 5, 10)


def naive_recall(scores, right, ks):
    """Hits of a [Q, G] score matrix; queries without a right answer do not ask."""
    hits, asked = dict.fromkeys(ks, 0), 0
    for row, ok in zip(scores, right, strict=True):
        if not ok.any():
            continue
        asked += 1
        order = sorted(range(len(row)), key=lambda j: (-row[j], j))
        for k in ks:
            hits[k] += any(ok[j] for j in order[:k])
    return hits, asked


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    texts=st.lists(
        st.lists(st.sampled_from("abcdefghijklmno"), max_size=4), min_size=1, max_size=14
    ),
    seed=st.integers(0, 2**16),
    gallery_tile=st.sampled_from([3, 64]),
)
def test_equals_the_naive_count(texts, seed, gallery_tile):
    captions = retrieval.index_captions(texts)
    rng = np.random.default_rng(seed)
    images = rng.integers(-1, 2, (len(texts), 3)).astype(np.float32)
    embedded = rng.integers(-1, 2, (len(captions.texts), 3)).astype(np.float32)
    if not captions.texts:
        assert retrieval.image_to_text(images, embedded, captions.pairs).queries == 0
        return
    right = np.array([[c in own for c in captions.texts] for own in texts])
    tiling = {"query_tile": 5, "gallery_tile": gallery_tile}
    found = retrieval.image_to_text(images, embedded, captions.pairs, ks=KS, **tiling)
    assert found == naive_recall(images @ embedded.T, right, KS)
    found = retrieval.text_to_image(images, embedded, captions.pairs, ks=KS, **tiling)
    assert found == naive_recall(embedded @ images.T, right.T, KS)


def test_parts_add_up_to_the_whole():
    rng = np.random.default_rng(1)
    captions = retrieval.index_captions([[f"c{i % 13}", f"d{i}"] for i in range(29)])
    images = rng.normal(size=(29, 4))
    embedded = rng.normal(size=(len(captions.texts), 4))
    whole = retrieval.text_to_image(images, embedded, captions.pairs)
    parts = [
        retrieval.text_to_image(
            images, embedded, captions.pairs, queries=np.arange(p, len(captions.texts), 3)
        )
        for p in range(3)
    ]
    assert sum(part.queries for part in parts) == whole.queries == 42
    for k, count in whole.hits.items():
        assert sum(part.hits[k] for part in parts) == count


def test_captions_are_numbered_once():
    captions = retrieval.index_captions([["a", "b", "a"], [], ["b"]])
    assert captions.texts == ["a", "b"]
    assert captions.pairs.tolist() == [[0, 0], [0, 1], [2, 1]]


def test_a_shared_caption_is_right_for_each_owner():
    captions = retrieval.index_captions([["cat"], ["cat"], ["dog"]])
    images = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    embedded = np.array([[1, 0], [0, 1]], np.float32)
    assert retrieval.image_to_text(images, embedded, captions.pairs).hits[1] == 3
    assert retrieval.text_to_image(images, embedded, captions.pairs).metrics("x") == {
        "x_r1": 1.0,
        "x_r5": 1.0,
        "x_r10": 1.0,
    }


def test_an_image_without_captions_distracts_but_does_not_ask():
    captions = retrieval.index_captions([[], ["dog"]])
    images = np.array([[1.0], [0.5]], np.float32)
    embedded = np.array([[1.0]], np.float32)
    assert retrieval.image_to_text(images, embedded, captions.pairs).queries == 1
    assert retrieval.text_to_image(images, embedded, captions.pairs, ks=(1, 2)).hits == {1: 0, 2: 1}
