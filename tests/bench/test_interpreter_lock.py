"""The share of time under the interpreter's lock, counted by a library that is loaded before."""

import re
import shutil
import sys

import pytest

from jaxclip.bench import interpreter_lock

pytest.importorskip("simplejpeg")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="loads a library before others")
@pytest.mark.skipif(shutil.which("cc") is None, reason="compiles it")
def test_decoding_large_pictures_hardly_holds_the_lock(capfd):
    arguments = ["--photos", "32", "--rounds", "2", "--sizes", "2048x1536"]
    assert interpreter_lock.main(arguments) == 0
    rows = re.findall(
        r"jaxclip, (\w+) +\| +([\d,]+) +\| +([\d,]+) +\| +([\d.]+)%", capfd.readouterr().out
    )
    assert [row[0] for row in rows] == ["pillow", "fast"]
    for _, spent, held, share in rows:
        spent, held = (int(number.replace(",", "")) for number in (spent, held))
        assert 0 < held < spent / 2  # all of it, if the counter counted nothing
        assert float(share) == pytest.approx(100 * held / spent, abs=10)


def test_without_a_compiler_it_says_what_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert interpreter_lock.main([]) == 1
    assert "takes Linux and a C compiler" in capsys.readouterr().err
