"""Curation: which image-text pairs of a pool to train on. ``jaxclip curate``, docs/curation.md.

Steps (:mod:`jaxclip.curate.steps`) work on what the steps before left, in passes that a runner
(:mod:`jaxclip.curate.runners`) carries out: processes of this machine, or Apache Beam. The source
is only read; what is found out goes to a work folder, and the kept records to a new data set if
wanted.
"""

from jaxclip.curate.job import Outcome, curate
from jaxclip.curate.step import STEPS, Step

__all__ = ["STEPS", "Outcome", "Step", "curate"]
