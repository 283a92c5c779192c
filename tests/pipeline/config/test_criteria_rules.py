"""What a recipe may say where the rankings have several criteria."""

import pytest

from pipeline.config.load import load_recipe
from pipeline.errors import RecipeError

TABLE = "{path: more.csv, format: wide, columns: {completions: [a, b], ratings: [c, d]}}"
RECIPE = f"""\
name: both
base: {{pretrain: {{corpus: {{task: venues, size: 10}}}}}}
data:
  demonstrations: {{task: venues, size: 10}}
  rankings:
    criteria:
      quality: {TABLE}
      naturalness: {TABLE}
"""
TERM = "{name: q, model: reward, criterion: quality}"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text(RECIPE)
    return path


def test_without_terms_every_criterion_has_the_same_weight(recipe):
    loaded = load_recipe(recipe)
    terms = loaded.recipe.ppo.reward.terms
    assert [(t.name, t.model, t.criterion, t.weight) for t in terms] == [
        ("quality", "reward", "quality", 0.5),
        ("naturalness", "reward", "naturalness", 0.5),
    ]
    assert all(term.scaling(loaded.recipe.ppo.score).normalization == "reference" for term in terms)
    assert loaded.values()["ppo.reward.terms[1].criterion"] == "naturalness"
    assert loaded.recipe.data.criteria == ("quality", "naturalness")


def test_terms_and_another_reward_model_replace_the_equal_weights(recipe):
    (own,) = load_recipe(recipe, [f"ppo.reward.terms=[{TERM}]"]).recipe.ppo.reward.terms
    assert own.weight == 1
    other = load_recipe(recipe, ["ppo.reward_model=owner/model", "ppo.reward_model_revision=abc"]).recipe
    assert other.ppo.reward.terms is None


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        ("rank.source=app rank.app.annotators=[a,b]", "rank.source", "app asks for one ranking of each set"),
        ("reward.lora=null sft.lora=null", "reward.lora", "is required with data.rankings.criteria"),
        ("reward.model=bert", "reward.model", "must be null with data.rankings.criteria"),
        ("dpo.beta=0.1", "dpo.criterion", "DPO learns from one of quality, naturalness"),
        ("dpo.criterion=tone", "dpo.criterion", r"must be a criterion of data.rankings \(quality, naturalness\)"),
        ("reward.ensemble=2 ppo.reward.held_out=1", "ppo.reward.held_out", "Hold out a criterion instead"),
        ("publish.rankings=me/them", "publish.rankings", "would mix the rankings of several criteria"),
        (
            "publish.reward=me/it",
            "publish.reward_criterion",
            "the published reward model is that of one of quality",
        ),
        ("ppo.reward.terms=[{name: q, model: reward}]", "ppo.reward.terms[0].criterion", "is required by"),
        (
            "ppo.reward.terms=[{name: q, model: reward, criterion: tone}]",
            "ppo.reward.terms[0].criterion",
            "got tone",
        ),
        (
            f"ppo.reward.terms=[{TERM}, {{name: r, pattern: x, criterion: quality}}]",
            "ppo.reward.terms[1].criterion",
            "belongs to `model: reward`",
        ),
        (
            "data.rankings.criteria.Quality.path=x data.rankings.criteria.Quality.format=wide "
            "data.rankings.criteria.Quality.columns={completions: [a, b], ratings: [c, d]}",
            "data.rankings.criteria",
            "differ in capital letters only",
        ),
        (
            f"data.rankings.criteria.reward-model={TABLE}",
            "data.rankings.criteria",
            "'reward-model' cannot be the name of a criterion",
        ),
        ("data.rankings.criteria.quality.columns.rating=x", "data.rankings.criteria.quality.columns", "rating"),
        (
            "data.rankings.criteria.quality.formt=wide",
            "data.rankings.criteria.quality.formt",
            "did you mean format",
        ),
        (
            "data.rankings.criteria.quality.path=hub://a/b",
            "data.rankings.criteria.quality.path",
            "needs the commit",
        ),
        (
            f"ppo.monitor.judge=reward ppo.reward.terms=[{TERM}]",
            "ppo.monitor.judge",
            r"one for each criterion \(quality, naturalness\)",
        ),
    ],
)
def test_what_cannot_work_is_refused(recipe, value, path, message):
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(recipe, [value])
    assert path in error.value.what


def test_one_criterion_is_refused(recipe):
    recipe.write_text(RECIPE.rpartition("      naturalness")[0])
    with pytest.raises(
        RecipeError, match=r"1 of at least 2 criteria. Write a single table under data.rankings itself"
    ):
        load_recipe(recipe)


@pytest.mark.parametrize(
    "value",
    [
        "dpo.criterion=quality",
        "publish.reward=me/it publish.reward_criterion=quality",
        f"ppo.reward.terms=[{TERM}]",
    ],
)
def test_a_criterion_needs_rankings_with_criteria(recipe, value):
    recipe.write_text(RECIPE.partition("    criteria:")[0] + "    path: one.csv\n    format: native\n")
    with pytest.raises(RecipeError, match=r"quality, and data.rankings has no criteria: leave it out"):
        load_recipe(recipe, [value])


def test_a_child_replaces_a_table_by_criteria_and_back(recipe, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text(f"name: child\nextends: {recipe}\ndata: {{rankings: {{path: one.csv, format: native}}}}\n")
    assert load_recipe(child).recipe.data.criteria == ()
    back = tmp_path / "back.yaml"
    back.write_text(f"name: back\nextends: {child}\ndata: {{rankings: {{criteria: {{a: {TABLE}, b: {TABLE}}}}}}}\n")
    assert load_recipe(back).recipe.data.criteria == ("a", "b")
