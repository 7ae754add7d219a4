"""No network: with sockets shut, everything works, and nobody even tries one."""

import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("tensorflow_datasets")

# In a process of its own, so that nothing is imported yet when the sockets are shut.
_PROGRAM = """
import socket, sys

tried = []

def shut(*args, **kwargs):
    tried.append(args)
    raise OSError("no network in this test")

for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, shut)
socket.socket.connect = socket.socket.connect_ex = shut

import numpy as np
from jaxclip.data import emoji, info, pipeline, tokenizers
from jaxclip.data._tfds import tensorflow_datasets
from jaxclip.data.importer import import_records

tfds = tensorflow_datasets()
builder = tfds.builder_from_directory(str(emoji.directory()))
example = next(iter(tfds.as_numpy(builder.as_dataset(split="test_style"))))
assert example["image"].shape == (64, 64, 3)

tokenizer = tokenizers.load({"kind": "emoji_bpe"})
config = {"name": "emoji", "image_ops": "random_resized_crop(0.6)|flip"}
iterator = pipeline.train_iterator(config, tokenizer=tokenizer, global_batch_size=8, seed=0)
assert next(iterator)["image"].any()
iterator.close()
assert next(pipeline.eval_batches(config, "test_style", batch_size=4))["mask"].all()
info.describe("emoji")

summary = import_records(sys.argv[1], sys.argv[2])
assert sum(summary.splits.values()) == 3, summary
example = next(iter(tfds.as_numpy(tfds.builder_from_directory(sys.argv[2]).as_dataset("train"))))
assert example["texts"].tolist() == [b"thing 0", b"item 0"]
assert not tried, tried
print("done")
"""


def test_nothing_needs_or_tries_the_network(tmp_path, toys):
    source = toys.photo_folder(tmp_path / "in", count=3)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(source), str(tmp_path / "out")],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "done"
