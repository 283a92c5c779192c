"""Held-out accuracy of a reward model by kind of fault: which mistakes does it see?

One accuracy over all pairs hides a kind of mistake that is rare among the ranked answers, and PPO may make more of
what the reward model does not see. A rubric (a slot lexicon) says how many faults of each kind an answer has, so
that answers which differ in a single kind can be compared.

This only describes the model. It enters neither training nor the gate: the rubric is also what judges the policy
later, and a model selected by its judge would be judged too well. Imports no torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from data.bootstrap import share
from data.schema import Prompt, prompt_key
from data.venues.slots import KINDS, MeaningRepresentation, SlotLexicon, parse_mr
from pipeline.errors import DataError
from pipeline.wording import counted
from stages.reward.artifact import FaultAccuracy
from stages.reward.quality import Scores


@dataclass(frozen=True)
class Rubric:
    """Counts the faults of answers.

    Attributes:
        facts: prompt key -> the facts that an answer should state.
    """

    lexicon: SlotLexicon
    facts: Mapping[str, MeaningRepresentation]

    def count(self, key: str, text: str) -> tuple[int, ...]:
        """The number of faults of each of `KINDS` in an answer to the prompt with this key."""
        errors = self.lexicon.check(self.facts[key], text)
        return tuple(len(getattr(errors, kind)) for kind in KINDS)


def load_rubric(name: str, prompts: Iterable[Prompt]) -> Rubric | None:
    """The rubric for some prompts; None for `none`, and for an unresolved `eval`.

    Args:
        name: value of `reward.rubric`.

    Raises `DataError` for an unknown lexicon, for a prompt that is not a meaning representation, and for one with
    an attribute that the lexicon lacks.
    """
    if name in ("none", "eval"):
        return None
    lexicon = SlotLexicon.load(name)
    facts = {}
    for prompt in prompts:
        try:
            mr = parse_mr(prompt.prompt[-1]["content"])
            lexicon.check(mr, "")
        except DataError as error:
            raise DataError(
                f"the rubric {name} does not fit a held-out prompt: {error.what}",
                where=prompt.where or "reward.rubric",
                hint="set reward.rubric: none, or to the path of a lexicon for these prompts",
            ) from error
        facts[prompt_key(prompt.prompt)] = mr
    return Rubric(lexicon, facts)


def accuracy_by_fault(
    scores: Scores, rubric: Rubric, seed: int, advance: Callable[[], None] = lambda: None
) -> list[FaultAccuracy]:
    """For each kind of fault: of the pairs of answers to one prompt that differ in the number of these faults and
    of no others, the share in which the answer with fewer scores higher; equal scores count half. With 95 %
    bootstrap intervals over prompts.

    Args:
        advance: called for each answer.
    """
    answers: dict[str, list[tuple[tuple[int, ...], float]]] = defaultdict(list)
    for (key, text), score in scores.items():
        answers[key].append((rubric.count(key, text), score))
        advance()
    counts: dict[str, list[tuple[str, float, float]]] = {kind: [] for kind in KINDS}
    for key, scored in answers.items():
        for (faults, score), (other_faults, other_score) in combinations(scored, 2):
            different = [i for i, _ in enumerate(KINDS) if faults[i] != other_faults[i]]
            if len(different) != 1:
                continue
            (i,) = different
            margin = score - other_score if faults[i] < other_faults[i] else other_score - score
            counts[KINDS[i]].append((key, (margin > 0) + 0.5 * (margin == 0), 1.0))
    measured = {kind: share(pairs, seed=seed) for kind, pairs in counts.items()}
    return [
        FaultAccuracy(kind=kind, pairs=part.pairs, accuracy=part.value, low=part.low, high=part.high)
        for kind, part in measured.items()
    ]


def line(rows: Iterable[FaultAccuracy]) -> str:
    """The line to print."""
    kinds = (
        f"{row.kind} {'unknown' if row.accuracy is None else f'{row.accuracy:.2f}'} ({counted(row.pairs, 'pair')})"
        for row in rows
    )
    return f"by kind of fault: {', '.join(kinds)}"
