"""Products of linear layers with numbers of few bits: one a file, found by its name.

A product is a frozen dataclass whose fields are its options, and a function
``(x [M, K], kernel [K, N]) -> [M, N]`` with whatever gradient it has. ``config.precision.products``
says which layers of the blocks multiply by which (:mod:`jaxclip.models.products.rules`); parameters
stay float32 and interchangeable, a product sees them as they are used.
"""

from jaxclip.registry import Registry

# Files of this package that hold no product.
PRODUCTS = Registry("product", __name__, exclude=("formats", "rules"))
