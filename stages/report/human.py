"""People's verdict on two models' answers, compared blind (`tutelage judge`). It is kept in the recipe's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.engine.plan import RunSummary
from pipeline.engine.stage import parse
from pipeline.language import translate
from pipeline.wording import percent, sentences, span
from ranking.judged import judged_file
from stages.eval.artifact import WinRate
from stages.intervals import Share


@dataclass(frozen=True, kw_only=True)
class HumanVerdict:
    """What `tutelage judge` wrote: PPO's win rate against the reference, and how far the judges agree.

    Attributes:
        eval: fingerprint of the evaluation whose answers were compared.
        json: the file's content.
    """

    eval: str
    prompts: int
    judges: int
    win_rate: WinRate
    agreement: Share
    json: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, run: RunSummary) -> HumanVerdict | None:
        """The verdict on the run's present evaluation; None if nobody has compared these answers."""
        if "eval" not in run.stages:
            return None
        fingerprint = run.stages["eval"].manifest.fingerprint
        path = judged_file(run.folder, fingerprint)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        verdict = replace(parse(cls, content, str(path)), json=content)
        return verdict if verdict.eval == fingerprint else None


def evidence(verdict: HumanVerdict, start: str) -> str:
    """The verdict in words. `start` is the reference as texts name it."""
    win, agreed = verdict.win_rate, verdict.agreement
    one = verdict.judges == 1
    who = translate("One person") if one else translate("{count} people", count=verdict.judges)
    assert win.low is not None
    assert win.high is not None
    text = translate(
        "{who} compared the answers to {prompts:,} held-out prompts blind: PPO’s beats {start}’s on {share} of "
        "them (95 % interval {interval}; ties count half).",
        who=who,
        prompts=verdict.prompts,
        start=start,
        share=percent(win.value),
        interval=span(win.low, win.high),
    )
    if agreed.value is None:
        return text
    share = percent(agreed.value)
    return sentences(text, translate("Two judges agree on {share} of the pairs that both decide.", share=share))
