"""The figures of a set of rankings that the console and the report show, computed in one pass.

`tutelage inspect` and `check` compute them for a table, the `data` stage for the rankings it writes, and the `rank`
stage for those it measures.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property

from data.annotators.agreement import pairwise
from data.annotators.measures import first_wins, larger_wins
from data.annotators.sample import RankingSample
from data.schema import Ranking, prompt_key, same_text
from data.tables.columns import ANONYMOUS
from data.tables.first_wins import FirstWins
from data.tables.repeats import Repeats
from data.tables.sources import Dropped
from data.tables.spill import Seen, Values, seen, values
from data.tables.suggest import count_of
from pipeline.engine.stage import Metrics


class RankingSummary:
    """Counts over rankings. Use `summary()`, which makes room for what was seen.

    Attributes:
        sample: counts of rankings, pairs, ties and annotators; agreement is computed on the prompts in it.
        first: how often the first answer of a strict pair is better, in the table's order.
        shown: strict pairs with the answer that an annotator saw first.
        shown_first: those of them in which it is better.
        sizes: rankings by their number of answers.
        prompts: distinct prompts.
        tied: rankings in which all answers are tied.
        unequal: strict pairs whose answers differ in their number of characters.
        longer: those of them whose better answer is the longer one.
        repeats: rankings whose prompt, answers (in any order) and annotator an earlier one has.
        copies: those of them that order the answers as the earlier one does.
    """

    def __init__(self, first: FirstWins, prompts: Seen, rankings: Values) -> None:
        self.sample, self.first = RankingSample(), first
        self.sizes: Counter[int] = Counter()
        self.prompts = self.tied = self.unequal = self.longer = self.repeats = self.copies = 0
        self.shown = self.shown_first = 0
        self._prompts, self._rankings = prompts, rankings

    def add(self, ranking: Ranking) -> None:
        self.sample.add(ranking)
        self.first.add(ranking)
        self.sizes[len(ranking.ranks)] += 1
        self.tied += len(set(ranking.ranks)) == 1
        key = prompt_key(ranking.prompt)
        self.prompts += self._prompts.first(key)
        texts, ranks = ranking.completions, ranking.ranks
        wins, pairs = larger_wins(ranks, [len(text) for text in texts])
        self.longer += wins
        self.unequal += pairs
        shown = ranking.metadata.get("shown")
        if isinstance(shown, list) and len(shown) == len(ranks):
            wins, pairs = first_wins(ranks, shown)
            self.shown_first += wins
            self.shown += pairs
        answers = sorted(zip(map(same_text, texts), ranks, strict=True))
        order = [rank for _, rank in answers]
        earlier = self._rankings.setdefault(
            json.dumps([ranking.annotator, key, *(text for text, _ in answers)]), order
        )
        self.repeats += earlier is not None
        self.copies += earlier == order

    @property
    def rankings(self) -> int:
        return self.sample.rankings

    @property
    def strict(self) -> int:
        """Pairs of answers that are not tied."""
        return self.sample.pairs - self.sample.ties

    @cached_property
    def agreed(self) -> tuple[int, int]:
        """Pairs that two annotators both order strictly: those that they order alike, and all of them."""
        return pairwise(self.sample)

    def metrics(self) -> Metrics:
        """`pairs` are strict. The shares `agreement`, `first_wins` and `longer` are absent where nothing was
        compared, and `tie_share` is None without pairs."""
        alike, compared = self.agreed
        shares = {"agreement": (alike, compared), "longer": (self.longer, self.unequal)}
        return {
            "ranked_prompts": self.prompts,
            **{f"rankings_of_{k}": count for k, count in sorted(self.sizes.items())},
            "pairs": self.strict,
            "tie_share": self.sample.ties / self.sample.pairs if self.sample.pairs else None,
            "tied_rankings": self.tied,
            **{name: hits / total for name, (hits, total) in shares.items() if total},
            "agreement_pairs": compared,
            **self.first.metrics(),
            "repeated_rankings": self.repeats,
            "copied_rankings": self.copies,
            "annotators": len(self.sample.annotators),
            "human": self.sample.human,
        }

    def lines(self, name: str, told: Repeats | None = None) -> Iterator[str]:
        """Lines for the console: counts and answers per ranking, ties, agreement, first answers, length, repeats.

        Args:
            name: what the lines begin with, such as `data.rankings`.
            told: what has a line about repeats, of rankings by nobody who is named.
        """
        if not self.rankings:
            return
        sizes = ", ".join(f"{k} ({count:,})" for k, count in sorted(self.sizes.items()))
        counts = f"{count_of(self.rankings, 'rankings')} of {count_of(self.prompts, 'prompts')}"
        yield f"{name}: {counts}, {self._who()}; answers per ranking: {sizes}"
        ties = f"{_share(self.sample.ties, self.sample.pairs)} of {count_of(self.sample.pairs, 'pairs')} are tied"
        yield f"{name}: {ties}" + (f"; all answers of {count_of(self.tied, 'rankings')} are" if self.tied else "")
        alike, compared = self.agreed
        if compared:
            part = "" if self.sample.share == 1 else " (in a sample)"
            both = f"{_share(alike, compared)} of {count_of(compared, 'pairs')} that two of them ordered"
            yield f"{name}: annotators agree on {both}{part}"
        else:
            yield f"{name}: no two annotators ordered the same answers: their agreement is not known"
        if line := self.first.line():
            yield f"{name}: {line}"
        if self.shown:
            yield (
                f"{name}: the answer shown first is better in {_share(self.shown_first, self.shown)} of "
                f"{count_of(self.shown, 'strict pairs')}"
            )
        if self.unequal:
            yield (
                f"{name}: the longer answer is better in {_share(self.longer, self.unequal)} of "
                f"{count_of(self.unequal, 'strict pairs')} of unequal length"
            )
        if self.repeats and not (told and told.repeats):
            again = f"{self.repeats:,} ({self.copies:,} in the same order)"
            yield f"{name}: repeats of an earlier prompt and answers by the same annotator: {again}"

    def _who(self) -> str:
        unnamed = self.sample.annotators[ANONYMOUS]
        named = len(self.sample.annotators) - bool(unnamed)
        if not named:
            return "by annotators who are not named"
        return f"by {count_of(named, 'annotators')}" + (f" (of {unnamed:,} it is not known)" if unnamed else "")


def read_line(name: str, what: str, dropped: Dropped, kept: int) -> str:
    """The line about the rows of a table: how many were read, and how many of what they became are kept.

    Args:
        what: what its rows become, such as "rankings".
    """
    out = dropped.rows_out.total()
    line = f"{name}: {count_of(dropped.read, 'rows')} read, {count_of(kept, what)} kept"
    return line + (f", {out:,} left out" if out else "")


def _share(hits: float, total: float) -> str:
    return f"{100 * hits / total:.1f} %" if total else "0 %"


@contextmanager
def summary(first: FirstWins) -> Iterator[RankingSummary]:
    """A `RankingSummary` whose memory spills to the disk beyond a few megabytes."""
    with ExitStack() as opened:
        yield RankingSummary(first, opened.enter_context(seen()), opened.enter_context(values()))
