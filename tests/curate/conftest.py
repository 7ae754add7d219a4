"""Small pools of pictures and captions, written as Parquet."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def picture(seed, size=(16, 12), format="PNG", **options):
    """An encoded picture: a few soft blobs, told apart by its seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    stream = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(stream, format, **options)
    return stream.getvalue()


def write_pool(path, rows, group=1000):
    """Rows ``{"key", "image", "texts", …}`` as a Parquet file; returns the name to curate."""
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return f"parquet:{path}"


def rows(count, texts=None, **columns):
    """Rows that are told apart by key, picture and caption."""
    return [
        {
            "key": f"key{i}",
            "image": picture(i),
            "texts": [f"a thing of kind {i}"] if texts is None else texts[i],
            **{name: values[i] for name, values in columns.items()},
        }
        for i in range(count)
    ]


def table(workdir, name):
    """A table of an outcome, all shards together, as a list of dicts."""
    return pa.concat_tables(
        [pq.read_table(file) for file in sorted((workdir / name).glob("*.parquet"))]
    ).to_pylist()


class Pools:
    """The functions above, handed to tests."""

    picture = staticmethod(picture)
    write = staticmethod(write_pool)
    rows = staticmethod(rows)
    table = staticmethod(table)


@pytest.fixture(scope="session")
def pools():
    return Pools
