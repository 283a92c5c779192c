"""Builds the bank of roles and the reward signal of a PPO run from its input artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config.ppo import PPOConfig
from pipeline.engine.stage import Artifact
from stages.models.actor import check_projection
from stages.models.adapters import is_adapter, load_full, newest_policy, start_adapter, trains_adapter
from stages.models.bank import ActorBank, Bank, FullBank, checkpoint_activations, disable_dropout
from stages.models.heads import ScalarHead
from stages.models.loading import load_backbone
from stages.models.sharding import mesh_of
from stages.models.text import Codec
from stages.ppo.rewards import RewardSignal, ScoreNormalizer
from stages.ppo.signal import reward_artifacts, reward_signal
from stages.ppo.terms import TermNormalizer, TermSignal
from stages.scoring import reward_model
from stages.scoring.load import token_artifact
from stages.scoring.reward_model import ROLE


def build(
    config: PPOConfig,
    inputs: Mapping[str, Artifact],
    codec: Codec,
    device: str,
    sharded: bool = False,
    offload: bool = False,
    say: Callable[[str], None] = lambda text: None,
    folder: Path = Path(),
) -> tuple[Bank, RewardSignal | TermSignal]:
    """Builds the bank and the reward signal.

    The reference is the SFT model, or the base model without an SFT stage. The policy starts as a copy of it or, in
    a later round, as the previous round's policy. The value role starts as a copy of the reward model or, with
    several criteria, of the reference.

    Args:
        sharded: shard every role over the processes.
        offload: keep the parts in host memory.
        say: called with a message when a batch to score does not fit into memory.
        folder: the recipe's, for the replies of language models that score.

    Raises `StageError` when the reward model belongs to another base, is damaged or does not reproduce its
    fingerprints.
    """
    base, sft = inputs["base"], inputs.get("sft")
    start = newest_policy(inputs)
    # A classifier reads text and shares no weights with the policy.
    rewards = [artifact for artifact in reward_artifacts(config, inputs) if token_artifact(artifact)]
    make = _lora_bank if trains_adapter(sft, config.lora) else _full_bank
    # A role that will be sharded may not fit on one device: it is loaded on the CPU. (bitsandbytes quantises
    # weights on the device that they are used on.)
    on_host = sharded and base.json("base.json")["quantization"] == "none"
    bank = make(config, base, sft, start, rewards, "cpu" if on_host else device)
    if sharded:
        bank.shard(mesh_of(device), offload=offload)
    disable_dropout(bank)
    if config.gradient_checkpointing is True:  # the runner resolves `auto`
        checkpoint_activations(bank)
    with bank.active("policy") as actor:
        check_projection(actor)
    minibatch = config.batch_size // config.num_mini_batches
    batch = config.micro_batch_size if isinstance(config.micro_batch_size, int) else minibatch
    return bank, reward_signal(config, inputs, codec, device, bank=bank, batch_size=batch, say=say, folder=folder)


def start_value(bank: Bank, config: PPOConfig, normalizer: ScoreNormalizer | TermNormalizer) -> None:
    """Rescales a value head copied from the reward model: it predicts raw scores, and PPO's are scaled. It starts
    at zero where PPO is not trained on that model."""
    if config.critic != "adapter" or not any(role.startswith(ROLE) for role in bank.heads):
        return
    head: Any = bank.heads["value"]
    scale = normalizer.run_model_scale()
    if scale is None:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    else:
        head.rescale_(*scale)


def _value_head(reward: Artifact | None, hidden: int, value_role: str, device: str) -> dict[str, ScalarHead]:
    if reward is None or value_role == "policy":
        # A random head would add noise with a std of 0.9 to the first advantages.
        value = ScalarHead(hidden)
        torch.nn.init.zeros_(value.weight)
    else:
        value = ScalarHead.load(reward.file(reward_model.HEAD))
    return {value_role: value.to(device)}


def _lora_bank(
    config: PPOConfig,
    base: Artifact,
    sft: Artifact | None,
    start: Artifact | None,
    rewards: Sequence[Artifact],
    device: str,
) -> ActorBank:
    # A reward model that is not an adapter gets a separate bank, and its head does not initialise the critic.
    on_backbone = [reward for reward in rewards if is_adapter(reward)]
    # Of several criteria, none alone says what the reward will be.
    shared = on_backbone[0] if len(on_backbone) == 1 else None
    backbone = load_backbone(base, device)
    model = start_adapter(backbone, sft, config.lora, "reference")
    start_adapter(model, start, config.lora, "policy")
    heads: dict[str, ScalarHead] = {}
    for reward in on_backbone:
        heads |= reward_model.load_members(reward, model, device)
    if config.critic == "adapter":
        start_adapter(model, shared or sft, config.lora, "value")
    trainable = ["policy", "value"] if config.critic == "adapter" else ["policy"]
    hidden = backbone.config.get_text_config().hidden_size
    if config.critic is not None:
        heads |= _value_head(shared, hidden, trainable[-1], device)
    return ActorBank(model.to(device), heads, trainable)


def _full_bank(
    config: PPOConfig,
    base: Artifact,
    sft: Artifact | None,
    start: Artifact | None,
    rewards: Sequence[Artifact],
    device: str,
) -> FullBank:
    shared = next((reward for reward in rewards if not is_adapter(reward)), None)
    models = {
        "reference": load_full(base, sft, device),
        "policy": load_full(base, start, device),
    }
    heads = {}
    if shared:
        models[ROLE] = load_full(base, shared, device)
        heads[ROLE] = ScalarHead.load(shared.file(reward_model.HEAD)).to(device)
    trainable = ["policy"]
    if config.critic == "adapter":
        models["value"] = load_full(base, shared or sft, device)
        trainable.append("value")
    for role in trainable:
        models[role].float()
    hidden = models["policy"].config.get_text_config().hidden_size
    if config.critic is not None:
        heads |= _value_head(shared, hidden, trainable[-1], device)
    return FullBank(models, heads, trainable)
