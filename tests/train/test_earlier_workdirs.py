"""Workdirs that an earlier version wrote."""

import json

import pytest

from jaxclip.train import workdir, workdir_config


def test_keys_that_an_earlier_version_did_not_have_are_no_change(tiny_config, tmp_path):
    config = tiny_config()
    earlier = json.loads(json.dumps(config))
    for key in ("objective", "teacher", "init_from", "writers", "profile"):
        del earlier[key]
    del earlier["model"]["text"]["pad_id"]
    (tmp_path / workdir.CONFIG_FILE).write_text(json.dumps(earlier))
    assert workdir_config.check_config(config, tmp_path) == {}
    other = tiny_config("objective=['dcl']")
    with pytest.raises(workdir.WorkdirError, match=r"objective: \[\] -> \['dcl'\]"):
        workdir_config.check_config(other, tmp_path)
