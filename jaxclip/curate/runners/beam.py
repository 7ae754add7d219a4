"""The passes as pipelines of Apache Beam: on this machine, or on Dataflow, Flink, Spark by flag."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxclip.curate.runners import Arrays, Emit, Finish, Function, Merge, Runner, Save, Settle

# Beam's own default first looks for a program that it would have to download.
_DEFAULT = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"


class Beam(Runner):
    """Runs passes on Beam, one pipeline a pass; elements are shards, or arrays of many records.

    Args:
      options: of Beam, such as ``["--runner=DataflowRunner", "--project=…"]``; without a runner
        they are for the one in this process (``--direct_num_workers=4
        --direct_running_mode=multi_processing``).

    Raises:
      ImportError: Beam is not installed.
    """

    def __init__(self, options: Sequence[str] = ()):
        try:
            import apache_beam
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise ImportError(
                f"--runner beam needs Apache Beam ({error}): in a clone of jaxclip, in an "
                "environment of its own: pip install '.[curate]'; or use --runner local"
            ) from error
        self._beam: Any = apache_beam
        flags = list(options)
        if not any(flag.startswith("--runner") for flag in flags):
            flags.append(_DEFAULT)
        self._options = PipelineOptions(flags)

    def each(self, function: Callable[[int], None], items: Sequence[int]) -> None:
        beam = self._beam
        if not items:
            return
        with beam.Pipeline(options=self._options) as pipeline:
            _ = self._items(pipeline, items) | beam.Map(function)

    def reduce(self, function: Function, merge: Merge, save: Save, items: Sequence[int]) -> None:
        beam = self._beam
        combine = functools.partial(_merge, merge)
        with beam.Pipeline(options=self._options) as pipeline:
            _ = (
                self._items(pipeline, items)
                | beam.Map(function)
                | beam.CombineGlobally(combine).without_defaults()
                | "Save" >> beam.Map(save)
            )

    def shuffle(
        self, emit: Emit, settle: Settle, finish: Finish, items: Sequence[int], parts: int,
        folder: str,
    ) -> None:  # fmt: skip
        beam = self._beam
        with beam.Pipeline(options=self._options) as pipeline:
            settled = (
                self._items(pipeline, items)
                | "Emit" >> beam.FlatMap(emit)
                | "ByPart" >> beam.GroupByKey()
                | "Settle" >> beam.FlatMap(functools.partial(_call, settle))
            )
            # An item for which there is nothing is to be finished, too.
            nothing = pipeline | "Nothing" >> beam.Create([(item, {}) for item in items])
            _ = (
                (settled, nothing)
                | "Both" >> beam.Flatten()
                | "ByItem" >> beam.GroupByKey()
                | "Finish" >> beam.Map(functools.partial(_call, finish))
            )

    def close(self) -> None:
        """Nothing is kept between pipelines."""

    def _items(self, pipeline: Any, items: Sequence[int]) -> Any:
        # Without the reshuffle runners fuse it all into one worker.
        return pipeline | self._beam.Create(list(items)) | self._beam.Reshuffle()


def _merge(merge: Merge, found: Iterable[Arrays]) -> Arrays:
    """Beam combines what is combined already, perhaps of nothing."""
    values = [each for each in found if each]
    return merge(values) if values else {}


def _call(function: Callable[[int, list[Arrays]], Any], element: tuple[int, Any]) -> Any:
    place, found = element
    return function(place, [arrays for arrays in found if arrays])
