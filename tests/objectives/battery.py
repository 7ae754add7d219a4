"""Objectives trained together: as many as can be are terms of one total, compiled once for all.

Compilation is nearly all that a check of a small objective costs, and most of it is the towers'.
So :func:`groups` puts into one run whatever can go together, and :func:`complaints` asks a check of
the whole group first; only where that fails is it asked of halves, down to the one that is wrong.
"""

import copy
import functools
from unittest import mock

import jax
import numpy as np

from jaxclip import config as config_lib
from jaxclip import fields as field_lib
from jaxclip import objectives, parallel
from jaxclip.train import dry_run, setup

BATCH = 32
TOWER = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
BASE = {
    "total_steps": 10,
    "global_batch_size": BATCH,
    "data": {"image_size": 16},
    "tokenizer": {"context_length": 8},
    "model": {
        "image": {"patch_size": 4, **TOWER},
        "text": {"vocab_size": 64, **TOWER},
        "embed_dim": 16,
    },
    "optim": {
        "name": "sgd",
        "learning_rate": 1.0,
        "weight_decay": 0.0,
        "clip": "none",
        "schedule": {"name": "constant", "warmup_steps": 0},
    },
}
SIZES = field_lib.Sizes(BASE["data"]["image_size"], BASE["tokenizer"]["context_length"])

# The compiler takes three to four times as long for a program of twice the size.
LARGEST = 5

# Two towers on four views with ten projections each: what compiles as long as ten of the others is
# tried alone, by `-m slow`, and its parts are in every run by its own tests.
ALONE = frozenset({"byolip", "siamlip"})


def built(name):
    """An objective with the options that suit a small model."""
    return objectives.REGISTRY.build({"name": name, **objectives.REGISTRY.get(name).small})


def masks(name):
    """Whether it changes the parameters that all towers run on: what it masks, no other trains."""
    kind = objectives.REGISTRY.get(name)
    return kind.tower_params is not objectives.Objective.tower_params


def model_of(name):
    """What the model of an objective must have."""
    return objectives.REGISTRY.get(name).small_model


def configuration(names, **given):
    """A small run whose loss is the mean of objectives, with a teacher where one wants it."""
    config = copy.deepcopy(BASE)
    weight = 1.0 / len(names)
    config["objective"] = [
        {"name": name, "weight": weight, **objectives.REGISTRY.get(name).small} for name in names
    ]
    for tower, sizes in model_of(names[0]).items():
        config["model"][tower] |= sizes
    wanted = frozenset().union(*(made.needs | made.row_needs for made in map(built, names)))
    if any(output.startswith("teacher/") for output in wanted):
        config["teacher"] = {"kind": "ema", "decay": 0.5}
    return config_lib.resolve({**config, **given})


def kinds(name):
    """``(type, shape, dtype)`` of each array of the batch that an objective wants."""
    fields = {**field_lib.PAIR, **built(name).fields}
    return {key: (type(f), f.shape(SIZES), f.dtype) for key, f in fields.items()}


def steered(name):
    """``(view, option)`` of the towers that an objective sets."""
    objective = built(name)
    if type(objective).tower_options is objectives.Objective.tower_options:
        return set()
    experiment = experiment_of([name])
    found = set()
    plain = objectives.Total.tower_options

    def note(total, view, batch, ctx):
        options = plain(total, view, batch, ctx)
        found.update((view, option) for option in options)
        return options

    with mock.patch.object(objectives.Total, "tower_options", note):
        jax.eval_shape(
            experiment.train_step, experiment.abstract_state, experiment.abstract_batch()
        )
    return found


@functools.cache
def groups():
    """Names of objectives that can be trained together: tuples of up to :data:`LARGEST`.

    Two can't where they want arrays of another shape under one key of the batch, or another model,
    or set the same option of a tower on the same view, or one keeps a part of the patches of a view
    of which the other needs all, or one masks parameters. How data makes an array does not matter:
    batches here are made up.
    """
    made = []
    joining = set(objectives.REGISTRY.names()) - ALONE
    masking = {name for name in joining if masks(name)}
    # Those that look at the same views stand together, so that few groups run many towers; and
    # those that ask for a model of their own last, so that the others train plain ones.
    order = [(len(model_of(n)), sorted(kinds(n)), n) for n in joining]
    for *_, name in sorted(order):
        wants, sets = kinds(name), steered(name)
        whole = {(view, "keep") for view in built(name).whole_views}
        for names, wanted, taken, kept_whole in made:
            fits = len(names) < LARGEST and all(
                wanted.get(key, kind) == kind for key, kind in wants.items()
            )
            fits &= sets.isdisjoint(taken | kept_whole) and whole.isdisjoint(taken)
            fits &= not {name, names[0]} & masking
            # Who asks for nothing goes with any model, but a plain one first.
            if fits and model_of(name) in ({}, model_of(names[0])):
                names.append(name)
                wanted.update(wants)
                taken.update(sets)
                kept_whole.update(whole)
                break
        else:
            made.append(([name], wants, sets, whole))
    return [tuple(names) for names, *_ in made]


def group_of(name):
    return next(names for names in groups() if name in names)


def fields_by_key(total):
    """The batch that terms want, whatever they say of how data makes it."""
    specs = [field_lib.PAIR, *(term.objective.fields for term in total.terms)]
    return dict(sorted({key: field for spec in specs for key, field in spec.items()}.items()))


def experiment_of(names, devices=1, **given):
    with mock.patch.object(objectives.Total, "fields", property(fields_by_key)):
        return setup.build(configuration(names, **given), devices=jax.devices()[:devices])


def first_state(experiment):
    """The state before the first step, made op by op: these programs serve all groups, where one
    that draws all parameters of a group takes seconds to compile."""
    with mock.patch.object(parallel, "init_sharded", lambda init, rng, shardings: init(rng)):
        return experiment.init_state()


class Run:
    """Two steps of objectives; ``start`` is the state before them, made if it is None."""

    def __init__(self, names, devices, num_micro_batches, start=None):
        self.experiment = experiment_of(names, devices, num_micro_batches=num_micro_batches)
        self.states, self.metrics = [], []
        state = first_state(self.experiment) if start is None else start
        state = jax.tree.map(np.asarray, state)
        if start is None and state.ema_teacher is not None:
            # What it teaches would be what the towers know, and nothing could be learned of it.
            rng = np.random.default_rng(0)
            state = state._replace(
                ema_teacher=jax.tree.map(
                    lambda x: (x + 0.1 * rng.standard_normal(x.shape)).astype(x.dtype),
                    state.ema_teacher,
                )
            )
        state = jax.device_put(state, self.experiment.state_shardings)
        for step in range(2):
            self.states.append(jax.tree.map(np.asarray, state))
            state, metrics = self.experiment.train_step(state, self.batch(step))
            self.metrics.append({key: float(value) for key, value in metrics.items()})
        self.states.append(jax.tree.map(np.asarray, state))

    def batch(self, step):
        config = {**self.experiment.config, "seed": step}
        made_up = dry_run.made_up_batch(config, self.experiment.batch_spec)
        return parallel.to_global(made_up, self.experiment.mesh)


@functools.cache
def run(names, devices=1, num_micro_batches=1):
    start = None if devices == 1 else run(names).states[0]
    return Run(names, devices, num_micro_batches, start)


@functools.cache
def complaints(check, names):
    """``{name: error}`` of a check of objectives, found by halves where all together fail."""
    try:
        check(names)
        return {}
    except Exception as error:
        if len(names) == 1:
            return {names[0]: error}
        middle = len(names) // 2
        found = {**complaints(check, names[:middle]), **complaints(check, names[middle:])}
        return found or dict.fromkeys(names, error)  # none of them, but all together


def named_leaves(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
