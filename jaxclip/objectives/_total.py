"""The sum of the terms of a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.models.presets import CLIPConfig
from jaxclip.objectives._base import (
    Context,
    Metrics,
    Objective,
    Outputs,
    Params,
    State,
    term_key,
)
from jaxclip.objectives._schedules import as_weight
from jaxclip.registry import Registry

REGISTRY = Registry("objective", "jaxclip.objectives", listed_by="jaxclip methods")


@dataclasses.dataclass(frozen=True)
class Term:
    """An objective with its place in a configuration.

    Attributes:
      name: under which its parameters, state and metrics are kept.
      objective: what it does.
      weight: of its loss, a function of the step.
      prefix: of its metrics; empty for the one term of ``config.loss``.
    """

    name: str
    objective: Objective
    weight: Callable[[Any], Any]
    prefix: str


@dataclasses.dataclass(frozen=True)
class Total:
    """All terms together, with the interface of one."""

    terms: tuple[Term, ...]

    @property
    def needs(self) -> frozenset[str]:
        """Outputs that must reach the global loss."""
        return frozenset().union(*(term.objective.needs for term in self.terms))

    @property
    def row_needs(self) -> frozenset[str]:
        """Outputs that are used within a micro-batch."""
        return frozenset().union(*(term.objective.row_needs for term in self.terms))

    @property
    def comparing(self) -> tuple[str, ...]:
        """Names of the terms whose global loss sees both towers: they compare pairs of a batch."""
        return tuple(t.name for t in self.terms if _sees_both_towers(t.objective.needs))

    @property
    def fields(self) -> dict[str, field_lib.Field]:
        """The batch that the terms want, image and text included.

        A term may say how ``image`` or ``text`` itself is made.

        Raises:
          ValueError: two terms want different things under one key.
        """
        wanted = field_lib.union((f"objective {t.name!r}", t.objective.fields) for t in self.terms)
        return dict(sorted({**field_lib.PAIR, **wanted}.items()))

    def owners(self) -> dict[str, str]:
        """Who wants which key of the batch, for errors."""
        return {key: f"objective {t.name!r}" for t in self.terms for key in t.objective.fields}

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> dict[str, Params]:
        """Own parameters of the terms that have any, by name."""
        every = {
            term.name: term.objective.init_params(term_key(rng, term.name), sizes)
            for term in self.terms
        }
        return {name: params for name, params in every.items() if jax.tree.leaves(params)}

    def init_state(self, sizes: CLIPConfig) -> dict[str, State]:
        """State of the terms that have any, by name."""
        every = {term.name: term.objective.init_state(sizes) for term in self.terms}
        return {name: state for name, state in every.items() if jax.tree.leaves(state)}

    def tower_options(self, view: str, batch: Outputs, ctx: Context) -> dict[str, Any]:
        """What the terms want of a tower on a view.

        Raises:
          ValueError: two terms want the same option, or one drops patches of a view of which
            another needs all.
        """
        options: dict[str, Any] = {}
        owners: dict[str, str] = {}
        for term in self.terms:
            for key, value in term.objective.tower_options(
                view, batch, _own(ctx, term.name)
            ).items():
                if key in options:
                    raise ValueError(
                        f"objectives {owners[key]!r} and {term.name!r} both set {key!r} of the "
                        f"tower on {view!r}; keep one of them"
                    )
                options[key], owners[key] = value, term.name
        for term in self.terms:
            if "keep" in options and view in term.objective.whole_views:
                raise ValueError(
                    f"objective {term.name!r} needs every patch of {view!r}, of which "
                    f"{owners['keep']!r} keeps a part; train with one of them"
                )
        return options

    def tower_params(self, params: Params, ctx: Context) -> Params:
        """The model's parameters as the towers run on them."""
        for term in self.terms:
            params = term.objective.tower_params(params, _own(ctx, term.name))
        return params

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        """Row-wise results of all terms as ``name/key``."""
        results: dict[str, jax.Array] = {}
        for term in self.terms:
            own = params.get(term.name, {})
            seen = _select(outputs, term.objective.row_needs)
            for key, value in term.objective.rows(own, seen, _own(ctx, term.name)).items():
                results[f"{term.name}/{key}"] = value
        return results

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        """The weighted sum, every term's metrics under its name, and the new states."""
        total = jnp.zeros((), jnp.float32)
        metrics: Metrics = {}
        new_state = dict(state)
        for index, term in enumerate(self.terms):
            start = f"{term.name}/"
            seen = _select(outputs, term.objective.needs)
            seen |= {k.removeprefix(start): v for k, v in outputs.items() if k.startswith(start)}
            value, own_metrics, own_state = term.objective.loss(
                params.get(term.name, {}), state.get(term.name, {}), seen, _own(ctx, term.name)
            )
            weight = term.weight(ctx.step)
            # The first term as it is where its weight is 1: one term is the plain loss to the bit.
            weighted = value if isinstance(weight, float) and weight == 1.0 else weight * value
            total = weighted if index == 0 else total + weighted
            if term.prefix:
                metrics[f"{term.prefix}loss"] = value
                metrics[f"{term.prefix}weight"] = jnp.asarray(weight, jnp.float32)
            metrics |= {f"{term.prefix}{key}": value for key, value in own_metrics.items()}
            if term.name in state:
                new_state[term.name] = jax.lax.stop_gradient(own_state)
        return total, metrics, new_state

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None = None) -> None:
        """Refuse what can't work before anything compiles.

        Raises:
          ValueError: as the terms say.
        """
        for term in self.terms:
            term.objective.check(sizes, teacher)

    def check_run(self, global_batch_size: int, teacher: str) -> None:
        """Refuse a batch or a kind of teacher that a term can't be trained with.

        Raises:
          ValueError: as the terms say.
        """
        for term in self.terms:
            term.objective.check_run(global_batch_size, teacher)


def _sees_both_towers(needs: frozenset[str]) -> bool:
    return {"image", "text"} <= {key.rpartition("/")[2].partition("_")[0] for key in needs}


def _own(ctx: Context, name: str) -> Context:
    """The context of a term; the one of all terms has parameters and states of all by name."""
    kept = {key: getattr(ctx, key).get(name, {}) for key in ("teacher_own", "own", "state")}
    return dataclasses.replace(ctx, key=term_key(ctx.key, name), **kept)


def _select(outputs: Outputs, keys: frozenset[str]) -> dict[str, jax.Array]:
    return {key: outputs[key] for key in keys}


def from_config(terms: Sequence[Mapping[str, Any] | str], loss: Mapping[str, Any]) -> Total:
    """The terms of a configuration.

    Args:
      terms: ``config.objective``: ``[{"name": "slip", "weight": 1.0, option: value}]``; a term may
        be listed twice with different options under different values of ``"as"``.
      loss: ``config.loss``, which is the one term where the list is empty.

    Raises:
      ValueError: an unknown term or option (the nearest is named), a name used twice, a negative
        weight, or a value that a term refuses.
    """
    if not terms:
        losses.from_config(loss)  # its errors speak of config.loss
        objective = REGISTRY.build({**dict(loss), "name": "contrastive", "kind": loss["name"]})
        return Total((Term("contrastive", objective, as_weight(1.0, "contrastive"), ""),))
    return Total(listed(terms))


def listed(terms: Sequence[Mapping[str, Any] | str]) -> tuple[Term, ...]:
    """The terms that ``config.objective`` lists, none where it is empty; see :func:`from_config`.

    A term's name, under which its parameters are kept, is made here and nowhere else.

    Raises:
      ValueError: as :func:`from_config`.
    """
    if isinstance(terms, (str, Mapping)):  # one term, not in a list
        terms = [terms]
    built: list[Term] = []
    for given in terms:
        if not isinstance(given, (str, Mapping)):
            raise ValueError(
                f"a term of config.objective is a name or a dict with a 'name', got {given!r}"
            )
        options = {"name": given} if isinstance(given, str) else dict(given)
        weight = options.pop("weight", 1.0)
        name = options.pop("as", str(options.get("name")).rpartition(":")[2])
        if any(term.name == name for term in built):
            raise ValueError(
                f"objective {name!r} is listed twice; give one of them another name by 'as'"
            )
        built.append(Term(name, REGISTRY.build(options), as_weight(weight, name), f"{name}/"))
    return tuple(built)
