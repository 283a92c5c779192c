from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from repository import ROOT

from pipeline.config import load as loading
from pipeline.config.data import TableConfig, TaskConfig
from pipeline.config.load import LoadedRecipe
from pipeline.config.section import content
from pipeline.errors import RecipeError

Load = Callable[..., LoadedRecipe]


def refusal(load: Load, *sets: str) -> str:
    with pytest.raises(RecipeError) as error:
        load(*sets)
    return str(error.value)


def test_values_defaults_and_their_origin(load: Load) -> None:
    loaded = load("ppo.lam=0.9 seed=3")
    assert loaded.recipe.ppo.lam == 0.9
    assert loaded.recipe.seed == 3
    assert loaded.recipe.ppo.kl.target == 6.0
    assert loaded.describe("ppo.kl.target") == "small.yaml:7"
    assert loaded.describe("ppo.lam") == "--set #1"
    assert loaded.describe("seed") == "--set #2"
    assert loaded.describe("ppo.gamma") == "default"


def test_values_are_flat_and_complete(load: Load) -> None:
    values = load().values()
    assert values["ppo.kl.target"] == 6.0
    assert values["ppo.gamma"] == 1.0
    assert values["rank.annotators[1].name"] == "bob"
    assert values["sft.trainer"] == {}
    assert values["report_to"] == []


SHARDED = "sharding=full sft.lora=null reward.lora=null"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ppo.kl.tagret=8", "ppo.kl.tagret: unknown key; did you mean target?"),
        ("pppo={}", "pppo: unknown key; did you mean ppo?"),
        (
            "export.zzz=1",
            "export.zzz: unknown key; valid keys are batch_size, dtype, formats, merge_quantized, num_prompts",
        ),
        ("data.demonstrations.sizes=5", "data.demonstrations.sizes: unknown key; did you mean size?"),
        ("sft.lora.rank=5", "sft.lora.rank: unknown key; valid keys are"),
        ("rank.annotators=[{name: a, nois: 1}, {name: b}]", "rank.annotators[0].nois: unknown key"),
        ("seed=true", "seed: must be a whole number, got true"),
        ("seed='\"3\"'", 'seed: must be a whole number, got "3"; write 3'),
        ("seed=1.0", "seed: must be a whole number, got 1.0; write 1"),
        ("ppo.whiten_rewards=1", "ppo.whiten_rewards: must be true or false, got 1"),
        ("eval.judge=5", "eval.judge: must be text, got 5 (put it in quotes)"),
        ("ppo.kl.kind=x", "ppo.kl.kind: must be 'fixed', 'adaptive' or 'solved', got \"x\""),
        ("ppo.learning_rate=.nan", "ppo.learning_rate: must be a finite number"),
        ("rank.annotators=[{name: a, verbosity: .inf}]", "must be a finite number"),
        ("sft.lora.target_modules=5", "sft.lora.target_modules: must be text, or a list, got 5"),
        ("base.pretrain.corpus=5", "base.pretrain.corpus: must be a section of keys, got 5"),
        ("data.demonstrations=5", "data.demonstrations: must be a section of keys, got 5"),
        ("base.pretrain.corpus={path: x} base.pretrain.corpus={task: venues}", "corpus.size: is required"),
        ("name=../up", "name: may contain letters"),
        ("name=..", "name: may contain letters"),
        ("name='\"\"'", "name: may contain letters"),
    ],
)
def test_schema_errors(load: Load, given: str, message: str) -> None:
    text = refusal(load, given)
    assert message in text
    assert "Config" not in text


@pytest.mark.parametrize(
    "given",
    [
        "ppo.temperature=0",
        "ppo.lam=0",
        "ppo.lam=1.1",
        "ppo.gamma=-0.1",
        "ppo.gamma=1.1",
        "ppo.cliprange=0",
        "ppo.learning_rate=0",
        "ppo.kl.target=0",
        "ppo.kl.init=-1",
        "ppo.dual_clip=1",
        "ppo.batch_size=0",
        "ppo.adam_beta2=1",
        "data.eval_fraction=0",
        "data.eval_fraction=1",
        "data.demonstrations.size=0",
        "data.demonstrations.missing=1.5",
        "collect.num_completions=1",
        "collect.temperature=0",
        "reward.gate.min_accuracy=2",
        "sft.lora.r=0",
        "sft.lora.lora_dropout=1",
        "eval.bootstrap=0",
        "threads=0",
        "base.pretrain.vocab_size=100",
    ],
)
def test_ranges(load: Load, given: str) -> None:
    text = refusal(load, given)
    path = given.partition("=")[0]
    assert text.startswith(f"{path}: must be")
    assert "where: --set #1" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("base.pretrain=null", "base: needs `model`"),
        ("base={model: a/b, revision: c, pretrain: {corpus: {task: venues, size: 5}}}", "base: has both"),
        ("base.model=a/b", "base.revision: is required: a/b is a Hub id"),
        ("base.quantization=nf4 sft.lora=null reward.lora=null", "sft.lora (--set #2): is required by"),
        ("base.quantization=int8 reward.lora=null", "reward.lora: is required by"),
        (
            "base.quantization=q4_0",
            "base.quantization: must be 'none', 'nf4' or 'int8', or a section of keys (activations, qat)",
        ),
        ("base.quantization.qat=q4", "base.quantization.qat: must be 'q8_0', 'q4_0', 'nf4', 'int4-g32',"),
        (
            "base.quantization.grid=q4_0 base.quantization.qat=nf4",
            "quantization.grid: unknown key; valid keys are activ",
        ),
        (
            "base.quantization.qat=q4_0 reward.lora.lora_dropout=0.1",
            "reward.lora.lora_dropout: must be 0 with base.quantization.qat",
        ),
        (
            "base.quantization=nf4 export.formats=[adapter,gguf_q4_0]",
            "export.formats: gguf_q4_0 needs the adapter me",
        ),
        (
            "base.quantization.qat=nf4 export.formats=[nf4,adapter]",
            "export.formats: adapter would be used without",
        ),
        ("export.formats=[nf4,nf4]", "export.formats: nf4 is listed twice"),
        ("export.formats=[]", "export.formats: is empty"),
        ("export.formats=[adapter] sft.lora=null reward.lora=null", "export.formats: adapter needs LoRA"),
        ("export.formats=[gguf]", "export.formats[0]: must be 'safetensors', 'adapter', 'nf4'"),
        ("sft.lora=null", "reward.lora: and sft.lora must both"),
        ("reward.lora=null", "reward.lora: and sft.lora must both"),
        ("base.pretrain.hidden_size=130", "base.pretrain.hidden_size: 130 must be a multiple"),
        ("data.eval_fraction=0.3", "base.pretrain.held_out: 0.1 must be at least data.eval_fraction (0.3)"),
        ("base.chat_template=chat", "base.chat_template: must be auto, plain, chatml or a .jinja"),
        ("base.template_date=2026-02-30", "base.template_date: must be a date, YYYY-MM-DD, got '2026-02-30'"),
        ("base.template_date=today", "base.template_date: must be a date, YYYY-MM-DD, got 'today'"),
        ("base.control_tokens=drop", "base.control_tokens: must be 'text' or 'tokens'"),
        ("ppo.num_mini_batches=3", "ppo.num_mini_batches: 3 must divide batch_size (128)"),
        (
            "ppo.kl.kind=solved ppo.kl.target=5.5",
            "ppo.kl.target: must be below 5.5 nats with kl.kind: solved (got 5.5)",
        ),
        (
            "ppo.kl.kind=solved ppo.kl.target=1 ppo.score.normalization=running",
            "ppo.score.normalization: running changes the scale",
        ),
        ("ppo.micro_batch_size=5", "ppo.micro_batch_size: 5 must divide the minibatch (32)"),
        (
            "ppo.advantage_estimator=rloo ppo.num_generations=2 ppo.value_learning_rate=1e-3",
            "ppo.value_learning_rate: advantage_estimator: rloo has no critic",
        ),
        ("ppo.critic_warmup_updates=2", "ppo.critic_warmup_updates: is for a separate value model"),
        ("ppo.total_episodes=100", "ppo.total_episodes: 100 must be at least batch_size (128)"),
        ("rank.source=data", "data.rankings: is required by rank.source = data"),
        (
            "data.demonstrations={path: x.csv}",
            "rank.source: simulated annotators can rank the built-in",
        ),
        ("rank.annotators=[]", "rank.annotators: needs at least one"),
        ("rank.source=app", "rank.app.annotators: needs at least one annotator"),
        ("rank.source=app rank.app.annotators=[a,a]", "rank.app.annotators: two annotators are called a"),
        ("rank.source=app rank.app={annotators: [a], overlap: 2}", "rank.app.overlap: is 2, but there are 1"),
        (
            "rank.source=app rank.app={annotators: [a], overlap: 1, url: 'ftp://x'}",
            "rank.app.url: must be like https://rank.example.org",
        ),
        ("rank.annotators_per_prompt=3", "rank.annotators_per_prompt: is 3, but there are 2"),
        ("rank.annotators=[{name: a}, {name: a}]", "rank.annotators: two annotators are called a"),
        ("data.prompts.path=hub://a/b", "data.prompts.path: needs the commit"),
        ("reward.pretrain_on={path: hub://a/b, format: pairs}", "reward.pretrain_on.path: needs the commit"),
        ("reward.model=a/b", "reward.revision: is required: a/b is a Hub id"),
        ("reward.revision=c", "reward.revision: belongs to reward.model"),
        ("reward.margin=1 reward.objective=plackett_luce", "reward.margin: belongs to Bradley-Terry"),
        ("reward.merits=ratings", "reward.merits: says where margins or regression targets come from"),
        ("reward.ensemble=2 sft.lora=null reward.lora=null", "reward.ensemble: needs LoRA"),
        ("reward.ensemble=2 reward.model=a/b reward.revision=c", "reward.ensemble: needs LoRA"),
        ("ppo.reward.aggregate=min", "ppo.reward.aggregate: min needs several members"),
        (
            "ppo.monitor.judge=member reward.ensemble=2",
            "ppo.monitor.judge: member needs a member that PPO does not",
        ),
        (
            "ppo.reward.held_out=1 reward.ensemble=2 ppo.reward.aggregate=min",
            "ppo.reward.aggregate: min needs several members, and reward.ensemble is 2 minus 1",
        ),
        ("ppo.monitor.judge=reward", "ppo.monitor.judge: reward is the model that PPO optimises"),
        ("reward.pretrain_on={path: x, format: pairs, trainer: {seed: 1}}", "must not be set here"),
        ("publish.model=mine", "publish.model: must be owner/name"),
        ("base.dtype=float16 sft.lora=null reward.lora=null", "base.dtype: float16 trains LoRA adapters only"),
        ("ppo.importance_sampling_clip_max=0.5", "ppo.importance_sampling_clip_max"),
        ("sharding=full base.quantization=int8", "base.quantization: int8 weights cannot be sharded"),
        (
            "sharding=offload base.quantization.qat=q4_0",
            "base.quantization: quantisation-aware training cannot be sharded",
        ),
        (f"{SHARDED} ppo.micro_batch_size=auto", "ppo.micro_batch_size: auto works by running out"),
        (f"{SHARDED} sft.micro_batch_size=auto", "sft.micro_batch_size: auto works by running out"),
        (f"{SHARDED} reward.micro_batch_size=auto", "reward.micro_batch_size: auto works by running out"),
        (f"{SHARDED} ppo.optimizer=adamw_8bit", "ppo.optimizer: adamw_8bit is not supported"),
        (f"{SHARDED} dpo.trainer.optim=adafactor", "dpo.trainer.optim: adafactor is not supported"),
        (f"{SHARDED} sft.trainer.optim=adafactor", "sft.trainer.optim: adafactor is not supported"),
        (
            f"{SHARDED} reward.trainer.torch_compile=true",
            "reward.trainer.torch_compile: is not supported",
        ),
    ],
)
def test_rules_across_sections(load: Load, given: str, message: str) -> None:
    assert message in refusal(load, given)


@pytest.mark.parametrize(
    "given",
    [
        "base.model=a/b base.revision=main",
        "base.model=weights.gguf",
        "base.model=./gone/folder",
        "base.model=./folder base.chat_template=rag",
        "base.template_date=2031-03-05 base.fold_turns=true base.control_tokens=tokens",
        "base.quantization=nf4",
        "base.quantization=nf4 export.formats=[nf4] export.merge_quantized=true",
        "base.dtype=float16",
        "base.dtype=bfloat16 sft.lora=null reward.lora=null",
        "base.quantization=nf4 base.quantization.qat=q4_0 sft.lora=null reward.lora=null",
        "base.quantization.qat=int3-g32 base.quantization=int8",
        "sft.lora=null reward.lora=null",
        f"{SHARDED} ppo.rollout_batch_size=auto sft.trainer.optim=adamw_torch_fused",
        "sharding=full sft.lora=null reward.model=./encoder",
        "sharding=full",
        "sharding=offload base.quantization=nf4",
        "reward.model=./encoder reward.lora=null",
        "base.quantization=nf4 reward.model=./encoder reward.lora=null",
        "reward.objective=regression reward.merits=ratings",
        "reward.margin=0.5 reward.merits=ratings reward.objective=bradley_terry_pairs",
        "reward.ensemble=4 ppo.reward.aggregate=uncertainty",
        "reward.ensemble=3 ppo.reward.held_out=1 ppo.reward.aggregate=min ppo.monitor.judge=member",
        "ppo.reward_model=./models/rm ppo.monitor.judge=reward",
        "ppo.reward_model=./models/rm ppo.reward.aggregate=min",
        "reward.gate=null",
        "ppo.micro_batch_size=8",
        "ppo.value=adapter ppo.value_learning_rate=1e-3 ppo.critic_warmup_updates=2",
        "data.prompts.path=hub://a/b@c0ffee",
        "rank.source=data data.rankings={path: x.csv, format: wide, columns: {completions: [a, b]}}",
    ],
)
def test_what_fits_together_loads(load: Load, given: str) -> None:
    load(given)


def test_a_local_folder_needs_no_revision(load: Load) -> None:
    Path("models/tiny").mkdir(parents=True)
    assert load("base.model=models/tiny").recipe.base.revision is None


def test_a_child_may_change_the_kind_of_a_section(load: Load) -> None:
    table = load("data.demonstrations.path=x.csv rank.source=data data.rankings={path: y, format: pairs}")
    assert table.recipe.data.demonstrations == TableConfig(path="x.csv")
    model = load("base.model=a/b base.revision=c").recipe.base
    assert (model.model, model.pretrain) == ("a/b", None)
    again = load("base.model=a/b base.revision=c base.pretrain={corpus: {task: venues, size: 7}}").recipe.base
    assert again.model is None
    assert again.revision is None
    assert again.pretrain is not None
    assert again.pretrain.corpus == TaskConfig(task="venues", size=7)


def test_all_problems_come_in_one_error(load: Load) -> None:
    text = refusal(load, "seed=x ppo.lam=2 sft.trainer.learning_rate=high", "export.dtyp=float32")
    assert text.splitlines()[0] == "4 problems in small.yaml"
    for part in (
        "seed (--set #1)",
        "ppo.lam (--set #2)",
        "sft.trainer.learning_rate (--set #3)",
        "export.dtyp (--set #4)",
    ):
        assert part in text


def test_a_missing_key_is_placed_at_its_section(recipe_file: Path, load: Load) -> None:
    recipe_file.write_text("name: x\nbase: {model: a/b, revision: c}\ndata:\n  system: hi\n")
    text = refusal(load)
    assert "data.demonstrations (small.yaml:3): is required" in text
    assert "small.yaml:3" in text


def test_the_task_or_table_union_takes_the_task_by_its_key(load: Load) -> None:
    assert isinstance(load().recipe.data.demonstrations, TaskConfig)


def test_content_leaves_runtime_fields_out_at_any_depth(load: Load) -> None:
    kept = content(load().recipe)
    assert "device" not in kept
    assert "batch_size" not in kept["eval"]
    assert "batch_size" in kept["ppo"]
    assert kept["rank"]["annotators"][0]["name"] == "ann"


def test_flatten_names_list_items_of_sections() -> None:
    assert loading.flatten({"a": [{"b": 1}], "c": [1, 2], "d": {}}) == {"a[0].b": 1, "c": [1, 2], "d": {}}


def test_loading_imports_nothing_heavy(recipe_file: Path) -> None:
    program = (
        "import sys\n"
        "from pipeline.config.load import load_recipe\n"
        "import stages.__main__\n"
        "load_recipe('small.yaml')\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'numpy', 'huggingface_hub', 'data', 'ranking'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "[]"
