"""The opponent of ``jaxclip.bench embed``: open_clip's model behind a ``DataLoader``."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

try:
    import open_clip
    import torch
    from PIL import Image
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "bench embed compares with open_clip, which jaxclip does not install: "
        "pip install torch open_clip_torch"
    ) from error


class Pictures(torch.utils.data.Dataset):
    """Files through a preprocessing."""

    def __init__(self, files: Sequence[str], preprocess: Callable[[Any], torch.Tensor]):
        self.files, self.preprocess = files, preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index]) as image:
            return self.preprocess(image)


class Embedder:
    """A folder of pictures to unit embeddings, as open_clip's users do it."""

    def __init__(self, weights: pathlib.Path, folder: pathlib.Path, batch_size: int, workers: int):
        created = open_clip.create_model_from_pretrained(f"local-dir:{weights}")
        self.model, preprocess = created[0].eval(), created[1]
        files = sorted(os.fspath(file) for file in folder.iterdir())
        self.loader = torch.utils.data.DataLoader(
            Pictures(files, preprocess),
            batch_size=batch_size,
            num_workers=workers,
            # JAX's threads do not survive a fork.
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=bool(workers),
        )

    def __call__(self) -> np.ndarray:
        """float32[N, D]."""
        with torch.inference_mode():
            found = [self.model.encode_image(x, normalize=True) for x in self.loader]
        return torch.cat(found).numpy()
