"""Text ops by name: each file of this package is one. See :mod:`jaxclip.data.text_op`."""

from jaxclip.data.text_op import TEXT_OPS, TextChain, TextOp, build, register

get = TEXT_OPS.get
names = TEXT_OPS.names

__all__ = ["TextChain", "TextOp", "build", "get", "names", "register"]
