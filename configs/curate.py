"""Recipes of curation: which steps, in which order, with the constants of the papers.

    jaxclip curate --config configs/curate.py:metaclip --source data/pool --workdir runs/curate \\
        --config.match.entries=metadata.json --config.balance.t=170000

The argument names the recipe, a list of steps (docs/curation.md has them all). Files are the
user's: --config.STEP.OPTION=VALUE sets an option of all steps of that name.
"""

# DataComp's basic filter (2304.14108), but for language.
BASIC = [
    {"name": "captions", "min_words": 3, "min_characters": 6, "alt_text": True},
    {"name": "pictures", "min_side": 200, "max_aspect": 3.0},
]
EXACT = [{"name": "exact_duplicates", "by": "pair"}]
SCORED = [{"name": "embeddings"}, {"name": "clip_score"}]

RECIPES = {
    # 2309.16671. Balance comes last: what is dropped behind it would unbalance it again.
    "metaclip": [
        *EXACT,
        {"name": "match"},
        {"name": "balance", "t": 20_000.0},
    ],
    # The same, with probabilities for sampling in training in place of a draw.
    "metaclip_weights": [
        *EXACT,
        {"name": "match"},
        {"name": "balance", "t": 20_000.0, "output": "weight"},
    ],
    "datacomp": [
        *EXACT,
        *BASIC,
        {"name": "language"},
        *SCORED,
        {"name": "top", "column": "clip_score", "share": 0.3},
    ],
    # 2210.08402, for English.
    "laion": [
        {"name": "captions", "min_characters": 5},
        {"name": "pictures", "min_bytes": 5120},
        {"name": "language"},
        *SCORED,
        {"name": "where", "column": "clip_score", "at_least": 0.28},
        {"name": "where", "column": "punsafe", "at_most": 0.5, "keep_missing": True},
        {"name": "where", "column": "pwatermark", "at_most": 0.8, "keep_missing": True},
    ],
    # 2309.17425: embeddings.weights is a small CLIP that was trained on trusted pairs.
    "dfn": [*EXACT, *SCORED, {"name": "top", "column": "clip_score", "share": 0.15}],
    # 2309.13770: the score without the numbers in the captions.
    "no_numbers": [
        {"name": "embeddings", "texts": "without_numbers"},
        {"name": "clip_score"},
        {"name": "top", "column": "clip_score", "share": 0.4},
    ],
    # 2307.03132: the score without the text in the pictures (meta's `text_boxes`).
    "tmars": [
        {"name": "embeddings", "images": "text_masked"},
        {"name": "clip_score"},
        {"name": "top", "column": "clip_score", "share": 0.5},
    ],
    # 2303.09540, then 2401.04578.
    "density": [
        *EXACT,
        {"name": "near_pictures"},
        {"name": "embeddings", "texts": "none"},
        {"name": "cluster", "k": 500},
        {"name": "semantic_duplicates", "eps": 0.05},
        {"name": "prune_clusters", "share": 0.5, "tau": 0.5},
    ],
    # 2501.07171: figures of articles. Look at the clusters of a first run without the last step,
    # write their labels down, and run again.
    "biomedica": [
        {"name": "pictures", "min_side": 21},
        *EXACT,
        {"name": "embeddings", "texts": "none"},
        {"name": "cluster", "k": 2000},
        {"name": "cluster_labels", "column": "panel", "drop": ["chart", "text"]},
    ],
}


def get_config(arg="metaclip"):
    """The recipe of that name, without a source."""
    if arg not in RECIPES:
        raise ValueError(f"configs/curate.py has no recipe {arg!r}; there are {', '.join(RECIPES)}")
    return {"steps": RECIPES[arg]}
