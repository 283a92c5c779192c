"""Groups rankings into training examples of a reward model: one group per prompt, each distinct answer encoded
once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from data.schema import Message, Ranking, prompt_key
from pipeline import invocation
from pipeline.errors import DataError, StageError
from stages.models.templates import named
from stages.models.text import Codec, pad
from stages.reward.left_out import RankingsLeftOut


@dataclass(frozen=True, slots=True)
class Order:
    """One ranking of a group's completions.

    Attributes:
        rows: indices of the ranked completions in the group (or batch).
        ranks: one per completion, 1 = best; equal ranks are ties.
        ratings: one per completion, if the ranks were derived from ratings.
        weight: the ranking's weight in the loss; the mean over all rankings is 1.
    """

    rows: list[int]
    ranks: list[int]
    ratings: list[float] | None = None
    weight: float = 1.0


@dataclass
class Group:
    """A prompt with its distinct completions, each a row of prompt and completion ids, and their rankings."""

    prompt_length: int
    completions: dict[str, int] = field(default_factory=dict)
    rows: list[list[int]] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)

    def places(self, ranking: Ranking) -> dict[int, int]:
        """Row -> index of the completion in a ranking of this prompt, for completions that have a row.

        Of equal completions the first counts: an answer that two systems gave cannot be better than itself.
        """
        places: dict[int, int] = {}
        for place, text in enumerate(ranking.completions):
            if text in self.completions:
                places.setdefault(self.completions[text], place)
        return places


class Encoder(Protocol):
    """Encodes prompts and completions for a reward model. Rows are padded with `pad_id`."""

    pad_id: int

    def prompt(self, messages: Sequence[Message]) -> Any: ...

    def row(self, prompt: Any, completion: str) -> list[int]:
        """Ids of a prompt, as returned by `prompt`, and of a completion with its stop token."""

    def prompt_length(self, prompt: Any) -> int: ...

    def cut(self, row: list[int], prompt_length: int) -> list[int]:
        """The row with only the first half of its completion, without a stop token."""


class TokenEncoder:
    """Encodes with the policy's tokenizer."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.pad_id = codec, codec.pad_id

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return self.codec.prompt(messages)

    def row(self, prompt: list[int], completion: str) -> list[int]:
        return prompt + self.codec.completion(completion)

    def prompt_length(self, prompt: list[int]) -> int:
        return len(prompt)

    def cut(self, row: list[int], prompt_length: int) -> list[int]:
        return row[: prompt_length + (len(row) - prompt_length) // 2]


def group_rankings(
    rankings: Iterable[Ranking],
    encoder: Encoder,
    max_length: int,
    weights: Mapping[str, float] | None = None,
    *,
    ties_teach: bool = False,
    prefix: str = "",
    limit_key: str = "reward.max_length",
) -> tuple[dict[str, Group], RankingsLeftOut]:
    """Groups rankings by prompt key, in one pass over them, and counts what is left out.

    A completion that exceeds `max_length` is removed from its rankings.

    Args:
        weights: by annotator, times a ranking's own weight; scaled to a mean of 1 over the rankings.
        ties_teach: whether the objective learns from rankings in which all answers are tied. If not, these count as
            left out, but stay in their groups.
        prefix: which rankings these are, one of `stages.left_out.PREFIXES`.
        limit_key: the recipe key of `max_length`.

    Raises `StageError` if an annotator has no weight, and `templates.Refused` if the chat template rejects a
    prompt.
    """
    groups: dict[str, Group] = {}
    prompts: dict[str, Any] = {}
    left_out = RankingsLeftOut("rankings", prefix, limit_key, max_length, ties_teach=ties_teach)
    for ranking in rankings:
        key = prompt_key(ranking.prompt)
        if key not in groups:
            with named(ranking.where or f"{ranking.prompt[-1]['content']!r:.80}"):
                prompts[key] = encoder.prompt(ranking.prompt)
                groups[key] = Group(encoder.prompt_length(prompts[key]))
        group = groups[key]
        for text in ranking.completions:
            if text in group.completions or hash((key, text)) in left_out.long_answers:
                continue
            row = encoder.row(prompts[key], text)
            if len(row) > max_length:
                left_out.long_answers.add(hash((key, text)))
                left_out.longest = max(left_out.longest, len(row))
                continue
            group.completions[text] = len(group.rows)
            group.rows.append(row)
        places = group.places(ranking)
        left_out.count(ranking, places.values())
        if len(places) > 1:
            group.orders.append(
                Order(
                    list(places),
                    [ranking.ranks[place] for place in places.values()],
                    None if ranking.ratings is None else [ranking.ratings[place] for place in places.values()],
                    ranking.weight * (1.0 if weights is None else _weight(weights, ranking.annotator)),
                )
            )
    groups = {key: group for key, group in groups.items() if group.orders}
    if any(order.weight != 1 for group in groups.values() for order in group.orders):
        _scale_weights(list(groups.values()))
    return groups, left_out


def _weight(weights: Mapping[str, float], annotator: str) -> float:
    if annotator not in weights:
        raise StageError(
            f"the rank stage measured no reliability of annotator {annotator!r}",
            where="reward.annotator_weights",
            hint=f"run `{invocation.command('run', 'rank', '--fresh')}`, or set reward.annotator_weights: none",
        )
    return weights[annotator]


def _scale_weights(groups: Sequence[Group]) -> None:
    weights = [order.weight for group in groups for order in group.orders]
    mean = sum(weights) / len(weights)
    if not mean > 0:
        raise StageError(
            "no annotator of the training rankings has a weight above 0",
            where="reward.annotator_weights",
            hint="set reward.annotator_weights: none",
        )
    for group in groups:
        group.orders = [replace(order, weight=order.weight / mean) for order in group.orders]


def as_pairs(groups: Iterable[Group]) -> Iterator[Group]:
    """Yields each strict pair of each ranking as a separate group, so that its two completions are scored anew per
    pair."""
    for group in groups:
        for order in group.orders:
            for i, better in enumerate(order.rows):
                for j, worse in enumerate(order.rows):
                    if order.ranks[i] < order.ranks[j]:
                        ratings = None if order.ratings is None else [order.ratings[i], order.ratings[j]]
                        ranks = [order.ranks[i], order.ranks[j]]
                        pair = Order([0, 1], ranks, ratings, order.weight)
                        yield Group(
                            group.prompt_length, rows=[group.rows[better], group.rows[worse]], orders=[pair]
                        )


def tie_share(groups: Iterable[Group]) -> float:
    """The share of ties among all pairs of completions in the same ranking."""
    ties = pairs = 0
    for order in (order for group in groups for order in group.orders):
        k = len(order.ranks)
        pairs += k * (k - 1) // 2
        ties += sum(order.ranks[i] == order.ranks[j] for i in range(k) for j in range(i))
    return ties / pairs if pairs else 0.0


def mean_gap(groups: Iterable[Group], merits: str) -> float:
    """Mean merit gap (see `merits_of`) over the strict pairs of all rankings; 1 without a strict pair."""
    total, pairs = 0.0, 0
    for order in (order for group in groups for order in group.orders):
        values = merits_of(order, merits)
        k = range(len(values))
        gaps = [values[i] - values[j] for i in k for j in k if order.ranks[i] < order.ranks[j]]
        total, pairs = total + sum(gaps), pairs + len(gaps)
    return total / pairs if pairs else 1.0


def merits_of(order: Order, kind: str) -> list[float]:
    """The merit of each answer of a ranking, by `kind`: its rating, or minus its rank."""
    if kind == "ranks":
        return [-float(rank) for rank in order.ranks]
    if order.ratings is None:
        raise DataError(
            "a training ranking has no ratings",
            where="reward.merits",
            hint="set reward.merits: ranks, or use a table with ratings (or a `margin`)",
        )
    return order.ratings


def collate(groups: Sequence[Group], pad_id: int) -> dict[str, Any]:
    """Collates groups into padded rows of all their completions, and rankings with indices into these rows."""
    ids, mask = pad([row for group in groups for row in group.rows], pad_id, left=False)
    return {"rows": {"ids_BL": ids, "lengths_B": mask.sum(1)}, **orders_of(groups)}


def orders_of(groups: Sequence[Group]) -> dict[str, Any]:
    """All rankings of a batch, with indices into its completions, and the span of each group's completions."""
    orders, spans, offset = [], [], 0
    for group in groups:
        orders += [replace(order, rows=[offset + i for i in order.rows]) for order in group.orders]
        spans.append((offset, offset + len(group.rows)))
        offset += len(group.rows)
    return {"orders": orders, "spans": spans}
