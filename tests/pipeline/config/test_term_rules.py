"""What does not fit together in `ppo.reward.terms`, and what is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import hub_models
from pipeline.config import fit, term_rules
from pipeline.config.load import LoadedRecipe
from pipeline.config.ppo import AggregateConfig
from pipeline.config.section import content
from pipeline.config.terms import TermConfig
from pipeline.engine import registry
from pipeline.engine.runner import Runner
from pipeline.errors import RecipeError

Load = Callable[..., LoadedRecipe]
MODEL = "{name: m, model: reward}"
RATED = "name: j, llm_judge: {base_url: 'http://localhost/v1', model: x"


def with_terms(*terms: str) -> str:
    return f'"ppo.reward.terms=[{", ".join(terms)}]"'


@pytest.mark.parametrize(
    ("terms", "more", "phrase"),
    [
        ([], "", "ppo.reward.terms: has no term to train on"),
        (["{name: a}"], "", "ppo.reward.terms[0]: says nothing about what scores: it needs exactly one of model"),
        (["{name: a, model: reward, pattern: x}"], "", "has model and pattern: it needs exactly one"),
        (["{name: a, weight: 1}", MODEL], "", "ppo.reward.terms[0]"),
        ([MODEL, "{name: m, pattern: x}"], "", "ppo.reward.terms[1].name: two terms are called m"),
        (["{name: a b, pattern: x}"], "", "ppo.reward.terms[0].name"),
        (["{name: m, model: reward, held_out: true}"], "", "has no term to train on"),
        (["{name: m, model: reward, weight: 0}"], "", "has no term to train on"),
        ([MODEL], "ppo.reward_model=.", "ppo.reward_model: is not used with ppo.reward.terms"),
        (["{name: a, model: me/judge}"], "", "ppo.reward.terms[0].revision: is required: me/judge is a Hub id"),
        (["{name: a, model: reward, revision: abc}"], "", "ppo.reward.terms[0].revision: belongs to a Hub id"),
        (["{name: a, function: rewards.py}"], "", "must be file.py:function or package.module:function"),
        (["{name: a, function: rewards/polite:good}"], "", "must be file.py:function or package.module:function"),
        (["{name: a, pattern: x, conversational: false}"], "", "conversational: belongs to `function`"),
        (["{name: a, pattern: '(x'}"], "", "ppo.reward.terms[0].pattern: is not a regular expression"),
        (["{name: a, lexicon: none}"], "", "must be a slot lexicon"),
        (["{name: a, length: {target: 99}}"], "", "99 is more than ppo.response_length (64)"),
        (["{name: a, overlong: {max_completion_len: 9, soft_punish_cache: 9}}"], "", "9 must be below"),
        (
            ["{name: a, overlong: {max_completion_len: 90, soft_punish_cache: 9}}"],
            "",
            "starts at 81 tokens, and no response is longer than ppo.response_length (64)",
        ),
        ([f"{{{RATED}, parameters: {{n: 2}}}}}}"], "", "llm_judge.parameters: must not set n"),
        (["{name: j, llm_judge: {base_url: localhost, model: x}}"], "", "must be like https://api.example.org/v1"),
        (
            ["{name: a, lexicon: venues}"],
            "eval.judge=venues",
            "venues is also eval.judge, which would judge what PPO",
        ),
        (
            ["{name: venues, pattern: x, held_out: true}", MODEL],
            "eval.judge=venues",
            "ppo.reward.terms[0].name: venues is also eval.judge",
        ),
        (["{name: a, lexicon: e2e}"], "ppo.monitor.judge=e2e", "e2e is also ppo.monitor.judge"),
        (["{name: a, model: ./x}"], "eval.reward_model=./x", "./x is also eval.reward_model"),
        (
            ["{name: a, pattern: x, score: {normalization: running}}"],
            "ppo.kl.kind=solved ppo.kl.target=2",
            "ppo.reward.terms[0].score.normalization: running changes the scale",
        ),
        (
            [MODEL],
            "ppo.kl.kind=solved ppo.kl.target=2 ppo.score.normalization=running",
            "ppo.score.normalization: running changes the scale",
        ),
        (["{name: a, pattern: x}"], "rounds=2", "none of the 2 rounds would learn from its rankings"),
        (
            ["{name: a, pattern: x}"],
            "reward.ensemble=2 ppo.reward.held_out=1",
            "ppo.reward.held_out: applies to the run's own ensemble, and no term has",
        ),
        (["{name: a, patern: x}"], "", "did you mean pattern?"),
    ],
)
def test_conflicts(load: Load, terms: list[str], more: str, phrase: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(with_terms(*terms), *([more] if more else []))
    assert phrase in str(error.value)


@pytest.mark.parametrize(
    ("terms", "more"),
    [
        ([MODEL, "{name: p, pattern: x, weight: -0.5}", "{name: l, length: {target: 20}}"], ""),
        (["{name: a, lexicon: venues, held_out: true}", MODEL], "eval.judge=venues"),
        (["{name: a, pattern: x}"], "ppo.kl.kind=solved ppo.kl.target=2 ppo.score.normalization=running"),
        (["{name: a, pattern: x}"], "ppo.monitor.judge=reward"),
        ([MODEL], "rounds=2"),
    ],
)
def test_what_fits(load: Load, terms: list[str], more: str) -> None:
    load(with_terms(*terms), *([more] if more else []))


def test_recipes_without_terms_keep_their_key() -> None:
    assert content(AggregateConfig()) == {"aggregate": "mean", "uncertainty_coef": 1.0, "held_out": 0}


def test_limits_change_no_result(load: Load) -> None:
    def keyed(timeout: int, requests: str) -> object:
        terms = with_terms(f"{{name: f, function: f.py:f, timeout: {timeout}}}", f"{{{RATED}{requests}}}}}")
        return registry.STAGES["ppo"].keyed(load(terms).recipe)

    assert keyed(1, "") == keyed(2, ", max_requests: 7")
    assert keyed(1, "") != keyed(1, ", criteria: brevity")


def test_every_model_on_the_hub_is_fetched(load: Load) -> None:
    terms = with_terms("{name: a, model: me/judge, revision: abc}", "{name: b, model: ./x}", MODEL)
    assert hub_models.scorers(load(terms).recipe) == {"ppo.reward.terms[0].model": ("me/judge", "abc")}


def test_local_files_enter_the_key(load: Load, tmp_path: Path) -> None:
    terms = with_terms(
        "{name: a, function: rewards.py:good}",
        "{name: b, function: 'trl.rewards:x'}",
        "{name: c, model: ./models/rm}",
        "{name: d, lexicon: mine.yaml}",
        "{name: e, lexicon: venues}",
        "{name: f, model: me/judge, revision: abc}",
        MODEL,
    )
    files = registry.STAGES["ppo"].files(load(terms).recipe)
    assert {path: file.name for path, file in files.items()} == {
        "ppo.reward.terms[0].function": "rewards.py",
        "ppo.reward.terms[1].function": "__init__.py",
        "ppo.reward.terms[2].model": "rm",
        "ppo.reward.terms[3].lexicon": "mine.yaml",
    }


def test_a_missing_file_of_a_function_is_refused_by_plan(runner: Callable[..., Runner], tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def good(completions): ...\n")
    with pytest.raises(RecipeError, match=r"terms\[0\].function: there is no file or folder reward.py") as error:
        runner(with_terms("{name: a, function: reward.py:good}")).planner.plan()
    assert "did you mean rewards.py?" in error.value.hint
    (tmp_path / "rewards.py").write_text("def god(completions): ...\n")
    with pytest.raises(RecipeError, match=r"rewards.py has no good; did you mean god\?"):
        runner(with_terms("{name: a, function: rewards.py:good}")).planner.check_model(None)


def test_a_function_needs_no_more_than_the_metadata(load: Load, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def good(completions, solution, *, level): ...\n")
    terms = with_terms("{name: a, function: rewards.py:good}")
    [(path, problem)] = term_rules.problems(load(terms).recipe)
    assert path == "ppo.reward.terms[0].function"
    assert "good needs the arguments solution, level" in problem
    assert "data.prompts.metadata" in problem
    complete = load(terms, "data.prompts.path=p.csv", "data.prompts.metadata=[solution,level]")
    assert list(term_rules.problems(complete.recipe)) == []


def test_an_unset_key_is_refused_before_anything_runs(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(with_terms(f"{{{RATED}, api_key_env: MY_KEY}}}}")).recipe
    monkeypatch.delenv("MY_KEY", raising=False)
    [(path, problem)] = term_rules.unset_keys(recipe)
    assert (path, problem) == (
        "ppo.reward.terms[0].llm_judge.api_key_env",
        "the environment variable MY_KEY is not set: export MY_KEY=...",
    )
    monkeypatch.setenv("MY_KEY", "secret")
    assert list(term_rules.unset_keys(recipe)) == []


def test_a_classifier_that_gives_no_score_is_refused(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "three"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert", "id2label": {"0": "a", "1": "b", "2": "c"}}')
    problems = dict(fit.scorers(load(with_terms("{name: a, model: ./three}")).recipe))
    assert "3 labels" in problems["ppo.reward.terms[0].model"]


def test_terms_say_what_scores() -> None:
    described = {
        TermConfig(name="t", **{kind: value}).describe()  # type: ignore[arg-type]
        for kind, value in {"model": "reward", "function": "f.py:f", "lexicon": "e2e"}.items()
    }
    assert described == {"the run’s reward model", "function f.py:f", "slot lexicon e2e"}
