"""The opponents of ``jaxclip.bench embed``: open_clip's and transformers' models behind a
``DataLoader``."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

try:
    import open_clip
    import torch
    import transformers
    from PIL import Image
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "bench embed compares with open_clip and transformers, which jaxclip does not install: "
        "pip install torch torchvision open_clip_torch transformers"
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
    """A folder of pictures to unit embeddings, as each library's users do it.

    Args:
      library: ``"open_clip"`` or ``"transformers"``.
      weights: a folder that it loads.
      folder: of pictures.
      batch_size: pictures a batch.
      workers: processes that decode; 0 for none.
      threads: of torch in this process.
    """

    def __init__(
        self,
        library: str,
        weights: pathlib.Path,
        folder: pathlib.Path,
        batch_size: int,
        workers: int,
        threads: int,
    ):
        self.threads = threads
        files = sorted(os.fspath(file) for file in folder.iterdir())
        self.model, self.encode, pictures, collate = _LIBRARIES[library](weights, files)
        self.loader = torch.utils.data.DataLoader(
            pictures,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=collate,
            # JAX's threads do not survive a fork.
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=bool(workers),
        )

    def __call__(self) -> np.ndarray:
        """float32[N, D]."""
        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            found = torch.cat([self.encode(batch) for batch in self.loader])
            array: np.ndarray = torch.nn.functional.normalize(found, dim=-1).numpy()
            return array


class Processed:
    """A batch of pictures through a processor of transformers."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, pictures: list[Any]) -> Any:
        return self.processor(images=pictures, return_tensors="pt")


def _rgb(image: Any) -> Any:
    return image.convert("RGB")


def _open_clip(weights: pathlib.Path, files: Sequence[str]) -> tuple[Any, Any, Any, Any]:
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{weights}")
    return model, model.eval().encode_image, Pictures(files, preprocess), None


def _transformers(weights: pathlib.Path, files: Sequence[str]) -> tuple[Any, Any, Any, Any]:
    model = transformers.AutoModel.from_pretrained(weights).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(weights)

    def encode(batch: Any) -> Any:
        found = model.get_image_features(**batch)
        return getattr(found, "pooler_output", found)  # transformers 5 gives more than a tensor

    return model, encode, Pictures(files, _rgb), Processed(processor)


_LIBRARIES = {"open_clip": _open_clip, "transformers": _transformers}
