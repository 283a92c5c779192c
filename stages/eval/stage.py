"""The `eval` stage: did it get better? Base, SFT, PPO and its baselines on held-out prompts, by independent judges.

The reference is the model that PPO started from: SFT or, in a recipe without SFT, the base model.

1. Every model answers the same prompts with the same random numbers; best-of-n selects by the reward model among
   answers of the reference, at the n whose KL is nearest PPO's.
2. Measurements without a judge: the reward model's score (the proxy), KL, length, variety, repetition, losses on
   held-out demonstrations and text.
3. Judges that PPO never optimised: the task's slot lexicon, a held-out reward model, a language model. Win rates
   with bootstrap intervals over prompts, the change of fact errors, the most improved and most damaged prompts.
4. The frontier: judge and proxy against the KL along PPO, and where over-optimisation set in.

It writes `eval.json`, `answers.jsonl` (for people to judge), `judged.jsonl` (faults of every answer) and
`samples.jsonl`. After several rounds `ppo` is the policy of the last one, and `ppo-1`, ... are the earlier ones.
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
from data.venues.slots import KINDS, SlotErrors, slot_error_rate
from pipeline.config.evaluate import EvalConfig
from pipeline.engine.rounds import by_round
from pipeline.engine.stage import Artifact, Metrics, RunContext
from stages.eval import along, best_of_n, optimum, wins
from stages.eval.answers import Answers, answer_all, held_out_demonstrations, sample_reference
from stages.eval.artifact import BASELINES, reference_of
from stages.eval.contests import contests, extremes
from stages.eval.judges import load_proxy, scoring_judges
from stages.eval.prompts import unseen_prompts
from stages.eval.texts import distinct, repetition
from stages.eval.wins import Array
from stages.models.text import Codec, load_codec
from stages.ppo.artifact import POINTS
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.judge import ScoringJudge
from stages.scoring.llm_judge import LLMJudge
from stages.scoring.scorer import Scorer
from stages.scoring.slots import SlotScorer, faults

ErrorsByAnswer = Sequence[Sequence[SlotErrors]]
"""By prompt, then by answer."""


@dataclass(frozen=True)
class Evaluation:
    """The answers and their scores.

    Attributes:
        proxy: (P, S) by model: the scores of the reward model that PPO optimised.
        judged: (P, S) by judge, then by model.
        n: of best-of-n, if it was evaluated.
    """

    prompts: Sequence[EncodedPrompt]
    answers: Mapping[str, Answers]
    proxy: Mapping[str, Array]
    judged: Mapping[str, Mapping[str, Array]]
    n: int | None


def run(config: EvalConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    codec = load_codec(inputs["base"])
    llm = None if config.llm_judge is None else LLMJudge(config.llm_judge, ctx.recipe_dir)
    with ctx.progress("reading held-out prompts") as bar:
        prompts, left_out = unseen_prompts(inputs, codec, config.max_prompt_length, bar.advance)
    with ctx.progress("reading held-out demonstrations") as bar:
        demonstrations, unmeasured = held_out_demonstrations(inputs["data"], codec, config, bar.advance)
    if not prompts:
        raise left_out.error(ctx.describe, str(inputs["data"].path), "raise data.eval_fraction")
    for counted in (left_out, unmeasured):
        counted.report(ctx.say)
    prompts = prompts[: config.num_prompts]
    # 1. One model at a time, so that they need not fit on the device together.
    answers = answer_all(inputs, prompts, demonstrations, codec, config, ctx)
    if config.best_of_n is not None:
        answers["best_of_n"] = sample_reference(inputs, prompts, codec, config, ctx, config.best_of_n)
    scorer = load_proxy(inputs, codec, ctx.device, ctx.say, ctx.recipe_dir)
    proxy = _score_all("proxy", scorer, prompts, answers, ctx)
    del scorer
    n = None
    if config.best_of_n is not None:
        n = best_of_n.nearest(float(_kl(answers["ppo"]).mean()), config.best_of_n)
        weights = best_of_n.weights(proxy["best_of_n"], n)
        answers["best_of_n"] = replace(answers["best_of_n"], weights_PS=weights)
    judges = scoring_judges(config, inputs, codec, ctx.device, ctx.say, ctx.recipe_dir)
    judged = {judge.name: _score_all(judge.name, judge.scorer, prompts, answers, ctx) for judge in judges}
    evaluation = Evaluation(prompts, answers, proxy, judged, n)
    # 2. and 3.
    slots = next((judge.scorer for judge in judges if isinstance(judge.scorer, SlotScorer)), None)
    errors = (
        {} if slots is None else {name: _slot_errors(slots, prompts, theirs) for name, theirs in answers.items()}
    )
    result: dict[str, Any] = {
        "judge": None if slots is None else config.judge,
        "judges": [{"name": judge.name, "unit": judge.unit} for judge in judges],
        "prompts": len(prompts),
        "bootstrap": config.bootstrap,
        "settings": {
            name: getattr(config, name) for name in ("max_prompt_length", "response_length", "temperature")
        },
        "models": {
            name: _describe(evaluation, name, codec, config, ctx.seed)
            | (_error_metrics(errors[name], answers[name], config, ctx.seed) if name in errors else {})
            for name in answers
        },
    }
    if "raft" in answers:
        result["models"]["raft"]["n"] = inputs["raft"].metrics["best_of_n"]
    if slots is not None:
        result |= _changes(errors, answers, config, ctx.seed)
        write_jsonl(out_dir / "judged.jsonl", _errors_by_prompt(prompts, errors))
    result["wins"], verdicts = contests(prompts, answers, judged, llm, config, ctx)
    if slots is not None:
        sides = (slots.name, "ppo", reference_of(answers))
        first = next(row for row in result["wins"] if (row["judge"], row["ours"], row["theirs"]) == sides)
        result["win_rate"] = {key: first[key] for key in ("value", "low", "high", "ties")}
        result["win_rate"]["by"] = f"judge {config.judge}"
    result["extremes"] = extremes(prompts, answers, judged, verdicts, codec.stop_ids, config.extremes)
    if config.best_of_n is not None:
        result["optimum"] = optimum.measure(
            proxy["best_of_n"],
            proxy["ppo"][:, 0],
            _kl(answers["ppo"]),
            unit=along.spread(proxy[reference_of(answers)]),
            resamples=config.bootstrap,
            seed=ctx.seed,
        )
    # 4.
    result["along"] = [
        {"round": number} | _along(slots, step)
        for number, policy in by_round(inputs, "ppo").items()
        for step in policy.jsonl(POINTS)
    ]
    if judges:
        result |= _frontier(judges[0], evaluation, inputs, codec, config, ctx)
    (out_dir / "eval.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shown = {name: theirs.shown for name, theirs in answers.items()}
    write_jsonl(
        out_dir / "answers.jsonl",
        (
            {"prompt": prompt.messages, "answers": {name: texts[i] for name, texts in shown.items()}}
            for i, prompt in enumerate(prompts)
        ),
    )
    finished = {name: theirs.finished(codec.stop_ids) for name, theirs in answers.items()}
    write_jsonl(out_dir / "samples.jsonl", _samples(prompts, shown, finished, slots, config.samples))
    return {**_flat(result), **left_out.metrics(), **unmeasured.metrics()}


def _score_all(
    name: str, scorer: Scorer, prompts: Sequence[EncodedPrompt], answers: Mapping[str, Answers], ctx: RunContext
) -> dict[str, Array]:
    """(P, S) by model."""
    with ctx.progress(f"eval {name}", total=sum(theirs.weights_PS.size for theirs in answers.values())) as bar:
        scorer.on_batch = bar.advance
        return {model: theirs.score(scorer, prompts) for model, theirs in answers.items()}


def _slot_errors(slots: SlotScorer, prompts: Sequence[EncodedPrompt], answers: Answers) -> ErrorsByAnswer:
    return [
        [slots.check_text(prompt.messages, text) for text in texts]
        for prompt, texts in zip(prompts, answers.texts, strict=True)
    ]


def _kl(answers: Answers) -> Array:
    assert answers.kl_P is not None
    return answers.kl_P


def _describe(evaluation: Evaluation, name: str, codec: Codec, config: EvalConfig, seed: int) -> dict[str, Any]:
    answers = evaluation.answers[name]
    lengths = np.array([[len(row) for row in rows] for rows in answers.ids], dtype=float)
    ended = np.array([[row[-1] in codec.stop_ids for row in rows] for rows in answers.ids], dtype=float)
    metrics: dict[str, Any] = {
        "score": float(answers.expected(evaluation.proxy[name]).mean()),
        "length": float(answers.expected(lengths).mean()),
        "ended": float(answers.expected(ended).mean()),
        "distinct_1": distinct(answers.shown, 1),
        "distinct_2": distinct(answers.shown, 2),
        "repetition": float(np.mean([repetition(text) for text in answers.shown])),
        "kl": None,
        **(answers.losses or {"nll": None}),
    }
    if name == "best_of_n":
        assert evaluation.n is not None
        metrics |= {"n": evaluation.n, "kl": best_of_n.kl_bound(evaluation.n)}
    elif answers.kl_P is not None:
        kl = wins.mean(answers.kl_P, config.bootstrap, seed)
        metrics |= {"kl": kl["value"], "kl_low": kl["low"], "kl_high": kl["high"]}
    return metrics


def _expected(answers: Answers, values: Sequence[Sequence[float]]) -> Array:
    return answers.expected(np.array(values, dtype=float))


def _fact_errors(errors: ErrorsByAnswer, answers: Answers) -> Array:
    return _expected(answers, [[e.errors for e in row] for row in errors])


def _facts(errors: ErrorsByAnswer) -> Array:
    return np.array([row[0].given for row in errors], dtype=float)


def _error_metrics(errors: ErrorsByAnswer, answers: Answers, config: EvalConfig, seed: int) -> dict[str, float]:
    rate = wins.ratio(_fact_errors(errors, answers), _facts(errors), config.bootstrap, seed)
    return {
        "slot_error_rate": rate["value"],
        "slot_error_low": rate["low"],
        "slot_error_high": rate["high"],
        **{
            kind: float(_expected(answers, [[len(getattr(e, kind)) for e in row] for row in errors]).mean())
            for kind in KINDS
        },
        "faultless": float(_expected(answers, [[faults(e) == 0 for e in row] for row in errors]).mean()),
    }


def _changes(
    errors: Mapping[str, ErrorsByAnswer],
    answers: Mapping[str, Answers],
    config: EvalConfig,
    seed: int,
) -> dict[str, Any]:
    """Relative changes of the fact errors: PPO's from the reference's, and each policy's from the one before."""
    totals = {name: _fact_errors(theirs, answers[name]) for name, theirs in errors.items()}
    reference = reference_of(answers)
    policies = [reference, *(name for name in answers if name.startswith("ppo"))]
    return {
        "reduction": wins.relative_change(totals["ppo"], totals[reference], config.bootstrap, seed),
        "by_round": [
            wins.relative_change(totals[after], totals[before], config.bootstrap, seed)
            for before, after in pairwise(policies)
        ],
    }


def _along(slots: SlotScorer | None, step: dict[str, Any]) -> dict[str, Any]:
    """A row per evaluation step of PPO."""
    row = {name: step[name] for name in ("update", "kl", "score", "length")}
    if slots is not None:
        pairs = zip(step["prompts"], step["responses"], strict=True)
        row["slot_error_rate"] = slot_error_rate([slots.check_text(prompt, text) for prompt, text in pairs])
    return row


def _frontier(
    judge: ScoringJudge,
    evaluation: Evaluation,
    inputs: Mapping[str, Artifact],
    codec: Codec,
    config: EvalConfig,
    ctx: RunContext,
) -> dict[str, Any]:
    """The frontier along PPO and that of best-of-n, in standard deviations over the reference's answers."""
    judged, proxy = evaluation.judged[judge.name], evaluation.proxy
    reference = reference_of(evaluation.answers)
    scales = along.Scales(gold=along.spread(judged[reference]), proxy=along.spread(proxy[reference]))
    result: dict[str, Any] = {
        "frontier": along.frontier(judge, by_round(inputs, "ppo"), codec, scales, config, ctx)
    }
    if evaluation.n is not None:
        result["best_of_n"] = along.best_of_n_ladder(
            proxy["best_of_n"], judged["best_of_n"], scales, config, ctx.seed
        ) | {"n": evaluation.n, "reaches": best_of_n.kl_bound(int(config.best_of_n or 1))}
    result["points"] = {
        name: {
            "kl": float(_kl(evaluation.answers[name]).mean()),
            "gold": wins.mean(
                (judged[name][:, 0] - judged[reference][:, 0]) / scales.gold, config.bootstrap, ctx.seed
            ),
        }
        for name in ("ppo", *BASELINES)
        if name in evaluation.answers
    }
    return result


def _errors_by_prompt(
    prompts: Sequence[EncodedPrompt], errors: Mapping[str, ErrorsByAnswer]
) -> list[dict[str, Any]]:
    """Each prompt with the number of facts it gives and, by model, the fact errors and all faults of the answer, to
    be compared with another run on the same prompts. Without best-of-n, which has many answers."""
    single = {name: [row[0] for row in theirs] for name, theirs in errors.items() if name != "best_of_n"}
    return [
        {
            "prompt": prompt.messages[-1]["content"],
            "given": single["ppo"][i].given,
            "errors": {name: theirs[i].errors for name, theirs in single.items()},
            "faults": {name: faults(theirs[i]) for name, theirs in single.items()},
        }
        for i, prompt in enumerate(prompts)
    ]


def _samples(
    prompts: Sequence[EncodedPrompt],
    shown: Mapping[str, Sequence[str]],
    finished: Mapping[str, Sequence[bool]],
    slots: SlotScorer | None,
    count: int,
) -> list[dict[str, Any]]:
    """The first prompts of the held-out split, unselected, with every model's answer."""
    return [
        {
            "prompt": prompt.messages[-1]["content"],
            "answers": {name: texts[i] for name, texts in shown.items()},
            "finished": {name: ends[i] for name, ends in finished.items()},
            "faults": {}
            if slots is None
            else {
                name: {kind: getattr(slots.check_text(prompt.messages, texts[i]), kind) for kind in KINDS}
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
