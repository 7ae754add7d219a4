"""``python -m jaxclip`` is the ``jaxclip`` command."""

import sys

from jaxclip.cli import main

sys.exit(main())
