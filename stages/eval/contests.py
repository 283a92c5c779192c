"""Win rates by judge, and the prompts that gained and lost most."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.config.evaluate import EvalConfig
from pipeline.engine.stage import RunContext
from stages.eval import wins
from stages.eval.answers import Answers
from stages.eval.artifact import BASELINES, reference_of
from stages.eval.wins import Array
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.judge import Pair, PairJudge, Verdicts


def pairs_of(models: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of models whose win rate is measured, where both were evaluated."""
    reference = reference_of(models)
    pairs = [
        ("ppo", reference),
        ("ppo", "base"),
        ("ppo", "best_of_n"),
        *(("ppo", baseline) for baseline in BASELINES),
        *((baseline, reference) for baseline in BASELINES),
        ("best_of_n", reference),
    ]
    return [pair for pair in dict.fromkeys(pairs) if set(pair) <= set(models)]


def contests(
    prompts: Sequence[EncodedPrompt],
    answers: Mapping[str, Answers],
    scores: Mapping[str, Mapping[str, Array]],
    pair_judge: PairJudge | None,
    config: EvalConfig,
    ctx: RunContext,
) -> tuple[list[dict[str, Any]], Verdicts | None]:
    """One row per judge and contest: `judge`, `ours`, `theirs`, the win rate's `value`, `low` and `high`, the share
    of `ties`, and the number of `prompts`. Rows of the pair judge also have `disagreed` (the share of pairs that it
    judged differently in the other order) and `unreadable` (replies). Also returns the pair judge's verdicts on PPO
    against the reference.

    Args:
        scores: (P, S) by scoring judge, then by model.
        pair_judge: compares what `config.llm_judge` names.
    """
    reference, rows = reference_of(answers), []
    for judge, by_model in scores.items():
        for ours, theirs in pairs_of(answers):
            sides = (
                by_model[ours], answers[ours].weights_PS, by_model[theirs], answers[theirs].weights_PS,
            )  # fmt: skip
            rate = wins.mean(wins.wins(*sides), config.bootstrap, ctx.seed)
            row = {"judge": judge, "ours": ours, "theirs": theirs}
            rows.append(row | rate | {"ties": wins.ties(*sides), "prompts": len(prompts)})
    if pair_judge is None or config.llm_judge is None:
        return rows, None
    against_reference = None
    compared: list[tuple[str, str]] = [("ppo", theirs) for theirs in config.llm_judge.against if theirs in answers]
    compared += [(baseline, reference) for baseline in BASELINES if baseline in answers]
    for ours, theirs in compared:
        pairs = _pairs(prompts[: config.llm_judge.num_prompts], answers[ours], answers[theirs])
        name = f"{pair_judge.name}: {ours} against {theirs}"
        verdicts = pair_judge.compare(pairs, ctx.progress(name, total=2 * len(pairs)))
        if (ours, theirs) == ("ppo", reference):
            against_reference = verdicts
        won = np.array(verdicts.wins)
        rows.append(
            {
                "judge": pair_judge.name,
                "ours": ours,
                "theirs": theirs,
                **wins.mean(won, config.bootstrap, ctx.seed),
                "ties": float((won == 0.5).mean()),
                "prompts": len(won),
                "disagreed": verdicts.disagreed / len(won),
                "unreadable": verdicts.unreadable,
            }
        )
    return rows, against_reference


def _pairs(prompts: Sequence[EncodedPrompt], ours: Answers, theirs: Answers) -> list[Pair]:
    return [Pair(prompt.messages, ours.shown[i], theirs.shown[i]) for i, prompt in enumerate(prompts)]


def extremes(
    prompts: Sequence[EncodedPrompt],
    answers: Mapping[str, Answers],
    scores: Mapping[str, Mapping[str, Array]],
    verdicts: Verdicts | None,
    stop_ids: Collection[int],
    count: int,
) -> dict[str, Any] | None:
    """The prompts whose answer gained and lost most from the reference to PPO, by the first scoring judge, else by
    the pair judge; None without either. Of equal gains the first prompts. An answer is finished if it ends with one
    of `stop_ids`."""
    reference = reference_of(answers)
    if scores:
        judge, by_model = next(iter(scores.items()))
        gains = by_model["ppo"][:, 0] - by_model[reference][:, 0]
    elif verdicts is not None:
        judge, gains = "LLM judge", 2 * np.array(verdicts.wins) - 1
    else:
        return None
    order = gains.argsort(kind="stable")

    finished = {name: answers[name].finished(stop_ids) for name in (reference, "ppo")}

    def rows(picked: Any) -> list[dict[str, Any]]:
        return [
            {
                "prompt": prompts[i].messages[-1]["content"],
                "gain": float(gains[i]),
                reference: answers[reference].shown[i],
                "ppo": answers["ppo"].shown[i],
                "finished": {name: ends[i] for name, ends in finished.items()},
            }
            for i in picked.tolist()
        ]

    best = (-gains).argsort(kind="stable")
    return {
        "judge": judge,
        "improved": rows(best[gains[best] > 0][:count]),
        "damaged": rows(order[gains[order] < 0][:count]),
        "share_improved": float((gains > 0).mean()),
        "share_damaged": float((gains < 0).mean()),
    }
