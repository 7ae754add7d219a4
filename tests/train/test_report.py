"""The report: read back as a browser would, from whole runs, broken ones and empty ones."""

import html.parser
import json
import math
import re

import numpy as np
import pytest

from jaxclip import config as config_lib
from jaxclip import storage
from jaxclip.evaluate import runner
from jaxclip.train import charts, environment, metrics, report, report_charts, workdir

PIXEL = "data:image/png;base64,iVBORw0KGgo="
VOID = {"meta", "img", "br", "use", "path", "rect", "circle", "link"}


class Page(html.parser.HTMLParser):
    """The page's elements and text; complains of tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.texts.append(data.strip())

    def count(self, tag, **attrs):
        return sum(
            name == tag and all(attrs[k] in (have.get(k.rstrip("_")) or "").split() for k in attrs)
            for name, have in self.elements
        )

    def charts(self):
        return [have["aria-label"] for tag, have in self.elements if tag == "svg"]


@pytest.fixture
def make(tmp_path):
    """``make(loss, …) -> Page`` of a workdir with these curves."""

    def build(loss=(), grad_norm=(), results=None, gallery=None, overrides=(), **curves):
        config = config_lib.resolve({"total_steps": 400}, overrides)
        config_lib.save(config, tmp_path / workdir.CONFIG_FILE)
        with metrics.MetricWriter(tmp_path, writers=["jsonl"]) as writer:
            for step, value in enumerate(loss, start=1):
                norm = {"grad_norm": grad_norm[step - 1]} if len(grad_norm) else {}
                more = {name: values[step - 1] for name, values in curves.items()}
                writer.write(step, {"loss": value, **norm, **more})
        for step, values in results or ():
            with metrics.MetricWriter(tmp_path, writers=["jsonl"]) as writer:
                writer.write(step, {f"eval/{k}": v for k, v in values.items()})
            runner.write_results(tmp_path, values, step=step, weights="ema")
        if gallery is not None:
            storage.write_json(tmp_path / runner.GALLERY_FILE, gallery)
        environment.write(tmp_path, parameters=2_840_000)
        path = report.write_report(tmp_path)
        text = path.read_text(encoding="utf-8")
        page = Page(text)
        page.source = text
        return page

    return build


RESULTS = {
    "test_style/zero_shot/top1": 0.4567,
    "test_style/zero_shot/top5": 0.71,
    "test_style/zero_shot/num_examples": 1433,
    "test_style/retrieval/image_to_text_r1": 0.31,
    "test_style/retrieval/image_to_text_r5": 0.62,
    "test_style/retrieval/image_to_text_r10": 0.7,
    "test_style/retrieval/text_to_image_r5": 0.5,
}
GALLERY = {
    "split": "test_style",
    "step": 400,
    "pictures": {"3": PIXEL, "5": PIXEL},
    "text_to_image": [
        {
            "query": "a <b>bold</b> & 'quoted' cat",
            "results": [
                {"picture": "3", "score": 0.31, "right": True},
                {"picture": "5", "score": 0.2, "right": False},
            ],
        }
    ],
    "image_to_text": [
        {
            "picture": "5",
            "results": [
                {"text": "dog", "score": 0.4, "right": False},
                {"text": "chien", "score": 0.3, "right": True},
                {"text": "hound", "score": 0.1, "right": False},
            ],
        }
    ],
}


@pytest.fixture
def full(make):
    rng = np.random.default_rng(0)
    norm = rng.uniform(1, 1.1, 400)
    norm[300] = 50.0
    return make(
        loss=5 * np.exp(-np.arange(400) / 200) + rng.uniform(0, 0.1, 400),
        grad_norm=norm,
        results=[(200, {**RESULTS, "test_style/zero_shot/top1": 0.5}), (400, RESULTS)],
        gallery=GALLERY,
        overrides=["optim.clip=zclip", "optim.learning_rate=0.0007"],
        learning_rate=np.linspace(1e-3, 0, 400),
        logit_scale=np.linspace(14, 60, 400),
        images_per_second=np.full(400, 128.0),
        **{
            "optim/zclip/norm": norm,
            "optim/zclip/threshold": np.minimum(norm, 1.2),
            "optim/zclip/clipped": norm > 1.2,
            "accuracy_image_to_text": np.linspace(0, 0.9, 400),
        },
    )


def test_nothing_is_loaded_from_elsewhere(full):
    for tag, attributes in full.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("data:", "#")), (tag, attributes)
    names = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")  # of formats
    rest = full.source
    for name in names:
        rest = rest.replace(f'"{name}"', "")
    assert "http://" not in rest and "https://" not in rest and "@import" not in rest
    assert "url(" not in rest.replace("url(#", "")


def test_it_suits_light_and_dark(full):
    assert "color-scheme: light dark" in full.source
    assert "prefers-color-scheme: dark" in full.source
    assert full.source.count("currentColor") > 10 and charts._INK not in full.source


def test_every_curve_has_its_chart(full):
    assert full.charts() == [
        "loss over steps",
        "gradient norm over steps",
        "zclip clipped",
        "Learning rate",
        "Logit scale",
        "Images per second",
        "Accuracy within the batch",
        "test style · zero shot",
        "test style · retrieval · image→text",
        "test style · retrieval · text→image",
    ]
    text = " ".join(full.texts)
    assert "threshold of zclip" in text and "0.25% of the whole run" in text


def test_results_and_what_was_best(full):
    for text in ("45.7%", "50.0% (step 200)", "step 400, averaged parameters", "2.84 M"):
        assert text in full.texts
    assert "test style · zero shot · 1433 examples" in full.texts
    assert full.texts.index("image→text R@5") < full.texts.index("image→text R@10")


def test_the_spike_is_found_and_marked(full):
    row = full.texts.index("gradient norm")
    assert full.texts[row + 1 : row + 4] == ["0.25%", "1", "0"]
    assert any("1 spike(s)" in text for text in full.texts)


def test_the_rule_of_the_runs_own_watch_is_told(make):
    usual = make([2.0, 1.0], [1.0, 1.0], overrides=["watch.enabled=True"])
    assert "own watch" not in usual.source
    own = ["watch.enabled=True", "watch.threshold=3.5", "watch.window=200"]
    page = make([2.0, 1.0], [1.0, 1.0], overrides=own).source
    assert "The run's own watch went by 3.5 deviations and 200 steps." in page


def test_single_steps_are_seen_where_they_matter():
    steps, values = np.arange(50), np.zeros(50)
    values[25] = 1.0
    smooth, plain = (
        charts.chart([charts.Line(steps, values, smooth=each)], title="x") for each in (True, False)
    )

    def highest(svg):
        """Top of the line that is drawn last, in SVG's heights, which grow downwards."""
        path = re.findall(r'<path d="([^"]*)" clip-path', svg)[-1]
        return min(float(y) for y in re.findall(r"[ML] \S+ (\S+)", path))

    assert highest(plain) < highest(smooth) - 50


def test_a_count_of_nothing_has_no_heights_below_zero():
    svg = charts.chart([charts.Line(np.arange(9), np.zeros(9))], title="x")
    assert "\u2212" not in svg and "0.2" in svg


def test_the_gallery_marks_right_and_wrong(full):
    assert full.count("img", src=PIXEL) == 3
    assert full.count("div", class_="right") == 1 and full.count("div", class_="wrong") == 1
    assert full.count("li") == 3
    assert "a <b>bold</b> & 'quoted' cat" in full.texts  # as text, not as an element
    assert full.count("b") == full.count("div", class_="tile")


def test_the_configuration_is_there(full):
    row = full.texts.index("optim.learning_rate")
    assert full.texts[row + 1 : row + 3] == ["0.0007", "0.001"]
    whole = full.texts[full.texts.index("The whole configuration") + 1]
    assert json.loads(whole)["optim"]["clip"] == {"name": "zclip"}


def test_an_interrupted_run(make):
    page = make(loss=np.linspace(5, 4, 30), grad_norm=np.ones(30))
    assert any(t.startswith("step 30 of 400: not finished") for t in page.texts)
    assert "Retrieved for a caption" not in page.texts and "Evaluation" not in page.texts
    assert page.charts()[:2] == ["loss over steps", "gradient norm over steps"]


def test_a_run_without_a_single_step(make):
    page = make()
    assert any(t.startswith("step 0 of 400") for t in page.texts)
    assert page.charts() == [] and "Training" not in page.texts
    assert "Configuration" in page.texts


def test_a_run_of_nothing_but_nan(make):
    page = make(loss=[math.nan] * 9, grad_norm=[math.inf] * 9)
    assert "n/a" in page.texts
    row = page.texts.index("loss")
    assert page.texts[row + 1 : row + 4] == ["100%", "9", "9"]


def test_nan_here_and_there(make):
    loss = np.linspace(5, 4, 300)
    loss[[100, 200]] = math.nan, math.inf
    page = make(loss=loss, grad_norm=loss, results=[(300, {"test/zero_shot/top1": math.nan})])
    assert "n/a" in page.texts and page.charts()[0] == "loss over steps"
    assert any("2 spike(s)" in text for text in page.texts)


def test_a_clipper_with_norms_of_its_own_gets_a_chart(make):
    names = {
        "optim/adagc/norm": np.linspace(0.1, 0.2, 50),
        "optim/adagc/threshold": np.full(50, 0.15),
        "optim/adagc/clipped": np.linspace(0, 1, 50),
    }
    page = make(loss=np.ones(50), grad_norm=np.full(50, 3.0), **names)
    assert "norm and threshold of adagc" in page.charts() and "adagc clipped" in page.charts()


def test_no_workdir(tmp_path):
    with pytest.raises(workdir.WorkdirError, match=r"is not the workdir of a run"):
        report.write_report(tmp_path)


def test_a_clipper_that_never_lets_go_is_told() -> None:
    steps = np.arange(200)
    curves = {"optim/zclip/streak": (steps, np.where(steps < 80, steps, 0.0))}
    assert "79 steps in a row" in report_charts.locked(curves, "optim/zclip")
    assert report_charts.locked({}, "optim/zclip") == ""
    assert report_charts.locked({"optim/zclip/streak": (steps, steps % 9)}, "optim/zclip") == ""


def test_each_term_of_the_objective_gets_its_chart(make):
    steps = np.linspace(3, 1, 20)
    page = make(
        loss=steps,
        **{
            "slip/loss": 0.5 * steps,
            "slip/weight": np.linspace(0, 1, 20),
            "slip/accuracy_views": np.linspace(0, 0.5, 20),
            "clip/loss": 0.7 * steps,
            "clip/weight": np.ones(20),
        },
    )
    assert {"loss of slip over steps", "loss of clip over steps"} <= set(page.charts())
    assert "Accuracy within the batch, slip" in page.texts
    assert "weight 0 to 1" in page.texts and "weight 1" in page.texts
