"""``jaxclip data import`` from the command line."""

import pytest

from jaxclip import cli
from jaxclip.data import sources

pytest.importorskip("tensorflow_datasets")


def test_import_prints_a_summary(tmp_path, toys, capsys):
    source = toys.photo_folder(tmp_path / "in", rows=[["gone.png", "a"]])
    argv = ["data", "import", "--from", str(source), "--to", str(tmp_path / "out")]
    assert cli.main([*argv, "--val-fraction", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "6 records" in out and "missing_image" in out
    assert sum(sources.open(tmp_path / "out").splits.values()) == 6
    assert cli.main([*argv, "--val-fraction", "0.3"]) == 0
    assert "was imported before" in capsys.readouterr().out


def test_columns_are_named(tmp_path, toys, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(toys.picture(0))
    (tmp_path / "in" / "captions.csv").write_text("where;says\na.png;a cat\n")
    argv = ["data", "import", "--from", str(tmp_path / "in"), "--to", str(tmp_path / "out")]
    assert cli.main(argv) != 0
    assert "--image-column" in capsys.readouterr().err
    assert cli.main([*argv, "--image-column", "where", "--text-column", "says"]) == 0
    assert sources.open(tmp_path / "out").source("train")[0].texts == ("a cat",)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--val-fraction", "2"], "val_fraction=2.0"),
        (["--format", "parquet"], "holds no file that ends in"),
        (["--min-side", "9"], "is another import (min_side: 8 there, 9 now)"),
    ],
)
def test_mistakes_are_one_line(tmp_path, toys, capsys, extra, message):
    source = toys.photo_folder(tmp_path / "in")
    argv = ["data", "import", "--from", str(source), "--to", str(tmp_path / "out")]
    assert cli.main(argv) == 0
    assert cli.main([*argv, *extra]) != 0
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_progress_bar_shows_records_and_skipped(capsys, monkeypatch):
    from jaxclip.data.importer import progress

    monkeypatch.setattr(progress, "_EVERY_SECONDS", 0)
    with progress.Progress(True) as bar:
        bar.update(0.25, 1000, 3)
        bar.update(None, 1500, 4)
    assert "1,500 records" in capsys.readouterr().err
    with progress.Progress(False) as bar:
        bar.update(0.5, 1, 0)
    assert capsys.readouterr().err == ""
