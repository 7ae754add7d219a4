"""Damaged tars, shards, tables and pictures: a record, a counted reason, or one clear error."""

import bz2
import gzip
import io
import json
import lzma
import random
import time
import zipfile

import pytest
from PIL import Image, features

from jaxclip.data import image_backend, image_op, sources
from jaxclip.data.importer import images
from jaxclip.data.importer.items import Cursor, Item, read_image
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.record import REASONS, BadRecord, Record, decode_foreign_texts, serialize_record
from tests.patience import LONG

try:
    from array_record.python import array_record_module as array_record
except ImportError:
    array_record = None
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
    grey, clear = image.convert("L"), image.convert("RGBA")
    clear.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    film = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    made = []
    for picture, form, options in (
        (image, "JPEG", {}), (image, "JPEG", {"progressive": True}), (grey, "JPEG", {}),
        (image.convert("CMYK"), "JPEG", {}), (image, "JPEG", {"exif": exif}), (image, "PNG", {}),
        (clear, "PNG", {}), (grey.convert("I;16"), "PNG", {}), (image.quantize(9), "PNG", {}),
        (grey.convert("1"), "PNG", {}), (image, "WEBP", {}), (clear, "WEBP", {"lossless": True}),
        (image, "WEBP", film), (image, "GIF", {}), (image, "GIF", film), (image, "BMP", {}),
        (grey, "BMP", {}), (image, "TIFF", {"compression": "tiff_lzw"}),
        (clear, "TIFF", {"compression": "tiff_deflate"}), (image, "TIFF", film),
        (image, "TIFF", {"compression": "jpeg"}), (image, "PPM", {}), (grey, "PPM", {}),
        (clear, "ICO", {"sizes": [(16, 16)]}),
        *([(image, "AVIF", {}), (clear, "AVIF", {})] if features.check("avif") else []),
    ):  # fmt: skip
        stream = io.BytesIO()
        picture.save(stream, form, **options)
        made.append(stream.getvalue())
    return made


def check_pictures(count, rng):
    seeds, backends = pictures(), [image_backend.Pillow()]
    if pytest.importorskip("simplejpeg") and pytest.importorskip("cykooz_resizer"):
        backends.append(image_backend.Fast())
    part = image_op.Cut((2.0, 1.0, 10.0, 6.0), (8, 4), "bicubic")
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
        # Of a part, less is decoded and other memory is used.
        cut = backends[-1].decode(data, lambda size: [part] if min(size) > 10 else [])
        if isinstance(cut, BadRecord):
            assert cut.reason in REASONS
        elif backends[-1].cut and min(cut.size) > 10:
            assert backends[-1].cut(cut, part).shape == (4, 8, 3)
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


def check_import(file, expected):
    """All that an import takes from a file; returns how many items are good."""
    good = 0
    try:
        for _, item in open_reader(file).items(Cursor()):
            if isinstance(item, Item):
                decode_foreign_texts(item.texts)
                data = read_image(item.image)
                limits = {"max_pixels": 10**7, "max_aspect": 50.0, "min_side": 1}
                item = data if isinstance(data, BadRecord) else images.prepare(data, **limits)
            assert isinstance(item, bytes | BadRecord)
            good += isinstance(item, bytes)
            if isinstance(item, BadRecord):
                assert item.reason in REASONS
    except CLEAR as error:
        assert str(error) and len(str(error)) < 2000
    assert good <= 16 * expected  # four times doubled
    return good


def in_place(toys, folder):
    """(name to open, file to damage) of each kind of source, with six records."""
    toys.write_data_set(folder / "tfds", {"train": toys.records(6)}, shards=1)
    yield str(folder / "tfds"), folder / "tfds" / "toy-train.tfrecord-00000-of-00001"
    yield str(folder / "tfds"), folder / "tfds" / "dataset_info.json"
    yield str(folder / "tfds"), folder / "tfds" / "features.json"
    members = [(f"{n}.png", toys.picture(n)) for n in range(6)]
    members += [(f"{n}.txt", f"item {n}".encode()) for n in range(6)]
    (folder / "tars").mkdir()
    toys.make_tar(folder / "tars" / "a.tar", sorted(members))
    (folder / "tars" / "sizes.json").write_text(json.dumps({"a.tar": 6}))
    yield f"webdataset:{folder}/tars/a.tar", folder / "tars" / "a.tar"
    yield f"webdataset:{folder}/tars", folder / "tars" / "sizes.json"
    rows = [{"image": toys.picture(n), "text": f"item {n}"} for n in range(6)]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=3)
    yield f"parquet:{folder}/a.parquet", folder / "a.parquet"
    saved = folder / "saved"
    saved.mkdir()
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (saved / "dataset_info.json").write_text("{}")
    with pyarrow.ipc.new_stream(str(saved / "data.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    yield f"arrow:{saved}", saved / "data.arrow"
    yield f"arrow:{saved}", saved / "state.json"
    if array_record is not None:
        toys.write_data_set(folder / "ar", {"train": toys.records(6)}, shards=1)
        info = json.loads((folder / "ar" / "dataset_info.json").read_text())
        info["fileFormat"] = "array_record"
        (folder / "ar" / "dataset_info.json").write_text(json.dumps(info))
        file = folder / "ar" / "toy-train.array_record-00000-of-00001"
        writer = array_record.ArrayRecordWriter(str(file), "group_size:2")
        for record in toys.records(6):
            writer.write(serialize_record(record))
        writer.close()
        yield str(folder / "ar"), file


def zipped(members, method):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def imported(toys, folder):
    """Files that an import takes six records from."""
    names = [f"{n}.png" for n in range(6)]
    (folder / "tables").mkdir()
    for n, name in enumerate(names):
        (folder / "tables" / name).write_bytes(toys.picture(n))
    rows = [{"file": name, "caption": f"item {n}"} for n, name in enumerate(names)]
    lines = ["file,caption", *(f'"{row["file"]}","{row["caption"]}"' for row in rows), ""]
    separated = "\n".join(lines).encode()
    objects = "".join(json.dumps(row) + "\n" for row in rows).encode()
    tar = (folder / "tars" / "a.tar").read_bytes()
    zstandard = pyarrow.Codec("zstd")
    pictures = {name: toys.picture(n) for n, name in enumerate(names)}
    classes = [(f"{n % 2}/{name}", toys.picture(n)) for n, name in enumerate(names)]
    toys.make_tar(folder / "classes.tar", classes)
    for name, data in {
        "a.csv": separated,
        "a.tsv": separated.replace(b",", b"\t"),
        "a.jsonl": objects,
        "a.json": json.dumps(rows).encode(),
        "coco.json": json.dumps(
            {
                "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
                "annotations": [{"image_id": n, "caption": f"item {n}"} for n in range(6)],
            }
        ).encode(),
        "b.csv.gz": gzip.compress(separated, mtime=0),
        "b.jsonl.xz": lzma.compress(objects),
        "b.tsv.bz2": bz2.compress(separated.replace(b",", b"\t")),
        "b.jsonl.zst": zstandard.compress(objects, asbytes=True),
        "c.tar.gz": gzip.compress(tar, mtime=0),
        "c.tar.xz": lzma.compress(tar),
        "c.tar.bz2": bz2.compress(tar),
        "c.tar.zst": zstandard.compress(tar, asbytes=True),
        "d.tar": tar,
        "d.parquet": (folder / "a.parquet").read_bytes(),
        "e.zip": zipped({"metadata.csv": separated, **pictures}, zipfile.ZIP_DEFLATED),
        "f.zip": zipped({"a.jsonl": objects, **pictures}, zipfile.ZIP_LZMA),
        "g.tar": (folder / "classes.tar").read_bytes(),
    }.items():
        (folder / "tables" / name).write_bytes(data)
        yield folder / "tables" / name


def run(count, toys, folder, seed):
    """So many damaged pictures and as many damaged files; returns how many records were good."""
    rng = random.Random(seed)
    kinds = [(check_source, name, file) for name, file in in_place(toys, folder)]
    kinds += [(check_import, str(file), file) for file in imported(toys, folder)]
    whole = [file.read_bytes() for *_, file in kinds]
    for check, name, _ in kinds:
        assert check(name, 6) == 6, name
    good = check_pictures(count, rng)
    for number in range(count):
        (check, name, file), data = kinds[number % len(kinds)], whole[number % len(kinds)]
        file.write_bytes(damaged(data, rng))
        for index in folder.rglob(".*.npz"):
            index.unlink()
        began = time.monotonic()
        good += check(name, 6)
        assert time.monotonic() - began < LONG, f"{name} hangs"
        file.write_bytes(data)
    return good


def test_some_damaged_inputs(toys, tmp_path):
    assert run(150, toys, tmp_path, 0) > 100


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_ten_thousand_damaged_inputs(part, toys, tmp_path):
    assert run(1400, toys, tmp_path, 1 + part) > 800


def test_a_damaged_index_beside_a_file_is_made_anew(toys, tmp_path):
    toys.make_tar(tmp_path / "a.tar", [("0.png", toys.picture(0)), ("0.txt", b"item 0")])
    rng, name = random.Random(3), f"webdataset:{tmp_path}/a.tar"
    assert check_source(name, 1) == 1
    (index,) = tmp_path.glob(".*.npz")
    data = index.read_bytes()
    for _ in range(100):
        index.write_bytes(damaged(data, rng))
        assert check_source(name, 1) == 1
