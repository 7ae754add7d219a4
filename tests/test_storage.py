"""Paths and files that are not what they should be, said in words that help."""

import json
import os
import stat
import subprocess
import sys

import jax
import pytest

from jaxclip import config as config_lib
from jaxclip import errors, storage
from jaxclip.evaluate import runner
from jaxclip.train import checks
from jaxclip.train import workdir as workdir_lib


def test_a_user_that_is_not_there_is_no_folder():
    with pytest.raises(ValueError, match=r"there is no user 'nobody_of_this_name'.*\./~nobody"):
        storage.absolute("~nobody_of_this_name/run")


def test_a_current_folder_that_was_removed(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert storage.absolute("/run") == "/run"
    with pytest.raises(FileNotFoundError, match="the current folder has been removed"):
        storage.absolute("run")


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    link, loop = tmp_path / "link", tmp_path / "loop"
    link.symlink_to("/no/such/place")
    loop.symlink_to(loop)
    for path in (link, link / "run", loop / "run"):
        with pytest.raises(workdir_lib.WorkdirError, match=r"is a link to .*, which is not there"):
            workdir_lib.check_writable(path)


def test_json_of_another_type_is_as_none_at_all(tmp_path):
    for content in ("[1]", "3", '{"params": 3}', '{"params": {"step": 1}}'):
        (tmp_path / runner.RESULTS_FILE).write_text(content)
        assert runner.read_results(tmp_path) == {}
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="a list, where an object with keys is wanted"):
        config_lib.load(tmp_path / "config.json")


def test_a_cache_that_can_not_be_written():
    with pytest.raises(ValueError, match=r"compilation_cache_dir='/dev/null/x' can't be written"):
        storage.make_cache("compilation_cache_dir", "/dev/null/x")


def test_an_unknown_key_lists_its_own_section_alone():
    for key, shown in {"zzqq": "data, ", "data.zzzzqqq": "image_size, "}.items():
        with pytest.raises(ValueError, match=f"'{key}'; known: .*{shown}") as caught:
            config_lib.resolve({}, [f"{key}=1"])
        assert len(str(caught.value)) < 600


def test_a_package_for_the_report_is_missed_before_the_run(tiny_config, monkeypatch):
    monkeypatch.setattr(checks, "_AT_THE_END", ("no_such_package",))
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        checks.build(tiny_config())


def test_a_device_that_is_not_there():
    code = (
        "import jax\nfrom jaxclip.errors import explain_no_device as explain\n"
        "try: jax.devices()\nexcept Exception as error: print(explain(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"JAX_PLATFORMS": "cuda", "PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout.startswith("JAX_PLATFORMS=cuda names a device that is not there")
    assert not errors.explain_no_device(json.JSONDecodeError("other", "", 0))


def test_only_what_the_devices_fail_with_again_is_about_devices(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    error = RuntimeError("Unable to initialize backend 'tpu': busy")
    assert not errors.explain_no_device(error)  # there are devices here

    def fail():
        raise RuntimeError(str(error))

    monkeypatch.setattr(jax, "devices", fail)
    assert errors.explain_no_device(error) == f"JAX finds no device: {error}"
    assert not errors.explain_no_device(RuntimeError("other"))
    assert not errors.explain_no_device(errors.RunError(str(error)))
    monkeypatch.setitem(sys.modules, "jax", None)
    assert not errors.explain_no_device(error)


def test_a_device_is_written_to_and_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    storage.write_text(tmp_path / "pipe", "said")
    assert os.read(reader, 10) == b"said"
    os.close(reader)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert os.listdir(tmp_path) == ["pipe"]
