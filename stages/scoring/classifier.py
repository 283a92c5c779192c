"""A reward model that reads text: a sequence classifier with one label and a tokenizer of its own, such as an
encoder.

Its artifact: `reward.json` (golden scores) and `classifier/`, which `AutoModelForSequenceClassification` loads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from pipeline.config.reward import RewardConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.models import weights
from stages.models.adapters import adaptable
from stages.models.loading import check_trainable, load_pretrained, read_tokenizer
from stages.models.text import Codec
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.reward_model import SPEC, Scorer, load_reward, score_rows, verify
from stages.scoring.text_encoder import TextEncoder

CLASSIFIER = "classifier"

ResponseScorer = Callable[[Sequence[EncodedPrompt], Sequence[list[int]]], Tensor]
"""`score(prompts, responses) -> (N,)`; responses are ids of the policy's tokenizer."""


class TextClassifier(Scorer):
    """A sequence classifier that scores rows of its own tokenizer's ids; `TextEncoder` makes the rows. Raises
    `StageError` when it has not one label, or no pad token."""

    def __init__(self, model: Any, tokenizer: Any, where: str = "ppo.reward_model") -> None:
        super().__init__()
        if model.config.num_labels != 1:
            raise StageError(
                f"a reward model has one label and this classifier has {model.config.num_labels}",
                where=where,
                hint="use a classifier trained with num_labels=1",
            )
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
            raise StageError(
                "the reward model's pad token is its EOS token: it would read the score at the wrong place",
                where=where,
                hint="give its tokenizer and config a pad token of their own",
            )
        model.config.pad_token_id = tokenizer.pad_token_id
        tokenizer.truncation_side = "left"  # of a text that is too long, the end is the response
        self.model, self.tokenizer, self.where = model, tokenizer, where

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def longest(self) -> int:
        """Tokens that it can read."""
        positions = getattr(self.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        return int(min(positions, self.tokenizer.model_max_length))

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Right-padded rows and their real lengths -> scores (B,)."""
        mask = torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]
        # Decoders among the classifiers look for the last token that is not the pad token.
        ids = ids_BL.masked_fill(~mask, self.tokenizer.pad_token_id)
        return self.model(input_ids=ids, attention_mask=mask.long()).logits[:, 0].float()


# --- Making, saving and loading ---


def new_classifier(config: RewardConfig, device: str) -> TextClassifier:
    """The pretrained encoder with a fresh head, and LoRA adapters beside it unless every weight is to be
    trained."""
    assert config.model is not None
    check_trainable(config.model, config.revision, causal=False)
    tokenizer = read_tokenizer(config.model, config.revision)
    model: Any = load_pretrained(
        AutoModelForSequenceClassification,
        config.model,
        revision=config.revision,
        new_head=True,
        num_labels=1,
        dtype=torch.float32,
    ).to(device)
    classifier = TextClassifier(model, tokenizer, "reward.model")
    if config.max_length > classifier.longest:
        raise StageError(
            f"the reward model reads {classifier.longest} tokens and reward.max_length is {config.max_length}",
            where="reward.max_length",
            hint=f"set reward.max_length to {classifier.longest} or less",
        )
    if config.lora is not None:
        lora = LoraConfig(
            r=config.lora.r,
            lora_alpha=config.lora.lora_alpha,
            lora_dropout=config.lora.lora_dropout,
            target_modules=config.lora.target_modules,
            task_type="SEQ_CLS",  # trains and keeps the head besides
        )
        with adaptable(config.lora):
            classifier.model = get_peft_model(model, lora)
    return classifier


def finish(classifier: TextClassifier) -> None:
    """After training: merges LoRA adapters, so that the artifact is a plain classifier."""
    if hasattr(classifier.model, "merge_and_unload"):
        classifier.model = classifier.model.merge_and_unload()
    classifier.requires_grad_(False).eval()


def save_classifier(classifier: TextClassifier, out_dir: Path, golden: list[dict[str, Any]]) -> None:
    """Writes the artifact. `golden` is as in `stages.scoring.reward_model.save`."""
    classifier.model.save_pretrained(out_dir / CLASSIFIER)
    classifier.tokenizer.save_pretrained(out_dir / CLASSIFIER)
    (out_dir / SPEC).write_text(json.dumps({"golden": golden}) + "\n", encoding="utf-8")


def is_classifier(reward: Artifact) -> bool:
    return (reward.path / CLASSIFIER).is_dir()


def load_classifier(folder: str | Path, device: str) -> TextClassifier:
    """Any sequence classifier with one label, frozen."""
    check_trainable(folder, causal=False)
    tokenizer = read_tokenizer(folder)
    model: Any = load_pretrained(AutoModelForSequenceClassification, folder, dtype="auto").to(device)
    weights.check_finite(model, folder, "the reward model")
    classifier = TextClassifier(model.eval(), tokenizer)
    classifier.requires_grad_(False)
    return classifier.eval()


def load_reward_classifier(reward: Artifact, device: str) -> TextClassifier:
    """The classifier of a reward artifact, checked against its golden scores."""
    classifier = load_classifier(reward.file(CLASSIFIER), device)
    verify(reward, classifier, device)
    return classifier


def response_scorer(
    reward: Artifact, base: Artifact, codec: Codec, device: str, batch_size: int = 256
) -> ResponseScorer:
    """Any reward artifact as a scorer of responses."""
    if is_classifier(reward):
        return text_scorer(load_reward_classifier(reward, device), codec, batch_size)
    return model_scorer(load_reward(reward, base, device), codec, device, batch_size)


def model_scorer(model: Any, codec: Codec, device: str, batch_size: int = 256) -> ResponseScorer:
    """A reward model in the policy's tokens; `model(ids_BL, lengths_B)` gives (B,)."""
    return lambda prompts, responses: score_rows(
        model,
        [p.ids + codec.ended_as_trained(r) for p, r in zip(prompts, responses, strict=True)],
        batch_size,
        device,
    )


def text_scorer(classifier: TextClassifier, codec: Codec, batch_size: int = 256) -> ResponseScorer:
    """A classifier, which reads the prompts' messages and the responses as text."""
    encoder = TextEncoder(classifier, codec)
    return lambda prompts, responses: encoder.score([p.messages for p in prompts], responses, batch_size)
