"""Builds the model that the `reward` stage trains: adapters and heads on the policy's backbone, a full model, or an
encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.config.reward import RewardConfig
from pipeline.engine.stage import Artifact, RunContext
from pipeline.errors import StageError
from stages.models.adapters import (
    adapter_weights,
    float32_trainables,
    is_adapter,
    load_full,
    new_adapter,
    trained_in_full,
)
from stages.models.bank import ActorBank, FullBank
from stages.models.heads import ScalarHead
from stages.models.loading import load_backbone, readable_checkpoint
from stages.models.text import Codec
from stages.reward.groups import Encoder, TokenEncoder
from stages.scoring import classifier, reward_model
from stages.scoring.reward_model import (
    ROLE,
    RewardEnsemble,
    RewardModel,
    ScoringModule,
    fingerprints_of,
    numbered,
    score_rows,
)
from stages.scoring.text_encoder import TextEncoder


class Builder(Protocol):
    """Builds the members one by one, and the artifact from all of them."""

    encoder: Encoder

    def member(self, number: int, seed: int) -> ScoringModule:
        """A new member to train, initialised from `seed`. The previous member must be trained."""

    def finish(self, rows: Sequence[list[int]], on_batch: Callable[[int], None]) -> Any:
        """The frozen reward model. Several members are scaled to a common scale on `rows`, scored in batches."""

    def save(self, model: Any, out_dir: Path, rows: Sequence[list[int]], criterion: str | None) -> None:
        """Writes the artifact, with fingerprints of `rows`."""


def builder_for(config: RewardConfig, inputs: Mapping[str, Artifact], codec: Codec, ctx: RunContext) -> Builder:
    if config.model is not None:
        torch.manual_seed(ctx.seed)
        return ClassifierBuilder(config, codec, ctx.device)
    return BackboneBuilder(config, inputs, codec, ctx.device)


class BackboneBuilder:
    """LoRA adapters on a shared backbone, each with a head, or a single full model."""

    def __init__(self, config: RewardConfig, inputs: Mapping[str, Artifact], codec: Codec, device: str) -> None:
        self.config, self.base = config, inputs["base"]
        self.start = inputs.get("sft") if config.init == "sft" else None  # None: the base model
        self.codec, self.device = codec, device
        self.encoder: Encoder = TokenEncoder(codec)
        self.lm: Any = None
        self.heads: list[ScalarHead] = []

    def member(self, number: int, seed: int) -> RewardModel:
        lora, name = self.config.lora, numbered(ROLE, number)
        if lora is None:
            self.lm = trained_in_full(load_full(self.base, self.start, self.device), self.base, self.device)
            torch.manual_seed(seed)
        else:
            backbone = load_backbone(self.base, self.device) if self.lm is None else None
            torch.manual_seed(seed)
            if backbone is not None:
                self.lm = new_adapter(backbone, lora, name)
            else:
                self.lm.add_adapter(name, self.lm.peft_config[ROLE])
                self.lm.set_adapter(name)  # the other adapters stop training
            if self.start is not None:
                _copy_adapter(self.start, self.lm, name)
        float32_trainables(self.lm)
        head = ScalarHead(self.lm.config.get_text_config().hidden_size).to(self.device)
        self.heads.append(head)
        return RewardModel(self.lm, head)

    def finish(self, rows: Sequence[list[int]], on_batch: Callable[[int], None]) -> RewardEnsemble:
        names = [numbered(ROLE, number) for number in range(len(self.heads))]
        heads = dict(zip(names, self.heads, strict=True))
        # A bank, as in PPO: in 16 bits its forward pass differs from that of training. The difference is a large
        # part of the score spread if the model was trained for a few steps only.
        bank = FullBank({ROLE: self.lm}, heads, ()) if self.config.lora is None else ActorBank(self.lm, heads, ())
        ensemble = RewardEnsemble(bank, names)
        if len(names) > 1:
            scores_MN = score_rows(ensemble.members, rows, self.config.eval_batch_size, self.device, on_batch)
            ensemble.share_scale_(scores_MN)
        return ensemble

    def save(self, model: RewardEnsemble, out_dir: Path, rows: Sequence[list[int]], criterion: str | None) -> None:
        fingerprints = fingerprints_of(model, rows, self.device)
        reward_model.save(model, out_dir, self.base, self.codec, fingerprints, criterion)


def _copy_adapter(sft: Artifact, lm: Any, name: str) -> None:
    """Copies the SFT adapter's weights into a reward adapter. Raises `StageError` if there is none or the shapes
    differ."""
    from peft import load_peft_weights, set_peft_model_state_dict

    if not is_adapter(sft):
        raise StageError("the SFT model is not an adapter", where=str(sft.path), hint="set reward.lora to null")
    with readable_checkpoint(sft.path, "SFT adapter"):
        weights = load_peft_weights(str(sft.file("adapter")), device=str(lm.device))
    problem = StageError(
        "the reward adapter cannot start as a copy of the SFT adapter: their LoRA shapes differ",
        where="reward.lora",
        hint="set r and target_modules of reward.lora to those of sft.lora, or set reward.init: base",
    )
    if weights.keys() != adapter_weights(lm, name):
        raise problem
    try:
        set_peft_model_state_dict(lm, weights, adapter_name=name)
    except RuntimeError as error:
        raise problem from error


class ClassifierBuilder:
    """An encoder with a classification head."""

    def __init__(self, config: RewardConfig, codec: Codec, device: str) -> None:
        self.classifier = classifier.new_classifier(config, device)
        self.encoder: Encoder = TextEncoder(self.classifier, codec)

    def member(self, number: int, seed: int) -> classifier.TextClassifier:
        assert number == 0
        torch.manual_seed(seed)
        return self.classifier

    def finish(self, rows: Sequence[list[int]], on_batch: Callable[[int], None]) -> classifier.TextClassifier:
        classifier.finish(self.classifier)
        return self.classifier

    def save(
        self, model: classifier.TextClassifier, out_dir: Path, rows: Sequence[list[int]], criterion: str | None
    ) -> None:
        assert criterion is None  # a rule of the recipe
        classifier.save_classifier(model, out_dir, fingerprints_of(model, rows, model.model.device))
