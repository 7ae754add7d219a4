"""A small CLIP on pairs of your own, with what the emoji showed to work on CPU cores.

    jaxclip data import --from photos/ --to data/photos --val-fraction 0.05
    jaxclip train --config configs/own_data.py:data/photos --workdir runs/photos

After the colon stands any ``data.name`` of docs/data.md: an imported folder, ``webdataset:DIR``,
``parquet:DIR``, … . Its split ``train`` is trained on; retrieval is measured on ``val``. On a GPU
take a larger model: ``configs/clip_vit_b16.py --config.data.name=data/photos``; to begin with a
published model, the ``configs/finetune_*.py``.
"""

import common
import emoji
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is the data to train on."""
    if not arg:
        raise ValueError("name the data to train on: configs/own_data.py:data/photos")
    config = emoji.get_config()
    # Photos may lose their edges, but keep their left and right and most of their colours.
    config.data.image_ops = (
        "random_resized_crop(0.5, 1.0)|color_jitter(brightness=0.2, contrast=0.2, saturation=0.2)"
    )
    config.data.name = arg
    config.tokenizer = {"kind": "clip", "context_length": 32}
    config.model.text.vocab_size = 49408
    config.evaluate = common.evaluation(every_steps=500, gallery_split="val")
    config.evaluate.retrieval = ["val"]
    config.checkpoint.best_metric = "val/retrieval/image_to_text_r1"
    return config
