"""Makes the files of ``golden/``: ids and pictures of other people's code.

    pip install open_clip_torch
    python -m tests.data.make_golden

The tests read the files without it.
"""

import json
import pathlib

from open_clip.tokenizer import SimpleTokenizer

from jaxclip.data import clip_bpe
from tests.data import strange_texts

FOLDER = pathlib.Path(__file__).parent / "golden"


def clip_ids(count=300):
    """Texts with open_clip's ids, and whether ftfy changes them."""
    texts = strange_texts.make(count + 6, seed=1)
    texts = [text for text in texts if len(text) < 400]
    plain = clip_bpe.CLIPTokenizer(fix_text=False)
    theirs = SimpleTokenizer()(texts).numpy()
    rows = []
    for text, row, without in zip(texts, theirs, plain(texts), strict=True):
        length = int((row != 0).nonzero()[0][-1]) + 1
        needs_ftfy = bool((row != without).any())
        rows.append({"text": text, "ids": row[:length].tolist(), "needs_ftfy": needs_ftfy})
    FOLDER.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    (FOLDER / "clip_ids.json").write_text(f"[\n{lines}\n]\n")
    print(len(rows), "texts,", sum(row["needs_ftfy"] for row in rows), "need ftfy")


if __name__ == "__main__":
    clip_ids()
