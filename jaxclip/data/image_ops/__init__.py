"""Image ops by name: each file of this package is one, beside those registered here.

:mod:`jaxclip.data.image_op` says what an op is, :mod:`jaxclip.data.image_chain` runs a chain of
them.
"""

from jaxclip.data import batch_ops, example_ops  # noqa: F401 (they register their ops)
from jaxclip.data.image_chain import Chain, build, parse
from jaxclip.data.image_op import IMAGE_OPS, Either, ImageOp, Moving, register
from jaxclip.data.op_syntax import Spec

get = IMAGE_OPS.get
names = IMAGE_OPS.names

__all__ = [
    "Chain", "Either", "ImageOp", "Moving", "Spec", "build", "get", "names", "parse", "register",
]  # fmt: skip
