"""The `eval` stage: base, SFT and PPO model on held-out prompts, by a judge that the reward model never saw.

It makes `eval.json`, `judged.jsonl` (faults of every answer), `answers.jsonl` (what people judge) and
`samples.jsonl`. The same random numbers draw every model's answers, so that models are compared answer by answer.
After several rounds `ppo` is the last one's policy, and `ppo-1`, ... are those before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.schema import Message, write_jsonl
from data.shares import bootstrap
from data.slots import SlotErrors, SlotLexicon, parse_mr, slot_error_rate
from pipeline.config.evaluate import EvalConfig
from pipeline.errors import DataError
from pipeline.rounds import by_round, newest
from pipeline.stage import Artifact, Metrics, RunContext
from stages.models.actor import Actor
from stages.models.adapters import load_actor
from stages.models.loading import load_tokenizer
from stages.models.text import IGNORED, Codec
from stages.ppo.rollout import generate
from stages.ppo.trajectory import Episodes, logprobs
from stages.prompts import EncodedPrompt, load_prompts
from stages.reward.classifier import response_scorer
from stages.sft import encode_demonstrations


@dataclass(frozen=True)
class Answers:
    """One model's answers to the prompts, and what is known of them."""

    ids: list[list[int]]
    texts: list[str]
    kl_B: Tensor | None
    nll: float | None


def run(config: EvalConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    codec = Codec(load_tokenizer(inputs["base"]))
    prompts, _ = load_prompts(inputs["data"], codec, "eval", config.max_prompt_length)
    prompts = prompts[: config.num_prompts]
    if not prompts:
        raise DataError(
            "there is no held-out prompt to evaluate on",
            where=str(inputs["data"].path),
            mend="raise data.eval_fraction or eval.max_prompt_length",
        )
    answers = {
        name: _answer(name, artifact, inputs, prompts, codec, config, ctx)
        for name, artifact in evaluated(inputs).items()
    }
    judge = None if config.judge == "none" else SlotLexicon.load(config.judge)
    scores = _reward_scores(inputs, prompts, answers, ctx)
    checks = {
        name: [_check(judge, prompt.messages, text) for prompt, text in zip(prompts, found.texts, strict=True)]
        for name, found in answers.items()
        if judge is not None
    }
    result: dict[str, Any] = {
        "judge": None if judge is None else config.judge,
        "prompts": len(prompts),
        "bootstrap": config.bootstrap,
        "settings": {
            name: getattr(config, name) for name in ("max_prompt_length", "response_length", "temperature")
        },
        "models": {
            name: _describe(found, codec, scores[name])
            | (_errors(checks[name], config.bootstrap, ctx.seed) if name in checks else {})
            for name, found in answers.items()
        },
    }
    if judge is not None:
        result["win_rate"] = win_rate(checks["ppo"], checks["sft"], config.bootstrap, ctx.seed)
        result["win_rate"]["by"] = f"judge {config.judge}"
        result["reduction"] = reduction(checks["ppo"], checks["sft"], config.bootstrap, ctx.seed)
        policies = ["sft", *(name for name in answers if name.startswith("ppo"))]
        result["by_round"] = [
            reduction(checks[after], checks[before], config.bootstrap, ctx.seed)
            for before, after in pairwise(policies)
        ]
        write_jsonl(out_dir / "judged.jsonl", _judged(prompts, checks))
    result["along"] = [
        {"round": number} | _judge_look(judge, look)
        for number, policy in by_round(inputs, "ppo").items()
        for look in policy.jsonl("looks.jsonl")
    ]
    (out_dir / "eval.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_jsonl(
        out_dir / "answers.jsonl",
        (
            {"prompt": prompt.messages, "answers": {name: found.texts[i] for name, found in answers.items()}}
            for i, prompt in enumerate(prompts)
        ),
    )
    write_jsonl(out_dir / "samples.jsonl", _samples(prompts, answers, checks, config.samples))
    return _flat(result)


def evaluated(inputs: Mapping[str, Artifact]) -> dict[str, Artifact | None]:
    """What is compared, by name, in order; None is the bare base model."""
    *earlier, last = by_round(inputs, "ppo").items()
    policies = {f"ppo-{number}": policy for number, policy in earlier} | {"ppo": last[1]}
    return {"base": None, "sft": inputs["sft"], **policies}


def _answer(
    name: str,
    artifact: Artifact | None,
    inputs: Mapping[str, Artifact],
    prompts: Sequence[EncodedPrompt],
    codec: Codec,
    config: EvalConfig,
    ctx: RunContext,
) -> Answers:
    """A model's answers, its loss on held-out demonstrations and, for SFT and PPO, its KL from the SFT model."""
    actor = load_actor(inputs["base"], artifact, ctx.device)
    generator = torch.Generator().manual_seed(ctx.seed)
    with ctx.progress(f"eval {name}", total=len(prompts)) as bar:
        ids = generate(
            actor,
            [prompt.ids for prompt in prompts],
            torch.rand((len(prompts), config.response_length), generator=generator),
            temperature=config.temperature,
            stop_ids=codec.stop_ids,
            pad_id=codec.pad_id,
            batch_size=config.batch_size,
            on_batch=bar.advance,
        )
    kl = torch.zeros(len(ids)) if name == "sft" else None
    if name.startswith("ppo"):
        reference = load_actor(inputs["base"], inputs["sft"], ctx.device)
        asked = [prompt.ids for prompt in prompts]
        ours, theirs = (
            response_logprobs(who, asked, ids, codec, temperature=config.temperature, batch_size=config.batch_size)
            for who in (actor, reference)
        )
        kl = ours - theirs
    return Answers(ids, [codec.decode(row) for row in ids], kl, _nll(actor, inputs["data"], codec, config))


def _nll(actor: Actor, data: Artifact, codec: Codec, config: EvalConfig) -> float | None:
    """Nats a token on the completions of held-out demonstrations; None when there are none."""
    rows, _ = encode_demonstrations(data, codec, "eval", config.max_prompt_length + config.response_length)
    if not rows:
        return None
    starts = [sum(label == IGNORED for label in row["labels"]) for row in rows[: config.num_prompts]]
    prompts = [row["input_ids"][:start] for row, start in zip(rows, starts, strict=False)]
    completions = [row["input_ids"][start:] for row, start in zip(rows, starts, strict=False)]
    logps = response_logprobs(actor, prompts, completions, codec, temperature=1.0, batch_size=config.batch_size)
    return -float(logps.sum()) / sum(map(len, completions))


@torch.no_grad()
def response_logprobs(
    actor: Actor,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    codec: Codec,
    *,
    temperature: float,
    batch_size: int,
) -> Tensor:
    """Log-probability (B,) of each whole response given its prompt, nats, on the CPU."""
    episodes = Episodes.build(prompts, responses, codec.stop_ids, codec.pad_id, actor.device)
    totals = torch.zeros(len(episodes))
    for rows, part in episodes.micro_batches(torch.arange(len(episodes)), batch_size):
        hidden = actor.hidden(part.ids_BL)
        logps, _ = logprobs(actor, part, hidden, temperature=temperature, chunk_size=None, entropy=False)
        totals[rows] = logps.sum(1).cpu()
    return totals


def _reward_scores(
    inputs: Mapping[str, Artifact],
    prompts: Sequence[EncodedPrompt],
    answers: Mapping[str, Answers],
    ctx: RunContext,
) -> dict[str, Tensor]:
    """The (newest) `reward` stage's scores of every model's answers: the proxy, to be read beside the judge."""
    reward, codec = newest(inputs, "reward"), Codec(load_tokenizer(inputs["base"]))
    score = response_scorer(reward, inputs["base"], codec, ctx.device)
    return {name: score([prompt.ids for prompt in prompts], found.ids) for name, found in answers.items()}


def _describe(found: Answers, codec: Codec, scores: Tensor) -> dict[str, Any]:
    words = [text.split() for text in found.texts]
    bigrams = [pair for text in words for pair in pairwise(text)]
    return {
        "score": float(scores.mean()),
        "length": float(np.mean([len(row) for row in found.ids])),
        "ended": float(np.mean([row[-1] in codec.stop_ids for row in found.ids])),
        "distinct_2": len(set(bigrams)) / max(1, len(bigrams)),
        "kl": None if found.kl_B is None else float(found.kl_B.mean()),
        "nll": found.nll,
    }


def _check(judge: SlotLexicon | None, prompt: Sequence[Message], text: str) -> SlotErrors:
    assert judge is not None
    return judge.check(parse_mr(prompt[-1]["content"]), text)


def _errors(checks: Sequence[SlotErrors], resamples: int, seed: int) -> dict[str, float]:
    low, high = bootstrap([c.errors for c in checks], [c.given for c in checks], resamples=resamples, seed=seed)
    return {
        "slot_error_rate": slot_error_rate(checks),
        "slot_error_low": low,
        "slot_error_high": high,
        **{
            kind: float(np.mean([len(getattr(c, kind)) for c in checks]))
            for kind in ("missing", "wrong", "invented", "repeated")
        },
        "faultless": float(np.mean([_faults(c) == 0 for c in checks])),
    }


def _faults(check: SlotErrors) -> int:
    return check.errors + len(check.repeated)


def win_rate(ours: Sequence[SlotErrors], theirs: Sequence[SlotErrors], resamples: int, seed: int) -> dict[str, Any]:
    """Share of prompts on which `ours` has fewer faults (errors and repetitions), ties counting half, with a 95 %
    bootstrap interval over prompts."""
    wins = np.array([0.5 * (1 + np.sign(_faults(b) - _faults(a))) for a, b in zip(ours, theirs, strict=True)])
    low, high = bootstrap(wins.tolist(), [1.0] * len(wins), resamples=resamples, seed=seed)
    return {"value": float(wins.mean()), "low": low, "high": high, "ties": float((wins == 0.5).mean())}


def reduction(
    ours: Sequence[SlotErrors], theirs: Sequence[SlotErrors], resamples: int, seed: int
) -> dict[str, float | None]:
    """Relative change of the slot error rate, -0.5 for half, with a 95 % bootstrap interval over prompts."""
    a, b = (np.array([c.errors for c in checks], dtype=float) for checks in (ours, theirs))
    pick = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a)))
    if not b.sum():
        return {"value": None, "low": None, "high": None}  # no errors to reduce
    draws = a[pick].sum(1) / np.maximum(b[pick].sum(1), 1) - 1
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": float(a.sum() / b.sum() - 1), "low": float(low), "high": float(high)}


def _judge_look(judge: SlotLexicon | None, look: dict[str, Any]) -> dict[str, Any]:
    row = {name: look[name] for name in ("update", "kl", "score", "length")}
    if judge is not None:
        checks = [
            _check(judge, prompt, text) for prompt, text in zip(look["prompts"], look["responses"], strict=True)
        ]
        row["slot_error_rate"] = slot_error_rate(checks)
    return row


def _judged(prompts: Sequence[EncodedPrompt], checks: Mapping[str, Sequence[SlotErrors]]) -> list[dict[str, Any]]:
    """Each prompt with the facts it gives and, by model, the errors in the answer and all its faults: what another
    run on the same prompts can be compared with."""
    return [
        {
            "prompt": prompt.messages[-1]["content"],
            "given": checks["ppo"][i].given,
            "errors": {name: found[i].errors for name, found in checks.items()},
            "faults": {name: _faults(found[i]) for name, found in checks.items()},
        }
        for i, prompt in enumerate(prompts)
    ]


def _samples(
    prompts: Sequence[EncodedPrompt],
    answers: Mapping[str, Answers],
    checks: Mapping[str, Sequence[SlotErrors]],
    count: int,
) -> list[dict[str, Any]]:
    """The first prompts of the held-out split, unselected, with every model's answer."""
    kinds = ("missing", "wrong", "invented", "repeated")
    return [
        {
            "prompt": prompt.messages[-1]["content"],
            "answers": {name: found.texts[i] for name, found in answers.items()},
            "faults": {name: {kind: getattr(c[i], kind) for kind in kinds} for name, c in checks.items()},
        }
        for i, prompt in enumerate(prompts[:count])
    ]


def _flat(result: dict[str, Any]) -> Metrics:
    flat: Metrics = {"prompts": result["prompts"], "judge": result["judge"] or "none"}
    for name, numbers in result["models"].items():
        flat |= {f"{name}/{key}": value for key, value in numbers.items() if value is not None}
    for name in ("win_rate", "reduction"):
        flat |= {f"{name}/{key}": value for key, value in result.get(name, {}).items() if value is not None}
    return flat
