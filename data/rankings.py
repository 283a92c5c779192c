"""Rankings as they come in tables, read by column names that the recipe gives.

wide: K completion and K rating columns a row, or two and a signed preference; long: a row a completion; pairs:
chosen and rejected; tree: nested replies with ranks (OASST); scored: a list of scored completions a row; choice:
a list and the best one's place; native: our own schema; argilla and label_studio: what these tools export.
docs/rankings.md shows each.

An empty cell leaves a completion out, and a ranking of which fewer than two are left; both are counted. What
is malformed (a rating that is no number, a column that is not there) is an error with file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from data import formats, tools
from data.columns import ANONYMOUS, Candidates, Columns
from data.schema import Ranking, ranks_from_scores
from data.sources import Dropped, Row, read_table
from pipeline.config.data import RankingTableConfig
from pipeline.errors import DataError

__all__ = ["ADAPTERS", "ANONYMOUS", "read_rankings"]


def read_rankings(
    config: RankingTableConfig, dropped: Dropped, say: Callable[[str], None] | None = None
) -> Iterator[Ranking]:
    """The rankings of a table, in its order. What is left out is noted in `dropped`.

    Raises:
        RecipeError: `config.columns` does not fit the format.
        DataError: a row is malformed, or no ranking is left.
    """
    columns = Columns(config)
    rows = dropped.counting(read_table(config, say))
    any_ranking = False
    for candidates in ADAPTERS[config.format](rows, columns):
        ranking = _ranking(candidates, config.human, dropped)
        if ranking is not None:
            any_ranking = True
            yield ranking
    if not any_ranking:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in dropped.counts.items())
        raise DataError(
            "no ranking is left" + (f": {reasons}" if reasons else ""),
            where=config.path,
            mend="a ranking needs a prompt and at least 2 completions that are rated or ranked",
        )


def _ranking(candidates: Candidates, human: bool, dropped: Dropped) -> Ranking | None:
    for reason, number in candidates.extra:
        dropped.add(reason, number)
    if candidates.left_out:
        return None
    if candidates.whole is not None:
        return replace(candidates.whole, human=candidates.whole.human and human)
    number = candidates.row.number
    if not candidates.prompt:
        dropped.add("empty prompt", number)
        return None
    texts, scores, models, kept = [], [], [], []
    for place, answer in enumerate(candidates.answers):
        if not answer.text.strip():
            dropped.add("empty completion", number)
        elif answer.score is None:
            dropped.add("missing rating", number)
        else:
            texts.append(answer.text)
            scores.append(answer.score)
            models.append(answer.model or "")
            kept.append(place)
    if len(texts) < 2:
        dropped.add("fewer than 2 completions left", number)
        return None
    return Ranking(
        prompt=candidates.prompt,
        completions=texts,
        ranks=ranks_from_scores(scores),
        annotator=candidates.annotator,
        human=human,
        ratings=scores if candidates.rated else None,
        models=models if any(models) else None,
        metadata={
            name: [value[i] for i in kept] if name == "shown" else value
            for name, value in candidates.metadata.items()
        },
        where=candidates.row.where,
    )


ADAPTERS: dict[str, Callable[[Iterator[Row], Columns], Iterator[Candidates]]] = {
    "native": formats.native,
    "wide": formats.wide,
    "long": formats.long,
    "pairs": formats.pairs,
    "tree": formats.tree,
    "scored": formats.scored,
    "choice": formats.choice,
    "argilla": tools.argilla,
    "label_studio": tools.label_studio,
}
"""`format` of a recipe's ranking table -> what reads it."""
