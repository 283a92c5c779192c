"""The `eval` stage: was it worth it? Base, SFT, PPO and its baselines on held-out prompts, by independent judges.

1. Every model answers the same prompts with the same random numbers; best-of-n picks by the reward model from
   answers of the SFT model, at the n whose KL is nearest PPO's.
2. What can be counted: the reward model's score (the proxy), KL, length, variety, repetition, losses on held-out
   demonstrations and text.
3. What judges say that PPO never optimised: the task's rubric, a held-out reward model, a language model. Win rates
   with bootstrap intervals over prompts, the change of fact errors, the most improved and most damaged prompts.
4. The frontier: judge and proxy at each look's KL along PPO, and where over-optimisation set in.

It makes `eval.json`, `answers.jsonl` (what people judge), `judged.jsonl` (faults of every answer) and
`samples.jsonl`. After several rounds `ppo` is the last one's policy, and `ppo-1`, ... are those before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data.schema import write_jsonl
from data.venues.slots import SlotErrors, slot_error_rate
from pipeline.config.evaluate import EvalConfig
from pipeline.engine.rounds import by_round
from pipeline.engine.stage import Artifact, Metrics, RunContext
from pipeline.errors import DataError
from stages.eval import along, best_of_n, wins
from stages.eval.answers import Answers, answer_all, sample_sft
from stages.eval.contests import contests, extremes
from stages.eval.judges import Judge, RewardModel, Rubric, faults, proxy_scorer, scoring_judges
from stages.eval.texts import distinct, repetition
from stages.eval.wins import Array
from stages.models.text import Codec, load_codec
from stages.sampling.prompts import EncodedPrompt, unseen_prompts
from stages.scoring.llm_judge import LLMJudge

KINDS = ("missing", "wrong", "invented", "repeated")


@dataclass(frozen=True)
class Panel:
    """What was answered, and what is said of it.

    Attributes:
        scores: (P, S) by model: the proxy's.
        merits: (P, S) by judge, then by model.
        n: of best-of-n, if it is there.
    """

    prompts: Sequence[EncodedPrompt]
    answers: Mapping[str, Answers]
    scores: Mapping[str, Array]
    merits: Mapping[str, Mapping[str, Array]]
    n: int | None


def run(config: EvalConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    codec = load_codec(inputs["base"])
    llm = None if config.llm_judge is None else LLMJudge(config.llm_judge, ctx.recipe_dir)
    prompts = unseen_prompts(inputs, codec, config.max_prompt_length)[: config.num_prompts]
    if not prompts:
        raise DataError(
            "there is no held-out prompt to evaluate on",
            where=str(inputs["data"].path),
            hint="raise data.eval_fraction or eval.max_prompt_length",
        )
    # 1. One model after the other: a card need not hold them all.
    answers = answer_all(inputs, prompts, codec, config, ctx)
    if config.best_of_n is not None:
        answers["best_of_n"] = sample_sft(inputs, prompts, codec, config, ctx, config.best_of_n)
    proxy = RewardModel("proxy", proxy_scorer(inputs, codec, ctx.device))
    scores = _merits(proxy, prompts, answers, ctx)
    del proxy
    n = None
    if config.best_of_n is not None:
        n = best_of_n.nearest(float(_kl(answers["ppo"]).mean()), config.best_of_n)
        weights = best_of_n.weights(scores["best_of_n"], n)
        answers["best_of_n"] = replace(answers["best_of_n"], weights_PS=weights)
    judges = scoring_judges(config, inputs, codec, ctx.device)
    merits = {judge.name: _merits(judge, prompts, answers, ctx) for judge in judges}
    panel = Panel(prompts, answers, scores, merits, n)
    # 2. and 3.
    rubric = next((judge for judge in judges if isinstance(judge, Rubric)), None)
    checks = {} if rubric is None else {name: rubric.checks(prompts, found) for name, found in answers.items()}
    result: dict[str, Any] = {
        "judge": None if rubric is None else config.judge,
        "judges": [{"name": judge.name, "unit": judge.unit} for judge in judges],
        "prompts": len(prompts),
        "bootstrap": config.bootstrap,
        "settings": {
            name: getattr(config, name) for name in ("max_prompt_length", "response_length", "temperature")
        },
        "models": {
            name: _describe(panel, name, codec, config, ctx.seed)
            | (_errors(checks[name], answers[name], config, ctx.seed) if name in checks else {})
            for name in answers
        },
    }
    if rubric is not None:
        result |= _changes(checks, answers, config, ctx.seed)
        write_jsonl(out_dir / "judged.jsonl", _judged(prompts, checks))
    result["wins"], verdicts = contests(panel.prompts, answers, merits, llm, config, ctx)
    if rubric is not None:
        first = next(row for row in result["wins"] if (row["judge"], row["theirs"]) == (rubric.name, "sft"))
        result["win_rate"] = {key: first[key] for key in ("value", "low", "high", "ties")}
        result["win_rate"]["by"] = f"judge {config.judge}"
    result["extremes"] = extremes(prompts, answers, merits, verdicts, config.extremes)
    # 4.
    result["along"] = [
        {"round": number} | _look(rubric, look)
        for number, policy in by_round(inputs, "ppo").items()
        for look in policy.jsonl("looks.jsonl")
    ]
    if judges:
        result |= _frontier(judges[0], panel, inputs, codec, config, ctx)
    (out_dir / "eval.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shown = {name: found.shown for name, found in answers.items()}
    write_jsonl(
        out_dir / "answers.jsonl",
        (
            {"prompt": prompt.messages, "answers": {name: texts[i] for name, texts in shown.items()}}
            for i, prompt in enumerate(prompts)
        ),
    )
    write_jsonl(out_dir / "samples.jsonl", _samples(prompts, shown, rubric, config.samples))
    return _flat(result)


def _merits(
    judge: Judge, prompts: Sequence[EncodedPrompt], answers: Mapping[str, Answers], ctx: RunContext
) -> dict[str, Array]:
    """(P, S) by model."""
    merits = {}
    with ctx.progress(f"eval {judge.name}", total=sum(found.weights_PS.size for found in answers.values())) as bar:
        for name, found in answers.items():
            merits[name] = judge.merits(prompts, found)
            bar.advance(found.weights_PS.size)
    return merits


def _kl(found: Answers) -> Array:
    assert found.kl_P is not None
    return found.kl_P


def _describe(panel: Panel, name: str, codec: Codec, config: EvalConfig, seed: int) -> dict[str, Any]:
    found = panel.answers[name]
    lengths = np.array([[len(row) for row in rows] for rows in found.ids], dtype=float)
    ended = np.array([[row[-1] in codec.stop_ids for row in rows] for rows in found.ids], dtype=float)
    made: dict[str, Any] = {
        "score": float(found.expected(panel.scores[name]).mean()),
        "length": float(found.expected(lengths).mean()),
        "ended": float(found.expected(ended).mean()),
        "distinct_1": distinct(found.shown, 1),
        "distinct_2": distinct(found.shown, 2),
        "repetition": float(np.mean([repetition(text) for text in found.shown])),
        "kl": None,
        **(found.losses or {"nll": None}),
    }
    if name == "best_of_n":
        assert panel.n is not None
        made |= {"n": panel.n, "kl": best_of_n.kl_bound(panel.n)}
    elif found.kl_P is not None:
        kl = wins.mean(found.kl_P, config.bootstrap, seed)
        made |= {"kl": kl["value"], "kl_low": kl["low"], "kl_high": kl["high"]}
    return made


def _expected(found: Answers, values: Sequence[Sequence[float]]) -> Array:
    return found.expected(np.array(values, dtype=float))


def _fact_errors(checks: Sequence[Sequence[SlotErrors]], found: Answers) -> Array:
    return _expected(found, [[c.errors for c in row] for row in checks])


def _given(checks: Sequence[Sequence[SlotErrors]]) -> Array:
    return np.array([row[0].given for row in checks], dtype=float)


def _errors(
    checks: Sequence[Sequence[SlotErrors]], found: Answers, config: EvalConfig, seed: int
) -> dict[str, float]:
    rate = wins.ratio(_fact_errors(checks, found), _given(checks), config.bootstrap, seed)
    return {
        "slot_error_rate": rate["value"],
        "slot_error_low": rate["low"],
        "slot_error_high": rate["high"],
        **{
            kind: float(_expected(found, [[len(getattr(c, kind)) for c in row] for row in checks]).mean())
            for kind in KINDS
        },
        "faultless": float(_expected(found, [[faults(c) == 0 for c in row] for row in checks]).mean()),
    }


def _changes(
    checks: Mapping[str, Sequence[Sequence[SlotErrors]]],
    answers: Mapping[str, Answers],
    config: EvalConfig,
    seed: int,
) -> dict[str, Any]:
    """Relative changes of the fact errors: PPO's from SFT's, and each policy's from the one before."""
    errors = {name: _fact_errors(found, answers[name]) for name, found in checks.items()}
    policies = ["sft", *(name for name in answers if name.startswith("ppo"))]
    return {
        "reduction": wins.relative_change(errors["ppo"], errors["sft"], config.bootstrap, seed),
        "by_round": [
            wins.relative_change(errors[after], errors[before], config.bootstrap, seed)
            for before, after in pairwise(policies)
        ],
    }


def _look(rubric: Rubric | None, look: dict[str, Any]) -> dict[str, Any]:
    row = {name: look[name] for name in ("update", "kl", "score", "length")}
    if rubric is not None:
        pairs = zip(look["prompts"], look["responses"], strict=True)
        row["slot_error_rate"] = slot_error_rate([rubric.check(prompt, text) for prompt, text in pairs])
    return row


def _frontier(
    judge: Judge,
    panel: Panel,
    inputs: Mapping[str, Artifact],
    codec: Codec,
    config: EvalConfig,
    ctx: RunContext,
) -> dict[str, Any]:
    """The frontier along PPO and that of best-of-n, in standard deviations over the SFT model's answers."""
    scales = along.Scales(
        gold=along.spread(panel.merits[judge.name]["sft"]), proxy=along.spread(panel.scores["sft"])
    )
    found = along.frontier(judge, by_round(inputs, "ppo"), codec, scales, config, ctx)
    made: dict[str, Any] = {"frontier": found}
    if panel.n is not None:
        made["best_of_n"] = along.best_of_n_ladder(
            panel.scores["best_of_n"],
            panel.merits[judge.name]["best_of_n"],
            scales,
            config,
            ctx.seed,
        ) | {"n": panel.n, "reaches": best_of_n.kl_bound(int(config.best_of_n or 1))}
    made["points"] = {
        name: {
            "kl": float(_kl(panel.answers[name]).mean()),
            "gold": wins.mean(
                (panel.merits[judge.name][name][:, 0] - panel.merits[judge.name]["sft"][:, 0]) / scales.gold,
                config.bootstrap,
                ctx.seed,
            ),
        }
        for name in ("ppo", "dpo")
        if name in panel.answers
    }
    return made


def _judged(
    prompts: Sequence[EncodedPrompt], checks: Mapping[str, Sequence[Sequence[SlotErrors]]]
) -> list[dict[str, Any]]:
    """Each prompt with the facts it gives and, by model, the errors in the answer and all its faults: what another
    run on the same prompts can be compared with. Best-of-n has many answers, and is left out."""
    single = {name: [row[0] for row in found] for name, found in checks.items() if name != "best_of_n"}
    return [
        {
            "prompt": prompt.messages[-1]["content"],
            "given": single["ppo"][i].given,
            "errors": {name: found[i].errors for name, found in single.items()},
            "faults": {name: faults(found[i]) for name, found in single.items()},
        }
        for i, prompt in enumerate(prompts)
    ]


def _samples(
    prompts: Sequence[EncodedPrompt], shown: Mapping[str, Sequence[str]], rubric: Rubric | None, count: int
) -> list[dict[str, Any]]:
    """The first prompts of the held-out split, unselected, with every model's answer."""
    return [
        {
            "prompt": prompt.messages[-1]["content"],
            "answers": {name: texts[i] for name, texts in shown.items()},
            "faults": {}
            if rubric is None
            else {
                name: {kind: getattr(rubric.check(prompt.messages, texts[i]), kind) for kind in KINDS}
                for name, texts in shown.items()
            },
        }
        for i, prompt in enumerate(prompts[:count])
    ]


def _flat(result: dict[str, Any]) -> Metrics:
    flat: Metrics = {"prompts": result["prompts"], "judge": result["judge"] or "none"}
    for name, numbers in result["models"].items():
        flat |= {f"{name}/{key}": value for key, value in numbers.items() if value is not None}
    for name in ("win_rate", "reduction"):
        flat |= {f"{name}/{key}": value for key, value in result.get(name, {}).items() if value is not None}
    for row in result["wins"]:
        flat[f"wins/{row['judge']}/{row['ours']} against {row['theirs']}"] = row["value"]
    return flat
