"""What people do with a trained model: open it, embed, classify and search pictures, convert it."""

from jaxclip.inference.model import Model, load

__all__ = ["Model", "load"]
