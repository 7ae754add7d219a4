"""tensorflow and tensorflow_datasets, imported late and kept away from network and accelerators."""

from __future__ import annotations

import functools
import os
from typing import Any

_HINT = "install the training extra, in a clone of jaxclip: pip install '.[train]'"


@functools.cache
def tensorflow() -> Any:
    """The tensorflow module, on the CPU only.

    tensorflow would otherwise reserve the memory of every GPU it sees, which JAX needs.

    Raises:
      ImportError: tensorflow is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # No mathematics is done with tensorflow here; this spares a notice that no log level silences.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(f"reading pictures needs tensorflow; {_HINT}") from error
    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError:
            # Somebody used tensorflow before us: too late to hide devices, not a reason to stop.
            break
    return tf


@functools.cache
def tensorflow_datasets() -> Any:
    """The tensorflow_datasets module, never asking its storage bucket for anything.

    Raises:
      ImportError: tensorflow_datasets is not installed.
    """
    tensorflow()
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.utils import gcs_utils
    except ImportError as error:
        raise ImportError(f"reading TFDS data sets needs tensorflow_datasets; {_HINT}") from error
    # Recent versions default to this; older ones wait for a time-out on machines without network.
    gcs_utils._is_gcs_disabled = True
    return tfds
