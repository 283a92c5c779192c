"""What the readers of all formats share: column names, cells that belong together, and a ranking before empty cells
are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data.schema import Message, Ranking
from data.tables.messages import Forms, LeftOut, as_completion, exchange, shared_start
from data.tables.paths import Keyed, is_template
from data.tables.per_annotator import Annotator, by_annotator
from data.tables.sources import Row, as_number, as_text, is_empty
from data.tables.spelling import numbers_in, spelled
from pipeline.config.data import RankingTableConfig
from pipeline.config.formats import TableFormat
from pipeline.config.table_files import shown
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
    """Where it differs from that of its row: of a ranking of several rows, or of one of a row's annotators."""
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
        objects = f"write {column}.* for all values of an object, or " if isinstance(value, dict) else ""
        raise DataError(
            f"column {column!r} must be a list, got {row[column]!r:.60}",
            where=row.where,
            hint=f'{objects}write a list, in JSON where a cell holds text: ["...", "..."]; or name one column per '
            "completion in the format wide",
        )
    return value


@dataclass(frozen=True)
class Cells:
    """Cells that belong to the completions of a row, in their order.

    Attributes:
        names: a description of each, for messages.
        keys: of the object that they are the values of, such as systems by name; None where there is none.
    """

    values: list[Any]
    names: list[str]
    keys: list[str] | None = None

    @property
    def named(self) -> list[tuple[str, Any]]:
        """Each cell with its description."""
        return list(zip(self.names, self.values, strict=True))

    @property
    def models(self) -> list[str | None]:
        """The keys as the names of models; None for each where there are none."""
        return [None] * len(self.values) if self.keys is None else list(self.keys)

    def numbers(self, where: str, sign: int = 1) -> list[float | None]:
        """The cells as numbers, times `sign`. Raises `DataError`."""
        return [signed(as_number(value, name, where), sign) for name, value in self.named]

    def scores(self, row: Row, columns: Columns, sign: int = 1) -> list[float | None]:
        """The cells as `Columns.as_score` reads them; None for each where all of them are empty."""
        if all(map(is_empty, self.values)):
            return [None] * len(self.values)
        return [columns.as_score(value, name, row, sign) for name, value in self.named]

    def by_annotator(self, row: Row, columns: Columns) -> Iterator[tuple[Annotator, Cells]]:
        """Each annotator with their cells (`data.tables.per_annotator`)."""
        for annotator, values in by_annotator(row, columns, self.values):
            yield annotator, replace(self, values=values)


def signed(value: float | None, sign: int) -> float | None:
    return None if value is None else sign * value


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
        self.named, self.where = config.columns, f"data.rankings.columns ({shown(config.path)})"
        self.labels, self.text_lists = config.labels, config.text_lists
        self.rank_signs: set[bool] = set()
        """Whether ranks are above 0, of those that were read. A table has ranks of one sign."""
        self.merges_ratings = config.consensus in ("mean", "zscore")
        self.pairs, self.index_from = config.pairs, config.index_from
        self.implicit_prompt = config.implicit_prompt
        self.stated = {key_of(label) for label in (*config.labels, *config.scale)}
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

    def is_label(self, cell: Any) -> bool:
        """Whether a cell is a text that the recipe's `labels` or `scale` names."""
        return isinstance(cell, str) and key_of(cell) in self.stated

    def name(self, ours: str) -> str:
        return str(self.named.get(ours, ours))

    def names(self, ours: str) -> list[str]:
        """The columns of a list; one that holds a list in its cells is the only one."""
        value = self.named.get(ours, ())
        return [value] if isinstance(value, str) else list(value)

    def items(self, row: Row, ours: str) -> Cells:
        """The cells of a list of columns, or the items of one list cell."""
        names = self.named.get(ours, ours)
        if isinstance(names, list):
            return Cells([row[name] for name in names], [f"column {name!r}" for name in names])
        values = (numbers_in(row[names]) if ours in ("ratings", "ranks") else None) or as_list(row, names)
        if ours == "completions":
            described = [f"completion {place} of the row" for place in range(1, len(values) + 1)]
        else:
            described = [f"a value of column {names!r}"] * len(values)
        return Cells(values, described, values.keys if isinstance(values, Keyed) else None)

    def beside(self, completions: Cells, row: Row, ours: str) -> Cells:
        """The cells of `ours` that belong to the completions: with the same keys, or in the same order. None for
        each where the whole list is empty. Raises `DataError` where they do not fit."""
        names, count = self.named.get(ours, ours), len(completions.values)
        cells = self.items(row, ours) if count else completions
        if not cells.values:
            return Cells([None] * count, [f"column {names!r}"] * count)
        if (cells.keys is None) != (completions.keys is None):
            raise DataError(
                f"the completions {'have' if completions.keys else 'have no'} keys, and {names!r} "
                f"{'has' if cells.keys else 'has none'}: they cannot be paired",
                where=row.where,
                hint="name objects with the same keys, outputs.* and scores.*, or lists in the same order",
            )
        if cells.keys is not None and completions.keys is not None:
            return self._with_keys(completions, cells, row, ours)
        if len(cells.values) != count:
            raise DataError(
                f"column {names!r} must hold {count} values, one per completion, got {len(cells.values)}"
                if isinstance(names, str)
                else f"{ours} names {len(cells.values)} columns, and the row has {count} completions",
                where=row.where,
                hint="write one value per completion, or leave the cell empty",
            )
        return cells

    def _with_keys(self, completions: Cells, cells: Cells, row: Row, ours: str) -> Cells:
        """`cells` in the order of the completions' keys. A key of one object only must have no value there."""
        by_key = dict(zip(cells.keys or [], cells.named, strict=True))
        texts = dict(zip(completions.keys or [], completions.values, strict=True))
        alone = [key for key, (_, value) in by_key.items() if key not in texts and not is_empty(value)]
        alone += [key for key, value in texts.items() if key not in by_key and not is_empty(value)]
        if alone:
            raise DataError(
                f"the keys of the completions and of {self.named.get(ours, ours)!r} differ: only one of them has "
                f"{alone[0]!r}",
                where=row.where,
                hint="give both objects the same keys, with null for a value that is not there",
            )
        kept = [by_key.get(key, (f"{ours} of {key!r}", None)) for key in texts]
        return Cells([value for _, value in kept], [name for name, _ in kept], list(texts))

    def order(self, row: Row, rating: str = "rating", rank: str = "rank") -> tuple[str, int, str | None]:
        """The column that orders completions, the sign that makes higher better, and the ranks' column where the
        table has ratings and ranks and the recipe names neither."""
        if rating not in self.named and rank not in self.named and rating in row and rank in row:
            return rating, 1, rank
        by_rank = rank in self.named or (rating not in self.named and rating not in row and rank in row)
        return (self.name(rank), -1, None) if by_rank else (self.name(rating), 1, None)

    def optional(self, row: Row, ours: str) -> Any:
        """A cell of an optional column; None where neither the recipe names it nor the table has it."""
        return row[self.name(ours)] if ours in self.named or row.has(ours) else None

    def as_score(self, value: Any, what: str, row: Row, sign: int = 1) -> float | None:
        """The rating or the rank in a cell as a score, higher for better; None for an empty cell.

        Args:
            what: a description of the cell, for messages.
            sign: 1 for a rating, a number or a label of the recipe's `scale`; -1 for a rank.
        """
        if sign > 0 and self.scale:
            if is_empty(value):
                return self.scale.get("")
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
        return signed(number, sign)

    def cells(self, row: Row, names: Iterable[str]) -> list[tuple[str, Any]]:
        """Cells of the table's columns `names`, each with a description for messages."""
        return [(f"column {name!r}", row[name]) for name in names]

    def annotator_cell(self, row: Row) -> Any:
        """Who ranked: a name, or a list of them; None where the table does not tell."""
        return None if self.named.get("annotator") == "" else self.optional(row, "annotator")

    def annotator(self, row: Row) -> str:
        """Who ranked; `unknown` where the cell is empty, or the recipe says `annotator: ""`."""
        value = self.annotator_cell(row)
        if isinstance(value, list):
            raise DataError(
                f"column {self.name('annotator')!r} names {len(value)} annotators, and the row holds one ranking",
                where=row.where,
                hint="name a column with one value per annotator, or write one name",
            )
        if isinstance(value, dict):
            raise DataError(
                f"column {self.name('annotator')!r} holds an object, {value!r:.60}",
                where=row.where,
                hint=f"name the key that tells who ranked by its path, annotator: {self.name('annotator')}.KEY",
            )
        return ANONYMOUS if is_empty(value) else str(value)

    def weight_cell(self, row: Row) -> Any:
        """A weight, or a list of them, one per annotator; None where the recipe names no column of weights."""
        return row[self.name("weight")] if "weight" in self.named else None

    def weight(self, row: Row) -> float | None:
        """The row's weight; None where the recipe names no column of weights."""
        return self.as_weight(self.weight_cell(row), row) if "weight" in self.named else None

    def as_weight(self, value: Any, row: Row) -> float:
        """A weight of the recipe's column. Raises as the function `as_weight`."""
        return as_weight(value, row, self.name("weight"))

    def model(self, row: Row) -> str | None:
        return as_text(self.optional(row, "model"), f"column {self.name('model')!r}", row.where) or None

    def models(self, row: Row, completions: Cells) -> list[str | None]:
        """The model of each completion: from `models`, or from the completions' keys."""
        if "models" not in self.named:
            return completions.models
        cells = self.beside(completions, row, "models")
        return [as_text(value, name, row.where) or None for name, value in cells.named]

    def exchange(self, row: Row, answers: Sequence[tuple[str, Any]]) -> tuple[list[Message], list[str]]:
        """The prompt, and the texts of the completions, from cells with their descriptions. Raises as
        `messages.exchange`."""
        column = self.name("prompt")
        is_there, cell = True, None
        if self.implicit_prompt:
            if column and row.has(column):
                raise self.error(f"`implicit_prompt` is set, and the table has a column {column!r}", "leave it out")
            cell, answers = self._split(row, answers)
        elif column and ("prompt" in self.named or row.has(column)):
            cell = row[column]
            column = "the prompt" if is_template(column) else f"column {column!r}"
        else:
            is_there = False
        prompt, texts = exchange(cell, answers, row.where, text_lists=self.text_lists, what=column or "the prompt")
        self.forms.add((cell, *(value for _, value in answers)))
        if not prompt and not is_there and any(texts) and not self._any_context(answers, row):
            row[self.name("prompt") or "prompt"]  # raises: no cell holds a prompt
        return prompt, texts

    def _split(self, row: Row, answers: Sequence[tuple[str, Any]]) -> tuple[str, Sequence[tuple[str, Any]]]:
        """The beginning that the answers share, which is the prompt, and what follows it in each. Raises `LeftOut`
        if they share none."""
        texts = [as_text(value, name, row.where) for name, value in answers]
        start = shared_start(texts)
        if not start:
            raise LeftOut(
                "the answers do not begin alike, and `implicit_prompt` takes the prompt from there",
                "answers without a shared beginning",
                where=row.where,
                hint="add the prompt to the row, or remove the row",
            )
        names = [name for name, _ in answers]
        return start, list(zip(names, [text[len(start) :] for text in texts], strict=True))

    def _any_context(self, answers: Sequence[tuple[str, Any]], row: Row) -> bool:
        """Whether the cell of an answer holds a conversation before it."""
        return any(as_completion(value, name, row.where)[0] for name, value in answers)
