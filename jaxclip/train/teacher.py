"""A teacher: another model whose outputs objectives see without a gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jaxclip import fields as field_lib
from jaxclip import parallel
from jaxclip.config import Config
from jaxclip.data.reinforced import Reinforced
from jaxclip.models.presets import CLIPConfig
from jaxclip.objectives import as_weight
from jaxclip.train import init_from, outputs, towers

KINDS = ("none", "frozen", "ema", "stored", "reinforced")


class Setup(NamedTuple):
    """What a configured teacher brings into a run.

    Attributes:
      teacher: what the forward pass uses; None without a teacher.
      sizes: its architecture; None without one or for stored embeddings.
      fields: what it needs of the records.
      decay: ``step -> `` decay of a teacher that follows the run, else None.
      source: of frozen weights, else None.
      shardings: of frozen weights.
    """

    teacher: outputs.Teacher | None = None
    sizes: CLIPConfig | None = None
    fields: field_lib.BatchSpec = {}  # noqa: RUF012 (never changed in place)
    decay: Callable[[Any], Any] | None = None
    source: init_from.Source | None = None
    shardings: Any = None

    def load(self) -> Any:
        """Read frozen weights into their shardings; None if there are none."""
        return None if self.source is None else self.source.read(self.shardings)

    def abstract(self) -> Any:
        """Shapes of frozen weights with shardings; None if there are none."""
        if self.source is None:
            return None
        shapes = jax.eval_shape(towers.build_model(self.source.config).init, jax.random.key(0))
        return parallel.abstract(shapes, self.shardings)


def build(
    config: Config, own: towers.ModelTowers, needs: Iterable[str], mesh: jax.sharding.Mesh
) -> Setup:
    """The teacher of a configuration.

    Args:
      config: resolved configuration of the run; its section ``teacher``:

        * ``kind: "frozen"``: the weights of the run at ``path``, of any architecture;
        * ``kind: "ema"``: the run's own parameters, followed with ``decay`` (a number or
          ``[[step, decay], ...]``);
        * ``kind: "stored"``: embeddings in the records, vectors of ``size`` numbers under the keys
          ``image_key`` and ``text_key``; those of a further view or caption under its scope
          behind that: ``teacher/texts1/text`` is the record's ``{text_key}_texts1``;
        * ``kind: "reinforced"``: the folder ``path`` of ``jaxclip data reinforce``: ``image``
          replays an augmentation that is kept there, and vectors are of just that picture and of
          the captions that were drawn.
      own: the towers in training.
      needs: names of the outputs that objectives want.
      mesh: devices to put frozen weights on.

    Raises:
      ValueError: an unknown kind, a missing path, decays whose steps do not rise, or another
        tokenizer.
    """
    section = config["teacher"]
    kind = section["kind"]
    if kind not in KINDS:
        raise ValueError(f"teacher.kind={kind!r}; use {', '.join(map(repr, KINDS))}")
    if kind == "none":
        return Setup()
    if kind == "ema":
        decay = as_weight(section["decay"], "teacher.decay")
        return Setup(outputs.Teacher(own), own.model.config, decay=decay)
    if kind == "stored":
        if section["size"] < 1:
            raise ValueError(
                f"teacher.size={section['size']}: set it to the length of the stored embeddings"
            )
        return Setup(outputs.Teacher(None), fields=dict(_stored(section, needs)))
    if kind == "reinforced":
        if not section["path"]:
            raise ValueError(
                "teacher.kind='reinforced' needs teacher.path, a folder of `jaxclip data reinforce`"
            )
        return Setup(outputs.Teacher(None), fields=dict(_reinforced(section["path"], needs)))
    if not section["path"]:
        raise ValueError("teacher.kind='frozen' needs teacher.path, the workdir of a run")
    source = init_from.open_source(section["path"], "teacher.path")
    for key in ("kind", "path"):
        if source.config["tokenizer"][key] != config["tokenizer"][key]:
            raise ValueError(
                f"the teacher {section['path']!r} reads tokens of tokenizer."
                f"{key}={source.config['tokenizer'][key]!r}, this run makes "
                f"{config['tokenizer'][key]!r}; use one tokenizer for both"
            )
    source_config = {**source.config, "remat": "none"}
    shapes = jax.eval_shape(towers.build_model(source_config).init, jax.random.key(0))
    shardings = parallel.specs_for(shapes, parallel.sharding_rules(config["sharding"]), mesh)
    model = towers.build_model(source_config, mesh, shardings)
    return Setup(
        outputs.Teacher(towers.from_config(source_config, model, shardings, resize=True)),
        model.config,
        source=source,
        shardings=shardings,
    )


def _stored(
    section: Mapping[str, Any], needs: Iterable[str]
) -> Iterator[tuple[str, field_lib.Stored]]:
    """Fields of the embeddings that are wanted of a stored teacher."""
    for output in map(outputs.parse, needs):
        if output is None or not output.teacher or output.kind:
            continue
        *scope, tower = output.view.split("/")
        key = "_".join([section[f"{tower}_key"], *scope])
        yield output.name, field_lib.Stored(key, section["size"])


def _reinforced(folder: str, needs: Iterable[str]) -> Iterator[tuple[str, field_lib.Field]]:
    """Fields of the replayed picture and of the vectors that are wanted.

    Raises:
      ValueError: no such folder, or the vector of another view of the picture.
    """
    size = sum(Reinforced(folder).sizes)
    yield "image", field_lib.View(replay=folder)
    for output in map(outputs.parse, needs):
        if output is None or not output.teacher or output.kind:
            continue
        if output.tower == "image" and output.view != "image":
            raise ValueError(
                f"teacher.kind='reinforced' keeps vectors of 'image', not of {output.view!r}; use "
                "another teacher"
            )
        yield output.name, field_lib.Embedded(output.view, size, folder)


def batch_spec(setup: Setup, wanted: field_lib.BatchSpec) -> dict[str, field_lib.Field]:
    """What a batch holds for the objectives and the teacher.

    Args:
      setup: of the teacher.
      wanted: what the objectives want.

    Raises:
      ValueError: a teacher that replays the picture, and an objective with image ops of its own.
    """
    result = {**wanted, **setup.fields}
    replayed = setup.fields.get("image")
    if isinstance(replayed, field_lib.View):
        if wanted.get("image") not in (None, field_lib.View()):
            raise ValueError(
                f"an objective wants batch['image'] as {wanted['image']}, but "
                f"teacher.kind='reinforced' replays it as it is kept in {replayed.replay}"
            )
        for key, field in result.items():
            if isinstance(field, field_lib.Captions) and (field.source or field.shares):
                result[key] = dataclasses.replace(field, folder=replayed.replay)
    return dict(sorted(result.items()))
