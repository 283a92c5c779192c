"""The default recipe on a small model, through the runner: all stages and artifacts; a second run is a no-op."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from small_run import ROOT, runner
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runner(folder).run()
    return folder


def test_every_stage_finishes_and_a_second_run_is_a_no_op(runs: Path) -> None:
    steps = runner(runs).planner.plan()
    assert [step.spec.name for step in steps] == [
        "base", "data", "sft", "collect", "rank", "reward", "ppo", "dpo", "eval", "export",
    ]  # fmt: skip
    assert {step.action for step in steps} == {"skip"}


def test_simulated_artifacts_are_marked_as_simulated(runs: Path) -> None:
    stages = runner(runs).planner.summary().stages
    assert not stages["sft"].manifest.simulated
    for name in ("rank", "reward", "ppo", "eval", "export"):
        assert stages[name].manifest.simulated, name
    rankings = list(stages["rank"].artifact.jsonl("rankings.jsonl"))
    assert rankings
    assert not any(ranking["human"] for ranking in rankings)


def test_changing_the_kl_target_reruns_ppo_and_later_stages(runs: Path) -> None:
    steps = {step.spec.name: step for step in runner(runs, "ppo.kl.target=1").planner.plan()}
    assert {name for name, step in steps.items() if step.action != "skip"} == {"ppo", "eval", "export"}
    assert steps["dpo"].action == "skip"
    assert "ppo.kl.target" in steps["ppo"].reason


def test_the_export_loads_in_transformers_with_the_policys_logits(runs: Path) -> None:
    from stages.models.adapters import load_policy

    stages = runner(runs).planner.summary().stages
    folder = stages["export"].artifact.path
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = [{"role": "user", "content": "name[Blue Fox], kind[pub], area[harbour]"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]
    policy = load_policy(stages["base"].artifact, stages["ppo"].artifact, "cpu")
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, policy(ids).logits, rtol=1e-4, atol=1e-4)
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id


def test_changing_a_local_model_in_place_changes_its_fingerprint(runs: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(runner(runs).planner.summary().stages["export"].artifact.path, model)

    def base() -> str:
        base_runner = runner(tmp_path / "runs", f"base.model={model}")
        base_runner.run("base")
        return base_runner.planner.summary().stages["base"].artifact.fingerprint

    before = base()
    config = model / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    assert base() != before


def test_evaluation_compares_all_models_by_the_judge(runs: Path) -> None:
    artifact = runner(runs).planner.summary().stages["eval"].artifact
    result = artifact.json("eval.json")
    assert list(result["models"]) == ["base", "sft", "ppo", "dpo", "best_of_n"]
    for numbers in result["models"].values():
        assert numbers["slot_error_low"] <= numbers["slot_error_rate"] <= numbers["slot_error_high"]
    assert 0 <= result["win_rate"]["low"] <= result["win_rate"]["value"] <= result["win_rate"]["high"] <= 1
    assert [row["update"] for row in result["along"]] == [0, 1, 2]
    assert result["along"][0]["kl"] == pytest.approx(0, abs=1e-4)
    samples = list(artifact.jsonl("samples.jsonl"))
    assert set(samples[0]["answers"]) == set(result["models"])


def test_evaluation_numbers_match_the_judged_answers(runs: Path) -> None:
    """The numbers in eval.json match counts over the judged answers stored with it."""
    artifact = runner(runs).planner.summary().stages["eval"].artifact
    result, judged = artifact.json("eval.json"), list(artifact.jsonl("judged.jsonl"))
    for ours, theirs in (("ppo", "sft"), ("ppo", "base"), ("ppo", "dpo"), ("dpo", "sft")):
        better = [row["faults"][theirs] - row["faults"][ours] for row in judged]
        row = next(row for row in result["wins"] if (row["ours"], row["theirs"]) == (ours, theirs))
        assert row["judge"] == "venues"
        assert row["value"] == pytest.approx(sum(b > 0 for b in better) / 12 + sum(b == 0 for b in better) / 24)
        assert row["ties"] == pytest.approx(sum(b == 0 for b in better) / 12)
    gains = [row["faults"]["sft"] - row["faults"]["ppo"] for row in judged]
    extremes = result["extremes"]
    assert [row["gain"] for row in extremes["improved"]] == sorted((g for g in gains if g > 0), reverse=True)[:10]
    assert [row["gain"] for row in extremes["damaged"]] == sorted(g for g in gains if g < 0)[:10]
    assert extremes["share_improved"] == pytest.approx(sum(g > 0 for g in gains) / 12)
    best = result["models"]["best_of_n"]
    assert [row["n"] for row in result["best_of_n"]["rows"]] == [1, 2, 4]
    proxies = [row["proxy"]["value"] for row in result["best_of_n"]["rows"]]
    assert proxies == sorted(proxies)
    assert proxies[0] == pytest.approx(0, abs=1e-9)
    kl = result["models"]["ppo"]["kl"]
    assert best["kl"] == pytest.approx(math.log(best["n"]) - (best["n"] - 1) / best["n"])
    assert all(abs(best["kl"] - kl) <= abs(math.log(n) - (n - 1) / n - kl) for n in range(1, 5))
    assert result["frontier"]["fit"]["reason"].endswith("the form needs 4")
    assert [row["update"] for row in result["frontier"]["points"]] == [0, 1, 2]
    assert result["frontier"]["points"][0]["gold"] == {"value": 0, "low": 0, "high": 0}


def test_evaluation_with_a_held_out_judge_and_held_out_text(runs: Path, tmp_path: Path) -> None:
    """The judge is an ensemble member that PPO does not use; text_nll comes from held-out text."""
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"The pub {i} is near the river."}) + "\n" for i in range(4)))
    small = runner(
        folder,
        "reward.ensemble=3 ppo.reward.held_out=1 eval.reward_model=ensemble eval.best_of_n=null "
        f"dpo.enabled=false eval.text.path={text} eval.judge=none reward.trainer.max_steps=2",
    )
    small.run("eval")
    stages = small.planner.summary().stages
    result = stages["eval"].artifact.json("eval.json")
    assert (result["judge"], list(result["models"])) == (None, ["base", "sft", "ppo"])
    assert {row["judge"] for row in result["wins"]} == {"held-out ensemble member"}
    assert result["frontier"]["judge"] == result["extremes"]["judge"] == "held-out ensemble member"
    assert all(0 < numbers["text_nll"] < 10 for numbers in result["models"].values())
    assert stages["ppo"].manifest.metrics["held_out_members"] == 1


def test_ppo_logs_the_documented_metrics(runs: Path) -> None:
    folder = runner(runs).planner.summary().stages["ppo"].folder
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = set().union(*rows) - {"step", "time"}
    page = (ROOT / "docs/ppo.md").read_text(encoding="utf-8").partition("## Metrics")[2]
    page = page.partition("\n## ")[0]
    defined = {
        name for line in page.splitlines() if line.startswith("| `") for name in line.split("|")[1].split("`")[1::2]
    }
    assert logged <= defined
    # These need a value adapter, PPO-ptx, an ensemble, 16 bits, reward terms, a baseline over a prompt's responses,
    # or a KL term in the loss.
    assert defined - logged == {
        "val/grad_norm",
        "loss/ptx_avg",
        "objective/scores_disagreement",
        "sampling/kl_k3",
        "sampling/logp_difference_std",
        "loss_scale/policy",
        "loss_scale/value",
        "rewards/<name>/mean",
        "rewards/<name>/std",
        "rewards/<name>/applied",
        "objective/equal_rewards",
        "objective/resampled",
        "loss/kl_avg",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "sets",
    [
        pytest.param("sft.lora=null reward.lora=null", id="full fine-tuning"),
        pytest.param("ppo.value=adapter ppo.value_learning_rate=1e-3", id="value adapter"),
        pytest.param("reward.lora=null reward.init=base sft.lora=null ppo.value=trunk", id="full, trunk"),
        pytest.param(
            "base.quantization=nf4 ppo.gradient_checkpointing=true "
            "base.pretrain.hidden_size=64 base.pretrain.intermediate_size=128",  # NF4 blocks hold 64 weights
            id="NF4 backbone",
        ),
        pytest.param("ppo.ptx_coef=0.5 ppo.entropy_coef=0.01 ppo.dual_clip=3.0", id="ptx, entropy, dual clip"),
        pytest.param(
            "ppo.kl.kind=adaptive ppo.score.normalization=running ppo.whiten_rewards=true ppo.target_kl=0.1",
            id="running",
        ),
        pytest.param("reward.objective=plackett_luce reward.center_rewards_coefficient=0.01", id="Plackett-Luce"),
        pytest.param("sft.packing=true base.chat_template=chatml base.dtype=bfloat16", id="packed, chatml, bf16"),
        pytest.param("sft.lora=null reward.lora=null base.dtype=bfloat16", id="full, bf16"),
        pytest.param("base.dtype=float16 ppo.importance_sampling_clip_max=2.0", id="fp16, importance weights"),
        pytest.param("sft=null rounds=2", id="no SFT, two rounds"),
        pytest.param("sft=null ppo.lora=null dpo.lora=null reward.lora=null ppo.value=adapter", id="no SFT, full"),
        pytest.param(
            "sft=null base.quantization=nf4 base.pretrain.hidden_size=64 base.pretrain.intermediate_size=128",
            id="no SFT, NF4 backbone",
        ),
    ],
)
def test_other_configurations_run_to_eval(tmp_path: Path, sets: str) -> None:
    small = runner(tmp_path, sets)
    small.run("eval")
    eval_metrics = small.planner.summary().stages["eval"].manifest.metrics
    assert eval_metrics["ppo/kl"] is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sets", "exact"),
    [
        ("base.quantization=nf4", "adapter"),
        ("base.quantization.qat=q4_0 export.formats=[gguf_q4_0,safetensors]", "gguf_q4_0"),
    ],
)
def test_the_exported_model_matches_the_trained_policy(tmp_path: Path, sets: str, exact: str) -> None:
    small = runner(tmp_path, sets, "base.pretrain.hidden_size=64 base.pretrain.intermediate_size=128")
    small.run()
    export = small.planner.summary().stages["export"]
    formats = {row["format"]: row for row in export.artifact.json("export.json")["formats"]}
    assert formats[exact]["kl"] < 1e-3
    assert formats[exact]["slot_error_rate"] == export.artifact.json("export.json")["policy"]["slot_error_rate"]
    assert (export.artifact.path / exact).is_dir()


@pytest.mark.slow
def test_each_round_starts_from_the_newest_policy(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    small = runner(folder, "rounds=3")
    steps = small.run()
    assert [step.spec.name for step in steps if step.finished] == [
        "base", "data", "sft", "collect", "rank", "reward", "ppo",
    ]  # fmt: skip
    stages = small.planner.summary().stages
    prompts_by_round = [
        {
            row["prompt"][0]["content"]
            for row in stages[name].artifact.jsonl("answers.jsonl")
            if row["split"] == "train"
        }
        for name in ("collect", "collect-2", "collect-3")
    ]
    assert [len(prompts) for prompts in prompts_by_round] == [12, 12, 12]
    assert len(set.union(*prompts_by_round)) == 36
    metrics = stages["reward-3"].manifest.metrics
    assert metrics["read_rankings"] == 3 * 24
    assert metrics["rankings"] + metrics["dropped_rankings"] == 3 * 24
    evaluated = stages["eval"].artifact.json("eval.json")
    assert list(evaluated["models"]) == ["base", "sft", "ppo-1", "ppo-2", "ppo", "dpo", "best_of_n"]
    assert stages["dpo"].manifest.inputs.keys() == {"base", "data", "sft", "rank", "rank-2", "rank-3"}
    assert len(evaluated["by_round"]) == 3
    assert [row["round"] for row in evaluated["along"]] == [1] * 3 + [2] * 3 + [3] * 3
    assert stages["ppo-3"].manifest.simulated
    single_round = runner(folder).planner.summary().stages["eval"].artifact.json("eval.json")
    first_policy, single_policy = evaluated["models"]["ppo-1"], single_round["models"]["ppo"]
    assert first_policy["slot_error_rate"] == single_policy["slot_error_rate"]
    assert first_policy["kl"] == pytest.approx(single_policy["kl"])


@pytest.mark.slow
def test_a_later_round_selects_prompts_by_ensemble_disagreement(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    small = runner(
        folder, "rounds=2 reward.ensemble=2 collect.select=disagreement ppo.reward.aggregate=uncertainty"
    )
    small.run()
    stages = small.planner.summary().stages
    metrics = stages["collect-2"].manifest.metrics
    assert metrics["candidates"] == 4 * 12
    assert metrics["disagreement"] > metrics["disagreement_candidates"] > 0
    rows = list(stages["collect-2"].artifact.jsonl("answers.jsonl"))
    assert [row["split"] for row in rows] == ["train"] * 12 + ["eval"] * 6
    ranked = {row["prompt"][0]["content"] for row in stages["rank"].artifact.jsonl("rankings.jsonl")}
    assert not ranked & {row["prompt"][0]["content"] for row in rows}
    assert (stages["reward-2"].artifact.path / "adapter-1").is_dir()
    assert small.planner.plan()[-1].finished
