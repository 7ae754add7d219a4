"""Lists of terms: weights, names, what they ask for, and what is wrong with them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxclip import fields, models, objectives
from tests.objectives import fixture_g as g


def build(*terms, loss=None):
    return objectives.from_config(list(terms), loss or {"name": "softmax"})


def loss_of(total, ctx=None, outputs=None):
    outputs = outputs or {"image": g.I, "text": g.T}
    return total.loss({}, {}, outputs, g.context() if ctx is None else ctx)


def test_without_terms_the_configured_loss_is_the_one_term():
    loss, metrics, state = loss_of(build(loss={"name": "softmax", "label_smoothing": 0.0}))
    assert float(loss) == pytest.approx(0.1081597, rel=1e-6)
    assert set(metrics) == {"accuracy_image_to_text", "accuracy_text_to_image"} and not state
    loss, _, _ = loss_of(build(loss={"name": "sigmoid"}))
    assert float(loss) == pytest.approx(5.1293707, rel=1e-6)


def test_terms_add_up_by_weight_and_report_under_their_names():
    total = build("contrastive", {"name": "dcl", "weight": 0.5})
    loss, metrics, _ = loss_of(total)
    assert float(loss) == pytest.approx(0.1081597 - 0.5 * 5.4217186, rel=1e-5)
    assert float(metrics["contrastive/loss"]) == pytest.approx(0.1081597, rel=1e-5)
    assert float(metrics["dcl/loss"]) == pytest.approx(-5.4217186, rel=1e-5)
    assert float(metrics["dcl/weight"]) == 0.5
    assert "dcl/accuracy_image_to_text" in metrics


def test_a_weight_may_follow_the_step():
    total = build("contrastive", {"name": "dcl", "weight": [[10, 0.0], [20, 1.0]]})
    for step, weight in ((0, 0.0), (10, 0.0), (15, 0.5), (20, 1.0), (99, 1.0)):
        _, metrics, _ = loss_of(total, g.context(step=step))
        assert float(metrics["dcl/weight"]) == pytest.approx(weight)


def test_one_method_twice_under_two_names():
    total = build("dcl", {"name": "dcl", "as": "tiles", "implementation": "blockwise"})
    _, metrics, _ = loss_of(total)
    assert float(metrics["dcl/loss"]) == pytest.approx(float(metrics["tiles/loss"]), rel=1e-5)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (["contrastiv"], "unknown objective 'contrastiv'; did you mean 'contrastive'"),
        (["dcl", "dcl"], "objective 'dcl' is listed twice; give one of them another name by 'as'"),
        ([{"name": "dcl", "wait": 1}], "unknown option 'wait' of objective 'dcl'"),
        ([{"name": "dcl", "weight": -1}], "weight=-1 of objective 'dcl' must not be negative"),
        ([{"name": "dcl", "weight": [[0, 1], [5, -1]]}], "must not be negative"),
        ([{"name": "dcl", "weight": [[5, 1], [5, 2]]}], "its steps must rise"),
        ([{"name": "dcl", "weight": "much"}], "is neither a number nor"),
        ([{"name": "dcl", "weight": float("nan")}], "must not be negative"),
        ([{"weight": 1}], "objective without a 'name'; known: "),
        (["nowhere.module:Thing"], "objective 'nowhere.module:Thing' can't be imported"),
        ([3], "a term of config.objective is a name or a dict"),
    ],
)
def test_wrong_terms(terms, message):
    with pytest.raises(ValueError, match=message):
        build(*terms)


@pytest.mark.parametrize(
    "whole", [{"name": "cliptex"}, {"name": "villa"}, {"name": "cloc", "prompter": "pool"}]
)
def test_a_term_that_needs_every_patch_refuses_one_that_keeps_a_part(whole):
    total = build("flip", {**whole, "as": "dense"})
    message = "objective 'dense' needs every patch of 'image', of which 'flip' keeps a part"
    with pytest.raises(ValueError, match=message):
        total.tower_options("image", {}, g.context())
    assert total.tower_options("view1/image", {}, g.context()) == {}


@pytest.mark.parametrize("name", ["cloc", "coca", "sycoca", "tinyclip"])
def test_a_tower_without_heads_is_one_line(name):
    total = build(name)
    staged = models.CLIPConfig.from_dict({"image": {"kind": "convnext"}})
    with pytest.raises(ValueError, match=r"'convnext' has none; set model\.image\.kind='vit'"):
        jax.eval_shape(lambda key: total.init_params(key, staged), jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class Wants(objectives.Objective):
    """Wants one view."""

    ops: str = "flip"

    @property
    def needs(self):
        return frozenset({"view1/image"})

    @property
    def fields(self):
        return {"view1/image": fields.View(self.ops)}

    def loss(self, params, state, outputs, ctx):
        return jnp.mean(outputs["view1/image"]), {}, state


def test_the_name_of_a_term_is_as_or_that_of_its_method():
    terms = ["dcl", {"name": "dcl", "as": "other", "weight": 0.5}, f"{__name__}:Wants"]
    assert [term.name for term in objectives.listed(terms)] == ["dcl", "other", "Wants"]
    assert objectives.listed([]) == ()
    assert objectives.listed({"name": "dcl"})[0].name == "dcl"


def test_a_users_own_objective_is_found_by_its_import_path():
    total = build("contrastive", f"{__name__}:Wants")
    assert [term.name for term in total.terms] == ["contrastive", "Wants"]
    assert total.needs == {"image", "text", "view1/image"}
    assert total.fields == {**fields.PAIR, "view1/image": fields.View("flip")}


def test_terms_that_want_different_views_under_one_key_are_refused():
    name = f"{__name__}:Wants"
    both = build(name, {"name": name, "as": "other"})
    assert len(both.fields) == 3  # the same wish is one view
    differing = build(name, {"name": name, "as": "other", "ops": "blur"})
    with pytest.raises(ValueError, match=r"'other' wants batch\['view1/image'\] as View\(ops='blu"):
        _ = differing.fields
