"""What several files of tests of the encoders use."""

import pytest

from jaxclip import models
from tests.models import small


@pytest.fixture(scope="session")
def clip():
    """Model, parameters, images and tokens of the small CLIP."""
    model = models.build(small.CLIP)
    return model, small.params_for(model), *small.batch(small.CLIP)
