"""What the readers of all formats share: column names, and a ranking before empty cells are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.schema import Message, Ranking
from data.tables.messages import Forms, LeftOut, as_completion, exchange
from data.tables.sources import Row, as_number, as_text, is_empty
from data.tables.spelling import spelled
from pipeline.config.data import RankingTableConfig
from pipeline.config.formats import TableFormat
from pipeline.errors import DataError, RecipeError

ANONYMOUS = "unknown"
"""The annotator of a table that names none."""


@dataclass
class Completion:
    """A completion with the table's score of it.

    Attributes:
        score: higher is better; None if the cell is empty.
        rival: a second score, where the table has ratings and ranks and the recipe names neither.
        where: the row, where each answer has one.
    """

    text: str
    score: float | None
    model: str | None = None
    rival: float | None = None
    where: str = ""


@dataclass
class Candidates:
    """A ranking before empty cells are left out."""

    prompt: list[Message]
    answers: list[Completion]
    row: Row
    annotator: str = ANONYMOUS
    rated: bool = True
    """Whether scores are the table's ratings, which the ranking keeps, or only an order."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """As `Ranking.metadata`."""
    weight: float | None = None
    """Where it differs from that of its row: of a ranking of several rows."""
    whole: Ranking | None = None
    """The ranking itself, where the table holds our own schema."""
    left_out: str = ""
    """Why the whole ranking is left out; empty when it is not."""
    hint: str = ""
    """How to fix that."""
    without: list[str] = field(default_factory=list)
    """Why completions of it are left out, one reason per completion."""


def nothing(row: Row, reason: str, hint: str = "") -> Candidates:
    """A row that makes no ranking."""
    return Candidates([], [], row, left_out=reason, hint=hint)


def each(rows: Iterable[Row], read: Callable[[Row], Iterable[Candidates]]) -> Iterator[Candidates]:
    """The rankings that `read` finds in each row; a row that it cannot use is left out."""
    for row in rows:
        try:
            rankings = list(read(row))
        except LeftOut as why:
            rankings = [nothing(row, why.reason, why.hint)]
        yield from rankings


def as_object(value: Any, row: Row) -> Row:
    """An entry of a list or tree in the row, as a row of its own. Raises `DataError`."""
    if not isinstance(value, dict):
        raise DataError(
            f"an entry of the row must be an object, got {value!r:.60}",
            where=row.where,
            hint='write {"text": ..., "role": ..., "replies": [...]}',
        )
    return Row(row.number, value, row.where)


def as_list(row: Row, column: str) -> list[Any]:
    """A list cell, which a text cell may spell in JSON or Python; empty for an empty cell."""
    value = row[column]
    if isinstance(value, str):
        value = spelled(value.strip()) if value.strip() else None
    if value is None and (row[column] is None or not str(row[column]).strip()):
        return []
    if not isinstance(value, list):
        raise DataError(
            f"column {column!r} must be a list, got {row[column]!r:.60}",
            where=row.where,
            hint='write a list, in JSON where a cell holds text: ["...", "..."]; or use the format wide',
        )
    return value


def key_of(value: Any) -> str:
    """A cell as the recipe's `labels` and `scale` name it: 1, 1.0 and "1" are `1`, True is `true`."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).strip().casefold()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


def as_weight(value: Any, row: Row, column: str) -> float:
    """A finite number above 0. Raises `DataError` for anything else, an empty cell too."""
    number = as_number(value, f"column {column!r}", row.where)
    if number is None or not number > 0:
        raise DataError(
            f"column {column!r} must hold a weight above 0, got {value!r:.60}",
            where=row.where,
            hint="write a weight above 0, such as 1; remove the row to leave its ranking out",
        )
    return number


class Columns:
    """Our column names -> the table's. A name that the recipe does not give is the table's own name."""

    def __init__(self, config: RankingTableConfig, format: TableFormat) -> None:
        self.named, self.where = config.columns, f"data.rankings.columns ({config.path})"
        self.labels, self.text_lists = config.labels, config.text_lists
        self.rank_signs: set[bool] = set()
        """Whether ranks are above 0, of those that were read. A table has ranks of one sign."""
        self.merges_ratings = config.consensus in ("mean", "zscore")
        self.pairs, self.index_from = config.pairs, config.index_from
        self.scale = {key_of(label): float(number) for number, label in enumerate(config.scale, 1)}
        self.forms = Forms()
        self.questions: set[str] = set()
        """Other questions of a labelling tool that the records answer."""
        for _, what, hint in format.problems(config.columns):
            raise self.error(what, hint)

    def error(self, what: str, hint: str) -> RecipeError:
        return RecipeError(what, where=self.where, hint=hint)

    def hint(self) -> str:
        """A hint for when no ranking is left; empty where none is known."""
        if not self.questions:
            return ""
        names = ", ".join(sorted(self.questions))
        return f"the records answer other questions: name one under `columns`, question: NAME, of {names}"

    def name(self, ours: str) -> str:
        return str(self.named.get(ours, ours))

    def names(self, ours: str) -> list[str]:
        return list(self.named.get(ours, ()))

    def order(self, row: Row, rating: str = "rating", rank: str = "rank") -> tuple[str, int, str | None]:
        """The column that orders completions, the sign that makes higher better, and the ranks' column where the
        table has ratings and ranks and the recipe names neither."""
        if rating not in self.named and rank not in self.named and rating in row and rank in row:
            return rating, 1, rank
        by_rank = rank in self.named or (rating not in self.named and rating not in row and rank in row)
        return (self.name(rank), -1, None) if by_rank else (self.name(rating), 1, None)

    def optional(self, row: Row, ours: str) -> Any:
        """A cell of an optional column; None where neither the recipe names it nor the table has it."""
        return row[self.name(ours)] if ours in self.named or ours in row else None

    def score(self, row: Row, column: str, sign: int = 1) -> float | None:
        """The rating or the rank in a cell as a score, higher for better; None for an empty cell.

        Args:
            sign: 1 for a rating, a number or a label of the recipe's `scale`; -1 for a rank.
        """
        return self.as_score(row[column], f"column {column!r}", row, sign)

    def as_score(self, value: Any, what: str, row: Row, sign: int = 1) -> float | None:
        """As `score`, of a value that `what` describes in messages."""
        if sign > 0 and self.scale:
            if is_empty(value):
                return None
            if key_of(value) not in self.scale:
                raise DataError(
                    f"{what} holds {value!r:.60}, which `scale` does not name",
                    where=row.where,
                    hint=f"add it to `scale`, lowest first, which names {', '.join(self.scale)}; or empty the cell",
                )
            return self.scale[key_of(value)]
        if sign < 0 and self.scale:
            raise self.error(f"`scale` is of ratings, and {what} holds ranks", "leave `scale` out")
        number = as_number(value, what, row.where)
        if sign < 0 and number:
            self.rank_signs.add(number > 0)
            if len(self.rank_signs) > 1:
                raise DataError(
                    f"{what} holds the rank {number:g}, and other ranks are {'below' if number > 0 else 'above'} 0",
                    where=row.where,
                    hint="empty the cells of answers without a rank, which often hold -1; `unranked` says what is "
                    "done with them. If higher is better, name the column as one of ratings",
                )
        return None if number is None else sign * number

    def cells(self, row: Row, names: Iterable[str]) -> list[tuple[str, Any]]:
        """Cells of the table's columns `names`, each with a description for messages."""
        return [(f"column {name!r}", row[name]) for name in names]

    def annotator(self, row: Row) -> str:
        """Who ranked; `unknown` where the cell is empty, or the recipe says `annotator: ""`."""
        value = None if self.named.get("annotator") == "" else self.optional(row, "annotator")
        return ANONYMOUS if is_empty(value) else str(value)

    def weight(self, row: Row) -> float | None:
        """The row's weight; None where the recipe names no column of weights."""
        return as_weight(row[self.name("weight")], row, self.name("weight")) if "weight" in self.named else None

    def model(self, row: Row) -> str | None:
        return as_text(self.optional(row, "model"), f"column {self.name('model')!r}", row.where) or None

    def exchange(self, row: Row, answers: Sequence[tuple[str, Any]]) -> tuple[list[Message], list[str]]:
        """The prompt, and the texts of the completions, from cells with their descriptions. Raises as
        `messages.exchange`."""
        column = self.name("prompt")
        is_there, cell = True, None
        if "{" in column:
            column, cell = "the prompt", self._filled(column, row)
        elif column and ("prompt" in self.named or column in row):
            column, cell = f"column {column!r}", row[column]
        else:
            is_there = False
        prompt, texts = exchange(cell, answers, row.where, text_lists=self.text_lists, what=column or "the prompt")
        self.forms.add((cell, *(value for _, value in answers)))
        if not prompt and not is_there and any(texts) and not self._any_context(answers, row):
            row[self.name("prompt") or "prompt"]  # raises: no cell holds a prompt
        return prompt, texts

    def _any_context(self, answers: Sequence[tuple[str, Any]], row: Row) -> bool:
        """Whether the cell of an answer holds a conversation before it."""
        return any(as_completion(value, name, row.where)[0] for name, value in answers)

    def _filled(self, template: str, row: Row) -> str:
        try:
            return template.format_map({name: "" if value is None else value for name, value in row.items()})
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise self.error(
                f"the prompt's template does not fit the row at {row.where}: {type(error).__name__}: {error}",
                "write columns in braces, {title}, and parts of one in brackets, {info[post]}; {{ for a brace",
            ) from None
