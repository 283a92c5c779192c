"""The model's README.md: the metadata that the Hub reads, then the text that people read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from pipeline import language
from pipeline.config.rules import is_hub_id
from pipeline.config.run_base import is_artifact, source_of
from pipeline.config.section import content
from pipeline.engine.plan import RunSummary
from pipeline.files import readable_seconds
from pipeline.language import policy, translate
from pipeline.wording import DASH, percent, span
from stages.artifacts import RankMetrics
from stages.eval.artifact import Evaluation
from stages.report import evidence, exported, model_table, verdict
from stages.report.findings import Findings, collect
from stages.report.rankings import hard_negatives

HUB = "hub://"
EXAMPLE = "What makes a good answer?"
"""The prompt in the card's code, if all of the run's are longer than `LONGEST`."""
LONGEST = 300
"""Characters."""


def model_card(run: RunSummary, repository: str, files: Sequence[str], *, curves: str | None = None) -> str:
    """The card of the model that is published as `repository`.

    Args:
        files: names of the uploaded files; the card lists the quantised ones.
        curves: the file with the training curves, if there is one.
    """
    with language.using(replace(language.current(), policy=run.loaded.recipe.ppo.method.label)):
        return _model_card(run, repository, files, curves)


def _model_card(run: RunSummary, repository: str, files: Sequence[str], curves: str | None) -> str:
    findings = collect(run)
    return assembled(
        metadata(run, repository),
        f"# {repository.partition('/')[2]}",
        f"{origin(run)}. Trained with tutelage: {_steps(run)} with a KL penalty.",
        " ".join(
            part for part in (who_ranked(run), *(hard_negatives(part.reward) for part in findings.parts)) if part
        ),
        _verdict(findings),
        *_evaluation(run, findings),
        *([_training(findings, curves)] if curves else []),
        _use(run, repository, files),
        _limits(run, findings),
        f"## Recipe\n\nThe values that determine the result:\n\n```yaml\n{recipe_text(run)}```",
    )


def _steps(run: RunSummary) -> str:
    if run.loaded.recipe.sft is None:
        return f"a reward model from rankings and, without supervised fine-tuning before it, {policy()}"
    return f"supervised fine-tuning, a reward model from rankings, and {policy()}"


def metadata(run: RunSummary, repository: str) -> dict[str, Any]:
    """The metadata that the Hub validates, built with huggingface_hub's own classes."""
    from huggingface_hub import ModelCardData

    recipe = run.loaded.recipe
    simulated = run.need("rank").manifest.simulated
    results = list(_results(run))
    data = ModelCardData(
        library_name="peft" if recipe.publish.adapter else "transformers",
        pipeline_tag="text-generation",
        license=recipe.publish.license,
        license_name=recipe.publish.license_name,
        license_link=recipe.publish.license_link,
        base_model=hub_base(run),
        datasets=datasets_of(run) or None,
        tags=[
            "tutelage",
            "rlhf",
            recipe.ppo.method.label.lower(),
            *(["simulated-annotators"] if simulated else []),
        ],
        model_name=repository.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    if data.base_model:
        data["base_model_relation"] = "adapter" if recipe.publish.adapter else "finetune"
    return dict(data.to_dict())


def _results(run: RunSummary) -> Iterator[Any]:
    """The comparisons of PPO with the model that it started from, for the model index."""
    from huggingface_hub import EvalResult

    evaluation = Evaluation.read(run.need("eval").artifact)
    for name, value, low, high in comparisons(evaluation):
        interval = f"95 % interval {low:.3g} to {high:.3g}"
        yield EvalResult(
            task_type="text-generation",
            dataset_type=held_out_source(run),
            dataset_name="held-out prompts",
            dataset_split="eval",
            metric_type=name,
            metric_name=f"{LABELS[name]} {evaluation.start}, judge {evaluation.judge} ({interval})",
            metric_value=round(value, 4),
        )


def comparisons(evaluation: Evaluation) -> Iterator[tuple[str, float, float, float]]:
    """Name, value and interval of each comparison of PPO with the reference that was measured."""
    for name, interval in (("win_rate", evaluation.win_rate), ("reduction", evaluation.reduction)):
        if interval is None or interval.value is None or interval.low is None or interval.high is None:
            continue
        yield name, interval.value, interval.low, interval.high


MODELS = {"base": "Base", "sft": "SFT", "dpo": "DPO", "raft": "RAFT"}
LABELS = {"win_rate": "win rate against", "reduction": "change of fact errors from"}
"""Of PPO, before the name of the model that it started from."""


def held_out_source(run: RunSummary) -> str:
    """The source of the held-out prompts, by a name that reveals nothing about this machine."""
    source = run.loaded.recipe.data.prompts or run.loaded.recipe.data.demonstrations
    path = getattr(source, "path", None)
    if path is None:
        return f"tutelage/{getattr(source, 'task', 'prompts')}"
    names = [_hub_name(each) or Path(each.partition("#")[0]).name for each in _listed(path)]
    return ", ".join(names)


def datasets_of(run: RunSummary) -> list[str]:
    recipe = run.loaded.recipe
    rankings = recipe.data.ranking_tables.values()
    sources = (recipe.data.demonstrations, recipe.data.prompts, *rankings, recipe.reward.pretrain_on)
    names = [_hub_name(path) for source in sources for path in _listed(getattr(source, "path", []))]
    return sorted({name for name in [*names, recipe.publish.rankings] if name})


def _listed(path: str | Sequence[str]) -> Sequence[str]:
    return [path] if isinstance(path, str) else path


def _hub_name(path: str) -> str | None:
    """owner/name of `hub://owner/name[/subset]@commit`."""
    if not path.startswith(HUB):
        return None
    return "/".join(path.removeprefix(HUB).partition("@")[0].split("/")[:2])


def hub_base(run: RunSummary) -> str | None:
    base, _ = source_of(run.loaded.recipe.base)
    return base if base and is_hub_id(base) else None


def origin(run: RunSummary) -> str:
    recipe, base = run.loaded.recipe, hub_base(run)
    if recipe.base.pretrain:
        return "A small language model, pretrained from scratch"
    if base:
        return f"Based on [{base}](https://huggingface.co/{base}), commit `{source_of(recipe.base)[1]}`"
    if is_artifact(recipe.base.model):
        return "Based on the base model of another run"
    return f"Based on a local copy of {Path(str(recipe.base.model)).name}"


def who_ranked(run: RunSummary) -> str:
    """Rankings that are not recorded as human are never called human."""
    rank, rankings = run.need("rank"), run.loaded.recipe.publish.rankings
    where = f" They are published at [{rankings}](https://huggingface.co/datasets/{rankings})." if rankings else ""
    if rank.manifest.simulated:
        return f"**The rankings were made by simulated annotators, not by people.**{where}"
    if RankMetrics.of(rank).human:
        return f"The rankings were made by people.{where}"
    return f"It is not recorded whether people made the rankings.{where}"


def _verdict(findings: Findings) -> str:
    """The report's verdict, caveats included."""
    reached = verdict.reach(findings)
    first = " ".join(part for part in (f"**{reached.headline}**", reached.evidence, reached.price) if part)
    return "\n".join([first, *([""] if reached.caveats else []), *(f"- {caveat}" for caveat in reached.caveats)])


def _evaluation(run: RunSummary, findings: Findings) -> Iterator[str]:
    evaluation = Evaluation.read(run.need("eval").artifact)
    judge = evaluation.judge
    who = "without an independent judge" if judge is None else f"judge: `{judge}`, which is not the reward model"
    compared = model_table.rows(evaluation)
    models = [name for name in evaluation.models if any(name in row.cells for row in compared)]
    rows = [
        f"| {translate(row.metric.label)}, {translate(row.metric.unit)} | "
        + " | ".join(_cell(row, model) for model in models)
        + f" | {row.change} |"
        for row in compared
    ]
    labels = MODELS | {"ppo": policy()}
    names = " | ".join(labels.get(name, name.replace("_", " ")) for name in models)
    yield (
        f"## Evaluation\n\nOn {evaluation.prompts:,} held-out prompts, {who}. In parentheses: 95 % "
        "bootstrap intervals over prompts.\n\n"
        f"| metric | {names} | {policy()} minus {MODELS[evaluation.reference]} |\n"
        f"|---|{'---|' * (len(models) + 1)}\n" + "\n".join(rows)
    )
    with_intervals = [
        f"| {LABELS[name]} {evaluation.start} | {value:.4g} | {low:.4g} to {high:.4g} |"
        for name, value, low, high in comparisons(evaluation)
    ]
    if with_intervals:
        yield f"| {policy()} | value | 95 % interval |\n|---|---|---|\n" + "\n".join(with_intervals)
    if findings.export:
        yield exported.markdown(findings.export)
    for part in findings.parts:
        if part.reward and part.reward.held_out.accuracy is not None:
            quality = part.reward.held_out
            low, high = quality.accuracy_low, quality.accuracy_high
            interval = "" if low is None or high is None else f" (95 % interval {span(low, high, 1)})"
            share = percent(quality.accuracy, 1)
            name = f" of {part.name}" if part.name else ""
            yield f"The reward model{name} orders {share} of held-out pairs as annotators did{interval}."


def _cell(row: model_table.Row, model: str) -> str:
    interval = row.intervals.get(model)
    return row.cells.get(model, DASH) + (f" ({interval})" if interval else "")


def _training(findings: Findings, curves: str) -> str:
    hardware = ", ".join(findings.environment["hardware"].get("device", []))
    return (
        f"## Training\n\n![Reward, KL and judge during {policy()}]({curves})\n\n"
        "Blue: on held-out prompts; grey: on training batches; dashed: the KL target. "
        f"All stages took {readable_seconds(findings.seconds)} on {hardware or 'an unrecorded device'}."
    )


def _use(run: RunSummary, repository: str, files: Sequence[str]) -> str:
    adapter = run.loaded.recipe.publish.adapter
    loader = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    imports = (
        "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
        if adapter
        else "from transformers import AutoModelForCausalLM, AutoTokenizer"
    )
    text = (
        f"## Use\n\n```python\n{imports}\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{repository}")\n'
        f'model = {loader}.from_pretrained("{repository}")\n'
        f"chat = {json.dumps(_example(run), ensure_ascii=False)}\n"
        "inputs = tokenizer.apply_chat_template("
        'chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))\n```"
    )
    quantised = [name for name in files if name.endswith(".gguf")]
    if quantised:
        names = ", ".join(f"`{name}`" for name in quantised)
        text += f"\n\nQuantised files for llama.cpp and tools built on it: {names}."
    return text


def _example(run: RunSummary) -> list[dict[str, str]]:
    """A short held-out prompt of the run, since a model is best tried on what it was trained for."""
    data = run.stages.get("data")
    best: list[dict[str, str]] | None = None
    if data is not None and "prompts.jsonl" in data.manifest.files:
        rows = (row for row in data.artifact.jsonl("prompts.jsonl") if row["split"] == "eval")
        lines = [json.dumps(row["prompt"], ensure_ascii=False) for row in islice(rows, 100)]
        short = [line for line in lines if len(line) <= LONGEST]
        best = json.loads(min(short, key=len)) if short else None
    return best or [{"role": "user", "content": EXAMPLE}]


def _limits(run: RunSummary, findings: Findings) -> str:
    """Intended use and limits: what holds for every such model, and what this one's manifests show."""
    points = [
        f"Meant for prompts like those it was trained on ({held_out_source(run)}). Nothing else was measured.",
        "It learned the preferences of the annotators who made the rankings, including their errors and biases"
        + ("; the annotators were programs." if findings.annotators == "simulated" else "."),
        "No safety evaluation was made. It may state falsehoods and reproduce harmful content of its base model "
        "and data.",
    ]
    if findings.evaluation and not evidence.read(findings.evaluation, findings.human):
        points.append("No independent judge read its answers, and the reward model's score is no evidence.")
    if run.loaded.recipe.publish.license is None:
        points.append("No licence is stated here; the licences of the base model and the data apply.")
    return "## Intended use and limits\n\n" + "\n".join(f"- {point}" for point in points)


def assembled(header: Mapping[str, Any], *sections: str) -> str:
    head = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)
    return "\n\n".join([f"---\n{head}---", *sections]) + "\n"


def recipe_text(run: RunSummary) -> str:
    values = content(run.loaded.recipe)
    people = len(values["rank"]["app"].pop("annotators"))
    if people:  # their names stay private
        values["rank"]["app"]["annotators"] = [f"{people} {'person' if people == 1 else 'people'}"]
    values.pop("publish")
    return yaml.safe_dump(_without_folders(values), sort_keys=False, allow_unicode=True)


def _without_folders(value: Any) -> Any:
    """Replaces absolute paths by their last part, so that the folders of this machine stay private."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    outside = isinstance(value, str) and "\n" not in value and (Path(value).is_absolute() or value.startswith("~/"))
    return Path(value).name if outside else value
