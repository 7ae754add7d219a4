"""``jaxclip embed``, ``classify`` and ``search``: every picture once, whatever happens between."""

import io
import json
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

import jaxclip
from jaxclip import cli
from jaxclip.data import clip_bpe
from jaxclip.inference import embed, pictures, search

GOLDEN = pathlib.Path(__file__).parents[1] / "weights" / "golden"
VOCABULARY = pathlib.Path(clip_bpe.__file__).parent.joinpath(
    "clip_vocabulary", "bpe_simple_vocab_16e6.txt.gz"
)


@pytest.fixture(scope="module")
def model():
    return jaxclip.load(GOLDEN / "hf_clip")


def encoded(seed, size=(12, 10)):
    array = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(array).save(file, "PNG")
        return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """11 pictures, one in a folder below, and two files that are none."""
    place = tmp_path_factory.mktemp("pictures")
    (place / "below").mkdir()
    for number in range(10):
        (place / f"{number}.png").write_bytes(encoded(number))
    (place / "below" / "ä b.PNG").write_bytes(encoded(10))
    (place / "5x.jpg").write_bytes(b"no picture")
    (place / "note.txt").write_text("not counted")
    (place / "empty.png").touch()
    return place


def expected(model, folder):
    return {
        path.relative_to(folder).as_posix(): np.asarray(model.encode_image(model.preprocess(path)))[
            0
        ]
        for path in folder.rglob("*")
        if path.suffix in (".png", ".PNG") and path.stat().st_size
    }


def assert_complete(to, wanted):
    ids, embeddings = embed.read_embeddings(to)
    assert sorted(ids) == sorted(wanted) and len(set(ids)) == len(ids)
    for identity, row in zip(ids, embeddings, strict=True):
        np.testing.assert_allclose(row, wanted[identity], atol=2e-6, err_msg=identity)


@pytest.mark.parametrize(("batch_size", "shard_size"), [(8, 100), (3, 5)])
def test_every_picture_is_embedded_once_and_bad_ones_are_counted(
    model, folder, tmp_path, batch_size, shard_size
):
    summary = embed.embed_images(
        model, pictures.open_pictures(folder), tmp_path, batch_size=batch_size,
        shard_size=shard_size,
    )  # fmt: skip
    assert summary == embed.Summary(11, 0, {"undecodable": 1, "zero_bytes": 1})
    assert_complete(tmp_path, expected(model, folder))
    bad = [json.loads(x) for f in tmp_path.glob("bad_*") for x in f.read_text().splitlines()]
    assert {(each["id"], each["reason"]) for each in bad} == {
        ("5x.jpg", "undecodable"), ("empty.png", "zero_bytes")
    }  # fmt: skip


def test_what_was_stopped_goes_on_with_the_missing_shards(model, folder, tmp_path):
    opened = pictures.open_pictures(folder)
    read = []

    def stops(number):
        if number == 9:
            raise KeyboardInterrupt
        return opened.read(number)

    with pytest.raises(KeyboardInterrupt):
        embed.embed_images(model, opened._replace(read=stops), tmp_path, batch_size=8, shard_size=4)
    there = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.npy")}
    assert 0 < len(there) < 4

    def counts(number):
        read.append(number)
        return opened.read(number)

    summary = embed.embed_images(
        model, opened._replace(read=counts), tmp_path, batch_size=8, shard_size=4
    )
    assert summary.before == 4 * len(there)
    assert sorted(read) == list(range(4 * len(there), 13))
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in there.items())
    assert_complete(tmp_path, expected(model, folder))
    again = embed.embed_images(model, opened, tmp_path, batch_size=8, shard_size=4)
    assert again == embed.Summary(0, 13, {})


def test_an_array_without_its_ids_is_made_anew(model, folder, tmp_path):
    """Killed between the two files of a shard."""
    opened = pictures.open_pictures(folder)
    embed.embed_images(model, opened, tmp_path, batch_size=8, shard_size=4)
    (tmp_path / "ids_00001.jsonl").unlink()
    np.save(tmp_path / "embeddings_00001.npy", np.zeros((1, 12), np.float32))
    embed.embed_images(model, opened, tmp_path, batch_size=8, shard_size=4)
    assert_complete(tmp_path, expected(model, folder))


def test_parts_are_disjoint_and_complete(model, folder, tmp_path):
    opened = pictures.open_pictures(folder)
    counts = [
        embed.embed_images(
            model, opened, tmp_path, batch_size=8, shard_size=2, part=(i, 3)
        ).embedded
        for i in range(3)
    ]
    assert sum(counts) == 11 and min(counts) > 0
    assert_complete(tmp_path, expected(model, folder))


def test_a_folder_of_other_embeddings_is_refused(model, folder, tmp_path):
    opened = pictures.open_pictures(folder)
    embed.embed_images(model, opened, tmp_path, batch_size=8)
    other = jaxclip.load(GOLDEN / "open_clip")
    for arguments, message in (
        ((other, opened), "with fingerprint="),
        ((model, opened._replace(total=5)), "with count=13, not 5"),
    ):
        with pytest.raises(ValueError, match=message):
            embed.embed_images(*arguments, tmp_path, batch_size=8)
    with pytest.raises(ValueError, match="shard_size=16384, not 7"):
        embed.embed_images(model, opened, tmp_path, batch_size=8, shard_size=7)
    with pytest.raises(ValueError, match=r"embeddings of .*hf_clip, not of .*open_clip"):
        embed.check_weights(tmp_path, other)


def test_tars_need_no_captions(model, tmp_path):
    with tarfile.open(tmp_path / "x-0.tar", "w") as tar:
        for number in range(3):
            member = tarfile.TarInfo(f"{number:03d}.png")
            data = encoded(number)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    opened = pictures.open_pictures(str(tmp_path / "x-*.tar"))
    embed.embed_images(model, opened, tmp_path / "to", batch_size=8)
    wanted = model.encode_image(model.preprocess([encoded(number) for number in range(3)]))
    ids, embeddings = embed.read_embeddings(tmp_path / "to")
    assert len(ids) == 3 and [i.split("/")[-1] for i in ids] == ["000", "001", "002"]
    np.testing.assert_allclose(embeddings, wanted, atol=2e-6)


def test_a_split_of_a_data_set(model, tiny_dataset):
    opened = pictures.open_pictures(f"{tiny_dataset}:test")
    assert opened.total == 16 and opened.read(3)[0] == "test/3/0"
    whole = pictures.open_pictures(str(tiny_dataset))
    assert whole.total == 64
    assert whole.read(0)[0] == "train/train/0/0" and whole.read(48)[0] == "test/test/0/0"


def test_ranking_is_by_cosine_with_the_earlier_of_equals_first():
    rows = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    query = np.array([0.6, 0.8, 0.0], np.float32)
    assert [row for row, _ in search.rank(query, rows, 3)] == [1, 2, 0]
    assert search.rank(query, rows, 3)[0][1] == pytest.approx(0.8)
    assert search.rank(query, rows[:0], 3) == []
    with pytest.raises(ValueError, match="--top 0"):
        search.rank(query, rows, 0)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A random model with our own tokenizer, as a workdir."""
    from jaxclip.train import workdir as workdir_lib
    from jaxclip.train.checkpoint import Checkpointer

    place = tmp_path_factory.mktemp("weights")
    tiny = jaxclip.load("tiny")
    with Checkpointer(place / workdir_lib.CHECKPOINTS) as checkpointer:
        checkpointer.save(0, {"step": np.zeros((), np.int32), "params": tiny.params})
        checkpointer.wait()
    jaxclip.config.save(tiny.config, place / workdir_lib.CONFIG_FILE)
    return place


def test_the_commands(workdir, folder, tmp_path, capsys):
    use = ["--weights", str(workdir), "--batch_size", "8"]
    to = ["--to", str(tmp_path / "e")]
    assert cli.main(["embed", *use, "--images", str(folder), *to]) == 0
    assert "11 pictures embedded, 1 undecodable, 1 zero_bytes" in capsys.readouterr().out
    made = ["--embeddings", str(tmp_path / "e")]
    assert cli.main(["search", *use, *made, "--top", "3", "a red car"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    model = jaxclip.load(workdir)
    scores = {
        name: float(row @ np.asarray(model.encode_text(model.tokenize("a red car")))[0])
        for name, row in expected(model, folder).items()
    }
    best = sorted(scores.values(), reverse=True)[:3]
    np.testing.assert_allclose([float(score) for score, _ in lines], best, atol=1e-4)
    assert cli.main(["classify", *use, *made, "--classes", "cat, dog,car", "--top", "3"]) == 0
    for line in capsys.readouterr().out.splitlines():
        shares = dict(part.rsplit(" ", 1) for part in line.split("\t")[1:])
        assert set(shares) == {"cat", "dog", "car"}
        assert sum(map(float, shares.values())) == pytest.approx(1, abs=2e-4)
    assert cli.main(["search", *use, "--images", str(folder), "--top", "1", "a red car"]) == 0
    assert capsys.readouterr().out.split("\t")[0] == lines[0][0]


def test_mistakes_are_one_line(workdir, tmp_path, capsys):
    use = ["--weights", str(workdir)]
    small = ["--weights", str(GOLDEN / "hf_clip"), "--tokenizer", str(VOCABULARY)]
    (tmp_path / "x.tar").touch()
    for arguments, message in (
        (["embed", *use, "--images", str(tmp_path), "--to", "e"], "holds no pictures"),
        (["embed", *use, "--images", "emojy", "--to", "e"], "no such directory"),
        (["embed", *use, "--images", "emoji:tset", "--to", "e"], "tset"),
        (["embed", "--weights", "nix", "--images", "emoji", "--to", "e"], "'nix' is neither"),
        (["embed", *use, "--images", "emoji", "--to", "e", "--part", "4/4"], "--part 4/4"),
        (["embed", *small, "--images", "emoji", "--to", "e"], "has 49408 tokens, the text tower"),
        (
            ["search", *small, "--images", "emoji", "x"],
            "has 49408 tokens, the text tower embeds 48",
        ),
        (["search", *use, "x"], "either --images or --embeddings"),
        (["search", *use, "--embeddings", str(tmp_path), "x"], "holds no embeddings"),
    ):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("jaxclip: error: ")
        assert "Traceback" not in error
    assert not pathlib.Path("e").exists()


def test_the_readmes_example_runs_as_it_stands(workdir, tmp_path, monkeypatch, capsys):
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in readme.split("```python\n")[1:]]
    code = next(block for block in blocks if "jaxclip.load" in block)
    assert len(code.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workdir").mkdir()
    (tmp_path / "workdir" / "emoji").symlink_to(workdir)
    (tmp_path / "photo.jpg").write_bytes(encoded(0))
    exec(compile(code, "README.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == ["cat", "dog", "car"]
    assert sum(float(share.rstrip("%")) for _, share in lines) == pytest.approx(100, abs=0.3)


def test_one_file_is_pictures_too(folder):
    opened = pictures.open_pictures(folder / "3.png")
    assert opened.total == 1 and opened.read(0) == ("3.png", encoded(3))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg: there is no such file"):
        pictures.open_pictures(folder / "nowhere.jpg")
    with pytest.raises(FileNotFoundError, match=r"no picture or folder of pictures '.*nowhere'"):
        pictures.open_pictures(folder / "nowhere")
