"""Rankings as they come in tables, read by column names that the recipe gives.

wide: K completion and K rating columns a row; long: a row a completion; pairs: chosen and rejected; tree:
nested replies with ranks (OASST); scored: a list of scored completions a row. docs/rankings.md shows each.

An empty cell leaves a completion out, and a ranking of which fewer than two are left; both are counted. What
is malformed (a rating that is no number, a list of one completion) is an error with file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from data.messages import ROLES, as_completion, as_prompt
from data.schema import Message, Ranking, prompt_key, ranks_from_scores
from data.sources import Dropped, Row, as_number, as_text, read_table
from pipeline.config.data import RankingTableConfig
from pipeline.errors import DataError, RecipeError

ANONYMOUS = "unknown"
"""The annotator of a table that names none."""


@dataclass
class Answer:
    """A completion with what a table says of it; `score` is higher for better, None if the cell is empty."""

    text: str
    score: float | None
    model: str | None = None


@dataclass
class Candidates:
    """A ranking before empty cells are left out."""

    prompt: list[Message]
    answers: list[Answer]
    row: Row
    annotator: str = ANONYMOUS
    rated: bool = True
    """Whether scores are the table's ratings, to be kept, or only an order."""
    extra: list[tuple[str, int]] = field(default_factory=list)
    """Reasons and rows of answers that the adapter itself left out."""


def read_rankings(
    config: RankingTableConfig, dropped: Dropped, say: Callable[[str], None] | None = None
) -> Iterator[Ranking]:
    """The rankings of a table, in its order. What is left out is noted in `dropped`.

    Raises:
        RecipeError: `config.columns` does not fit the format.
        DataError: a row is malformed, or no ranking is left.
    """
    columns = Columns(config)
    rows = read_table(config, say)
    any_ranking = False
    for candidates in ADAPTERS[config.format](rows, columns):
        ranking = _ranking(candidates, config.human, dropped)
        if ranking is not None:
            any_ranking = True
            yield ranking
    if not any_ranking:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in dropped.counts().items())
        raise DataError(
            "no ranking is left" + (f": {reasons}" if reasons else ""),
            where=config.path,
            mend="a ranking needs a prompt and at least 2 completions that are rated or ranked",
        )


def _ranking(candidates: Candidates, human: bool, dropped: Dropped) -> Ranking | None:
    for reason, number in candidates.extra:
        dropped.add(reason, number)
    number = candidates.row.number
    if not candidates.prompt:
        dropped.add("empty prompt", number)
        return None
    texts, scores, models = [], [], []
    for answer in candidates.answers:
        if not answer.text.strip():
            dropped.add("empty completion", number)
        elif answer.score is None:
            dropped.add("missing rating", number)
        else:
            texts.append(answer.text)
            scores.append(answer.score)
            models.append(answer.model or "")
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
        where=candidates.row.where,
    )


NAMES: dict[str, tuple[str, ...]] = {
    "wide": ("prompt", "completions", "ratings", "ranks", "models", "annotator"),
    "long": ("prompt", "completion", "rating", "rank", "model", "annotator", "group"),
    "pairs": ("prompt", "chosen", "rejected", "margin", "annotator"),
    "tree": ("prompt", "text", "role", "replies", "rank", "model"),
    "scored": ("prompt", "completions", "text", "score", "rank", "ratings", "ranks", "model", "annotator"),
}
"""Our column names by format."""
LISTS = ("completions", "ratings", "ranks", "models")
"""Names that stand for K columns in a wide table."""


class Columns:
    """Our column names -> the table's. A name that the recipe does not give stands for itself."""

    def __init__(self, config: RankingTableConfig) -> None:
        self.given, self.where = config.columns, f"data.rankings.columns ({config.path})"
        names = NAMES[config.format]
        for name, value in self.given.items():
            if name not in names:
                raise self.error(f"the format {config.format} has no {name!r}", f"use {', '.join(names)}")
            several = config.format == "wide" and name in LISTS
            if isinstance(value, str) == several:
                form = "a list of column names" if several else "the name of one column"
                raise self.error(f"{name} is given as {value!r}", f"write {form}")

    def error(self, what: str, mend: str) -> RecipeError:
        return RecipeError(what, where=self.where, mend=mend)

    def name(self, ours: str) -> str:
        return str(self.given.get(ours, ours))

    def names(self, ours: str) -> list[str]:
        return list(self.given.get(ours, ()))

    def order(self, row: Row, rating: str = "rating", rank: str = "rank") -> tuple[str, int]:
        """The column that orders completions, and the sign that makes higher better."""
        if rating in self.given and rank in self.given:
            raise self.error(f"both {rating} and {rank} are given", "give the one that orders them")
        by_rank = rank in self.given or (rating not in self.given and rating not in row and rank in row)
        return (self.name(rank), -1) if by_rank else (self.name(rating), 1)

    def optional(self, row: Row, ours: str) -> Any:
        """A cell of a column that the recipe need not give; None when it does not and the table has none."""
        return row[self.name(ours)] if ours in self.given or ours in row else None

    def annotator(self, row: Row) -> str:
        value = self.optional(row, "annotator")
        return str(value) if value not in (None, "") else ANONYMOUS

    def model(self, row: Row) -> str | None:
        return as_text(self.optional(row, "model"), f"column {self.name('model')!r}", row.where) or None

    def prompt(self, row: Row) -> list[Message]:
        column = self.name("prompt")
        return as_prompt(row[column], f"column {column!r}", row.where)


def wide(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """`completions: [a, b, ...]` with `ratings: [...]` (higher is better) or `ranks: [...]` (lower is)."""
    completions, models = columns.names("completions"), columns.names("models")
    kind = "ranks" if "ranks" in columns.given else "ratings"
    orders = columns.names(kind)
    if columns.names("ranks") and columns.names("ratings"):
        raise columns.error("both ratings and ranks are given", "give the one that orders the completions")
    if len(completions) < 2:
        raise columns.error(
            f"a ranking needs at least 2 completions and `completions` names {len(completions)} columns",
            "name the K columns, completions: [a, b, ...], and their ratings: [...] or ranks: [...]",
        )
    for name, values in ((kind, orders), ("models", models or completions)):
        if len(values) != len(completions):
            raise columns.error(
                f"{len(completions)} completion columns have {len(values)} {name} columns",
                f"name one column in {name} for each completion",
            )
    sign = -1 if kind == "ranks" else 1
    for row in rows:
        answers = [
            Answer(row.text(completion), _signed(row.value(order), sign))
            for completion, order in zip(completions, orders, strict=True)
        ]
        for answer, model in zip(answers, models, strict=False):
            answer.model = row.text(model)
        yield Candidates(columns.prompt(row), answers, row, columns.annotator(row), rated=kind == "ratings")


def long(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """A row a completion. One `prompt` and `annotator`, or one value of `group`, make a ranking.

    The rows of a group need not be neighbours, so the table is held in memory.
    """
    groups: dict[Any, Candidates] = {}
    for row in rows:
        order, sign = columns.order(row)
        prompt, annotator = columns.prompt(row), columns.annotator(row)
        key = str(row[columns.name("group")]) if "group" in columns.given else (prompt_key(prompt), annotator)
        text, score = row.text(columns.name("completion")), _signed(row.value(order), sign)
        group = groups.setdefault(key, Candidates(prompt, [], row, annotator, rated=sign == 1))
        if (group.prompt, group.annotator) != (prompt, annotator):
            raise DataError(
                f"group {key!r} has another prompt or annotator than at {group.row.where}",
                where=row.where,
                mend="give each ranking a group of its own",
            )
        group.answers.append(Answer(text, score, columns.model(row)))
    if groups and all(len(group.answers) < 2 for group in groups.values()):
        raise DataError(
            "a ranking needs at least 2 completions and every group of this table has 1",
            where=next(iter(groups.values())).row.where,
            mend="give rows of one ranking the same prompt and annotator, or name their `group` column",
        )
    yield from groups.values()


def pairs(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """`chosen` and `rejected`: answers, or whole conversations that differ in the last message only."""
    for row in rows:
        (before, chosen), (other, rejected) = (
            as_completion(row[columns.name(name)], f"column {columns.name(name)!r}", row.where)
            for name in ("chosen", "rejected")
        )
        if before != other:
            raise DataError(
                "chosen and rejected differ before the last answer",
                where=row.where,
                mend="remove the row: a ranking compares answers to the same conversation",
            )
        margin = as_number(columns.optional(row, "margin"), f"column {columns.name('margin')!r}", row.where)
        if margin is not None and margin <= 0:
            raise DataError(f"a margin of {margin:g}", where=row.where, mend="a margin is above 0, or empty")
        pair = Candidates(
            prompt=before or columns.prompt(row),
            answers=[Answer(chosen, margin or 1.0), Answer(rejected, 0.0)],
            row=row,
            annotator=columns.annotator(row),
            rated=margin is not None,
        )
        if chosen == rejected:
            pair.answers, pair.extra = [], [("chosen and rejected are the same", row.number)]
        yield pair


def tree(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """Conversation trees. The answers to one message, with ranks (lowest is best), make a ranking."""
    for row in rows:
        open_nodes: list[tuple[Any, list[Message]]] = [(row[columns.name("prompt")], [])]
        while open_nodes:
            value, before = open_nodes.pop()
            node = _node(value, row)
            content = node.text(columns.name("text"))
            role = ROLES.get(node.text(columns.name("role")))
            if role is None:
                raise DataError(
                    f"a message has the role {node[columns.name('role')]!r}",
                    where=row.where,
                    mend=f"use one of {', '.join(ROLES)}",
                )
            path = [*before, {"role": role, "content": content}]
            replies = node.get(columns.name("replies")) or []
            open_nodes.extend((reply, path) for reply in reversed(replies))
            if role == "user" and len(replies) > 1:
                yield _siblings(path, [_node(reply, row) for reply in replies], row, columns)


def _node(value: Any, row: Row) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"a message of the tree is not an object but {value!r:.60}",
            where=row.where,
            mend='write {"text": ..., "role": ..., "replies": [...]}',
        )
    return Row(row.number, value, row.where)


def _siblings(path: list[Message], replies: list[Row], row: Row, columns: Columns) -> Candidates:
    result = Candidates(path, [], row, rated=False)
    text, rank, model = columns.name("text"), columns.name("rank"), columns.name("model")
    for reply in replies:
        if reply.get("deleted"):
            result.extra.append(("deleted message", row.number))
            continue
        score = as_number(reply.get(rank), f"{rank!r} of a reply", row.where)
        name = as_text(reply.get(model), f"{model!r} of a reply", row.where)
        result.answers.append(Answer(reply.text(text), _signed(score, -1), name))
    return result


def scored(rows: Iterator[Row], columns: Columns) -> Iterator[Candidates]:
    """`completions`: a list of `{text, score}` or `{text, rank}`; or texts, beside `ratings` or `ranks`."""
    for row in rows:
        items = _list(row, columns.name("completions"))
        if len(items) < 2:
            raise DataError(
                f"a ranking needs at least 2 completions and this one has {len(items)}",
                where=row.where,
                mend="remove the row, or give it more completions",
            )
        if all(isinstance(item, dict) for item in items):
            entries = [_node(item, row) for item in items]
            order, sign = columns.order(entries[0], "score", "rank")
            text = columns.name("text")
            answers = [
                Answer(entry.text(text), _signed(entry.value(order), sign), columns.model(entry))
                for entry in entries
            ]
        else:
            order, sign = columns.order(row, "ratings", "ranks")
            values = _list(row, order)
            if len(values) != len(items):
                raise DataError(
                    f"{len(items)} completions have {len(values)} values in column {order!r}",
                    where=row.where,
                    mend="give one for each completion",
                )
            numbers = [as_number(value, f"a value of column {order!r}", row.where) for value in values]
            answers = [
                Answer(as_text(item, "a completion", row.where), _signed(number, sign))
                for item, number in zip(items, numbers, strict=True)
            ]
        yield Candidates(columns.prompt(row), answers, row, columns.annotator(row), rated=sign == 1)


def _list(row: Row, column: str) -> list[Any]:
    value = row[column]
    if not isinstance(value, list):
        raise DataError(
            f"column {column!r} is not a list but {value!r:.60}",
            where=row.where,
            mend="give a list in JSON, JSONL or Parquet; CSV cells hold none, use the format wide",
        )
    return value


def _signed(value: float | None, sign: int) -> float | None:
    return None if value is None else sign * value


ADAPTERS: dict[str, Callable[[Iterator[Row], Columns], Iterator[Candidates]]] = {
    "wide": wide,
    "long": long,
    "pairs": pairs,
    "tree": tree,
    "scored": scored,
}
