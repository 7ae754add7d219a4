"""Know what a run needs before it is paid for: memory, time, communication of a training step.

    jaxclip plan --config configs/clip_vit_b16.py --topology v5e:16x16

compiles the real step ahead of time for a slice of TPUs (no TPU needed) and reads the program:

* :mod:`~jaxclip.plan.topology`, :mod:`~jaxclip.plan.chips`: slices by name, and their peaks;
* :mod:`~jaxclip.plan.program`: compiling, and the compiler's refusals;
* :mod:`~jaxclip.plan.hlo`, :mod:`~jaxclip.plan.loops`, :mod:`~jaxclip.plan.cost`,
  :mod:`~jaxclip.plan.flops`, :mod:`~jaxclip.plan.traffic`, :mod:`~jaxclip.plan.interconnect`: what
  the program does;
* :mod:`~jaxclip.plan.roofline`, :mod:`~jaxclip.plan.model_flops`: how long that takes, and how
  much of it is the model's own;
* :mod:`~jaxclip.plan.planner`: plans, remedies, sweeps; :mod:`~jaxclip.plan.measure`: the devices
  at hand, and how far the model is off on them.
"""

from jaxclip.plan.planner import Plan, make_plan, remedies, sweep
from jaxclip.plan.program import Cache

__all__ = ["Cache", "Plan", "make_plan", "remedies", "sweep"]
