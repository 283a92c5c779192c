"""The README.md of an exported reward model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.rules import is_hub_id
from pipeline.engine.plan import RunSummary
from pipeline.engine.stage import Artifact
from pipeline.wording import DASH, counted, fixed, percent, points_span, span
from stages.export.reward import Exported
from stages.publish.card import assembled, datasets_of, held_out_source, hub_base, origin, recipe_text, who_ranked
from stages.report import overlaps
from stages.report.rankings import hard_negatives
from stages.reward.artifact import AnnotatorAccuracy, HeldOut, RewardQuality
from stages.scoring.exported import FILE


def reward_card(
    run: RunSummary, reward: Artifact, repository: str, exported: Exported, criterion: str | None
) -> str:
    """The card of the reward model that is published as `repository`, or written to a folder of that name.

    Args:
        reward: the artifact of the reward model, or the part of it about the criterion.
    """
    quality = RewardQuality.read(reward)
    by = f" by {criterion}" if criterion is not None else ""
    return assembled(
        metadata(run, repository, quality),
        f"# {repository.rpartition('/')[2]}",
        "A reward model: it gives an answer to a prompt one number, the higher the better. "
        f"{_origin(run)}, trained with tutelage on rankings of answers{by}.",
        " ".join(part for part in (who_ranked(run), hard_negatives(quality)) if part),
        _gate(quality),
        *_evaluation(run, quality),
        *_transfer(run, quality),
        *_biases(quality),
        _use(repository, exported),
        _limits(run, quality, exported),
        f"## Recipe\n\nThe values that determine the result:\n\n```yaml\n{recipe_text(run)}```",
    )


def metadata(run: RunSummary, repository: str, quality: RewardQuality) -> dict[str, Any]:
    """The metadata that the Hub validates, built with huggingface_hub's own classes."""
    from huggingface_hub import EvalResult, ModelCardData

    recipe, held_out = run.loaded.recipe, quality.held_out
    simulated = run.need("rank").manifest.simulated
    results = []
    if held_out.accuracy is not None:
        results.append(
            EvalResult(
                task_type="text-classification",
                dataset_type=held_out_source(run),
                dataset_name="held-out rankings",
                dataset_split="eval",
                metric_type="accuracy",
                metric_name=f"pairs ordered as the annotator did{_interval(held_out)}",
                metric_value=round(held_out.accuracy, 4),
            )
        )
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        license=recipe.publish.license,
        license_name=recipe.publish.license_name,
        license_link=recipe.publish.license_link,
        base_model=_base(run),
        datasets=datasets_of(run) or None,
        tags=["tutelage", "rlhf", "reward-model", *(["simulated-annotators"] if simulated else [])],
        model_name=repository.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    if data.base_model:
        data["base_model_relation"] = "finetune"
    return dict(data.to_dict())


def _base(run: RunSummary) -> str | None:
    """The Hub id of what it was trained from; None for anything else."""
    encoder = run.loaded.recipe.reward.model
    if encoder is None:
        return hub_base(run)
    return encoder if is_hub_id(encoder) else None


def _origin(run: RunSummary) -> str:
    encoder = run.loaded.recipe.reward.model
    if encoder is None:
        return origin(run)
    name = f"[{encoder}](https://huggingface.co/{encoder})" if is_hub_id(encoder) else Path(encoder).name
    return f"Based on {name}"


def _interval(held_out: HeldOut) -> str:
    low, high = held_out.accuracy_low, held_out.accuracy_high
    return "" if low is None or high is None else f" (95 % interval {low:.3g} to {high:.3g})"


def _gate(quality: RewardQuality) -> str:
    if quality.unfit:
        reasons = "\n".join(f"- {reason}" for reason in quality.unfit)
        return f"**It failed the checks that PPO asks for:**\n\n{reasons}"
    notes = "".join(f"\n- warning: {note}" for note in quality.warnings)
    return "It passed the checks that PPO asks for (`reward.gate` of the recipe below)." + (notes and f"\n{notes}")


def _evaluation(run: RunSummary, quality: RewardQuality) -> Iterator[str]:
    held_out = quality.held_out
    if held_out.accuracy is None:
        yield "## Evaluation\n\nThere was no held-out pair of answers to measure it on."
        return
    rows = [
        ("this model", held_out.accuracy, held_out.accuracy_low, held_out.accuracy_high),
        ("two annotators agree", held_out.agreement, held_out.agreement_low, held_out.agreement_high),
        ("the other annotators predict an annotator", held_out.predicted_by_others, None, None),
        ("a bag of words, trained on the same pairs", held_out.bag_of_words_accuracy, None, None),
        ("the longer answer wins", held_out.length_accuracy, None, None),
    ]
    table = "\n".join(
        f"| {name} | {percent(value, 1)} | {DASH if low is None or high is None else span(low, high, 1)} |"
        for name, value, low, high in rows
        if value is not None
    )
    by_annotator = _spread(quality.by_annotator)
    yield (
        f"## Evaluation\n\nShare of {counted(held_out.pairs, 'held-out pair')} "
        f"({counted(held_out.prompts, 'prompt')}) ordered as the annotator did. Chance is one half; intervals are "
        f"95 % bootstrap intervals over prompts.{by_annotator}\n\n"
        f"| by | accuracy | 95 % interval |\n|---|---|---|\n{table}"
    )
    if held_out.ece is not None and held_out.brier is not None:
        bins = "\n".join(
            f"| {percent(row.predicted)} | {percent(row.observed)} | {row.count:,} |" for row in quality.reliability
        )
        yield (
            "## Calibration\n\nA difference of two scores, through the logistic function, as the probability that "
            f"the first answer is preferred: expected calibration error {fixed(held_out.ece, 3)} over 10 bins, "
            f"Brier score {fixed(held_out.brier, 3)}. Each pair counts from both sides.\n\n"
            f"| predicted | observed | pairs |\n|---|---|---|\n{bins}"
        )


def _transfer(run: RunSummary, quality: RewardQuality) -> Iterator[str]:
    """The accuracy on `data.eval_rankings`."""
    on = quality.transfer
    if on is None or on.accuracy is None or on.length_accuracy is None:
        return
    low, high = on.accuracy_low, on.accuracy_high
    interval = "" if low is None or high is None else f" ({span(low, high, 1)})"
    members = ", ".join(percent(value, 1) for value in on.member_accuracy)
    yield (
        "## Rankings of another source\n\n"
        f"Of {counted(on.pairs, 'pair')} ({counted(on.prompts, 'prompt')}) of rankings that were used for this "
        f"evaluation only, it orders {percent(on.accuracy, 1)}{interval} as the annotator did. The longer answer "
        f"wins in {percent(on.length_accuracy, 1)}."
        + (f" By member: {members}." if members else "")
        + "".join(f" {note}." for note in overlaps.transfer(run))
    )


def _spread(annotators: Sequence[AnnotatorAccuracy]) -> str:
    """The range over annotators, whose names stay private."""
    if len(annotators) < 2:
        return ""
    values = [row.accuracy for row in annotators]
    return f" By annotator ({len(values)}): {span(min(values), max(values))}."


def _biases(quality: RewardQuality) -> Iterator[str]:
    """What the reward stage measured of known biases."""
    held_out = quality.held_out
    points = []
    if held_out.length_correlation is not None:
        above = held_out.above_length_low, held_out.above_length_high
        lead = "" if None in above else f"; its accuracy minus that of length is {points_span(*above)}"  # type: ignore[arg-type]
        points.append(
            f"**Length**: Spearman correlation of score and characters of an answer "
            f"{fixed(held_out.length_correlation, 2, sign=True)}{lead}."
        )
    if held_out.ended_preferred is not None:
        points.append(
            f"**Incomplete answers**: {percent(held_out.ended_preferred)} of held-out answers score higher than "
            "their own first half, which has no end."
        )
    if held_out.disagreement is not None:
        points.append(
            "**Disagreement**: the members of the ensemble that it is one of differ by "
            f"{fixed(held_out.disagreement)} (standard deviation, mean over answers)."
        )
    points += [
        f"**{row.kind.capitalize()} facts**: of {counted(row.pairs, 'pair')} that differ in these faults only, "
        f"{percent(row.accuracy)} ({span(row.low, row.high)}) are ordered correctly."
        for row in quality.by_fault
        if row.accuracy is not None and row.low is not None and row.high is not None
    ]
    if points:
        yield "## Known biases\n\n" + "\n".join(f"- {point}" for point in points)


def _use(repository: str, exported: Exported) -> str:
    spec = exported.spec
    offset = f" + {spec.offset!r}" if spec.offset else ""
    code = (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{repository}")\n'
        f'model = AutoModelForSequenceClassification.from_pretrained("{repository}").eval()\n'
        'chat = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]\n'
    )
    if spec.system is not None:
        code += f'chat.insert(0, {{"role": "system", "content": {spec.system!r}}})\n'
    code += (
        'inputs = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)\n'
        f"print(model(**inputs).logits[0, 0].item(){offset})\n"
    )
    text = f"## Use\n\n```python\n{code}```\n\nOnly differences of scores for the same prompt have a meaning."
    if offset:
        text += (
            f" The head of the trained model has a bias, {spec.offset:.6g}, which a classifier of transformers "
            "cannot hold: it shifts all scores alike and changes no order."
        )
    if not exported.template_is_exact:
        text += (
            "\n\n**This tokenizer encodes an answer in a conversation differently from an answer on its own**, "
            f"which training used. `tutelage score --model` gives the trained scores; `{FILE}` shows the ids."
        )
    return text + (
        f" `{FILE}` holds conversations with their ids and scores, to check an installation with. Texts from "
        "`apply_chat_template(..., tokenize=False)` must be encoded without special tokens. In config.json, "
        "`problem_type: regression` makes pipelines and vLLM return raw scores; TEI needs `raw_scores: true`."
    )


def _limits(run: RunSummary, quality: RewardQuality, exported: Exported) -> str:
    spec, recipe = exported.spec, run.loaded.recipe
    members = quality.held_out.member_accuracy
    own = (
        f" Alone it orders {percent(members[spec.member], 1)} of the pairs."
        if spec.member is not None and members
        else ""
    )
    points = [
        f"Meant for prompts like those it was trained on ({held_out_source(run)}). Nothing else was measured.",
        "Policies that are optimised against it find answers that it scores too high.",
        f"Trained on conversations of at most {recipe.reward.max_length:,} tokens. Longer ones should lose their "
        "beginning (`truncation_side: left`).",
    ]
    if spec.member is not None:
        points.append(
            f"It is member {spec.member} of an ensemble of {recipe.reward.ensemble}, and the numbers above are the "
            f"ensemble's.{own}"
        )
    difference = exported.difference
    if difference.other_model:
        points.append(
            "It was trained as an adapter on a base in 4 or 8 bits and is merged here, which is another model: its "
            f"scores are {difference.deviation}."
        )
    if recipe.publish.license is None:
        points.append("No licence is stated here; the licences of the base model and the data apply.")
    return "## Intended use and limits\n\n" + "\n".join(f"- {point}" for point in points)
