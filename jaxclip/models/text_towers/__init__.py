"""Text towers that are not CLIP's own, one a file; found by ``model.text.kind``.

A tower is a subclass of :class:`jaxclip.models.text.TextTransformer` of the same sizes.
"""

from jaxclip.registry import Registry

TEXT_TOWERS = Registry("text tower", "jaxclip.models.text_towers")

__all__ = ["TEXT_TOWERS"]
