"""A small byte-level model with random weights, and the artifacts that the export stage reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from pipeline.engine.stage import Artifact
from stages.models.adapters import new_adapter
from stages.models.bank import ActorBank
from stages.models.heads import ScalarHead
from stages.models.loading import load_backbone
from stages.models.text import Codec, chat_template
from stages.scoring import reward_model

WIDE = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
"""Sizes that are multiples of every format's block size."""


def bpe(template: str = "plain") -> PreTrainedTokenizerFast:
    """Like the `base` stage's: byte-level BPE with a few merges, two special tokens and ChatML's special tokens."""
    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator(
        ["the blue fox is a pub, the red fox is a pub"] * 3,
        vocab_size=290,
        special_tokens=["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend._tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template(template, tokenizer)
    return tokenizer


def small_lm(tokenizer: Any, seed: int = 0, **values: Any) -> Any:
    defaults = WIDE | {"vocab_size": len(tokenizer), "eos_token_id": 0, "pad_token_id": 1}
    return tiny.lm(seed, **defaults | values)


def artifacts(folder: Path, quantization: Any = "none", dtype: str = "float32") -> dict[str, Artifact]:
    """Base, data, reward, ppo and eval. `quantization` and `dtype` are the recipe's values in base.json."""
    tokenizer = bpe()
    base = Artifact("base", folder / "base", "base")
    small_lm(tokenizer).save_pretrained(base.path / "model")
    tokenizer.save_pretrained(base.path / "tokenizer")
    spec = {"model": None, "revision": None, "dtype": dtype, "quantization": quantization}
    (base.path / "base.json").write_text(json.dumps(spec))
    by_stage = {
        "base": base,
        "data": tiny.data_artifact(folder / "data", held_out=6),
        "ppo": tiny.policy_artifact(folder / "ppo", base),
        "reward": _reward(folder / "reward", base, Codec(tokenizer)),
        "eval": Artifact("eval", folder / "eval", "eval"),
    }
    by_stage["eval"].path.mkdir()
    (by_stage["ppo"].path / "evaluations.jsonl").write_text("")
    settings = {"max_prompt_length": 32, "response_length": 8, "temperature": 1.0}
    evaluation = {"judge": None, "prompts": 5, "bootstrap": 20, "settings": settings}
    (by_stage["eval"].path / "eval.json").write_text(json.dumps(evaluation))
    return by_stage


def _reward(folder: Path, base: Artifact, codec: Codec) -> Artifact:
    folder.mkdir()
    torch.manual_seed(4)
    backbone: Any = load_backbone(base, "cpu")
    lm = new_adapter(backbone, tiny.LORA, reward_model.ROLE)
    bank = ActorBank(lm, {reward_model.ROLE: ScalarHead(64)}, ())
    model = reward_model.RewardEnsemble(bank, [reward_model.ROLE])
    fingerprints = reward_model.fingerprints_of(model, tiny.rows(4, 3, 9), "cpu")
    reward_model.save(model, folder, base, codec, fingerprints)
    return Artifact("reward", folder, "reward")
