"""Rankings from tables of any format (`data.tables.formats`).

An empty cell leaves its completion out, and with fewer than two completions the ranking; both are counted. Anything
malformed (a rating that is not a number, a missing column) is an error with file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations

from data.schema import Ranking, ranks_from_scores, same_text
from data.tables.columns import ANONYMOUS, Candidates, Columns, Completion
from data.tables.combine import net_wins
from data.tables.consensus import Consensus
from data.tables.earlier import with_earlier_turns
from data.tables.formats import FORMATS
from data.tables.layout import arranged
from data.tables.repeats import Repeats
from data.tables.sources import Dropped, Row, read_table
from data.tables.spill import grouping
from pipeline.config.data import RankingTableConfig
from pipeline.config.table_files import shown
from pipeline.errors import DataError, RecipeError


def read_rankings(
    config: RankingTableConfig,
    dropped: Dropped,
    say: Callable[[str], None] | None = None,
    repeats: Repeats | None = None,
    rows: Iterable[Row] | None = None,
) -> Iterator[Ranking]:
    """The rankings of a table, in its order, and after them the merged ones, where the recipe asks for a consensus.

    What is left out is counted in `dropped`, and rankings of the same answers by nobody in particular in `repeats`.
    `rows` are the table's, where they were read before.

    Raises:
        RecipeError: the format is unknown, or `config.columns` does not fit it.
        DataError: a row is malformed, no ranking is left, or `repeats` finds people who are not told apart.
    """
    format = FORMATS.get(config.format)
    if format is None:
        raise RecipeError(
            f"{config.format!r} is no format of rankings",
            where=f"data.rankings.format ({shown(config.path)})",
            hint=f"use one of {', '.join(FORMATS)}",
        )
    with ExitStack() as opened:
        consensus = None
        if config.consensus != "none":
            consensus = Consensus(config.consensus, opened.enter_context(grouping()))
        counted = dropped.counting(read_table(config, say) if rows is None else rows)
        table, arranged_rows = arranged(config, counted, dropped)
        table, arranged_rows = with_earlier_turns(table, arranged_rows, dropped)
        columns, place = Columns(table, format), shown(config.path)
        reader = _Reader(config, columns, dropped, repeats, consensus)
        read = reader.rankings(format.read(arranged_rows, columns))
        if config.combine == "net_wins":
            read = net_wins(read, place, say)
        for ranking in read:
            if consensus is not None and not consensus.of_ratings:
                consensus.add_ranking(ranking)
            yield ranking
        if consensus is not None:
            yield from consensus.rankings(dropped, say, place)
    columns.forms.tell(place, say)
    if reader.contradicting and say is not None:
        say(f"{place}: ratings contradict the ranks in {reader.contradicting:,} rankings; the ranks count")


class _Reader:
    """Makes rankings of what a format's reader finds in rows.

    Attributes:
        contradicting: rankings whose ratings and ranks order answers in opposite ways, of our own schema.
    """

    def __init__(
        self,
        config: RankingTableConfig,
        columns: Columns,
        dropped: Dropped,
        repeats: Repeats | None,
        consensus: Consensus | None,
    ) -> None:
        self.config, self.columns, self.dropped, self.repeats = config, columns, dropped, repeats
        self.consensus = consensus
        self.contradicting = 0

    def rankings(self, read: Iterable[Candidates]) -> Iterator[Ranking]:
        """Raises as `read_rankings`."""
        any_ranking, hint = False, ""
        for candidates in read:
            if candidates.weight is None and not candidates.left_out and candidates.whole is None:
                candidates.weight = self.columns.weight(candidates.row)
            ranking = self._ranking(candidates)
            hint = hint or candidates.hint
            if ranking is not None:
                any_ranking = True
                if self.repeats is not None:
                    self.repeats.add(ranking, candidates.row)
                self.contradicting += candidates.whole is not None and _contradicts(ranking)
                yield ranking
        if self.repeats is not None:
            self.repeats.check()
        if not any_ranking and (self.consensus is None or self.consensus.is_empty):
            dropped = self.dropped
            raise DataError(
                "no ranking is left" + (f": {dropped.reasons()}" if dropped.counts else ""),
                where=shown(self.config.path),
                hint=self.columns.hint()
                or hint
                or dropped.hint()
                or "a ranking needs a prompt and at least 2 completions, rated or ranked",
            )

    def _ranking(self, candidates: Candidates) -> Ranking | None:
        """The ranking of one annotator; None where too little of it is left. Its ratings go to the consensus."""
        dropped, number, human = self.dropped, candidates.row.number, self.config.human
        if candidates.left_out:
            dropped.add(candidates.left_out, number, candidates.hint)
            return None
        without = list(candidates.without)
        if not candidates.prompt and not candidates.answers and without:  # completions that belong to no ranking
            dropped.add_completions(without, number, kept=True)
            return None
        if not candidates.prompt:
            dropped.add("empty prompt", number)
            return None
        merged = False
        if self.consensus is not None and self.consensus.of_ratings:
            merged = self.consensus.add_ratings(candidates, self.columns, human)
        if candidates.whole is not None:
            return replace(candidates.whole, human=candidates.whole.human and human)
        if self.config.unranked == "last":
            _put_last(candidates, self.columns)
        kept = []
        for place, answer in enumerate(candidates.answers):
            if not answer.text.strip():
                without.append("empty completion")
            elif answer.score is None:
                without.append("missing rating")
            else:
                kept.append(place)
        unusable = list(without)
        kept = _distinct(candidates, kept, without, self.repeats)
        answers = [candidates.answers[place] for place in kept]
        if len(answers) < 2:
            dropped.add_completions(unusable if merged else without, number, kept=merged)
            if not merged:
                dropped.add("fewer than 2 completions left", number)
            return None
        dropped.add_completions(without, number, kept=True)
        _check_rivals(answers, candidates.row.where)
        scores = [answer.score for answer in answers if answer.score is not None]
        metadata = {
            name: [value[i] for i in kept] if name == "shown" else value
            for name, value in candidates.metadata.items()
        }
        return Ranking(
            prompt=candidates.prompt,
            completions=[answer.text for answer in answers],
            ranks=ranks_from_scores(scores),
            annotator=candidates.annotator,
            human=human,
            ratings=scores if candidates.rated else None,
            models=[answer.model or "" for answer in answers] if any(answer.model for answer in answers) else None,
            metadata=metadata if candidates.weight is None else metadata | {"weight": candidates.weight},
            where=candidates.row.where,
        )


def _put_last(candidates: Candidates, columns: Columns) -> None:
    """Ties the answers without a rank below those that have one. Where none has one, nothing is known of them."""
    if candidates.rated:
        raise columns.error(
            "`unranked: last` is about ranks, and this table has ratings",
            "leave `unranked` out: an answer without a rating was not rated, and is left out",
        )
    ranked = [answer.score for answer in candidates.answers if answer.score is not None and answer.text.strip()]
    for answer in candidates.answers:
        if answer.score is None and ranked:
            answer.score = min(ranked) - 1


def _distinct(
    candidates: Candidates, places: Sequence[int], without: list[str], repeats: Repeats | None
) -> list[int]:
    """The places of answers that differ from each other. Of equal answers with equal scores the first stays, and
    of equal answers with different scores none; why is added to `without`."""
    by_text: dict[str, list[int]] = {}
    for place in places:
        by_text.setdefault(same_text(candidates.answers[place].text), []).append(place)
    kept: list[int] = []
    contested: list[Completion] = []
    for same in by_text.values():
        answers = [candidates.answers[place] for place in same]
        if len({answer.score for answer in answers}) == 1:
            kept.append(same[0])
            without += ["merged with an equal answer"] * (len(same) - 1)
            continue
        without += ["the same answer at two places"] * len(same)
        contested = contested or answers
    if repeats is not None and contested and candidates.annotator == ANONYMOUS:
        repeats.add_contested(contested[0].where, contested[1].where, len(by_text))
    return sorted(kept)


def _contradicts(ranking: Ranking) -> bool:
    """Whether ratings and ranks order two answers in opposite ways. People who give both may do so."""
    ratings, ranks = ranking.ratings, ranking.ranks
    if ratings is None:
        return False
    return any((ratings[i] - ratings[j]) * (ranks[i] - ranks[j]) > 0 for i, j in combinations(range(len(ranks)), 2))


def _check_rivals(answers: Sequence[Completion], where: str) -> None:
    """Raises `DataError` where ratings and ranks order two answers in opposite ways."""
    for a, b in combinations(answers, 2):
        if a.score is None or b.score is None or a.rival is None or b.rival is None:
            continue
        if ranks_from_scores([a.score, b.score]) != ranks_from_scores([a.rival, b.rival]):
            raise DataError(
                f"ratings and ranks contradict each other: ratings {a.score:g} and {b.score:g} have ranks "
                f"{-a.rival:g} and {-b.rival:g}, where 1 is best",
                where=where,
                hint="name the one that orders the completions under `columns`, and leave the other out",
            )
