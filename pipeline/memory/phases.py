"""The phases of each stage, with the bytes of each component at the phase's peak.

This follows the code of the stages: what they load (stages/models/adapters.py, stages/ppo/roles.py) and when they
release it (stages/ppo/trainer.py, stages/training/batches.py). A change there needs a change here;
benchmarks/memory_plan.py compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.config.base import PRETRAIN_TRAINER
from pipeline.config.dpo import DPO_TRAINER
from pipeline.config.raft import RAFT_TRAINER
from pipeline.config.recipe import Recipe
from pipeline.config.reward import REWARD_TRAINER
from pipeline.config.sft import SFT_TRAINER, SFTConfig
from pipeline.config.trainer import EVAL_BATCH_SIZE
from pipeline.machine import RETURNED
from pipeline.memory.architecture import BYTES
from pipeline.memory.components import SINGLE, Forward, Mask, PlannedModel
from pipeline.memory.scorers import scorer_bytes

Moment = dict[str, float]
"""Bytes by component."""
Phases = dict[str, Moment]

FUSED_TOKENS, FUSED_WIDTH = 4096, 32768
"""The tile of trl's fused language-model head (trl/kernels/chunked_logprob.py)."""
FUSED_COPIES, FUSED_COPIES_FORWARD = 8.25, 4.25
"""Tiles that exist at once in its backward and forward pass without Triton. With Triton, on a GPU, it is one."""


def stages(
    recipe: Recipe, model: PlannedModel, micro: dict[str, int], processes: int = 1, room: float | None = None
) -> dict[str, Phases]:
    """The phases of every stage that holds the model, in one of the processes that share the run.

    Args:
        micro: by stage, the rows per pass (`micro_batches`).
        room: bytes of the device's memory; None: not known.
    """
    planned: dict[str, Phases] = {"base": _base(recipe, model, micro)}
    alone = model
    if processes > 1 and recipe.sharding != "none":
        on_host = recipe.sharding == "offload" and model.device != "cpu"
        model = replace(model, share=0.0 if on_host else 1 / processes)
    if recipe.sft is not None:
        planned["sft"] = _sft(recipe.sft, model, micro["sft"])
    if recipe.rank.source != "data":
        planned["collect"] = _collect(recipe, alone)
    if recipe.reward.model is None:
        planned["reward"] = _reward(recipe, model, micro["reward"])
    planned["ppo"] = _ppo(recipe, model, micro["ppo"], processes, room)
    if recipe.dpo is not None and recipe.dpo.enabled:
        planned["dpo"] = _dpo(recipe, model, micro["dpo"])
    if recipe.raft is not None and recipe.raft.enabled:
        planned["raft"] = _raft(recipe, model, micro["raft"])
    planned["eval"] = _eval(recipe, alone)
    planned["export"] = _export(recipe, alone)
    return planned


def micro_batches(recipe: Recipe, processes: int = 1) -> dict[str, int]:
    """Rows (reward: prompts; dpo: pairs) per pass, by stage. `auto` starts with a process's whole share of an
    optimizer step."""
    pretrain = recipe.base.pretrain.trainer if recipe.base.pretrain else {}
    sft, reward, dpo, raft = recipe.sft, recipe.reward, recipe.dpo, recipe.raft
    minibatch = _shared(recipe.ppo.batch_size // recipe.ppo.num_mini_batches, processes)
    wanted = recipe.ppo.micro_batch_size
    return {
        "base": _per_device(PRETRAIN_TRAINER | pretrain),
        **({"sft": _rows(sft.micro_batch_size, SFT_TRAINER | sft.trainer, processes)} if sft else {}),
        "reward": _rows(reward.micro_batch_size, REWARD_TRAINER | reward.trainer, processes),
        "ppo": min(wanted, minibatch) if isinstance(wanted, int) else minibatch,
        **({"dpo": _rows(dpo.micro_batch_size, DPO_TRAINER | dpo.trainer, processes)} if dpo else {}),
        **({"raft": _rows(raft.micro_batch_size, RAFT_TRAINER | raft.trainer, processes)} if raft else {}),
    }


def _shared(rows: int, processes: int) -> int:
    """The largest share of a process."""
    return -(-rows // processes)


def _rows(micro: Any, trainer: Mapping[str, Any], processes: int) -> int:
    step = _shared(_per_device(trainer) * int(trainer.get("gradient_accumulation_steps", 1)), processes)
    if micro == "auto":
        return step
    return min(step, micro or _per_device(trainer))


def _per_device(trainer: Mapping[str, Any]) -> int:
    return int(trainer["per_device_train_batch_size"])


def checkpointed(trainer: dict[str, Any]) -> bool:
    """Whether a `trainer:` section asks for gradient checkpointing, under either of its names."""
    return bool(trainer.get("activation_checkpointing", trainer.get("gradient_checkpointing", False)))


# --- The stages ------------------------------------------------------------------------------------------------


def _base(recipe: Recipe, model: PlannedModel, micro: dict[str, int]) -> Phases:
    pretrain = recipe.base.pretrain
    check = {
        "weights": model.weights,
        "activations": model.passing(1, 64, "library"),
        "cache": model.cache(1, 128),
    }
    if pretrain is None:
        return {"check": check}
    whole = PlannedModel(model.architecture, model.device, SINGLE, "none", None)
    rows, length = micro["base"], pretrain.max_position_embeddings
    # transformers' own loss: the log-softmax of all positions, and two gradients of the same size.
    logits = whole.logits(rows * length, 3)
    trained = _train(
        whole, rows, length, "library", logits, checkpointing=checkpointed(pretrain.trainer), mask="padded"
    )
    return {"train": {"weights": whole.weights, **trained}, "check": check}


def _sft(config: SFTConfig, model: PlannedModel, rows: int) -> Phases:
    learner = _learner(model)
    length = config.max_length
    held = {"weights": learner.weights, "adapters": model.adapter}
    evaluated = int(config.trainer.get("per_device_eval_batch_size", EVAL_BATCH_SIZE))
    phases = {
        "train": held | _trl_step(learner, rows, length, config.trainer),
        "evaluate": _after(held, learner)
        | {
            "optimizer": 2 * learner.learning,
            "activations": learner.passing(evaluated, length, "library"),
            "logits": _fused(learner, evaluated * length, backward=False),
        },
    }
    return _with_small_blocks(phases, learner, rows * length)


def _collect(recipe: Recipe, model: PlannedModel) -> Phases:
    config = recipe.collect
    answers = config.batch_size if config.num_prompts is None else config.num_prompts * config.num_completions
    rows = min(config.batch_size, answers + (config.eval_prompts or 0) * config.num_completions)
    held = {"weights": _learner(model).weights, "adapters": model.adapter}
    return _decode(held, model, rows, config.max_prompt_length, config.response_length)


def _reward(recipe: Recipe, model: PlannedModel, prompts: int) -> Phases:
    config, learner = recipe.reward, _learner(model)
    rows, length = packed_rows(recipe, prompts)
    held = {"weights": learner.weights, "adapters": config.ensemble * model.adapter}
    # One completion per row needs no mask: padding is on the right, where causal attention does not look.
    mask: Mask = "packed" if config.pack_tokens else "none"
    trained = _train(learner, rows, length, "library", 0.0, checkpointing=checkpointed(config.trainer), mask=mask)
    measured = {
        "optimizer": 2 * learner.learning,
        "activations": learner.passing(config.eval_batch_size, config.max_length, "library"),
    }
    return _with_small_blocks(
        {"train": held | trained, "measure": _after(held, learner) | measured}, learner, rows * length
    )


def packed_rows(recipe: Recipe, prompts: int) -> tuple[int, int]:
    """Rows, and tokens per row, of so many prompts with all their completions (stages/reward/packing.py), swapped
    ones included, each as long as the recipe allows."""
    reward = recipe.reward
    count = completions(recipe) + reward.hard_negatives
    prompt = min(_prompt_length(recipe), reward.max_length - 1)
    answer = reward.max_length - prompt
    if recipe.rank.source != "data":
        answer = min(answer, recipe.collect.response_length)
    fit = max(1, (reward.pack_tokens - prompt) // answer)
    return prompts * -(-count // fit), prompt + min(fit, count) * answer


def _prompt_length(recipe: Recipe) -> int:
    """Tokens of the longest prompt that is ranked."""
    return recipe.ppo.max_prompt_length if recipe.rank.source == "data" else recipe.collect.max_prompt_length


def completions(recipe: Recipe) -> int:
    """K, the completions per ranked prompt: the number that `collect` samples, or the number of completion columns
    of a table; 2 for pairs and where the recipe does not say."""
    if recipe.rank.source != "data":
        return recipe.collect.num_completions
    named = [table.columns.get("completions") for table in recipe.data.ranking_tables.values()]
    return max((len(columns) if isinstance(columns, list) else 2 for columns in named), default=2)


def _ppo(recipe: Recipe, model: PlannedModel, micro: int, processes: int, room: float | None) -> Phases:
    config, learner = recipe.ppo, _learner(model)
    prompt, response = config.max_prompt_length, config.response_length
    rewards = _rewards(recipe, model)
    learners = 2 if config.critic == "adapter" else 1
    roles = 2 + rewards + (learners - 1)
    if model.lora:
        held = {"weights": learner.weights, "adapters": roles * model.adapter}
    else:
        held = {"weights": roles * learner.weights}
    held["optimizer"] = learners * 2 * learner.learning
    if scorers := scorer_bytes(recipe, replace(learner, share=None)):
        held["scorers"] = scorers
    batch = _shared(config.batch_size, processes)
    rollout = config.rollout_batch_size if isinstance(config.rollout_batch_size, int) else batch
    minibatch = config.batch_size // config.num_mini_batches
    length = prompt + response
    positions = micro * response

    def trained(positions: int) -> Moment:
        """A micro-batch's step that computes the log-probs of so many positions."""
        chunk = learner.chunk(positions, config.logits_chunk_size)
        # One for the logits, one for the entropies, and one that was measured (docs/memory.md).
        logits = learner.logits(chunk, 3)
        if not model.lora:  # the head's gradient, and the next chunk's before it is added
            logits += (1 if chunk == positions else 2) * learner.architecture.embedding * SINGLE
        checkpointing = bool(config.gradient_checkpointing)
        # A sharded role's own forward is called (stages/models/actor.py).
        forward: Forward = "plain" if learner.share is None else "library"
        moment = _train(learner, micro, length, forward, logits, checkpointing=checkpointing, keeps=held)
        moment["activations"] += positions * learner.architecture.hidden_size * learner.size
        return moment

    passes = min(micro, minibatch)
    # Evaluation prompts are answered in batches of the rollout's size, or all at once.
    sampled = min(rollout, max(batch, config.eval_prompts if config.eval_updates else 0))
    read = held | ({"gathered": learner.gathered} if learner.gathered else {})
    if config.sampler == "vllm":
        taken = vllm_needs(recipe, model, sampled) if room is None else config.vllm_gpu_memory_utilization * room
        sampling = {"rollout": read | {"vllm": taken}}
    else:
        sampling = _decode(read, learner, sampled, prompt, response, banked=True)
    phases = {
        **sampling,
        "score": read | {"activations": learner.passing(passes, length, "plain")},
        "passes": read
        | {
            "activations": learner.passing(passes, length, "plain"),
            # Two copies, because of the entropies.
            "logits": learner.logits(learner.chunk(passes * response, config.logits_chunk_size), 2),
        },
        "train": trained(positions),
    }
    if learner.share is not None and learner.device == "cpu":  # elsewhere, they are loaded into the host's memory
        phases["load"] = {"weights": roles * replace(learner, share=None).weights}
    if config.ptx_coef:  # demonstrations as long as prompt and response together
        phases["ptx"] = trained(micro * length)
    return _with_small_blocks(phases, learner, micro * length)


def vllm_needs(recipe: Recipe, model: PlannedModel, rows: int = 1) -> float:
    """Bytes that vLLM needs to sample so many rows of PPO at once: a copy of the base, an adapter in its precision,
    and the cache. What its compiled graphs take is not known."""
    length = recipe.ppo.max_prompt_length + recipe.ppo.response_length
    return model.weights + model.adapter * model.size / SINGLE + model.cache(rows, length)


def _dpo(recipe: Recipe, model: PlannedModel, pairs: int) -> Phases:
    assert recipe.dpo is not None
    config, learner = recipe.dpo, _learner(model)
    whole = replace(learner, share=None)
    length, rows = config.max_length, 2 * pairs
    held = {"weights": learner.weights, "adapters": model.adapter}
    reads = config.precompute_ref_batch_size
    read = {
        "activations": learner.passing(reads, length, "plain"),
        "logits": learner.logits(learner.chunk(reads * length), 1),
    }
    phases = {
        "reference": {"weights": whole.weights, "adapters": whole.adapter} | read,
        "train": held | _trl_step(learner, rows, length, config.trainer),
        "measure": _after(held, learner) | read | {"optimizer": 2 * learner.learning},
    }
    return _with_small_blocks(phases, learner, rows * length)


def _raft(recipe: Recipe, model: PlannedModel, rows: int) -> Phases:
    assert recipe.raft is not None
    config, learner = recipe.raft, _learner(model)
    prompt, response = config.max_prompt_length, config.response_length
    length, whole = prompt + response, replace(learner, share=None)
    one = {"weights": whole.weights, "adapters": whole.adapter}
    rewards = _rewards(recipe, model)
    scores = {"weights": whole.weights, "adapters": rewards * whole.adapter} if rewards else {}
    if scorers := scorer_bytes(recipe, whole):
        scores["scorers"] = scorers
    held = {"weights": learner.weights, "adapters": model.adapter}
    phases = {
        **_decode(one, whole, config.batch_size, prompt, response),
        "score": scores | {"activations": whole.passing(config.batch_size, length, "plain")},
        "train": held | _trl_step(learner, rows, length, config.trainer),
    }
    return _with_small_blocks(phases, learner, rows * length)


def _rewards(recipe: Recipe, model: PlannedModel) -> int:
    """The reward models on the policy's backbone."""
    shares = recipe.ppo.reward_model is None and recipe.reward.model is None
    if not (shares and recipe.ppo.reward.uses_run_model):
        return 0
    if not model.lora:
        return 1
    used = {term.criterion for term in recipe.ppo.reward.terms or () if term.run_model}
    return recipe.reward.ensemble * max(1, len(used))


def _eval(recipe: Recipe, model: PlannedModel) -> Phases:
    config, learner = recipe.eval, _learner(model)
    rows = min(config.batch_size, config.num_prompts or config.batch_size)
    one = {"weights": learner.weights, "adapters": model.adapter}
    two = {name: 2 * size for name, size in one.items()}
    length = config.max_prompt_length + config.response_length
    return {
        **_decode(one, learner, rows, config.max_prompt_length, config.response_length),
        "compare": two  # the policy and the reference
        | {
            "activations": learner.passing(rows, length, "plain"),
            "logits": learner.logits(learner.chunk(rows * config.response_length), 1),
        },
    }


def _export(recipe: Recipe, model: PlannedModel) -> Phases:
    learner = _learner(model)
    held = model.quantization in ("nf4", "int8")  # then the adapter is written, beside its base
    file = learner.weights if held else learner.architecture.parameters * BYTES[recipe.export.dtype]
    settings = recipe.eval  # the files are measured on its prompts and with its sampling
    rows = min(recipe.export.batch_size, recipe.export.num_prompts)
    length = settings.max_prompt_length + settings.response_length
    both = {"weights": learner.weights + file, "adapters": model.adapter}
    return {
        "merge": {"weights": learner.weights, "adapters": model.adapter},
        **_decode(both, learner, rows, settings.max_prompt_length, settings.response_length),
        "measure": both
        | {
            "activations": learner.passing(rows, length, "plain"),
            # The log-probs of both models for a chunk of positions, and their difference.
            "logits": learner.logits(learner.chunk(rows * settings.response_length), 4),
        },
    }


# --- What they share --------------------------------------------------------------------------------------------


def _learner(model: PlannedModel) -> PlannedModel:
    """The model as it is trained. With adapters, the backbone is held as the base is. A full fine-tune holds
    float32 weights and computes in `base.dtype`. Quantisation-aware training rounds float32 weights and computes in
    float32."""
    if model.lora:
        return model
    mixed = model.size < SINGLE and model.quantization != "qat"
    return replace(model, size=model.size if mixed else SINGLE, quantization="none", lora=None, mixed=mixed)


def _after(held: Moment, model: PlannedModel) -> Moment:
    """What is held after training: a sharded copy beside the model, which has all of its weights again."""
    if model.share is None:
        return held
    whole = replace(model, share=None)
    return held | {
        "weights": held["weights"] + whole.weights,
        "adapters": held.get("adapters", 0.0) + whole.adapter,
    }


def _trl_step(learner: PlannedModel, rows: int, length: int, trainer: dict[str, Any]) -> Moment:
    """A training step of trl's trainers: their fused head, on padded rows."""
    logits = _fused(learner, rows * length, backward=True)
    if not learner.lora:  # the head's gradient
        logits += learner.architecture.embedding * SINGLE
    return _train(learner, rows, length, "library", logits, checkpointing=checkpointed(trainer), mask="padded")


def _fused(model: PlannedModel, positions: int, *, backward: bool) -> float:
    """Logits of trl's fused head, one tile at a time: in place with Triton, with temporaries without it."""
    tokens = min(positions, FUSED_TOKENS)
    if model.device == "cuda":
        return tokens * FUSED_WIDTH * model.size
    tile = tokens * min(model.architecture.vocab_size, FUSED_WIDTH)
    return tile * SINGLE * (FUSED_COPIES if backward else FUSED_COPIES_FORWARD)


def _with_small_blocks(phases: Phases, model: PlannedModel, tokens: int) -> Phases:
    """On a CPU the process keeps freed blocks smaller than `RETURNED`, and they seldom fit the next request. If a
    micro-batch's hidden states are that small, this takes about as much again as training's activations, in every
    phase."""
    if model.device != "cpu" or tokens * model.architecture.hidden_size * model.size >= RETURNED:
        return phases
    small = phases["train"]["activations"]
    return {name: moment | {"small blocks": small} for name, moment in phases.items()}


def _train(
    model: PlannedModel,
    rows: int,
    length: int,
    forward: Forward,
    logits: float,
    *,
    checkpointing: bool,
    mask: Mask = "none",
    keeps: Moment | None = None,
) -> Moment:
    """The peak of a training step, with the optimizer's moments, which exist from the second step on.

    During the backward pass activations are released and gradients are allocated. So the peak is at its start,
    where all activations exist beside the logits or the last block's gradients, or at its end, where all gradients
    exist beside one block's activations.

    Args:
        keeps: what is held besides; None: the optimizer's moments.
    """
    held = dict(keeps or {"optimizer": 2 * model.learning})
    if model.units:
        held["gathered"] = model.units
    kept = model.kept(rows, length, forward, checkpointing=checkpointing, mask=mask)
    one = model.layer(length, forward, mask) * rows * length
    returning = model.returning(rows, length, forward)
    embedding = 0.0 if model.lora else model.architecture.embedding * SINGLE
    if model.share is not None:
        embedding = model.unreduced
    moments: list[Moment] = [
        {"activations": kept, "logits": logits},
        {"activations": kept + returning, "gradients": embedding},
        {"activations": one + returning, "gradients": model.learning + embedding},
    ]
    return held | max(moments, key=lambda moment: sum(moment.values()))


def _decode(
    held: Moment, model: PlannedModel, rows: int, prompt: int, response: int, *, banked: bool = False
) -> Phases:
    """Sampling: the pass over the prompts, then token by token with a full cache.

    Args:
        banked: whether an ActorBank samples, which decodes with merged weights where it can.
    """
    merged = model.merged if banked else 0.0
    held = held | ({"merged": merged} if merged else {})
    numbers = rows * response * (4 * SINGLE + 8)  # the random numbers, the record and the tokens
    # On a CPU the part of the cache that is not written yet takes no memory.
    filled = prompt if model.device == "cpu" else prompt + response
    return {
        "prompts": held
        | {
            "cache": model.cache(rows, filled),
            "activations": model.passing(rows, prompt, "plain", merged=bool(merged)),
        },
        "rollout": held
        | {
            "cache": model.cache(rows, prompt + response),
            "logits": model.logits(rows, 4) + numbers,
            "activations": model.passing(rows, 1, "plain", merged=bool(merged))
            + rows * model.architecture.num_attention_heads * (prompt + response) * model.size,
        },
    }
