"""Import of image-text records into a TFDS data set; see :mod:`jaxclip.data.importer.job`."""

from jaxclip.data.importer.job import import_records
from jaxclip.data.importer.options import Options, Summary

__all__ = ["Options", "Summary", "import_records"]
