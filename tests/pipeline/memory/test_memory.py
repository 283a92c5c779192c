"""The memory plan: parameter counts as published, a run that cannot fit refused with what would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_fakes import FakeStages
from repository import ROOT
from typer.testing import CliRunner

from pipeline import network
from pipeline.config.base import BaseConfig
from pipeline.config.hardware import size_in_bytes
from pipeline.config.load import LoadedRecipe, load_recipe
from pipeline.engine import manifest
from pipeline.engine.runner import Runner
from pipeline.errors import RecipeError, StageError
from pipeline.memory import cards, plan, sources
from pipeline.memory.advice import propose
from pipeline.memory.architecture import Architecture
from pipeline.memory.components import PlannedModel
from pipeline.memory.flops import ModelCost, stage_flops, update_flops
from pipeline.memory.plan import predict, resolve
from pipeline.network import NoNetwork
from stages.__main__ import app

PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
}
"""Parameters, as the Hub counts them in the weight files."""
CONFIG = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "dtype": "float32",
}


def shipped(model: str, *sets: str, tmp_path: Path) -> LoadedRecipe:
    file = tmp_path / f"{model}.yaml"
    file.write_text(f"extends: [{ROOT}/recipes/models/{model}.yaml]\n{cards.WORK}")
    return load_recipe(file, sets)


@pytest.mark.parametrize("model", PUBLISHED)
def test_shipped_models_have_their_published_parameters(model: str, tmp_path: Path) -> None:
    made = sources.architecture_of(shipped(model, tmp_path=tmp_path).recipe.base)
    assert made.parameters == PUBLISHED[model]
    assert not made.approximate


def test_the_quickstart_is_planned_from_its_own_sizes(load: Callable[..., LoadedRecipe]) -> None:
    base = load("base.pretrain.hidden_size=64", "base.pretrain.num_attention_heads=2").recipe.base
    made = sources.architecture_of(base)
    # Embedding, and a block's: four square attention layers, three of the MLP, two norms; and the last norm.
    assert made.parameters == 1024 * 64 + 4 * (4 * 64 * 64 + 3 * 64 * 384 + 2 * 64) + 64


def test_an_architecture_is_read_from_a_local_folder(load: Callable[..., LoadedRecipe], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(CONFIG))
    made = sources.architecture_of(load("base.model=./model").recipe.base)
    assert (made.keys, made.queries, made.vocab_size) == (32, 64, 1000)
    (tmp_path / "model/config.json").write_text("{}")
    with pytest.raises(RecipeError, match="needs vocab_size"):
        sources.architecture_of(load("base.model=./model").recipe.base)


def test_an_architecture_is_read_from_a_gguf_header(load: Callable[..., LoadedRecipe], tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter("tiny.gguf", "llama")
    writer.add_embedding_length(64)
    writer.add_block_count(3)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_feed_forward_length(160)
    writer.add_tensor("token_embd.weight", np.zeros((1000, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert sources.architecture_of(load("base.model=tiny.gguf").recipe.base) == Architecture.from_config(CONFIG)


def test_of_a_hub_model_only_its_config_is_fetched(
    load: Callable[..., LoadedRecipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def fetch(model: str, file: str, *, revision: str, etag_timeout: float) -> str:
        asked.append((model, file, revision))
        (tmp_path / file).write_text(json.dumps(CONFIG))
        return str(tmp_path / file)

    monkeypatch.setattr(network, "hub_is_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    base = load("base.model=some/model", "base.revision=abc").recipe.base
    assert sources.architecture_of(base) == Architecture.from_config(CONFIG)
    assert asked == [("some/model", "config.json", "abc")]


def test_a_run_continues_without_a_plan_when_the_hub_refuses(
    runner: Callable[..., Runner], stages: FakeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise OSError("503")

    monkeypatch.setattr(network, "hub_is_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    steps = runner("base.model=some/model", "base.revision=abc", "hardware.memory=1MB").run("sft")
    assert [step.action for step in steps][-1] == "run"


def test_a_run_without_a_network_is_refused_before_anything_runs(
    runner: Callable[..., Runner], stages: FakeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "hub_is_reachable", lambda: False)
    with pytest.raises(NoNetwork, match=r"config\.json of some/model is not in the Hub's cache") as error:
        runner("base.model=some/model", "base.revision=abc").run("sft")
    assert "hf download some/model --local-dir FOLDER" in error.value.hint
    assert not stages.calls


def test_experts_are_not_planned() -> None:
    with pytest.raises(RecipeError, match="mixtures of experts"):
        Architecture.from_config(CONFIG | {"num_local_experts": 8})


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16e9), ("15.5 GiB", 15.5 * 2**30), ("800MB", 8e8), ("1MiB", 2**20)]
)
def test_sizes(text: str, size: float, load: Callable[..., LoadedRecipe]) -> None:
    assert size_in_bytes(load(f"hardware.memory={text}").recipe.hardware.memory or "") == size


@pytest.mark.parametrize("text", ["16", "'16'", "16gb", "16GB free", "-1GB"])
def test_sizes_are_strict(text: str, load: Callable[..., LoadedRecipe]) -> None:
    with pytest.raises(RecipeError, match=r"hardware\.memory"):
        load(f"hardware.memory={text}")


def test_weights_by_precision() -> None:
    made = Architecture.from_config(CONFIG)
    blocks = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
    rest = 1000 * 64 + 3 * 2 * 64 + 64

    def weights(size: int, quantization: str) -> float:
        return PlannedModel(made, "cpu", size, quantization, None).weights

    assert weights(4, "none") == 4 * (blocks + rest)
    assert weights(2, "none") == 2 * (blocks + rest)
    # Half a byte, a byte a block of 64, four bytes for each 256 of these.
    assert weights(4, "nf4") == blocks / 2 + blocks / 64 + 4 * blocks / 64 / 256 + 4 * rest


@pytest.mark.parametrize(
    ("capability", "size"), [("7.5", 4), ("8.0", 2), ("12.0", 2), (None, 2)], ids=["T4", "A100", "newer", "no GPU"]
)
def test_auto_is_planned_in_the_precision_that_the_card_computes_in(
    load: Callable[..., LoadedRecipe], monkeypatch: pytest.MonkeyPatch, capability: str | None, size: int
) -> None:
    monkeypatch.setattr(plan, "_ask_driver", lambda what: capability)
    assert predict(load("base.dtype=auto").recipe, device="cuda", limit=1e12).model.size == size
    assert predict(load("base.dtype=bfloat16").recipe, device="cuda", limit=1e12).model.size == 2


def test_full_fine_tuning_in_bfloat16_holds_float32_weights_and_halves_activations(
    load: Callable[..., LoadedRecipe],
) -> None:
    full = ["sft.lora=null", "reward.lora=null"]
    single, mixed = (predict(load(*full, f"base.dtype={d}").recipe) for d in ("float32", "bfloat16"))
    for stage in ("sft", "reward", "ppo"):
        one, other = single.stages[stage].phases["train"], mixed.stages[stage].phases["train"]
        assert {n: other[n] for n in ("weights", "optimizer")} == {n: one[n] for n in ("weights", "optimizer")}
    one, other = (p.stages["ppo"].phases["rollout"]["cache"] for p in (single, mixed))
    assert other == one / 2
    rounded = predict(load(*full, "base.dtype=bfloat16", "base.quantization.qat=q8_0").recipe)
    assert rounded.stages["ppo"].phases["rollout"]["cache"] == one, "QAT of whole models computes in float32"


def test_what_learns_costs_its_gradient_and_two_moments(load: Callable[..., LoadedRecipe]) -> None:
    full = predict(load("sft.lora=null", "reward.lora=null").recipe).stages["ppo"].phases["train"]
    weights = predict(load().recipe).model.architecture.parameters * 4
    assert full["optimizer"] == 2 * weights
    assert full["weights"] == 3 * weights  # policy, reference, reward
    two = predict(load("sft.lora=null", "reward.lora=null", "ppo.value=adapter").recipe)
    assert two.stages["ppo"].phases["train"]["optimizer"] == 4 * weights


@pytest.mark.parametrize("sets", [["sft.lora=null", "reward.lora=null"], []], ids=["full", "lora"])
def test_each_of_four_processes_holds_a_quarter_and_gathers_the_rest(
    load: Callable[..., LoadedRecipe], sets: list[str]
) -> None:
    sets = [*sets, "ppo.value=adapter"]
    alone, sharded = (
        predict(load(*sets, f"sharding={kind}").recipe, processes=4).stages for kind in ("none", "full")
    )
    for stage in ("sft", "reward", "ppo"):
        whole, part = alone[stage].phases["train"], sharded[stage].phases["train"]
        for name in ("weights", "adapters", "optimizer"):
            assert part.get(name, 0) == whole.get(name, 0) / 4, (stage, name)
        assert 0 < part["gathered"] < alone["sft"].phases["train"]["weights"]
    weights = alone["sft"].phases["train"]["weights"]
    assert sharded["ppo"].phases["rollout"]["gathered"] == weights
    assert alone["collect"].phases == sharded["collect"].phases, "rank 0 samples alone"
    # After training these stages have the whole model again, beside its sharded copy.
    measured = sharded["reward"].phases["measure"]
    assert measured["weights"] == weights * 1.25
    # On a GPU, offloaded parts take none of its memory.
    recipe = load(*sets, "sharding=offload").recipe
    offloaded = predict(recipe, device="cuda", limit=1e12, processes=4).stages["ppo"].phases["train"]
    assert offloaded["weights"] == offloaded["optimizer"] == 0
    assert offloaded["gathered"] > 0


def test_processes_share_the_rows_of_a_step(load: Callable[..., LoadedRecipe]) -> None:
    recipe = load("ppo.batch_size=32 ppo.num_mini_batches=2").recipe
    alone, shared = (predict(recipe, processes=count) for count in (1, 4))
    assert (alone.micro["ppo"], shared.micro["ppo"]) == (16, 4)
    assert shared.stages["ppo"].phases["train"]["activations"] < alone.stages["ppo"].phases["train"]["activations"]


@pytest.mark.parametrize(
    ("change", "stage", "component"),
    [
        ("ppo.micro_batch_size=4", "ppo", "activations"),
        ("ppo.gradient_checkpointing=true", "ppo", "activations"),
        ("sft.micro_batch_size=1", "sft", "activations"),
        ("sft.trainer.gradient_checkpointing=true", "sft", "activations"),
        ("reward.trainer.gradient_checkpointing=true", "reward", "activations"),
    ],
)
def test_less_at_once_is_less_in_training(
    change: str, stage: str, component: str, load: Callable[..., LoadedRecipe]
) -> None:
    before, after = (predict(load(*sets).recipe).stages[stage].phases["train"] for sets in ((), (change,)))
    assert after[component] < before[component]
    assert all(after[name] <= before[name] for name in before)


def test_a_run_that_cannot_fit_is_refused_with_what_would(
    runner: Callable[..., Runner], stages: FakeStages, load: Callable[..., LoadedRecipe]
) -> None:
    with pytest.raises(StageError, match="this run does not fit") as refused:
        runner("hardware.memory=640MB").run()
    assert not stages.calls
    assert "the limit is 640 MB (hardware.memory)" in str(refused.value)
    first = next(line.split("  (")[0].strip() for line in refused.value.hint.splitlines() if "micro_batch" in line)
    before, after = (predict(load(*sets, "hardware.memory=640MB").recipe) for sets in ((), (first,)))
    assert sum(peak.total for peak in after.stages.values()) < sum(peak.total for peak in before.stages.values())


def test_only_what_would_run_is_refused(runner: Callable[..., Runner], stages: FakeStages) -> None:
    runner().run("data")
    runner("hardware.memory=1MB").run("data")  # up to date, and holds no model
    with pytest.raises(StageError, match="base"):
        runner("hardware.memory=1MB").run("sft")


def test_force_insists_and_is_recorded(runner: Callable[..., Runner], stages: FakeStages) -> None:
    steps = runner("hardware.memory=1MB", force=True).run("base")
    assert steps[0].folder is not None
    made = manifest.read(steps[0].folder)
    assert made is not None
    assert made.forced
    assert made.predicted["fits"] is False
    assert made.predicted["limit_bytes"] == 1_000_000
    assert sum(made.predicted["components"].values()) == pytest.approx(made.predicted["peak_bytes"], abs=9)


def test_hardware_changes_no_key(runner: Callable[..., Runner], stages: FakeStages) -> None:
    runner().run("sft")
    again = runner("hardware.memory=64GB", "ppo.gradient_checkpointing=auto").run("sft")
    assert [step.action for step in again] == ["skip"] * 3


def test_proposals_add_up_to_a_fit(tmp_path: Path) -> None:
    loaded = shipped("llama-3.2-3b", "device=cuda", "hardware.memory=8GB", "ppo.value=adapter", tmp_path=tmp_path)
    plan = predict(loaded.recipe)
    steps = propose(loaded.recipe, plan)
    assert plan.too_large()
    assert steps[-1].fits
    assert [step.fits for step in steps[:-1]] == [False] * (len(steps) - 1)
    # What it says is what the recipe does when told so.
    sets = [step.sets for step in steps]
    said = load_recipe(loaded.path, [*loaded.sets, *sets])
    followed = predict(said.recipe)
    assert not followed.too_large()
    assert max(peak.total for peak in followed.stages.values()) == steps[-1].peak


def test_what_can_never_fit_ends_without_a_fit(tmp_path: Path) -> None:
    loaded = shipped("llama-3.1-8b", "device=cuda", "hardware.memory=2GB", tmp_path=tmp_path)
    steps = propose(loaded.recipe, predict(loaded.recipe))
    assert steps
    assert not any(step.fits for step in steps)


def test_checkpointing_auto_is_on_where_it_is_needed(tmp_path: Path) -> None:
    automatic = "ppo.gradient_checkpointing=auto"
    found = {}
    for memory in ("24GB", "12GB"):
        sets = ("device=cuda", f"hardware.memory={memory}", automatic, "ppo.micro_batch_size=16")
        recipe = shipped("qwen2.5-1.5b", *sets, tmp_path=tmp_path).recipe
        found[memory] = resolve(recipe, predict(recipe)).ppo.gradient_checkpointing
    assert found == {"24GB": False, "12GB": True}
    unknown = shipped("qwen2.5-1.5b", "device=cpu", automatic, tmp_path=tmp_path).recipe
    assert resolve(unknown, predict(unknown)).ppo.gradient_checkpointing is False


def test_automatic_micro_batches_are_planned_as_they_would_halve(tmp_path: Path) -> None:
    sets = ("device=cuda", "ppo.micro_batch_size=auto", "hardware.memory=")
    large, small = (
        predict(shipped("qwen2.5-1.5b", *sets[:2], f"{sets[2]}{memory}", tmp_path=tmp_path).recipe).micro["ppo"]
        for memory in ("80GB", "8GB")
    )
    assert large == 16
    assert small < 16
    assert 16 % small == 0


def test_operations_follow_the_counts(load: Callable[..., LoadedRecipe]) -> None:
    recipe = load().recipe
    shape = sources.architecture_of(recipe.base)
    once = stage_flops(recipe, shape, {"demonstrations_train": 100})
    twice = stage_flops(load("sft.trainer.num_train_epochs=2").recipe, shape, {"demonstrations_train": 100})
    assert twice["sft"] == 2 * once["sft"]
    # 100 rows of 256 tokens: forward and the half of backward that frozen weights need.
    tokens = 255
    row = 2 * shape.linear * tokens + 4 * 4 * 128 * tokens * (tokens + 1) / 2 + 2 * shape.embedding * 256
    assert once["sft"] == pytest.approx(2 * 100 * row)


def test_operations_include_the_samples_of_a_solved_coefficient(load: Callable[..., LoadedRecipe]) -> None:
    adaptive, solved = (
        load(f"ppo.kl={{kind: {kind}, target: 2, num_prompts: 64, num_generations: 16}}").recipe
        for kind in ("adaptive", "solved")
    )
    shape = sources.architecture_of(solved.base)
    lengths = [(solved.ppo.max_prompt_length, solved.ppo.response_length)]
    sample = update_flops(ModelCost.of(shape), lengths, epochs=1, adapter_value=False, full=False)
    more = stage_flops(solved, shape, {})["ppo"] - stage_flops(adaptive, shape, {})["ppo"]
    assert more == pytest.approx(64 * 16 * (sample["rollout"] + sample["score"]))


def test_plan_and_status_show_memory(
    runner: Callable[..., Runner], stages: FakeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ["--recipe", "small.yaml", "--set", "hardware.memory=640MB hardware.tflops=0.5"]
    shown = CliRunner().invoke(app, ["plan", *sets]).output
    assert "weights in float32, limit from hardware.memory" in shown
    assert "640 MB  no" in shown
    assert "would not fit" in shown
    assert "at least" in shown
    runner("hardware.memory=640MB", "hardware.tflops=0.5", force=True).run()
    status = CliRunner().invoke(app, ["status", *sets]).output
    assert {"memory", "planned"} <= set(status.splitlines()[0].split())


def test_the_table_of_cards_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = cards.PAGE.read_text(encoding="utf-8")
    assert cards.page(text) == text, "run: python -m pipeline.memory.cards"


def test_a_model_that_is_not_there_has_no_shape(tmp_path: Path) -> None:
    """A path is no valid Hub id, which huggingface_hub says with an error of its own."""
    with pytest.raises(RecipeError, match="cannot fetch config"):
        sources.architecture_of(BaseConfig(model=f"../{tmp_path.name}/missing/model"))


def test_models_of_reward_terms_are_counted(load: Callable[..., LoadedRecipe], tmp_path: Path) -> None:
    """A classifier takes what its file takes; an adapter of another reward model brings a backbone."""
    classifier, artifact = tmp_path / "classifier", tmp_path / "artifact"
    for folder in (classifier, artifact / "adapter"):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x" * 1000)
    (artifact / "reward.json").write_text("{}")

    def held(*sets: str) -> dict[str, float]:
        return dict(predict(load(*sets).recipe).stages["ppo"].phases["score"])

    alone, weights = held(), held()["weights"]
    assert "scorers" not in alone
    assert held("ppo.reward_model=./classifier")["scorers"] == 1000
    terms = "{name: a, model: reward}, {name: b, model: ./classifier}, {name: c, model: ./artifact, held_out: true}"
    several = held(f'"ppo.reward.terms=[{terms}]"')
    assert several["scorers"] == 2000 + weights
    assert several["adapters"] == alone["adapters"]
    without = held('"ppo.reward.terms=[{name: p, pattern: x}]"')
    assert without["adapters"] < alone["adapters"]
