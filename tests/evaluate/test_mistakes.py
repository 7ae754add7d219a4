"""Arrays that do not fit are one clear error, and no number that means nothing."""

import numpy as np
import pytest

from jaxclip.evaluate import (
    caption_score,
    inspection,
    linear_probe,
    linkage,
    psp_entropy,
    ranking,
    retrieval,
    zero_shot,
)
from jaxclip.evaluate.attack import pgd, success_rate

X = np.eye(3, 4, dtype=np.float32)
LABELS = np.arange(3)
PAIRS = np.stack([LABELS, LABELS], axis=1)
ONES = np.ones(3)

CASES = {
    "top_k_rank": (lambda: ranking.top_k(X[0], X, 1), "top_k: queries has shape"),
    "top_k_number": (lambda: ranking.top_k(X, X, 1.5), r"k=1\.5 of a gallery"),
    "top_k_tile": (lambda: ranking.top_k(X, X, 1, query_tile=0), "query_tile=0"),
    "classify_rows": (lambda: zero_shot.classify(X, X, LABELS[:2]), "classify: labels has shape"),
    "classify_one_hot": (lambda: zero_shot.classify(X, X, np.eye(3)), "classify: labels has shape"),
    "classify_half": (lambda: zero_shot.classify(X, X, LABELS + 0.5), "labels are float64, not"),
    "classify_ks": (lambda: zero_shot.classify(X, X, LABELS, ks=()), "must be integers of at"),
    "prompts": (lambda: zero_shot.class_embeddings(X[0], 1), "class_embeddings: prompts has"),
    "pairs_turned": (
        lambda: retrieval.image_to_text(X, X, PAIRS.T),
        r"image_to_text: pairs has shape \[2, 3\], where \[P, 2\]",
    ),
    "pairs_swapped": (
        lambda: retrieval.text_to_image(X[:2], X, PAIRS),
        r"pairs\[:, 0\] \(images\) has 2, but there are only 2",
    ),
    "pairs_negative": (lambda: retrieval.image_to_text(X, X, PAIRS - 1), "count from 0"),
    "recall_ks": (lambda: retrieval.image_to_text(X, X, PAIRS, ks=[0]), "must be integers of at"),
    "fit_label": (lambda: linear_probe.fit(X, LABELS, ONES, 2, 1.0), "labels has 2, but there are"),
    "fit_negative": (lambda: linear_probe.fit(X, LABELS - 1, ONES, 3, 1.0), "without a label"),
    "fit_nan": (lambda: linear_probe.fit(X * np.nan, LABELS, ONES, 3, 1.0), "not all finite"),
    "fit_c": (lambda: linear_probe.fit(X, LABELS, ONES, 3, 0.0), r"c=0\.0 and the sum"),
    "search": (lambda: linear_probe.search(X, LABELS, ONES > 0, 3), "is_train is True for all"),
    "rand_index": (
        lambda: linkage.adjusted_rand_index(LABELS, LABELS[:1]),
        "adjusted_rand_index: truth has shape",
    ),
    "nearest": (lambda: linkage.nearest_shares_label(X, LABELS[:2]), "labels has shape"),
    "clusters": (lambda: linkage.clusters(X[0], 0.1), "clusters: vectors has shape"),
    "psp": (lambda: psp_entropy.psp_entropy(X, LABELS[:2]), "psp_entropy: labels has shape"),
    "references": (lambda: caption_score.ref_clip_score(ONES, X, [X, X, X[:0]]), "or one of none"),
    "corpus": (lambda: caption_score.aggregate_text(X, X[:0], 1.0), "the corpus is empty"),
    "bank": (lambda: inspection.scores(X, X, LABELS[:2]), "scores: labels has shape"),
    "pgd": (lambda: pgd(lambda x: x.sum(), X, radius=float("nan")), "all must be above 0"),
    "success": (lambda: success_rate(ONES > 0, ONES[:1] > 0), "success_rate: after has shape"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused(case):
    call, message = CASES[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_whole_numbers_of_any_type_are_labels():
    for labels in (LABELS.astype(np.float32), LABELS.astype(np.uint8), list(LABELS)):
        assert zero_shot.classify(X, X, labels, ks=(1,)).correct == {1: 3}
    assert zero_shot.classify(X[:2], X[:2], [False, True], ks=(1,)).correct == {1: 2}
    assert retrieval.image_to_text(X, X, []).queries == 0


def test_other_forms_of_what_fits_are_taken():
    for ks in (range(1, 3), np.array([1, 2]), (np.int64(1), 2)):
        assert zero_shot.classify(X, X, LABELS, ks=ks).correct == {1: 3, 2: 3}
        assert retrieval.image_to_text(X, X, PAIRS, ks=ks).hits == {1: 3, 2: 3}
    assert np.isnan(success_rate(np.zeros(0, bool), np.zeros(0, bool)))  # of no picture
