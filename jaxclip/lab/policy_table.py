"""What the policies against spikes did in the runs that have one."""

from __future__ import annotations

from jaxclip.lab import config as config_lib
from jaxclip.lab import measures
from jaxclip.lab.config import Config
from jaxclip.lab.tables import Results, Table
from jaxclip.spike_actions import as_actions

_MEASURED = ("judged", "rewinds", "steps_repeated")


def policies(config: Config, results: Results) -> Table | None:
    """Spikes judged, rewinds, and steps done over again, by rule and injector: means over seeds.

    Args:
      config: resolved.
      results: of the finished cells.

    Returns:
      None where no run judges its steps.
    """
    runs: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for cell, result in results.items():
        if "judged" in result.numbers:
            training = config_lib.training(config, cell.model, cell.rule)
            named = as_actions(training["on_spike"]["actions"])
            key = cell.rule, cell.injector, "|".join(named) or "none"
            runs.setdefault(key, []).append(result.numbers)
    if not runs:
        return None
    rows: list[tuple[str, ...]] = []
    for (rule, injector, actions), numbers in runs.items():
        found = [
            f"{measures.spread([each[name] for each in numbers])[0]:.1f}" if measured else ""
            for name in _MEASURED
            for measured in [all(name in each for each in numbers)]
        ]
        rows.append((rule, injector, actions, *found))
    return Table(
        "What the policies did",
        "Means over seeds: steps that were judged to be spikes, how often the run went back, and "
        "the steps that it did over again. Of a run that went back the past that is left counts.",
        ("rule", "injector", "actions", "spikes", "rewinds", "steps repeated"),
        rows,
    )
