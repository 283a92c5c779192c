"""A reward model that reads text: a sequence classifier with one label and a tokenizer of its own, such as an
encoder.

Its artifact: `reward.json` (fingerprints, as of stages/scoring/reward_model.py) and `classifier/`, which
`AutoModelForSequenceClassification` loads.
"""

from __future__ import annotations

import json
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
from stages.scoring import exported
from stages.scoring.reward_model import FINGERPRINTS, SPEC, ScoringModule, verify, verify_scores

CLASSIFIER = "classifier"


class TextClassifier(ScoringModule):
    """A sequence classifier that scores rows of its own tokenizer's ids; `TextEncoder` makes the rows.

    Args:
        where: the recipe's key that names it, for errors.

    Attributes:
        offset: is added to every score (`stages.scoring.exported`).

    Raises `StageError` when it has not exactly one label, or no pad token of its own.
    """

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
        tokenizer.truncation_side = "left"  # the response is at the end of the text
        self.model, self.tokenizer, self.where = model, tokenizer, where
        self.offset = 0.0

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def longest(self) -> int:
        """The most tokens that it can read."""
        positions = getattr(self.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        return int(min(positions, self.tokenizer.model_max_length))

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Right-padded rows and their real lengths -> scores (B,)."""
        mask = torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]
        # Decoder classifiers read the score at the last token that is not the pad token.
        ids = ids_BL.masked_fill(~mask, self.tokenizer.pad_token_id)
        return self.model(input_ids=ids, attention_mask=mask.long()).logits[:, 0].float() + self.offset


# --- Creating, saving and loading ---


def new_classifier(config: RewardConfig, device: str) -> TextClassifier:
    """The pretrained encoder with a new head, and with LoRA adapters unless every weight is trained."""
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
            task_type="SEQ_CLS",  # trains and saves the head, too
        )
        with adaptable(config.lora):
            classifier.model = get_peft_model(model, lora)
    return classifier


def finish(classifier: TextClassifier) -> None:
    """After training: merges LoRA adapters, so that the artifact is a plain classifier."""
    if hasattr(classifier.model, "merge_and_unload"):
        classifier.model = classifier.model.merge_and_unload()
    classifier.requires_grad_(False).eval()


def save_classifier(classifier: TextClassifier, out_dir: Path, fingerprints: list[dict[str, Any]]) -> None:
    """Writes the artifact. Fingerprints are as in `stages.scoring.reward_model.save`."""
    classifier.model.save_pretrained(out_dir / CLASSIFIER)
    classifier.tokenizer.save_pretrained(out_dir / CLASSIFIER)
    (out_dir / SPEC).write_text(json.dumps({FINGERPRINTS: fingerprints}) + "\n", encoding="utf-8")


def is_classifier(reward: Artifact) -> bool:
    return (reward.path / CLASSIFIER).is_dir()


def load_classifier(
    folder: str | Path, device: str, where: str = "ppo.reward_model", revision: str | None = None
) -> TextClassifier:
    """Any sequence classifier with one label, frozen, from a folder or, at a revision, from the Hub. Raises
    `StageError` when it cannot be loaded, has weights that are not finite, or is an exported reward model that does
    not reproduce its fingerprints."""
    check_trainable(folder, revision, causal=False)
    tokenizer = read_tokenizer(folder, revision)
    model: Any = load_pretrained(AutoModelForSequenceClassification, folder, revision=revision, dtype="auto").to(
        device
    )
    weights.check_finite(model, folder, "the reward model")
    classifier = TextClassifier(model.eval(), tokenizer, where)
    classifier.requires_grad_(False).eval()
    if (spec := exported.read(folder, revision)) is not None:
        classifier.offset = spec.offset
        verify_scores(spec.as_stored(), classifier, device, where=str(folder))
    return classifier


def load_reward_classifier(reward: Artifact, device: str, where: str = "ppo.reward_model") -> TextClassifier:
    """The classifier of a reward artifact, checked against its fingerprints."""
    classifier = load_classifier(reward.file(CLASSIFIER), device, where)
    verify(reward, classifier, device)
    return classifier
