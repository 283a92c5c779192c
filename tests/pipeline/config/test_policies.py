"""Rules about what policies start from: `sft: null`, and the adapters that take the place of SFT's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config import fit
from pipeline.config.dpo import DPOConfig
from pipeline.config.fit import ModelProfile
from pipeline.config.load import LoadedRecipe
from pipeline.config.ppo import PPOConfig
from pipeline.config.section import content
from pipeline.config.sft import LoRAConfig
from pipeline.engine import registry
from pipeline.errors import RecipeError
from pipeline.memory import plan as memory
from pipeline.memory.architecture import Architecture

Load = Callable[..., LoadedRecipe]


def test_a_recipe_without_sft_has_no_sft_step(load: Load) -> None:
    recipe = load("sft=null", "dpo.enabled=true").recipe
    planned = {spec.name: needs for spec, needs in registry.planned(recipe)}
    assert "sft" not in planned
    assert all("sft" not in needs for needs in planned.values())
    assert planned["ppo"] == ("base", "data", "reward")


def test_steps_of_later_rounds_do_not_need_sft_either(load: Load) -> None:
    planned = registry.planned(load("sft=null", "rounds=2").recipe)
    assert all("sft" not in needs for _, needs in planned)


def test_the_adapter_of_the_policy_is_that_of_ppo(load: Load) -> None:
    recipe = load("sft=null", "ppo.lora.r=4 dpo.lora.r=8").recipe
    assert recipe.policy_lora == LoRAConfig(r=4)
    assert recipe.policy_loras == {"ppo.lora": LoRAConfig(r=4), "dpo.lora": LoRAConfig(r=8)}
    assert load("sft.lora.r=2 reward.lora.r=2").recipe.policy_lora == LoRAConfig(r=2)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("ppo.lora.r=4", "ppo.lora: belongs to sft: null"),
        ("dpo.lora=null", "dpo.lora: belongs to sft: null"),
        ("sft=null ppo.lora=null", "reward.lora: and ppo.lora must both be sections or both be null"),
        ("sft=null reward.lora=null", "reward.lora: and ppo.lora must both be sections or both be null"),
        ("sft=null dpo.lora=null", "dpo.lora: and ppo.lora must both be sections or both be null"),
        ("sft=null base.quantization=nf4 ppo.lora=null", "ppo.lora: is required by base.quantization = nf4"),
        ("sft=null base.dtype=float16 ppo.lora=null reward.lora=null", "trains LoRA adapters only, and ppo.lora"),
        ("sft=null base.quantization={qat: q8_0} ppo.lora.lora_dropout=0.1", "ppo.lora.lora_dropout: must be 0"),
        ("sft=null sharding=full base.quantization=int8", "int8 weights cannot be sharded"),
        (
            "sft=null ppo.lora=null reward.lora=null export.formats=[adapter]",
            "export.formats: adapter needs LoRA, and ppo.lora is null",
        ),
        (
            "sft=null eval.llm_judge={base_url: 'https://x/v1', model: m, against: [sft]}",
            "eval.llm_judge.against: must include base",
        ),
        ("data.demonstrations=null rank.source=app rank.app.annotators=[a, b]", "demonstrations: is required by"),
        ("sft=null data.demonstrations=null rank.source=app rank.app.annotators=[a, b]", "data: has no prompts"),
        (
            "sft=null ppo.ptx_coef=0.1 rank.source=app rank.app.annotators=[a, b] data={prompts: {path: p.jsonl}} "
            "data.demonstrations=null",
            "ppo.ptx_coef: is the weight of a loss on demonstrations",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(load: Load, sets: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load(*_split(sets))


def _split(sets: str) -> list[str]:
    return re.split(r" (?=\w+(?:\.\w+)*=)", sets)


def test_adapters_of_another_shape_than_the_reward_models_are_accepted(load: Load) -> None:
    assert load("sft=null", "ppo.lora.r=4", "reward.lora.r=8").recipe.sft is None


def test_prompts_alone_are_enough_without_sft(load: Load) -> None:
    data = "data={prompts: {path: p.jsonl}, demonstrations: null}"
    assert (
        load("sft=null", data, "rank.source=app", "rank.app.annotators=[a, b]").recipe.data.demonstrations is None
    )


def test_targets_are_checked_where_the_policys_adapter_is_set(load: Load) -> None:
    profile = ModelProfile(linear=["a.q_proj", "lm_head"], output="lm_head")
    recipe = load("sft=null", "ppo.lora.target_modules=[w_proj]").recipe
    paths = [path for path, _ in fit.problems(recipe, profile)]
    assert paths == ["ppo.lora.target_modules"]


def test_the_memory_plan_has_no_sft_stage(load: Load) -> None:
    architecture = Architecture.from_config(
        {
            "model_type": "llama", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        }
    )  # fmt: skip
    plans = [memory.predict(load(*sets).recipe, architecture, device="cpu") for sets in ((), ("sft=null",))]
    assert set(plans[0].stages) - set(plans[1].stages) == {"sft"}
    assert plans[0].stages["ppo"].total == plans[1].stages["ppo"].total


def test_new_values_at_their_defaults_leave_keys_as_they_were() -> None:
    assert "lora" not in content(PPOConfig())
    assert "lora" not in content(DPOConfig())
    changed: dict[str, Any] = content(PPOConfig(lora=LoRAConfig(r=4)))
    assert changed["lora"]["r"] == 4
    assert content(PPOConfig(lora=None))["lora"] is None


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("ppo.reward_model=a/b", "ppo.reward_model_revision: is required: a/b is a Hub id"),
        ("ppo.reward_model_revision=abc", "belongs to a Hub id in ppo.reward_model"),
        ("ppo.reward_model=. ppo.reward_model_revision=abc", "belongs to a Hub id in ppo.reward_model"),
        (
            "base.chat_template_kwargs={messages: []}",
            "messages is part of each conversation and cannot be set here",
        ),
        ("base.chat_template_kwargs={a-b: 1}", "a-b is not a variable's name"),
    ],
)
def test_values_of_scorers_and_templates_are_checked(load: Load, sets: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load(*_split(sets))


def test_the_revision_of_a_scorer_is_in_the_key_and_its_name_is_no_path(load: Load) -> None:
    specs = [
        (registry.STAGES["ppo"], load("ppo.reward_model=a/b", f"ppo.reward_model_revision={revision}").recipe)
        for revision in ("x", "y")
    ]
    assert specs[0][0].keyed(specs[0][1]) != specs[1][0].keyed(specs[1][1])
    assert "ppo.reward_model" not in specs[0][0].files(specs[0][1])
