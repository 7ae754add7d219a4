"""Evaluation tasks of a configuration: old keys, a list, mistakes; a new evaluator is one file."""

import dataclasses
import json
import pathlib
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import evaluate as room
from jaxclip import parallel
from jaxclip.evaluate import base, retrieval, runner, tasks, zero_shot
from jaxclip.train import evaluation


def short(task):
    return task.name, task.data_config["name"], task.split, task.label


def test_every_file_of_the_room_is_an_evaluator_or_a_part():
    for name in room.EVALUATORS.names():
        factory = room.EVALUATORS.get(name)
        assert issubclass(factory, base.Evaluator), name
        assert dataclasses.is_dataclass(factory)
        assert isinstance(factory().metric_names(), list)


def test_the_old_keys_are_tasks(tiny_config):
    config = tiny_config("evaluate.zero_shot=['test', 'train']", "evaluate.templates='photo'")
    own = config["data"]["name"]
    found = tasks.from_config(config)
    assert [short(task) for task in found] == [
        ("zero_shot", own, "test", ""),
        ("retrieval", own, "test", ""),
        ("gallery", own, "test", ""),
        ("zero_shot", own, "train", ""),
    ]
    assert [t.evaluator.templates for t in found if t.name == "zero_shot"] == ["photo", "photo"]
    assert runner.metric_names(config) == [
        "test/zero_shot/top1",
        "test/zero_shot/top5",
        "test/retrieval/image_to_text_r1",
        "test/retrieval/image_to_text_r5",
        "test/retrieval/image_to_text_r10",
        "test/retrieval/text_to_image_r1",
        "test/retrieval/text_to_image_r5",
        "test/retrieval/text_to_image_r10",
        "train/zero_shot/top1",
        "train/zero_shot/top5",
    ]


def with_tasks(config, *given, **options):
    off = {"zero_shot": [], "retrieval": [], "gallery_split": "", **options}
    evaluate = {**config["evaluate"], **off, "tasks": list(given)}
    checkpoint = {**config["checkpoint"], "best_metric": ""}
    return {**config, "evaluate": evaluate, "checkpoint": checkpoint}


def test_a_task_has_its_own_data_ops_and_label(tiny_config):
    config = with_tasks(
        tiny_config("data.languages=['en', 'de']"),
        {"name": "zero_shot", "data": "emoji", "split": "test_style", "image_ops": "center_crop"},
        {"name": "zero_shot", "data": "emoji", "split": "test_style", "label": "again"},
        {"name": "retrieval", "split": "test"},
    )
    first, second, third = tasks.from_config(config)
    assert first.data_config["eval_image_ops"] == "center_crop"
    assert first.data_config["languages"] == ["en"]
    assert third.data_config == config["data"]
    own = config["data"]["name"]
    assert [t.prefix(own) for t in (first, second, third)] == [
        "emoji/test_style/zero_shot",
        "again/zero_shot",
        "test/retrieval",
    ]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("/data/imagenet_v2/1.0.0", "imagenet_v2"),
        ("/data/imagenet_v2/1.0.0/", "imagenet_v2"),
        ("webdataset:/d/cifar/test/{0..9}.tar", "test"),
        ("webdataset:/d/cifar", "cifar"),
        ("emoji", "emoji"),
        ("my data", "my_data"),
    ],
)
def test_names_of_data_in_metrics(data, name):
    assert tasks.short_name(data) == name


FLOWER = ["a flower"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"name": "zero_shott", "split": "test"}, "did you mean 'zero_shot'"),
        ({"name": "base", "split": "test"}, "unknown evaluator 'base'"),
        (
            {"split": "test"},
            r"evaluate.tasks\[0\]: a task is a dict with a 'name'; known: .*gallery",
        ),
        ({"name": "zero_shot", "split": "test", "templats": "photo"}, "did you mean 'templates'"),
        ({"name": "retrieval", "split": "test", "templates": "x"}, "of evaluator 'retrieval'"),
        ({"name": "zero_shot", "split": "tset"}, "no split 'tset'; did you mean 'test'"),
        ({"name": "zero_shot", "split": "empty"}, "split 'empty' of data set"),
        ({"name": "zero_shot", "split": 3}, "split=3 must be a string"),
        ({"name": "zero_shot"}, "'split' is missing; data set .* has: train, test, empty"),
        ({"name": "zero_shot", "split": "test", "data": "emojy"}, "did you mean 'emoji'"),
        ({"name": "zero_shot", "split": "test", "class_names": FLOWER}, "1 names, but .* 16 cla"),
        ({"name": "zero_shot", "split": "test", "class_names": "no.txt"}, "no.txt': no such file"),
        ({"name": "zero_shot", "split": "test", "templates": "no.txt"}, "no.txt': no such file"),
        ({"name": "zero_shot", "split": "test", "templates": "phot"}, "did you mean 'photo'"),
        ({"name": "zero_shot", "split": "test", "templates": {"cat": ["x"]}}, "no prompts of cla"),
        ({"name": "zero_shot", "split": "test", "ks": [0]}, r"ks=\[0\] must be"),
        ({"name": "retrieval", "split": "test", "ks": []}, r"ks=\[\] must be"),
        ({"name": "gallery", "split": "test", "num_results": 0}, "num_results=0 must be"),
        ({"name": "gallery", "split": "test", "seed": "x"}, "seed='x' of .* must be int"),
        ({"name": "retrieval", "split": "test", "ks": 3}, "ks=3 must be"),
        ({"name": "zero_shot", "split": "test", "templates": 3}, "templates=3 must be"),
        ({"name": "zero_shot", "split": "test", "class_names": 3}, "class_names=3 must be"),
        (3, "a task is a dict with a 'name'"),
    ],
)
def test_mistakes_come_to_light_before_anything_is_compiled(tiny_config, task, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        runner.check(with_tasks(tiny_config(), task))
    assert str(error.value).startswith("evaluate.tasks[0]") and "\n" not in str(error.value)


def test_two_tasks_of_one_name_are_refused(tiny_config):
    task = {"name": "zero_shot", "split": "test"}
    with pytest.raises(ValueError, match=r"tasks\[0\].*both call their metrics test/zero_shot/…"):
        tasks.from_config(with_tasks(tiny_config(), task, zero_shot=["test"]))
    with pytest.raises(ValueError, match=r"both write gallery.json"):
        tasks.from_config(
            with_tasks(tiny_config(), {"name": "gallery", "split": "train"}, gallery_split="test")
        )


def test_best_metric_may_be_that_of_a_task(tiny_config):
    config = with_tasks(tiny_config(), {"name": "zero_shot", "split": "test", "label": "x"})
    config["checkpoint"]["best_metric"] = "x/zero_shot/top1"
    runner.check(config)
    config["checkpoint"]["best_metric"] = "y/zero_shot/top1"
    with pytest.raises(ValueError, match="did you mean 'x/zero_shot/top1'"):
        runner.check(config)
    none = with_tasks(tiny_config())
    none["checkpoint"]["best_metric"] = "y"
    with pytest.raises(ValueError, match="nothing is evaluated"):
        runner.check(none)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def tokenizer(texts):
    return np.array([[len(text), sum(text.encode()) % 64] for text in texts])


def model():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(64, 8)), jnp.float32)

    def encode_text(params, tokens):
        x = params[tokens[:, 0] % 64] + params[tokens[:, 1]]
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def encode_image(params, images):
        x = images.reshape(len(images), -1, 8).astype(jnp.float32).mean(1) @ params[:8] + params[0]
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    return base.Model(encode_image, encode_text, table, tokenizer, batch_size=16)


def test_evaluators_run_on_arrays_without_a_configuration():
    m = model()
    names = ["tench", "goldfish", "a_crane"]
    images = m.texts(["a tench", "a a_crane", "a goldfish", "a tench"])
    split = base.arrays(images, labels=[0, 2, 0, -1], texts=[["a tench"], [], ["x"], ["a tench"]])
    data = base.ArrayData({"test": split}, class_names=names)
    evaluator = zero_shot.ZeroShot(class_names=names, templates=["a {}"], ks=[1])
    evaluator.check(data)
    found = evaluator.evaluate(m, data)
    assert found == {"top1": 2 / 3, "num_examples": 3, "num_classes": 3}
    recall = retrieval.Retrieval(ks=(1,))
    recall.check(data)
    assert recall.evaluate(m, data)["image_to_text_r1"] == 2 / 3
    with pytest.raises(ValueError, match="have no caption"):
        recall.check(base.ArrayData({"test": base.arrays(images)}))
    with pytest.raises(ValueError, match="have no label"):
        zero_shot.ZeroShot(names).check(base.ArrayData({"test": base.arrays(images)}))
    with pytest.raises(ValueError, match="label 2, but class_names has only 2 names"):
        zero_shot.ZeroShot(names[:2]).check(base.ArrayData({"test": split}))


@dataclasses.dataclass(frozen=True)
class Brightness(base.Evaluator):
    """An evaluator as a user writes one: an option, a check, a metric, a file."""

    scale: float = 1.0
    writes = ("brightness.json",)

    def metric_names(self):
        return ["mean"]

    def check(self, data):
        if self.scale <= 0:
            raise ValueError(f"scale={self.scale} must be positive")

    def evaluate(self, model, data):
        return {"mean": self.scale * float(data.images(model).embeddings.mean())}

    def files(self, model, data):
        return {"brightness.json": {"keys": data.images(model).keys[:2]}}


@pytest.fixture
def brightness(monkeypatch):
    monkeypatch.setattr(room.EVALUATORS, "_registered", {"brightness": Brightness})


def run(config, workdir=None):
    m = model()
    return runner.evaluate(
        m.encode_image, m.encode_text, m.params, config,
        tokenizer=tokenizer, mesh=parallel.make_mesh(), workdir=workdir, step=3,
    )  # fmt: skip


def test_a_new_evaluator_is_found_by_name_checked_and_run(brightness, tiny_config, tmp_path):
    task = {"name": "brightness", "split": "test", "scale": 2.0}
    config = with_tasks(tiny_config(), task, {**task, "scale": 1.0, "label": "one"})
    with pytest.raises(ValueError, match=r"both write brightness.json"):
        runner.check(config)
    config = with_tasks(tiny_config(), task)
    runner.check({**config, "checkpoint": {"best_metric": "test/brightness/mean"}})
    found = run(config, tmp_path)
    assert list(found) == ["test/brightness/mean"]
    assert runner.read_results(tmp_path)["model"]["metrics"] == found
    kept = json.loads((tmp_path / "brightness.json").read_text())
    assert kept == {"step": 3, "keys": ["test/0/0", "test/1/0"]}
    for wrong, message in (({"scale": -1.0}, "scale=-1.0 must be"), ({"scal": 1}, "mean 'scale'")):
        given = {"name": "brightness", "split": "test", **wrong}
        with pytest.raises(ValueError, match=message):
            runner.check(with_tasks(tiny_config(), given))


def test_an_evaluator_outside_of_the_package(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "my_brightness.py").write_text(
        "import dataclasses\nfrom jaxclip.evaluate import base\n"
        "@dataclasses.dataclass(frozen=True)\nclass Mine(base.Evaluator):\n"
        "    def metric_names(self): return ['one']\n"
        "    def evaluate(self, model, data): return {'one': 1.0}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = with_tasks(tiny_config(), {"name": "my_brightness:Mine", "split": "test"})
    assert run(config) == {"test/Mine/one": 1.0}


def test_tasks_give_what_the_old_keys_gave(tiny_config):
    old = run(with_tasks(tiny_config(), zero_shot=["test"], retrieval=["test"]))
    new = run(
        with_tasks(
            tiny_config(),
            {"name": "zero_shot", "split": "test"},
            {"name": "retrieval", "split": "test"},
        )
    )
    assert old == new and old["test/zero_shot/num_examples"] == 16


def test_another_data_set_is_opened_for_its_task(tiny_config, tiny_dataset, tmp_path):
    copy = tmp_path / "other" / "1.0.0"
    shutil.copytree(tiny_dataset, copy)
    labels = copy / "label.labels.txt"
    labels.write_text(labels.read_text().replace(" ", "_"))
    task = {"name": "zero_shot", "data": str(copy), "split": "test"}
    found = run(with_tasks(tiny_config(), task, zero_shot=["test"]))
    own = {k.split("/")[-1]: v for k, v in found.items() if k.startswith("test/")}
    other = {k.split("/")[-1]: v for k, v in found.items() if k.startswith("other/test/")}
    assert own == other and len(own) == 4


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("zero_shot split=test", {"name": "zero_shot", "split": "test"}),
        (
            "zero_shot data=/x ks=[1,3] templates='a {}'",
            {"name": "zero_shot", "data": "/x", "ks": [1, 3], "templates": "a {}"},
        ),
    ],
)
def test_tasks_of_a_command_line(text, task):
    assert evaluation.parse_task(text) == task


@pytest.mark.parametrize("text", ["", "zero_shot split", "zero_shot 'x"])
def test_a_task_of_another_form(text):
    with pytest.raises(ValueError, match=r"--task .* is not of the form"):
        evaluation.parse_task(text)


def test_the_example_of_the_documentation_is_one_file(tiny_config, monkeypatch, tmp_path):
    page = pathlib.Path(__file__).parents[2].joinpath("docs/evaluation.md").read_text()
    blocks = page.split("## An evaluator of your own")[1].split("```")
    (tmp_path / "label_share.py").write_text(blocks[1].removeprefix("python"))
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "jaxclip.evaluate.label_share", raising=False)
    task = {"name": "label_share", "split": "test", "least": 12}
    config = with_tasks(tiny_config(), task)
    runner.check(config)
    assert run(config) == {"test/label_share/accuracy": 0.25}
    with pytest.raises(ValueError, match="least=-1 must not"):
        runner.check(with_tasks(tiny_config(), {**task, "least": -1}))
