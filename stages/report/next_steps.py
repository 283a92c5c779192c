"""What to do next with a run, as commands to paste."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.engine.plan import RunSummary
from pipeline.engine.rounds import parse
from pipeline.invocation import command
from pipeline.language import translate
from pipeline.wording import commas, fixed, listing
from stages.report.findings import Findings


@dataclass(frozen=True)
class Step:
    """Something to do, or to know: in words, with a command to paste or a path beside the report."""

    text: str
    command: str = ""
    path: str = ""


def steps(run: RunSummary, findings: Findings) -> list[Step]:
    """The next steps, the most useful first."""
    pending = [stage.name for stage in findings.stages if stage.key is None]
    if pending and parse(pending[0])[0] not in ("eval", "export"):
        return _unfinished(run, findings, pending)
    rest = [Step(translate("Finish {stages}:", stages=listing(pending)), command("run"))] if pending else []
    return [*rest, *_after_ppo(run, findings)]


def _unfinished(run: RunSummary, findings: Findings, pending: list[str]) -> list[Step]:
    stage, number = parse(pending[0])
    if stage == "ppo" and any(part.reward and part.reward.unfit for part in findings.parts):
        return [
            Step(
                translate(
                    "The reward model did not pass the gate, so PPO has not started. Improve the rankings first: "
                    "see how well annotators agree, and add rankings; then run again:"
                ),
                command("run"),
            ),
            Step(
                translate("Or train PPO with this reward model anyway. Report and model card will say so:"),
                command("run", "--force"),
            ),
        ]
    if stage == "rank" and run.loaded.recipe.rank.source == "app":
        text = translate("Open the ranking page, and have the answers ranked:")
        return [Step(text, command("run", pending[0]))]
    where = translate("{stage} of round {number}", stage=stage, number=number) if number > 1 else stage
    if len(pending) == 1:
        return [Step(translate("Continue with {stage}:", stage=where), command("run"))]
    text = translate("Continue with {stage}, then {later}:", stage=where, later=commas(pending[1:]))
    return [Step(text, command("run"))]


def _after_ppo(run: RunSummary, findings: Findings) -> list[Step]:
    recipe, evaluation = run.loaded.recipe, findings.evaluation
    before = "base" if recipe.sft is None else "sft"
    talk = translate("Talk to {start} and PPO side by side:", start=findings.start)
    found = [Step(talk, command("chat", before, "ppo"))]
    frontier = evaluation.frontier if evaluation else None
    if frontier and frontier.fit.set_in and frontier.fit.peak_kl:
        found.append(
            Step(
                translate(
                    "PPO went past the peak of the judge’s gain, at a KL of {kl} nats. Set ppo.kl.target to about "
                    "that, and run again:",
                    kl=fixed(frontier.fit.peak_kl.value),
                ),
                command("run"),
            )
        )
    if evaluation and findings.human is None:
        found.append(
            Step(
                translate(
                    "Have people compare PPO’s answers with {start}’s, without knowing which is which:",
                    start=findings.start,
                ),
                command("judge", "--annotators", "ana,ben"),
            )
        )
    if recipe.rank.source != "data":
        found.append(Step(translate("Train another round on rankings of PPO’s own answers:"), command("round")))
    if export := run.newest("export"):
        folder = export.artifact.path.relative_to(run.folder).as_posix()
        found.append(Step(translate("The trained model, beside this file:"), path=folder))
        if recipe.publish.model or recipe.publish.rankings:
            text = translate("See what would be uploaded to the Hub:")
            found.append(Step(text, command("publish", "--dry-run")))
        else:
            found.append(
                Step(
                    translate(
                        "To upload it to the Hub, set publish.model to owner/name in the recipe. Then see what "
                        "would be uploaded:"
                    ),
                    command("publish", "--dry-run"),
                )
            )
    return found
