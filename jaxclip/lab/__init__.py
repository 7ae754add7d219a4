"""Stability studies: grids of tiny training runs, things that go wrong in them, and what it cost.

A *cell* is one run: a rule (an ``optim`` section), a learning rate, an injector, a precision, a
model and a seed. ``jaxclip lab --config configs/lab_rules.py --workdir DIR`` runs the cells of a
grid and writes one report. The towers, the losses, the train step and the transformations are those
that ``jaxclip train`` uses; the lab adds what goes wrong.
"""
