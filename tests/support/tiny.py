"""Tiny models, tokenizers, banks and artifacts."""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from data.schema import Ranking, write_jsonl
from pipeline.config.data import ContaminationConfig
from pipeline.config.sft import LoRAConfig
from pipeline.engine.stage import Artifact
from stages.models.adapters import new_adapter, save_adapter
from stages.models.bank import ActorBank, FullBank
from stages.models.heads import ScalarHead
from stages.models.loading import load_backbone, load_causal_lm
from stages.models.precision import compute_in
from stages.models.quantization import qat
from stages.models.text import Codec, chat_template
from stages.scoring import reward_model

SPECIAL = ["<pad>", "<eos>", "<bos>", "<|im_start|>", "<|im_end|>"]
PAD, EOS, BOS, IM_START, IM_END = range(5)
CHARACTERS = "abcdefghijklmnopqrstuvwxyzAQZ.,? \n0123456789"
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
HIDDEN = 16
LORA = LoRAConfig(r=2, lora_alpha=4)
ROLES = ("reference", "policy", "value", "reward")


def tokenizer(
    template: str | None = "plain", *, characters: str = CHARACTERS, **special: Any
) -> PreTrainedTokenizerFast:
    """One token per character, plus the special tokens."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    backend.decoder = decoders.Fuse()
    names = {"eos_token": "<eos>", "pad_token": "<pad>"} | special
    result = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in names.items() if token is not None},
    )
    if template is not None:
        result.chat_template = chat_template(template, result)
    return result


def codec(template: str = "plain") -> Codec:
    return Codec(tokenizer(template))


def lm(seed: int = 0, **values: Any) -> LlamaForCausalLM:
    """A Llama with two layers, grouped heads, and weights so large that its distribution is far from uniform."""
    torch.manual_seed(seed)
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    } | values
    return LlamaForCausalLM(LlamaConfig(**config)).eval()


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """A GPT-2, which has learned positions."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=HIDDEN,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return GPT2LMHeadModel(config).eval()


def head(seed: int = 0, width: int = HIDDEN) -> ScalarHead:
    torch.manual_seed(seed)
    return ScalarHead(width)


QUANTISED_HIDDEN = 64
"""NF4 has blocks of 64 weights."""


def quantised_lm(quantization: str | dict[str, str], seed: int = 0, device: str = "cpu") -> PreTrainedModel:
    """Like `lm`, 64 wide, quantised or with quantisation-aware training as `base.quantization` says.

    Weights that bitsandbytes quantised on one device do not work on another, so the model must stay on `device`."""
    values = {"hidden_size": QUANTISED_HIDDEN, "intermediate_size": 128, "initializer_range": 0.1}
    plain = lm(seed, **values)
    if isinstance(quantization, dict):
        qat.mark(plain, {"activations": "none"} | quantization)
        return plain.requires_grad_(False)
    if quantization == "none":
        return plain.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        plain.save_pretrained(folder)
        return load_causal_lm(folder, device, dtype="float32", quantization=quantization)


def copy_role(bank: ActorBank, source: str, target: str) -> None:
    """Copies `source`'s parameters to those of `target` with the same names."""
    with torch.no_grad():
        origin = bank._named_parameters(source)
        for name, parameter in bank._named_parameters(target).items():
            parameter.copy_(origin[name])
    if source in bank.heads and target in bank.heads:
        bank.heads[target].load_state_dict(bank.heads[source].state_dict())


def lora_bank(
    *,
    value: str | None = "adapter",
    seed: int = 0,
    distinct: bool = False,
    quantization: str | dict[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    **values: Any,
) -> ActorBank:
    """Four roles on one backbone, initialised as in PPO: policy copies reference, value copies reward.

    With `distinct` every role has different weights. With value="trunk" the policy has the value head; with None
    there is no value head. With `quantization` the backbone is a `quantised_lm`. `dtype` is the backbone's."""
    roles = ROLES if value == "adapter" else ("reference", "policy", "reward")
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    backbone = lm(seed, **values).to(dtype) if quantization is None else quantised_lm(quantization, seed, device)
    model = get_peft_model(backbone, config, adapter_name=roles[0])
    for role in roles[1:]:
        model.add_adapter(role, config)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    learner = "value" if value == "adapter" else "policy"
    width = HIDDEN if quantization is None else QUANTISED_HIDDEN
    heads = {"reward": head(seed + 3, width)}
    if value is not None:
        heads[learner] = head(seed + 2, width)
    bank = ActorBank(model, heads, sorted({"policy", learner})).to(device)
    if not distinct:
        copy_role(bank, "reference", "policy")
        if value == "adapter":
            copy_role(bank, "reward", "value")
    return bank


def full_bank(
    *, value: str | None = "adapter", seed: int = 0, compute: torch.dtype | None = None, **values: Any
) -> FullBank:
    """Like `lora_bank`, with one float32 model per role; with `compute`, computing in that dtype under autocast."""
    models_by_role = {
        "reference": lm(seed, **values),
        "policy": lm(seed, **values),
        "reward": lm(seed + 1, **values),
    }
    learner = "policy"
    if value == "adapter":
        models_by_role["value"] = lm(seed + 1, **values)
        learner = "value"
    heads = {"reward": head(seed + 2)}
    if value is not None:
        heads[learner] = head(seed + 2)
    for model in models_by_role.values():
        if compute is not None:
            compute_in(model, compute)
    return FullBank(models_by_role, heads, sorted({"policy", learner}))


BANKS = {"lora": lora_bank, "full": full_bank}


def rows(count: int, low: int, high: int, seed: int = 0) -> list[list[int]]:
    """`count` rows of `low` to `high` tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high + 1, (count,), generator=generator).tolist()
    return [torch.randint(len(SPECIAL), VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


# --- Artifacts ---


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def base_artifact(
    folder: Path,
    *,
    seed: int = 0,
    template: str = "plain",
    quantization: str | dict[str, str] = "none",
    dtype: str = "float32",
) -> Artifact:
    """Like the `base` stage's: a float32 model, and the `quantization` and `dtype` to load it with."""
    folder.mkdir(parents=True)
    (lm(seed) if quantization == "none" else quantised_lm("none", seed)).save_pretrained(folder / "model")
    tokenizer(template).save_pretrained(folder / "tokenizer")
    spec = {"model": None, "revision": None, "dtype": dtype, "quantization": quantization}
    (folder / "base.json").write_text(json.dumps(spec))
    return Artifact("base", folder, f"base of seed {seed}")


def words(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices("abcdefgh ", k=generator.randint(2, 9))).strip() or "a" for _ in range(count)]


def data_artifact(folder: Path, *, train: int = 12, held_out: int = 4) -> Artifact:
    """Prompts, and demonstrations that repeat the prompt's word."""
    folder.mkdir(parents=True)
    rows = [
        {"prompt": user(f"{word}{i}"), "completion": f"{word}.", "split": "train" if i < train else "eval"}
        for i, word in enumerate(words(train + held_out))
    ]
    write_jsonl(folder / "demonstrations.jsonl", rows)
    write_jsonl(folder / "prompts.jsonl", [{"prompt": r["prompt"], "split": r["split"]} for r in rows])
    contamination = {"definition": asdict(ContaminationConfig()), "generated": [], "examples": []}
    (folder / "contamination.json").write_text(json.dumps(contamination))
    return Artifact("data", folder, "data")


def rank_artifact(folder: Path, *, train: int = 8, held_out: int = 4) -> Artifact:
    """Rankings by the number of z's: more is better, equal numbers are ties."""
    folder.mkdir(parents=True)
    generator = random.Random(1)
    rows = []
    for i, word in enumerate(words(train + held_out, seed=2)):
        counts = generator.sample(range(4), 3)
        rows.append(
            Ranking(
                prompt=user(word + "q" * i),
                completions=[word + "z" * n + "." for n in counts],
                ranks=[1 + sum(other > n for other in counts) for n in counts],
                annotator=f"annotator {i % 2}",
                human=False,
                split="train" if i < train else "eval",
            )
        )
    write_jsonl(folder / "rankings.jsonl", rows)
    return Artifact("rank", folder, "rank")


def policy_artifact(folder: Path, base: Artifact, *, lora: bool = True, seed: int = 3) -> Artifact:
    """Like the `sft` stage's, with random weights."""
    folder.mkdir(parents=True)
    model: Any = load_backbone(base, "cpu")
    if lora:
        model = new_adapter(model, LORA)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif not lora:
                parameter.add_(0.02 * torch.randn_like(parameter))
    if lora:
        save_adapter(model, "default", folder)
    else:
        model.save_pretrained(folder / "model")
    return Artifact("sft", folder, f"sft of {base.fingerprint}")


def reward_artifact(
    folder: Path,
    base: Artifact,
    *,
    lora: bool = True,
    seed: int = 4,
    members: int = 1,
    criterion: str | None = None,
) -> Artifact:
    """Like the `reward` stage's, with random weights; it passes the gate."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    lm: Any = load_backbone(base, "cpu")
    roles = [reward_model.numbered(reward_model.ROLE, member) for member in range(members)]
    if lora:
        lm = new_adapter(lm, LORA, roles[0])
        for role in roles[1:]:
            lm.add_adapter(role, lm.peft_config[roles[0]])
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif not lora:
                parameter.add_(0.02 * torch.randn_like(parameter))
    width = lm.config.hidden_size
    heads = {role: head(seed + member, width) for member, role in enumerate(roles)}
    bank = ActorBank(lm, heads, ()) if lora else FullBank({roles[0]: lm}, heads, ())
    model = reward_model.RewardEnsemble(bank, roles)
    fingerprints = reward_model.fingerprints_of(model, rows(4, 3, 9, seed=seed), "cpu")
    reward_model.save(model, folder, base, codec(), fingerprints, criterion)
    (folder / "quality.json").write_text(json.dumps({"unfit": []}))
    return Artifact("reward", folder, "reward")
