"""What is no model as it was trained: quantized, emptied or with its axes moved; said in a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxclip.weights.files import Tensor
from jaxclip.weights.mapping import MappingError

# Tensors that quantized layers keep beside their numbers (GPTQ, AWQ, bitsandbytes, MLX).
_QUANTIZED = (".qweight", ".qzeros", ".SCB", ".weight_format", ".absmax", ".quant_map", ".scales")
# Convolutions of patches, [C, 3, p, p] in torch.
_PATCHES = ("patch_embedding.weight", "visual.conv1.weight", "patch_embed.proj.weight")


def refuse(path: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Refuse what no family could read, before its family is looked for.

    Args:
      path: for errors.
      tensors: by their names in the file.
      config: the JSON beside it.

    Raises:
      MappingError: what it is, and the way out.
    """
    told = config.get("quantization_config")
    method = told.get("quant_method", "") if isinstance(told, Mapping) else ""
    marks = [name for name in tensors if name.endswith(_QUANTIZED)]
    if method or marks:
        what = f"by {method}" if method else f"it holds {marks[0]}"
        raise MappingError(
            f"{path} is quantized ({what}), which is not read; take the original weights"
        )
    if tensors and not any(0 not in tensor.shape for tensor in tensors.values()):
        raise MappingError(
            f"{path} holds {len(tensors)} empty tensors, as DeepSpeed's ZeRO-3 leaves them in each "
            "process's file; make one file of all by its zero_to_fp32.py"
        )
    for name, tensor in tensors.items():
        shape = tensor.shape
        if name.endswith(_PATCHES) and len(shape) == 4 and shape[3] == 3 != shape[1] == shape[2]:
            raise MappingError(
                f"{path}: {name} {list(shape)} has its channels last, as MLX keeps convolutions, "
                "where torch has them second; take the original weights"
            )


def refuse_integers(path: str, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Refuse whole numbers where parameters are wanted.

    Raises:
      MappingError: names one.
    """
    for name in names:
        if np.issubdtype(tensors[name].dtype, np.integer) or tensors[name].dtype == bool:
            raise MappingError(
                f"{path}: {name} is of {tensors[name].dtype}, so quantized, which is not read; "
                "take the original weights"
            )
