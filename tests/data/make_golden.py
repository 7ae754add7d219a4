"""Makes the files of ``golden/``: ids and pictures of other people's code.

    pip install open_clip_torch transformers
    python -m tests.data.make_golden

The tests read the files without it.
"""

import json
import pathlib

import numpy as np
import transformers
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import image_transform

from jaxclip.data import clip_bpe
from tests.data import pictures, strange_texts, test_patch_sequence
from tests.data.test_preprocessing import CHAINS, GOLDEN, GOLDEN_SIZES

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


def preprocessing(size=16):
    """Pixels uint8[n, size, size, 3] of the pictures, by open_clip's mode and by transformers."""
    photos = [pictures.photo(*each) for each in GOLDEN_SIZES]
    found = {}
    for mode in CHAINS:
        transform = image_transform(size, False, mean=(0,) * 3, std=(1,) * 3, resize_mode=mode)
        found[mode] = np.stack([_pixels(transform(photo).numpy()) for photo in photos])
    square = {"height": size, "width": size}
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size=square, do_normalize=False
    )
    theirs = [processor(photo, return_tensors="np")["pixel_values"][0] for photo in photos]
    found["transformers"] = np.stack([_pixels(each) for each in theirs])
    np.savez_compressed(GOLDEN, **found)


def patch_sequences():
    """uint8[n, 20, 48] of pictures in at most 20 patches of 4 pixels, by transformers."""
    processor = transformers.Siglip2ImageProcessorPil(
        patch_size=4, max_num_patches=20, do_normalize=False
    )
    photos = [pictures.photo(*size) for size in test_patch_sequence.GOLDEN_SIZES]
    theirs = processor(photos, return_tensors="np")
    np.savez_compressed(
        test_patch_sequence.GOLDEN,
        patches=np.rint(theirs["pixel_values"] * 255).astype(np.uint8),
        valid=theirs["pixel_attention_mask"].astype(bool),
        grid=theirs["spatial_shapes"].astype(np.int32),
    )


def _pixels(planes):
    return np.rint(planes.transpose(1, 2, 0) * 255).astype(np.uint8)


if __name__ == "__main__":
    clip_ids()
    preprocessing()
    patch_sequences()
