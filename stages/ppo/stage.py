"""The `ppo` stage: runs `PPOTrainer` from artifacts to artifact, with checkpoints, looks and the gate.

It makes the policy (`adapter/` or `model/`), `value.safetensors`, `golden.json` for a next round to start from, and
`looks.jsonl`: answers to held-out prompts along the run, for judges that PPO itself never sees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from data.schema import write_jsonl
from pipeline.config.ppo import PPOConfig
from pipeline.errors import DataError, RecipeError, StageError
from pipeline.rounds import by_round
from pipeline.stage import Artifact, Metrics, RunContext
from stages.distributed import World
from stages.models.adapters import MODEL, save_adapter
from stages.models.bank import ActorBank, FullBank
from stages.models.loading import load_tokenizer
from stages.models.text import IGNORED, Codec, pad
from stages.ppo import golden, roles
from stages.ppo.experience import score_tokens
from stages.ppo.kl import k1
from stages.ppo.trainer import LanguageModelBatch, PPOTrainer
from stages.prompts import EncodedPrompt, load_prompts
from stages.sft import encode_demonstrations

SHOWN = ("objective/scores", "objective/kl", "response/length", "objective/entropy")
"""The few numbers of the progress display."""

GOLDEN = 8
"""Responses whose log-probs are stored with the policy."""


def run(config: PPOConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    forced = _gate(config, inputs, ctx)
    codec = Codec(load_tokenizer(inputs["base"]))
    prompts, too_long = load_prompts(inputs["data"], codec, "train", config.max_prompt_length)
    held_out, _ = load_prompts(inputs["data"], codec, "eval", config.max_prompt_length)
    if not prompts:
        raise DataError(
            f"no training prompt fits into ppo.max_prompt_length = {config.max_prompt_length} tokens",
            where=str(inputs["data"].path),
            mend="raise ppo.max_prompt_length",
        )
    if config.batch_size < World().size:
        raise RecipeError(
            f"ppo.batch_size: {World().size} processes cannot share a batch of {config.batch_size}",
            where=ctx.describe("ppo.batch_size"),
            mend="start fewer processes, or enlarge the batch",
        )
    torch.manual_seed(ctx.seed)
    bank, scorer = roles.build(config, inputs, codec, ctx.device, sharded=ctx.sharded)
    before = by_round(inputs, "ppo")
    trainer = PPOTrainer(
        bank,
        config,
        codec,
        [prompt.ids for prompt in prompts],
        scorer,
        seed=ctx.seed,
        device=ctx.device,
        demonstrations=_demonstrations(inputs["data"], codec, config) if config.ptx_coef else None,
        is_copy=not before,
        say=ctx.say,
    )
    if before:
        _go_on(trainer, before[max(before)])
    looks = _train(trainer, config, held_out[: config.eval_prompts], ctx)
    trainer.check_frozen()

    if trainer.world.rank == 0 or bank.sharded:
        golden.write(trainer, [prompt.ids for prompt in prompts[:GOLDEN]], ctx.seed, out_dir)
        _write(out_dir, trainer, "value" if config.value == "adapter" else "policy", looks)
    last = looks[-1] if looks else {}
    whole = -(-config.batch_size // config.num_mini_batches // trainer.world.size)
    return {
        "prompts": len(prompts),
        "prompts_too_long": too_long,
        "episodes": trainer.updates * config.batch_size,
        "updates": trainer.updates,
        "trainable_parameters": sum(p.numel() for p in bank.parameters() if p.requires_grad),
        "kl_coef": trainer.kl.value,
        "mfu": trainer.mfu,
        **({"micro_batch_size": trainer.micro.size or whole} if trainer.micro.auto else {}),
        **{f"final_{name}": last[name] for name in ("kl", "score", "length") if name in last},
        **({"forced_past_gate": forced} if forced else {}),
    }


def _write(out_dir: Path, trainer: PPOTrainer, value_role: str, looks: list[dict[str, Any]]) -> None:
    """From rank 0; for the rest of a sharded bank it needs all."""
    bank, writes = trainer.bank, trainer.world.rank == 0
    value = bank.state_of(value_role)
    with bank.whole("policy"):
        if writes and isinstance(bank, ActorBank):
            save_adapter(bank.model, "policy", out_dir)
        elif writes and isinstance(bank, FullBank):
            policy: Any = bank.models["policy"]
            policy.save_pretrained(out_dir / MODEL)
    if writes:
        write_jsonl(out_dir / "looks.jsonl", looks)
        save_file(value, out_dir / "value.safetensors")


def _gate(config: PPOConfig, inputs: Mapping[str, Artifact], ctx: RunContext) -> list[str]:
    """Refuses a reward model that its own stage found unfit, unless the user insists; returns the reasons."""
    artifact = roles.reward_artifact(config, inputs)
    if artifact is None:
        return []
    unfit: list[str] = artifact.json("quality.json")["unfit"]
    if unfit and not ctx.force:
        raise StageError(
            "the reward model is unfit for PPO: " + "; ".join(unfit),
            where=str(artifact.path),
            mend="give it more or better rankings, or insist with --force (which is recorded)",
        )
    return unfit


def _go_on(trainer: PPOTrainer, before: Artifact) -> None:
    """A later round goes on from the policy of the one before, at the price of KL that was right for it."""
    golden.verify(before, trainer.bank, trainer.config, trainer.codec, trainer.device, trainer.tolerance)
    if trainer.config.kl.kind == "adaptive":
        trainer.kl.value = before.metrics["kl_coef"]


def _train(
    trainer: PPOTrainer, config: PPOConfig, held_out: list[EncodedPrompt], ctx: RunContext
) -> list[dict[str, Any]]:
    """The loop, from the checkpoint if there is one. Returns the looks at held-out prompts."""
    checkpoint = ctx.state_dir / "checkpoint.pt"
    looks: list[dict[str, Any]] = []
    if checkpoint.exists():
        state = _load(checkpoint)
        trainer.load_state_dict(state["trainer"])
        looks = state["looks"]
        ctx.metrics.truncate(trainer.update)
        ctx.say(f"resuming from update {trainer.update} of {trainer.updates}")
    else:
        ctx.metrics.truncate(-1)  # an interrupted run may have logged an update and not kept it
        trainer.start()
        roles.start_value(trainer.bank, config, trainer.normalizer)
    look_at = config.eval_updates if held_out else 0
    with ctx.progress("ppo", total=trainer.updates, done=trainer.update) as bar:
        while trainer.update < trainer.updates:
            if look_at and trainer.update == 0 and not looks:
                looks.append(_look(trainer, held_out, ctx.seed))
            first = trainer.update == 0
            metrics = trainer.step()
            if look_at and (trainer.update % look_at == 0 or trainer.update == trainer.updates):
                looks.append(_look(trainer, held_out, ctx.seed))
                metrics |= {f"eval/{name}": looks[-1][name] for name in ("kl", "score", "length")}
            ctx.metrics.log(trainer.update, **metrics)
            bar.advance(1, **{name.rpartition("/")[2]: metrics[name] for name in SHOWN})
            due = trainer.update % config.save_updates == 0 or first
            if due and (trainer.world.rank == 0 or trainer.bank.sharded):
                state = {"trainer": trainer.state_dict(), "looks": looks}
                if trainer.world.rank == 0:
                    _save(checkpoint, state)
    return looks


@torch.no_grad()
def _look(trainer: PPOTrainer, held_out: list[EncodedPrompt], seed: int) -> dict[str, Any]:
    """The policy's answers to held-out prompts, from the same random numbers each time, with score and KL."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand((len(held_out), trainer.config.response_length), generator=generator)
    prompts = [prompt.ids for prompt in held_out]
    episodes = trainer.respond(prompts, uniform)
    scores = trainer.scorer(episodes)
    logp, _, _ = score_tokens(trainer.bank, "policy", episodes, trainer.config, micro=trainer.micro)
    ref_logp, _, _ = score_tokens(trainer.bank, "reference", episodes, trainer.config, micro=trainer.micro)
    kl = torch.where(episodes.mask_BT, k1(logp, ref_logp), 0.0).sum(1)
    responses = [
        trainer.codec.decode(row[:n])
        for row, n in zip(episodes.responses_BT.tolist(), episodes.mask_BT.sum(1).tolist(), strict=True)
    ]
    return {
        "update": trainer.update,
        "kl": float(kl.mean()),
        "score": float(scores.mean()),
        "length": float(episodes.mask_BT.sum(1).float().mean()),
        "prompts": [prompt.messages for prompt in held_out],
        "responses": responses,
    }


def _demonstrations(
    data: Artifact, codec: Codec, config: PPOConfig
) -> Callable[[torch.Generator], LanguageModelBatch]:
    """Draws minibatches of demonstrations for PPO-ptx."""
    limit = config.max_prompt_length + config.response_length
    rows, _ = encode_demonstrations(data, codec, "train", limit)
    if not rows:
        raise DataError(
            "ppo.ptx_coef needs demonstrations and none fits into ppo.max_prompt_length + ppo.response_length",
            where=str(data.path),
            mend="raise them, or set ppo.ptx_coef to 0",
        )
    size = config.batch_size // config.num_mini_batches

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = [rows[int(i)] for i in torch.randint(len(rows), (size,), generator=generator)]
        ids, _ = pad([row["input_ids"] for row in chosen], codec.pad_id, left=False)
        labels, _ = pad([row["labels"] for row in chosen], IGNORED, left=False)
        return ids, labels

    return draw


def _save(path: Path, state: dict[str, Any]) -> None:
    """Atomically: a kill leaves the old checkpoint or the new one, whole."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as out:
            torch.save(state, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise StageError(
            f"the checkpoint cannot be written: {error}", where=str(path), mend="free some space"
        ) from error


def _load(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise StageError(
            f"the checkpoint is damaged: {(str(error).splitlines() or [type(error).__name__])[0]}",
            where=str(path),
            mend="start the stage afresh, with --fresh",
        ) from error
    return state
