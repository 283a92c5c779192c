"""The `ppo` stage: trains the policy with `PPOTrainer`, with checkpoints, training monitors and the gate.

Writes the policy (`adapter/` or `model/`), `value.safetensors` (the critic, if there is one), `fingerprints.json`
(checked when a later round starts from this policy), `evaluations.jsonl` (responses to held-out prompts during the
run, scored by a judge that PPO does not optimise) and `alerts.jsonl`. The policy is that of the best evaluation
point, or of the last update.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from data.schema import write_jsonl
from pipeline.config.ppo import PPOConfig
from pipeline.engine.rounds import by_round
from pipeline.engine.stage import Artifact, Metrics, RunContext
from pipeline.errors import RecipeError
from stages.left_out import LeftOut
from stages.models import checkpoint
from stages.models.adapters import MODEL, save_adapter
from stages.models.bank import ActorBank, Bank
from stages.models.distributed import World
from stages.models.sharding import gathered, gathered_state
from stages.models.text import IGNORED, Codec, load_codec, pad
from stages.ppo import fingerprints, gate, judges, roles
from stages.ppo.artifact import ALERTS, OPTIMUM, POINTS
from stages.ppo.ptx import Demonstrations
from stages.ppo.trainer import PPOTrainer
from stages.ppo.watch.alerts import AlertLog
from stages.ppo.watch.evaluation import Evaluations, evaluation_prompts
from stages.sampling import vllm
from stages.sampling.prompts import load_prompts
from stages.scoring.terms import WrittenTerms, copy_functions
from stages.training.demonstrations import encode_demonstrations

SHOWN = ("objective/scores", "objective/kl", "response/length", "objective/entropy")
"""Metrics in the progress display."""

SELECTED = ("kl", "score", "length", "judge")
"""Metrics of the selected evaluation point that go into the manifest."""

FINGERPRINTS = 8
"""Responses whose log-probs are stored with the policy."""


def run(config: PPOConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    forced = gate.check(config, inputs, ctx)
    codec = load_codec(inputs["base"])
    with ctx.progress("reading prompts") as bar:
        read = partial(
            load_prompts, inputs["data"], codec, max_length=config.max_prompt_length, advance=bar.advance
        )
        (prompts, left_out), (held_out, unmeasured) = read("train"), read("eval")
    if not prompts:
        raise left_out.error(ctx.describe, str(inputs["data"].path), "add prompts")
    demonstrations, unlearned = _demonstrations(inputs["data"], codec, config, ctx)
    losses = [left_out, unmeasured, *unlearned]
    for counted in losses:
        counted.report(ctx.say)
    if config.batch_size < World().size:
        raise RecipeError(
            f"ppo.batch_size: {World().size} processes cannot share a batch of {config.batch_size}",
            where=ctx.describe("ppo.batch_size"),
            hint="start fewer processes, or enlarge the batch",
        )
    if World().rank == 0:
        copy_functions(config.reward.terms or (), out_dir)
    torch.manual_seed(ctx.seed)
    bank, reward = roles.build(config, inputs, codec, ctx.device, ctx.sharded, ctx.offload, ctx.say, ctx.recipe_dir)
    sampler = None
    if config.sampler == "vllm":
        assert isinstance(bank, ActorBank)  # pipeline/config/sampler.py
        with ctx.progress("starting vLLM"):
            engine = vllm.start(config, inputs["base"], bank, ctx.device, ctx.seed)
        sampler = vllm.VLLMSampler(engine, bank, codec.pad_id)
    earlier = by_round(inputs, "ppo")
    trainer = PPOTrainer(
        bank,
        config,
        codec,
        prompts,
        reward,
        seed=ctx.seed,
        device=ctx.device,
        demonstrations=demonstrations,
        is_copy=not earlier,
        sampler=sampler,
        say=ctx.say,
    )
    if earlier:
        _continue_from(trainer, earlier[max(earlier)])
    judge = judges.build(config, inputs, codec, bank, ctx.device) if config.eval_updates else None
    evaluations = Evaluations(trainer, evaluation_prompts(held_out, config.eval_prompts), judge, ctx)
    alerts = AlertLog(config)
    if judge is None and config.checkpoint == "best" and config.eval_updates:
        ctx.say("No independent judge is set (ppo.monitor.judge), so the last policy is kept.")
    _train(trainer, evaluations, alerts, ctx)
    trainer.frozen.check()

    selected = evaluations.select()
    if trainer.world.rank == 0 or bank.mesh:
        fingerprints.write(trainer, prompts[:FINGERPRINTS], ctx.seed, out_dir)
        _write(out_dir, bank, config)
    if trainer.world.rank == 0:
        write_jsonl(out_dir / POINTS, evaluations.points)
        if trainer.solution:
            (out_dir / OPTIMUM).write_text(
                json.dumps(trainer.solution.state_dict(), indent=1) + "\n", encoding="utf-8"
            )
        write_jsonl(out_dir / ALERTS, alerts.events)
        if config.reward.terms is not None:
            statistics: Any = trainer.normalizer.state_dict()
            WrittenTerms(
                terms=config.reward.terms,
                score=config.score,
                reward=replace(config.reward, terms=None),
                statistics=statistics,
            ).write(out_dir)
    process_share = -(-config.batch_size // config.num_mini_batches // trainer.world.size)
    return {
        "prompts": len(prompts),
        **{name: value for counted in losses for name, value in counted.metrics().items()},
        "episodes": trainer.update * config.batch_size,
        "updates": trainer.update,
        "selected_update": selected["update"] if selected else trainer.update,
        "judge": judge.name if judge else "none",
        **({"stopped_at": trainer.update, "planned_updates": trainer.updates} if evaluations.stop else {}),
        "alerts": len(alerts.events),
        "trainable_parameters": sum(p.numel() for p in bank.parameters() if p.requires_grad),
        "kl_coef": selected["kl_coef"] if selected else trainer.kl.value,
        "mfu": trainer.meter.mfu,
        **({"micro_batch_size": trainer.micro.size or process_share} if trainer.micro.auto else {}),
        **{f"final_{name}": selected[name] for name in SELECTED if selected and name in selected},
        **({"held_out_members": config.reward.held_out} if config.reward.held_out else {}),
        **(
            {"reward_model": config.reward_model, "reward_model_revision": config.reward_model_revision}
            if config.reward_model is not None
            else {}
        ),
        **({"forced_past_gate": forced} if forced else {}),
    }


def _write(out_dir: Path, bank: Bank, config: PPOConfig) -> None:
    """Writes the policy and, if there is one, the critic from rank 0. All processes of a sharded bank must call
    it."""
    writes, critic = World().rank == 0, "value" if config.critic == "adapter" else "policy"
    value = {name: gathered(tensor) for name, tensor in bank.state_of(critic).items()}
    models: Any = bank
    policy = models.model if isinstance(bank, ActorBank) else models.models["policy"]
    # Neither transformers nor peft gathers tensors.
    part = "lora_" if isinstance(bank, ActorBank) else ""
    weights: Any = {"state_dict": gathered_state(policy, part)} if bank.mesh else {}
    if writes and isinstance(bank, ActorBank):
        save_adapter(policy, "policy", out_dir, **weights)
    elif writes:
        policy.save_pretrained(out_dir / MODEL, **weights)
    if writes and config.critic is not None:
        save_file({name: tensor.cpu() for name, tensor in value.items()}, out_dir / "value.safetensors")


def _continue_from(trainer: PPOTrainer, previous: Artifact) -> None:
    """Continues from the previous round: verifies its policy, and restores its KL coefficient if that adapts."""
    fingerprints.verify(previous, trainer.bank, trainer.config, trainer.codec, trainer.device, trainer.exact)
    if trainer.config.kl.kind == "adaptive":
        trainer.kl.value = previous.metrics["kl_coef"]


def _train(trainer: PPOTrainer, evaluations: Evaluations, alerts: AlertLog, ctx: RunContext) -> None:
    """Runs the training loop, from the checkpoint if there is one."""
    path, config = ctx.state_dir / "checkpoint.pt", trainer.config
    if path.exists():
        state = checkpoint.load(path, trainer.bank.mesh)
        trainer.load_state_dict(state["trainer"])
        evaluations.restore(state["evaluations"])
        alerts.load_state_dict(state["alerts"])
        ctx.metrics.truncate(trainer.update)
        ctx.say(f"resuming from update {trainer.update} of {trainer.updates}")
    else:
        ctx.metrics.truncate(-1)  # an interrupted run may have logged updates without a checkpoint
        trainer.start(ctx.progress)
        for line in trainer.solution.lines() if trainer.solution else ():
            ctx.say(line)
        roles.start_value(trainer.bank, config, trainer.normalizer)
    with ctx.progress("ppo", total=trainer.updates, done=trainer.update) as bar:
        while trainer.update < trainer.updates and not evaluations.stop:
            first = trainer.update == 0
            if first and evaluations.due:
                evaluations.evaluate()
            metrics = trainer.step()
            if evaluations.due:
                metrics |= evaluations.evaluate()
            ctx.metrics.log(trainer.update, **metrics)
            bar.advance(1, **{name.rpartition("/")[2]: metrics[name] for name in SHOWN})
            for line in alerts.update(trainer.update, metrics):
                ctx.say(line)
            if evaluations.due:
                for line in alerts.evaluation(evaluations.points, evaluations.regression, stop=evaluations.stop):
                    ctx.say(line)
            due, writes = trainer.update % config.save_updates == 0 or first, trainer.world.rank == 0
            if due and (writes or trainer.bank.mesh):
                state = {
                    "trainer": trainer.state_dict(),
                    "evaluations": evaluations.points,
                    "alerts": alerts.state_dict(),
                }
                checkpoint.save(path, state)
                if writes:
                    evaluations.prune()
                del state  # a copy of all trainable weights, too large to hold during an update


def _demonstrations(
    data: Artifact, codec: Codec, config: PPOConfig, ctx: RunContext
) -> tuple[Demonstrations | None, list[LeftOut]]:
    """Draws minibatches of demonstrations for PPO-ptx, and what is left out of them; nothing without PPO-ptx."""
    if not config.ptx_coef:
        return None, []
    limit = config.max_prompt_length + config.response_length
    key = "ppo.max_prompt_length + ppo.response_length"
    with ctx.progress("reading demonstrations") as bar:
        rows, left_out = encode_demonstrations(
            data, codec, "train", limit, key=key, prefix="ptx_", advance=bar.advance
        )
    if not rows:
        raise left_out.error(ctx.describe, str(data.path), "set ppo.ptx_coef to 0")
    size = config.batch_size // config.num_mini_batches

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = [rows[int(i)] for i in torch.randint(len(rows), (size,), generator=generator)]
        ids, _ = pad([row["input_ids"] for row in chosen], codec.pad_id, left=False)
        labels, _ = pad([row["labels"] for row in chosen], IGNORED, left=False)
        return ids, labels

    return draw, [left_out]
