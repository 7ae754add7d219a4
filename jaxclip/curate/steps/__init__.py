"""The steps of a curation: one a file, found by its name; see :mod:`jaxclip.curate.step`."""
