"""What does not fit together in the sections of eval and dpo, and which recipes have a dpo stage."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.config.load import LoadedRecipe
from pipeline.engine import registry
from pipeline.engine.runner import Runner
from pipeline.errors import RecipeError

JUDGE = "eval.llm_judge.base_url=http://localhost:8000/v1 eval.llm_judge.model=m"


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        ("eval.reward_model=ensemble", "ensemble needs a member that PPO does not use: set ppo.reward.held_out"),
        ("ppo.reward.held_out=1", "1 leaves PPO no member: reward.ensemble is 1"),
        ("reward.ensemble=2 ppo.reward.held_out=2", "2 leaves PPO no member"),
        ("reward.ensemble=3 ppo.reward.held_out=1 ppo.reward_model=./x", "ppo.reward_model names another model"),
        ("eval.llm_judge.base_url=localhost eval.llm_judge.model=m", "must be like https://api.example.org/v1"),
        (f"{JUDGE} 'eval.llm_judge.parameters={{model: x, n: 2}}'", "must not set model, n"),
        (f"{JUDGE} eval.llm_judge.against=[ppo]", "eval.llm_judge.against"),
        ("eval.text.path=hub://a/b", "eval.text.path: needs the commit"),
        ("eval.best_of_n=1", "eval.best_of_n"),
        ("dpo.trainer.beta=0.2", "dpo.trainer.beta: must not be set here: set it beside `trainer`: `dpo.beta`"),
        ("dpo.trainer.sync_ref_model=true", "the reference is the SFT model"),
        ("dpo.trainer.loss_typ=hinge", "did you mean loss_type?"),
    ],
)
def test_conflicts(load: Callable[..., LoadedRecipe], given: str, phrase: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(given)
    assert phrase in str(error.value)


def test_dpo_is_planned_where_the_recipe_asks_for_it(load: Callable[..., LoadedRecipe]) -> None:
    def needs(*sets: str) -> dict[str, tuple[str, ...]]:
        return {spec.name: of for spec, of in registry.planned(load(*sets).recipe)}

    assert "dpo" not in needs()
    assert "dpo" not in needs("dpo.enabled=false dpo.beta=0.2")
    assert needs("dpo.enabled=true")["dpo"] == ("base", "data", "sft", "rank")
    assert needs("dpo.beta=0.2")["eval"] == ("base", "data", "sft", "reward", "ppo", "dpo")
    later = needs("dpo.enabled=true rounds=2")
    assert later["dpo"] == ("base", "data", "sft", "rank", "rank-2")
    assert "dpo" in later["eval"]
    assert "dpo" not in later["export"]


def test_a_recipe_without_dpo_says_how_to_enable_it(runner: Callable[..., Runner]) -> None:
    with pytest.raises(RecipeError, match="has no dpo stage") as error:
        runner().run("dpo")
    assert "dpo.enabled=true" in error.value.hint


def test_api_key_and_concurrency_change_no_result(
    load: Callable[..., LoadedRecipe],
) -> None:
    spec = registry.STAGES["eval"]
    plain = spec.keyed(load(JUDGE).recipe)
    assert spec.keyed(load(f"{JUDGE} eval.llm_judge.api_key_env=KEY eval.llm_judge.concurrency=9").recipe) == plain
    assert spec.keyed(load(f"{JUDGE} eval.llm_judge.num_prompts=9").recipe) != plain


@pytest.mark.parametrize(
    ("given", "expected"),
    [("models/other", {"eval.reward_model"}), (None, set())],
)
def test_local_files_of_the_judges(
    load: Callable[..., LoadedRecipe], given: str | None, expected: set[str]
) -> None:
    member = "reward.ensemble=2 ppo.reward.held_out=1 eval.reward_model=ensemble"
    sets = f"eval.reward_model={given}" if given else member
    assert registry.STAGES["eval"].files(load(sets).recipe).keys() == expected
