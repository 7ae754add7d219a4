"""Files of data sets as people have them."""

import pytest

from jaxclip.data.importer.items import Cursor, Item, read_image
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.record import decode_foreign_texts


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


@pytest.fixture
def records():
    """(bytes of the picture, captions or label, split) of each record, or the reason and detail."""

    def records(source, **options):
        found = []
        for _, item in open_reader(source, **options).items(Cursor()):
            if isinstance(item, Item):
                said = decode_foreign_texts(item.texts)[0] or item.label
                found.append((read_image(item.image), said, item.split))
            else:
                found.append((item.reason, item.detail))
        return found

    return records
