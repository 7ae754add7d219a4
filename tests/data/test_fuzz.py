"""Damaged tars, shards, tables and pictures: a record, a counted reason, or one clear error."""

import io
import random

import pytest
from PIL import Image

from jaxclip.data import image_backend, sources
from jaxclip.data.record import REASONS, BadRecord, Record

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

# Errors that a damaged source may raise when it is opened: one line for a user.
CLEAR = (ValueError, FileNotFoundError)


def damaged(data, rng):
    """Bytes with one to four of: flipped bits, cut ends, doubled, zeroed and moved pieces."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        start = rng.randrange(len(data))
        end = min(len(data), start + rng.choice((1, 2, 8, 64, 512)))
        match rng.randrange(6):
            case 0:
                data[start] ^= 1 << rng.randrange(8)
            case 1:
                del data[start:]
            case 2:
                data[start:end] = bytes(end - start)
            case 3:
                data[start:start] = data[start:end]
            case 4:
                del data[start:end]
            case 5:
                data[start:end] = rng.randbytes(end - start)
    return bytes(data)


def pictures():
    """Small pictures in every format and mode that data sets have."""
    image = Image.radial_gradient("L").resize((23, 17)).convert("RGB")
    made = []
    for form, options in (
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("GIF", {}),
        ("BMP", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}),
    ):  # fmt: skip
        stream = io.BytesIO()
        image.save(stream, form, **options)
        made.append(stream.getvalue())
    return made


def check_pictures(count, rng):
    seeds, backends = pictures(), [image_backend.Pillow()]
    if pytest.importorskip("simplejpeg") and pytest.importorskip("cykooz_resizer"):
        backends.append(image_backend.Fast())
    good = 0
    for _ in range(count):
        data = damaged(rng.choice(seeds), rng)
        found = [backend.decode(data, lambda size: []) for backend in backends]
        assert len({isinstance(each, BadRecord) for each in found}) == 1
        for each in found:
            if isinstance(each, BadRecord):
                assert each.reason in REASONS
            else:
                assert each.pixels.ndim == 3 and each.pixels.size <= 3 * 100_000_000
                good += 1
    return good


def check_source(name, expected):
    """All records of a source can be asked for; returns how many are good."""
    try:
        data_set = sources.open(name)
        source = data_set.source("train")
    except CLEAR as error:
        assert str(error) and len(str(error)) < 2000
        return 0
    good = 0
    for index in range(min(len(source), 2 * expected)):
        record = source[index]
        assert isinstance(record, Record | BadRecord)
        if isinstance(record, BadRecord):
            assert record.reason in REASONS
        else:
            good += 1
    return good


def seeds(toys, folder):
    """(name to open, file to damage) of each kind of source, with six records."""
    toys.write_data_set(folder / "tfds", {"train": toys.records(6)}, shards=1)
    members = [(f"{n}.png", toys.picture(n)) for n in range(6)]
    members += [(f"{n}.txt", f"item {n}".encode()) for n in range(6)]
    toys.make_tar(folder / "a.tar", sorted(members))
    rows = [{"image": toys.picture(n), "text": f"item {n}"} for n in range(6)]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=3)
    return [
        (str(folder / "tfds"), folder / "tfds" / "toy-train.tfrecord-00000-of-00001"),
        (f"webdataset:{folder}/a.tar", folder / "a.tar"),
        (f"parquet:{folder}/a.parquet", folder / "a.parquet"),
    ]


def run(count, toys, folder, seed):
    rng = random.Random(seed)
    kinds = seeds(toys, folder)
    whole = [file.read_bytes() for _, file in kinds]
    assert all(check_source(name, 6) == 6 for name, _ in kinds)
    good = check_pictures(count, rng)
    for number in range(count):
        (name, file), data = kinds[number % 3], whole[number % 3]
        file.write_bytes(damaged(data, rng))
        for index in folder.glob(".*.npz"):
            index.unlink()
        good += check_source(name, 6)
    return good


def test_some_damaged_inputs(toys, tmp_path):
    assert run(150, toys, tmp_path, 0) > 100


@pytest.mark.slow
def test_ten_thousand_damaged_inputs(toys, tmp_path):
    assert run(5500, toys, tmp_path, 1) > 3000
