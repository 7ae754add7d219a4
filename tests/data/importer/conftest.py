"""Files of data sets as people have them."""

import pytest


@pytest.fixture
def fill(tmp_path):
    """Makes a folder of files by name and content, text or bytes."""

    def fill(files):
        for name, content in files.items():
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path / "in"

    return fill
