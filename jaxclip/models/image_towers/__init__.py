"""Image towers that are no plain Vision Transformer, one a file; found by :data:`TOWERS`.

A tower is a :class:`jaxclip.models.staged.StagedTower` whose ``config_class`` is the dataclass of
its sizes. Its file's name is ``model.image.kind``.
"""

from jaxclip.registry import Registry

__all__ = ["TOWERS"]

TOWERS = Registry("model.image.kind", "jaxclip.models.image_towers")
