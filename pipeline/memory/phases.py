"""The stages' phases, each with what is in memory at its worst moment, by component.

This follows the code: who loads what (stages/models/adapters.py, stages/ppo/roles.py), who lets go when
(stages/ppo/trainer.py, stages/training/batches.py). A change of either belongs here too; benchmarks/memory_plan.py
tells.
"""

from __future__ import annotations

from typing import Any

from pipeline.config.recipe import Recipe
from pipeline.machine import RETURNED
from pipeline.memory.components import SINGLE, Mask, Model, Path

Moment = dict[str, float]
"""Bytes by component."""
Phases = dict[str, Moment]

FUSED_TOKENS, FUSED_WIDTH = 4096, 32768
"""The tile of trl's fused language-model head (trl/kernels/chunked_logprob.py)."""
FUSED_COPIES, FUSED_COPIES_FORWARD = 8.25, 4.25
"""Tiles that its backward and its forward pass have at once without Triton, of which a GPU needs one."""
TRAINER_EVAL_BATCH = 8
"""`per_device_eval_batch_size` where a recipe does not give it."""


def stages(recipe: Recipe, model: Model, micro: dict[str, int]) -> dict[str, Phases]:
    """Every stage that holds the model, by phase.

    Args:
        micro: by stage, the rows that go through the model at once (`micro_batches`).
    """
    found: dict[str, Phases] = {"base": _base(recipe, model, micro)}
    found["sft"] = _sft(recipe, model, micro["sft"])
    if recipe.rank.source != "data":
        found["collect"] = _collect(recipe, model)
    if recipe.reward.model is None:
        found["reward"] = _reward(recipe, model, micro["reward"])
    found["ppo"] = _ppo(recipe, model, micro["ppo"])
    if recipe.dpo is not None and recipe.dpo.enabled:
        found["dpo"] = _dpo(recipe, model, micro["dpo"])
    found["eval"] = _eval(recipe, model)
    found["export"] = _export(recipe, model)
    return found


def micro_batches(recipe: Recipe) -> dict[str, int]:
    """Rows (reward: prompts; dpo: pairs) that go through the model at once, by stage; `auto` begins with all."""
    pretrain = recipe.base.pretrain.trainer if recipe.base.pretrain else {}
    minibatch = recipe.ppo.batch_size // recipe.ppo.num_mini_batches
    return {
        "base": _per_device(pretrain, 32),
        "sft": _rows(recipe.sft.micro_batch_size, recipe.sft.trainer, 8),
        "reward": _rows(recipe.reward.micro_batch_size, recipe.reward.trainer, 16),
        "ppo": recipe.ppo.micro_batch_size if isinstance(recipe.ppo.micro_batch_size, int) else minibatch,
        **({"dpo": _rows(recipe.dpo.micro_batch_size, recipe.dpo.trainer, 16)} if recipe.dpo else {}),
    }


def _rows(micro: Any, trainer: dict[str, Any], default: int) -> int:
    step = _per_device(trainer, default) * int(trainer.get("gradient_accumulation_steps", 1))
    if micro == "auto":
        return step
    return min(step, micro or _per_device(trainer, default))


def _per_device(trainer: dict[str, Any], default: int) -> int:
    return int(trainer.get("per_device_train_batch_size", default))


def checkpointed(trainer: dict[str, Any]) -> bool:
    """Whether a `trainer:` section asks for gradient checkpointing, under either of its names."""
    return bool(trainer.get("activation_checkpointing", trainer.get("gradient_checkpointing", False)))


# --- The stages ------------------------------------------------------------------------------------------------


def _base(recipe: Recipe, model: Model, micro: dict[str, int]) -> Phases:
    pretrain = recipe.base.pretrain
    speaks = {
        "weights": model.weights,
        "activations": model.passing(1, 64, "library"),
        "cache": model.cache(1, 128),
    }
    if pretrain is None:
        return {"check": speaks}
    whole = Model(model.shape, model.device, SINGLE, "none", None)
    rows, length = micro["base"], pretrain.max_position_embeddings
    # transformers' own loss: log-softmax of all positions, and two gradients as large.
    logits = whole.logits(rows * length, 3)
    trained = _train(
        whole, rows, length, "library", logits, checkpointing=checkpointed(pretrain.trainer), mask="padded"
    )
    return {"train": {"weights": whole.weights, **trained}, "check": speaks}


def _sft(recipe: Recipe, model: Model, rows: int) -> Phases:
    config, learner = recipe.sft, _learner(model)
    length = config.max_length
    held = {"weights": learner.weights, "adapters": model.adapter}
    evaluated = int(config.trainer.get("per_device_eval_batch_size", TRAINER_EVAL_BATCH))
    found = {
        "train": held | _trl_step(learner, rows, length, config.trainer),
        "evaluate": held
        | {
            "optimizer": 2 * learner.learning,
            "activations": learner.passing(evaluated, length, "library"),
            "logits": _fused(learner, evaluated * length, backward=False),
        },
    }
    return _with_small_blocks(found, learner, rows * length)


def _collect(recipe: Recipe, model: Model) -> Phases:
    config = recipe.collect
    asked = config.batch_size if config.num_prompts is None else config.num_prompts * config.num_completions
    rows = min(config.batch_size, asked + (config.eval_prompts or 0) * config.num_completions)
    held = {"weights": _learner(model).weights, "adapters": model.adapter}
    return _decode(held, model, rows, config.max_prompt_length, config.response_length)


def _reward(recipe: Recipe, model: Model, prompts: int) -> Phases:
    config, learner = recipe.reward, _learner(model)
    rows, length = packed_rows(recipe, prompts)
    held = {"weights": learner.weights, "adapters": config.ensemble * model.adapter}
    # Rows of their own need no mask: causal attention never looks right.
    mask: Mask = "packed" if config.pack_tokens else "none"
    trained = _train(learner, rows, length, "library", 0.0, checkpointing=checkpointed(config.trainer), mask=mask)
    looked = {
        "optimizer": 2 * learner.learning,
        "activations": learner.passing(config.eval_batch_size, config.max_length, "library"),
    }
    return _with_small_blocks({"train": held | trained, "measure": held | looked}, learner, rows * length)


def packed_rows(recipe: Recipe, prompts: int) -> tuple[int, int]:
    """Rows and their tokens that so many prompts make with all their completions (stages/reward/packing.py), each
    as long as the recipe allows."""
    reward = recipe.reward
    count = completions(recipe)
    prompt = min(_asked(recipe), reward.max_length - 1)
    answer = reward.max_length - prompt
    if recipe.rank.source != "data":
        answer = min(answer, recipe.collect.response_length)
    fit = max(1, (reward.pack_tokens - prompt) // answer)
    return prompts * -(-count // fit), prompt + min(fit, count) * answer


def _asked(recipe: Recipe) -> int:
    """Tokens of the longest prompt that is ranked."""
    return recipe.ppo.max_prompt_length if recipe.rank.source == "data" else recipe.collect.max_prompt_length


def completions(recipe: Recipe) -> int:
    """K, the completions of a ranked prompt: as collected, or as the columns of a table say; 2 for pairs and where
    nothing says."""
    if recipe.rank.source != "data":
        return recipe.collect.num_completions
    columns = getattr(recipe.data.rankings, "columns", {})
    named = columns.get("completions") if isinstance(columns, dict) else None
    return len(named) if isinstance(named, list) else 2


def _ppo(recipe: Recipe, model: Model, micro: int) -> Phases:
    config, learner = recipe.ppo, _learner(model)
    prompt, response = config.max_prompt_length, config.response_length
    own_reward = config.reward_model is None and recipe.reward.model is None
    rewards = (recipe.reward.ensemble if model.lora else 1) if own_reward else 0
    learners = 2 if config.critic == "adapter" else 1
    roles = 2 + rewards + (learners - 1)
    if model.lora:
        held = {"weights": learner.weights, "adapters": roles * model.adapter}
    else:
        held = {"weights": roles * learner.weights}
    held["optimizer"] = learners * 2 * learner.learning
    rollout = config.rollout_batch_size if isinstance(config.rollout_batch_size, int) else config.batch_size
    minibatch = config.batch_size // config.num_mini_batches
    length = prompt + response
    positions = micro * response

    def trained(positions: int) -> Moment:
        """A micro-batch's step that takes the log-probs of so many positions."""
        chunk = learner.chunk(positions, config.logits_chunk_size)
        # One is the logits, a second is for entropies, the rest is what was measured besides (docs/memory.md).
        logits = learner.logits(chunk, 3)
        if not model.lora:  # the head's gradient, and the next chunk's to be added to it
            logits += (1 if chunk == positions else 2) * learner.shape.embedding * SINGLE
        checkpointing = bool(config.gradient_checkpointing)
        moment = _train(learner, micro, length, "plain", logits, checkpointing=checkpointing, keeps=held)
        moment["activations"] += positions * learner.shape.hidden_size * learner.size
        return moment

    passes = min(micro, minibatch)
    # Evaluation prompts are answered in batches of the rollout's size, or all at once.
    sampled = min(rollout, max(config.batch_size, config.eval_prompts if config.eval_updates else 0))
    found = {
        **_decode(held, learner, sampled, prompt, response, banked=True),
        "score": held | {"activations": learner.passing(passes, length, "plain")},
        "passes": held
        | {
            "activations": learner.passing(passes, length, "plain"),
            # Twice for the entropies.
            "logits": learner.logits(learner.chunk(passes * response, config.logits_chunk_size), 2),
        },
        "train": trained(positions),
    }
    if config.ptx_coef:  # demonstrations as long as prompt and response together
        found["ptx"] = trained(micro * length)
    return _with_small_blocks(found, learner, micro * length)


def _dpo(recipe: Recipe, model: Model, pairs: int) -> Phases:
    assert recipe.dpo is not None
    config, learner = recipe.dpo, _learner(model)
    length, rows = config.max_length, 2 * pairs
    held = {"weights": learner.weights, "adapters": model.adapter}
    reads = config.precompute_ref_batch_size
    read = {
        "activations": learner.passing(reads, length, "plain"),
        "logits": learner.logits(learner.chunk(reads * length), 1),
    }
    found = {
        "reference": held | read,
        "train": held | _trl_step(learner, rows, length, config.trainer),
        "measure": held | read | {"optimizer": 2 * learner.learning},
    }
    return _with_small_blocks(found, learner, rows * length)


def _eval(recipe: Recipe, model: Model) -> Phases:
    config, learner = recipe.eval, _learner(model)
    rows = min(config.batch_size, config.num_prompts or config.batch_size)
    one = {"weights": learner.weights, "adapters": model.adapter}
    two = {name: 2 * size for name, size in one.items()}
    length = config.max_prompt_length + config.response_length
    return {
        **_decode(one, learner, rows, config.max_prompt_length, config.response_length),
        "compare": two  # the policy beside the SFT model
        | {
            "activations": learner.passing(rows, length, "plain"),
            "logits": learner.logits(learner.chunk(rows * config.response_length), 1),
        },
    }


def _export(recipe: Recipe, model: Model) -> Phases:
    from pipeline.memory.shapes import BYTES

    learner = _learner(model)
    held = model.quantization in ("nf4", "int8")  # then what is written is the adapter beside its base
    file = learner.weights if held else learner.shape.parameters * BYTES[recipe.export.dtype]
    settings = recipe.eval  # the files are measured on its prompts, as it samples
    rows = min(recipe.export.batch_size, recipe.export.num_prompts)
    length = settings.max_prompt_length + settings.response_length
    both = {"weights": learner.weights + file, "adapters": model.adapter}
    return {
        "merge": {"weights": learner.weights, "adapters": model.adapter},
        **_decode(both, learner, rows, settings.max_prompt_length, settings.response_length),
        "measure": both
        | {
            "activations": learner.passing(rows, length, "plain"),
            # Both models' log-probs of a chunk of positions, and what their difference takes.
            "logits": learner.logits(learner.chunk(rows * settings.response_length), 4),
        },
    }


# --- What they share --------------------------------------------------------------------------------------------


def _learner(model: Model) -> Model:
    """What is trained in full is held in float32, and computes as `base.dtype` says; what carries adapters is held
    as the base is. Layers of quantisation-aware training round float32 weights and compute in float32."""
    if model.lora:
        return model
    mixed = model.size < SINGLE and model.quantization != "qat"
    return Model(model.shape, model.device, model.size if mixed else SINGLE, "none", None, mixed)


def _trl_step(learner: Model, rows: int, length: int, trainer: dict[str, Any]) -> Moment:
    """A training step of trl's SFT and DPO: its fused head, on padded rows."""
    logits = _fused(learner, rows * length, backward=True)
    if not learner.lora:  # the head's gradient
        logits += learner.shape.embedding * SINGLE
    return _train(learner, rows, length, "library", logits, checkpointing=checkpointed(trainer), mask="padded")


def _fused(model: Model, positions: int, *, backward: bool) -> float:
    """trl's fused head: a tile of logits at a time; with Triton in place, without with temporaries."""
    tokens = min(positions, FUSED_TOKENS)
    if model.device == "cuda":
        return tokens * FUSED_WIDTH * model.size
    tile = tokens * min(model.shape.vocab_size, FUSED_WIDTH)
    return tile * SINGLE * (FUSED_COPIES if backward else FUSED_COPIES_FORWARD)


def _with_small_blocks(found: Phases, model: Model, tokens: int) -> Phases:
    """On a CPU blocks below `RETURNED` stay with the process once they are free, and seldom fit the next: where a
    micro-batch's hidden states are so small, about as much again as training keeps, in every phase."""
    if model.device != "cpu" or tokens * model.shape.hidden_size * model.size >= RETURNED:
        return found
    small = found["train"]["activations"]
    return {name: moment | {"small blocks": small} for name, moment in found.items()}


def _train(
    model: Model,
    rows: int,
    length: int,
    path: Path,
    logits: float,
    *,
    checkpointing: bool,
    mask: Mask = "none",
    keeps: Moment | None = None,
) -> Moment:
    """The worst of a training step's moments, with the optimizer's moments of all steps after the first.

    As the backward pass goes down, activations leave and gradients come: the worst is at its begin, where all
    activations stand beside the logits or the last block's own gradients, or at its end, where all gradients stand
    beside one block's activations.
    """
    held = dict(keeps or {"optimizer": 2 * model.learning})
    kept = model.kept(rows, length, path, checkpointing=checkpointing, mask=mask)
    one = model.layer(length, path, mask) * rows * length
    returning = model.returning(rows, length, path)
    embedding = 0.0 if model.lora else model.shape.embedding * SINGLE
    moments: list[Moment] = [
        {"activations": kept, "logits": logits},
        {"activations": kept + returning, "gradients": embedding},
        {"activations": one + returning, "gradients": model.learning + embedding},
    ]
    return held | max(moments, key=lambda moment: sum(moment.values()))


def _decode(held: Moment, model: Model, rows: int, prompt: int, response: int, *, banked: bool = False) -> Phases:
    """Sampling: the pass over the prompts, then token by token with everything in the cache.

    Args:
        banked: by a bank, which decodes from merged copies where it may.
    """
    merged = model.merged if banked else 0.0
    held = held | ({"merged": merged} if merged else {})
    numbers = rows * response * (4 * SINGLE + 8)  # the random numbers, the record and the tokens
    # A cache that nothing was written to takes no room on a CPU.
    begun = prompt if model.device == "cpu" else prompt + response
    return {
        "prompts": held
        | {
            "cache": model.cache(rows, begun),
            "activations": model.passing(rows, prompt, "plain", merged=bool(merged)),
        },
        "rollout": held
        | {
            "cache": model.cache(rows, prompt + response),
            "logits": model.logits(rows, 4) + numbers,
            "activations": model.passing(rows, 1, "plain", merged=bool(merged))
            + rows * model.shape.num_attention_heads * (prompt + response) * model.size,
        },
    }
