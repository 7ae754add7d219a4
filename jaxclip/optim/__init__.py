"""Adaptive clipping and spike-aware optimizers as optax transformations.

Importing this package needs jax, optax and numpy, and nothing else of jaxclip. Every function
is a factory of ``optax.GradientTransformation``, except :func:`from_config`, which builds one from
a mapping, and :func:`read_metrics` and :func:`tensor_names`, which read states. The classes are the
states. What all of them have in common (state fields, dtypes, non-finite input) is documented in
``jaxclip/optim/_base.py``.
"""

# Plain imports, for each function has the name of its module: imported lazily, the attribute
# `jaxclip.optim.zclip` could be either, depending on who imported what before.
from jaxclip.optim._base import tensor_names
from jaxclip.optim._schedule import learning_rate_schedule
from jaxclip.optim.acclip import AcclipState, acclip, scale_by_acclip
from jaxclip.optim.adaclip import AdaclipState, adaclip
from jaxclip.optim.adagc import AdagcState, adagc
from jaxclip.optim.adagn import AdagnState, adagn
from jaxclip.optim.aggc import AggcState, aggc
from jaxclip.optim.asam import asam
from jaxclip.optim.autoclip import AutoclipState, autoclip
from jaxclip.optim.cautious import cautious
from jaxclip.optim.clip_by_coordinate import ClipByCoordinateState, clip_by_coordinate
from jaxclip.optim.clip_radagrad_d import ClipRadagradDState, clip_radagrad_d
from jaxclip.optim.config import from_config
from jaxclip.optim.dicesgd import DicesgdState, dicesgd
from jaxclip.optim.gradient_stabilizer import GradientStabilizerState, gradient_stabilizer
from jaxclip.optim.kahan_summation import KahanSummationState, kahan_summation
from jaxclip.optim.median_clip import MedianClipState, median_clip
from jaxclip.optim.private_mean_by_group import PrivateMeanByGroupState, private_mean_by_group
from jaxclip.optim.qk_clip import qk_clip
from jaxclip.optim.read_metrics import monitor, read_metrics
from jaxclip.optim.skip_nonfinite import SkipNonfiniteState, skip_nonfinite
from jaxclip.optim.skip_on_spike import SkipOnSpikeState, skip_on_spike
from jaxclip.optim.spam import SpamState, scale_by_spam, spam
from jaxclip.optim.spectra_clip import SpectraClipState, spectra_clip
from jaxclip.optim.stable_adamw import StableAdamState, scale_by_stable_adam, stable_adamw
from jaxclip.optim.stable_spam import StableSpamState, scale_by_stable_spam, stable_spam
from jaxclip.optim.stochastic_rounding import StochasticRoundingState, stochastic_rounding
from jaxclip.optim.track_clipping_quantile import (
    TrackClippingQuantileState,
    track_clipping_quantile,
)
from jaxclip.optim.zclip import ZclipState, zclip

__all__ = [
    "AcclipState",
    "AdaclipState",
    "AdagcState",
    "AdagnState",
    "AggcState",
    "AutoclipState",
    "ClipByCoordinateState",
    "ClipRadagradDState",
    "DicesgdState",
    "GradientStabilizerState",
    "KahanSummationState",
    "MedianClipState",
    "PrivateMeanByGroupState",
    "SkipNonfiniteState",
    "SkipOnSpikeState",
    "SpamState",
    "SpectraClipState",
    "StableAdamState",
    "StableSpamState",
    "StochasticRoundingState",
    "TrackClippingQuantileState",
    "ZclipState",
    "acclip",
    "adaclip",
    "adagc",
    "adagn",
    "aggc",
    "asam",
    "autoclip",
    "cautious",
    "clip_by_coordinate",
    "clip_radagrad_d",
    "dicesgd",
    "from_config",
    "gradient_stabilizer",
    "kahan_summation",
    "learning_rate_schedule",
    "median_clip",
    "monitor",
    "private_mean_by_group",
    "qk_clip",
    "read_metrics",
    "scale_by_acclip",
    "scale_by_spam",
    "scale_by_stable_adam",
    "scale_by_stable_spam",
    "skip_nonfinite",
    "skip_on_spike",
    "spam",
    "spectra_clip",
    "stable_adamw",
    "stable_spam",
    "stochastic_rounding",
    "tensor_names",
    "track_clipping_quantile",
    "zclip",
]
