"""One ranking from an annotator's comparisons of answers to one prompt, by net wins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from math import fsum

from data.schema import Ranking, prompt_key, ranks_from_scores, same_text
from data.tables.spill import grouping
from data.tables.suggest import count_of


def net_wins(
    comparisons: Iterable[Ranking], path: str, say: Callable[[str], None] | None = None
) -> Iterator[Ranking]:
    """Merges each annotator's `comparisons` of answers to one prompt, in the order of the first of each.

    An answer's score is the number of pairs that it wins less the number that it loses (Copeland 1951); equal
    scores tie. A pair that was compared several times counts once, for the majority. Answers that no chain of
    comparisons connects are not ordered by them: they stay in rankings of their own. Rankings of more than two
    answers count as all their pairs.

    Comparisons need not be neighbours in the table, so they wait in a temporary database.

    Args:
        path: of the table, for `say`.
        say: called with counts after the last ranking, also of those whose comparisons contradict each other in a
            cycle (A beats B, B beats C, C beats A; or A beats B and B beats A).
    """
    with grouping() as groups:
        read = 0
        for ranking in comparisons:
            groups.add(f"{prompt_key(ranking.prompt)} {ranking.annotator}", asdict(ranking))
            read += 1
        merged, cyclic, example = 0, 0, ""
        for group in groups:
            rankings = [Ranking(**ranking) for ranking in group]
            parts = list(_merged(rankings))
            merged += len(parts)
            if _has_cycle(rankings):
                cyclic += 1
                example = example or rankings[0].where
            yield from parts
    if say is not None and read:
        line = f"{path}: {count_of(read, 'comparisons')} became {count_of(merged, 'rankings')} by net wins"
        if cyclic:
            line += (
                f". {cyclic:,} of {groups.groups:,} annotators' comparisons of a prompt contradict each other in a "
                f"cycle (the first at {example})"
            )
        say(line)


def _merged(rankings: Sequence[Ranking]) -> Iterator[Ranking]:
    """The ranking of each connected set of answers."""
    first = rankings[0]
    texts: dict[str, str] = {}
    models: dict[str, str] = {}
    margins: Counter[tuple[str, str]] = Counter()
    links = []
    for ranking in rankings:
        keys = [same_text(text) for text in ranking.completions]
        for key, text, model in zip(keys, ranking.completions, ranking.models or [""] * len(keys), strict=True):
            texts.setdefault(key, text)
            models[key] = models.get(key) or model
        links.append(keys)
        for i, j in combinations(range(len(keys)), 2):
            won = (ranking.ranks[i] < ranking.ranks[j]) - (ranking.ranks[i] > ranking.ranks[j])
            margins[keys[i], keys[j]] += won
            margins[keys[j], keys[i]] -= won
    scores = Counter(dict.fromkeys(texts, 0))
    for (winner, _), margin in margins.items():
        scores[winner] += (margin > 0) - (margin < 0)
    for members in connected(links):
        yield replace(
            first,
            completions=[texts[key] for key in members],
            ranks=ranks_from_scores([scores[key] for key in members]),
            ratings=None,
            models=[models[key] for key in members] if any(models[key] for key in members) else None,
            metadata=_mean_weight(rankings),
            human=all(ranking.human for ranking in rankings),
        )


def _mean_weight(rankings: Sequence[Ranking]) -> dict[str, float]:
    """The metadata with the mean of the comparisons' weights; empty where they have none."""
    weights = [ranking.weight for ranking in rankings]
    if not any("weight" in ranking.metadata for ranking in rankings):
        return {}
    return {"weight": weights[0] if len(set(weights)) == 1 else fsum(weights) / len(weights)}


def connected(links: Iterable[Sequence[str]]) -> list[list[str]]:
    """The sets of names that `links` connect, each in the order of first appearance."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for names in links:
        for name in names:
            leader.setdefault(name, name)
            leader[find(name)] = find(names[0])
    sets: dict[str, list[str]] = {}
    for name in leader:
        sets.setdefault(find(name), []).append(name)
    return list(sets.values())


def _has_cycle(rankings: Iterable[Ranking]) -> bool:
    """Whether the strict comparisons contradict each other."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for ranking in rankings:
        for better, worse in ranking.pairs():
            sorter.add(same_text(ranking.completions[worse]), same_text(ranking.completions[better]))
    try:
        sorter.prepare()
    except CycleError:
        return True
    return False
