"""A user's tables, read as the `data` stage reads them, and how many prompts and tokens they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.schema import Demonstration, Message, Prompt, Ranking, prompt_key
from data.splits import group_of, split_of
from data.tables.demonstrations import read_demonstrations, read_prompts
from data.tables.guess.guess import Guess
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.config.table_files import shown
from pipeline.errors import DataError
from stages.init.base import Base

ROWS = 20_000
"""Rows that are measured. A longer table is sized by these."""

UNSEEN = 128
"""Tokens that an answer is taken to have where none can be read yet."""

ANY = 0.5
"""A share of held-out prompts, for readers that assign a split. It is not used."""


@dataclass(frozen=True)
class Tables:
    """Demonstrations and rankings, or the prompts of rankings that cannot be read yet. `cut_...`: whether the table
    has more than the `ROWS` rows that were read."""

    demonstrations: Sequence[Demonstration]
    rankings: Sequence[Ranking] = ()
    prompts: Sequence[Prompt] = ()
    cut_demonstrations: bool = False
    cut_rankings: bool = False


def demonstrations(table: TableConfig, most: int) -> tuple[list[Demonstration], bool]:
    """The demonstrations of the first rows, and whether the table may have more. Raises `DataError` with file and
    row, as the `data` stage does."""
    dropped = Dropped()
    return list(read_demonstrations(replace(table, limit=most), ANY, dropped)), dropped.read >= most


def rankings(table: RankingTableConfig, most: int) -> tuple[list[Ranking], bool]:
    """The rankings of the first rows, and whether the table may have more. Raises as `demonstrations`."""
    dropped = Dropped()
    return list(read_rankings(replace(table, limit=most), dropped)), dropped.read >= most


def read(table: TableConfig | None, ranked: RankingTableConfig | None, guess: Guess) -> Tables:
    """Reads the tables, at least one. Of rankings whose columns are open only the prompts are read. Raises
    `DataError` when there is no demonstration, or without a table of them no prompt."""
    tables = _read(table, ranked, guess)
    if table is None and ranked is not None and not (tables.rankings or tables.prompts):
        raise DataError(
            "no prompt can be read: the columns of the rankings are not known",
            where=shown(ranked.path),
            hint="run init on a terminal, where you can correct them, or give --demonstrations as well",
        )
    return tables


def _read(table: TableConfig | None, ranked: RankingTableConfig | None, guess: Guess) -> Tables:
    rows, cut = demonstrations(table, ROWS) if table is not None else ([], False)
    if table is not None and not rows:
        raise DataError(
            "no demonstration is left: each row lacks a prompt or an answer",
            where=shown(table.path),
            hint="fill the cells",
        )
    if ranked is None:
        return Tables(rows, cut_demonstrations=cut)
    if not guess.open:
        of_people, more = rankings(ranked, ROWS)
        return Tables(rows, of_people, cut_demonstrations=cut, cut_rankings=more)
    column = guess.columns.get("prompt")
    if not isinstance(column, str) or guess.format in ("tree", "argilla", "label_studio"):
        return Tables(rows, cut_demonstrations=cut)
    prompts = TableConfig(
        path=ranked.path,
        columns={"prompt": column},
        limit=ROWS,
        header=ranked.header,
        fill_down=ranked.fill_down,
        join=ranked.join,
    )
    return Tables(rows, prompts=list(read_prompts(prompts, ANY, Dropped())), cut_demonstrations=cut)


@dataclass(frozen=True)
class Sizes:
    """What the values of a recipe depend on.

    Attributes:
        groups: the group by which each distinct prompt is split.
        ranked_groups: those of the ranked prompts.
        demonstrations, rankings, ranked_prompts: counts.
        prompt: tokens of each prompt, with what the chat template adds.
        answer: tokens of each demonstrated answer, with its end; without demonstrations, of each ranked one.
        demonstration: tokens of each demonstration.
        ranked: tokens of each ranked answer with its prompt.
        cut: whether a table has more rows than were counted.
    """

    groups: frozenset[str]
    ranked_groups: frozenset[str]
    demonstrations: int
    rankings: int
    ranked_prompts: int
    prompt: Sequence[int]
    answer: Sequence[int]
    demonstration: Sequence[int]
    ranked: Sequence[int]
    cut: bool

    def held_out(self, fraction: float, *, ranked: bool = False) -> int:
        """Prompt groups that a share of held-out prompts selects."""
        groups = self.ranked_groups if ranked else self.groups
        return sum(split_of(group, fraction) == "eval" for group in groups)


def measure(tables: Tables, base: Base) -> Sizes:
    """Counts prompts, and the tokens of prompts and answers."""

    def prompt_tokens(prompt: Sequence[Message]) -> int:
        return sum(base.tokens(message["content"]) for message in prompt) + base.around * (1 + len(prompt) // 2)

    of_rankings = [row.prompt for row in tables.rankings] + [row.prompt for row in tables.prompts]
    ranked = {prompt_key(prompt): prompt for prompt in of_rankings}
    prompts = ranked | {prompt_key(row.prompt): row.prompt for row in tables.demonstrations}
    lengths = {key: prompt_tokens(prompt) for key, prompt in prompts.items()}
    answers = [base.tokens(row.completion) + 1 for row in tables.demonstrations]
    wholes = [
        lengths[prompt_key(row.prompt)] + count for row, count in zip(tables.demonstrations, answers, strict=True)
    ]
    texts = {(prompt_key(row.prompt), text) for row in tables.rankings for text in row.completions}
    ranked_answers = [base.tokens(text) + 1 for _, text in texts]
    return Sizes(
        groups=frozenset(map(group_of, prompts.values())),
        ranked_groups=frozenset(map(group_of, ranked.values())),
        demonstrations=len(tables.demonstrations),
        rankings=len(tables.rankings),
        ranked_prompts=len(ranked),
        prompt=sorted(lengths.values()),
        answer=sorted(answers or ranked_answers or [UNSEEN]),
        demonstration=sorted(wholes),
        ranked=sorted(lengths[key] + base.tokens(text) + 1 for key, text in texts),
        cut=tables.cut_demonstrations or tables.cut_rankings,
    )
