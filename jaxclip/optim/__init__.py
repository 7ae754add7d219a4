"""Adaptive clipping and spike-aware optimizers as optax transformations.

Importing this package needs jax, optax and numpy, and nothing else of jaxclip. Every name is an
``optax.GradientTransformation`` factory, except :func:`from_config`, which builds one from a
mapping, and :func:`monitor` and :func:`tensor_names`, which read states. What all of them have in
common (state fields, dtypes, non-finite input) is documented in ``jaxclip/optim/_base.py``.
"""

# Plain imports, for each function has the name of its module: imported lazily, the attribute
# `jaxclip.optim.zclip` could be either, depending on who imported what before.
from jaxclip.optim._base import tensor_names
from jaxclip.optim._schedule import learning_rate_schedule
from jaxclip.optim.adaclip import adaclip
from jaxclip.optim.adagc import adagc
from jaxclip.optim.adagn import adagn
from jaxclip.optim.autoclip import autoclip
from jaxclip.optim.clip_by_coordinate import clip_by_coordinate
from jaxclip.optim.clip_radagrad_d import clip_radagrad_d
from jaxclip.optim.config import from_config
from jaxclip.optim.dicesgd import dicesgd
from jaxclip.optim.median_clip import median_clip
from jaxclip.optim.monitor import monitor
from jaxclip.optim.skip_nonfinite import skip_nonfinite
from jaxclip.optim.skip_on_spike import skip_on_spike
from jaxclip.optim.spam import scale_by_spam, spam
from jaxclip.optim.stable_adamw import scale_by_stable_adam, stable_adamw
from jaxclip.optim.stable_spam import scale_by_stable_spam, stable_spam
from jaxclip.optim.track_clipping_quantile import track_clipping_quantile
from jaxclip.optim.zclip import zclip

__all__ = [
    "adaclip",
    "adagc",
    "adagn",
    "autoclip",
    "clip_by_coordinate",
    "clip_radagrad_d",
    "dicesgd",
    "from_config",
    "learning_rate_schedule",
    "median_clip",
    "monitor",
    "scale_by_spam",
    "scale_by_stable_adam",
    "scale_by_stable_spam",
    "skip_nonfinite",
    "skip_on_spike",
    "spam",
    "stable_adamw",
    "stable_spam",
    "tensor_names",
    "track_clipping_quantile",
    "zclip",
]
