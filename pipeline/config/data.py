"""The `data` stage: demonstrations, prompts and rankings, from files, the Hub or the built-in task."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from pipeline.config.formats import FormatName
from pipeline.config.section import ADDED, Chance, Count, LocalPath, Natural, TablePath, field, section


@section
class TaskConfig:
    """A problem that `data/` generates: text about venues, of mixed quality on purpose."""

    task: Literal["venues"]
    """The name of the built-in task."""
    language: Literal["en", "zh"] = "en"
    """English or Chinese."""
    size: Count
    """How many texts."""
    missing: Chance = 0.25
    """Chance that a text leaves facts out."""
    invented: Chance = 0.25
    """Chance that a text states something that is not given."""
    repeated: Chance = 0.15
    """Chance that a text says something twice."""


Cell = str | bool | float
"""The value of a cell, as a recipe writes it."""


@section
class JoinConfig:
    """Columns of another table, added to the rows with the same key. A row without a partner is left out and
    counted; rows of the other table that share a key must agree."""

    path: TablePath
    """As `TableConfig.path`."""
    split: str = "train"
    """As `TableConfig.split`."""
    on: str | list[str] | dict[str, str]
    """The columns that form the key: one name or a list of names that both tables have, or a mapping from the
    table's columns to those of the other table."""
    columns: list[str] | dict[str, str] = field(default_factory=list)
    """The other table's columns to add, or a mapping from the names that they get. Empty: all but the key."""


@section
class TableConfig:
    """Rows of a CSV, TSV, JSONL, JSON or Parquet file, of several files, of a folder of them, or of a Hub data
    set."""

    path: TablePath
    """A local file; a pattern such as `votes/*.csv`; a folder of files of one format, or written by
    `datasets.save_to_disk`; an `https://` URL (add `#sha256=...` to have it checked); `hub://owner/name@revision`;
    or a list of these, read one after the other."""
    split: str = "train"
    """Of a Hub data set, or of a folder of splits that `save_to_disk` wrote."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name -> the table's: `prompt`, `completion` or `messages` of demonstrations, `prompt` of prompts, `text`
    (or `prompt` and `completion`) of other texts. Those that are not given stand for themselves. A name may be a
    path into a cell, `turns[0].text`, or a template, `"{title}: {body}"` (docs/rankings/formats.md). Of
    demonstrations and prompts also `system` and `history`, as in tables of rankings."""
    join: JoinConfig | list[JoinConfig] | None = field(default=None, metadata=ADDED)
    """Other tables whose columns are added to the rows."""
    header: Annotated[int, Field(ge=1, le=2)] = field(default=1, metadata=ADDED)
    """Rows of column names in a CSV or TSV file. 2: a spreadsheet's header with a row of merged cells above the
    names; an empty cell belongs to the merged one on its left. A name that occurs several times is preceded by the
    one above it, `Answers A` and `Scores A`."""
    fill_down: list[str] = field(default_factory=list, metadata=ADDED)
    """Columns whose empty cells repeat the cell above them, as spreadsheets export merged cells."""
    only: dict[str, Cell | list[Cell]] = field(default_factory=dict, metadata=ADDED)
    """Column -> the value, or the list of values, that rows must have: `{AssignmentStatus: Approved}`. Other rows
    are left out and counted."""
    na_values: list[Cell] = field(default_factory=list, metadata=ADDED)
    """Cells, and values inside them, that are read as empty, besides empty ones: `["N/A", "-", 99]`. Case and white
    space around them do not matter."""
    decimal: Literal[".", ","] = field(default=".", metadata=ADDED)
    """The mark before the decimals of a number that is text, as in `3,5`."""
    extract: dict[str, str] = field(default_factory=dict, metadata=ADDED)
    """Our name -> a regular expression that is searched in its cell: the column is the group of that name, or the
    first group. `{prompt: "(?s)Question: (.*?)\\nAnswer:"}`. Rows in which it is not found are left out and
    counted."""
    text_lists: Literal["refuse", "unwrap", "text"] = "refuse"
    """What is done with text cells that spell a list of texts (`["Hello"]`, as in Kaggle's lmsys table): refuse the
    table; unwrap lists of one text, and leave out rows with longer ones; or take them as text."""
    limit: Count | None = None
    """Use only the first rows."""


@section
class PromptTableConfig(TableConfig):
    """A table of prompts, with what is known about each."""

    metadata: list[str] = field(default_factory=list, metadata=ADDED)
    """Columns that are kept with each prompt, such as a reference answer, for reward functions
    (docs/rewards.md)."""


def _source_kind(value: Any) -> str:
    is_task = "task" in value if isinstance(value, dict) else isinstance(value, TaskConfig)
    return "the built-in task" if is_task else "a table"


TextSource = Annotated[
    Annotated[TaskConfig, Tag("the built-in task")] | Annotated[TableConfig, Tag("a table")],
    Discriminator(_source_kind),
]
"""The key `task` tells the two apart, so that errors speak of the one that is meant."""


@section
class RankingTableConfig:
    """Rankings as they come. See docs/rankings/formats.md for each format's columns."""

    path: TablePath
    """As `TableConfig.path`."""
    format: FormatName
    """How the table is laid out."""
    split: str = "train"
    """As `TableConfig.split`; `train+eval` for several."""
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    """Our name -> the table's: `prompt`, `completions`, `ratings`, `models`, `annotator`, ... (lists
    for wide). A name may be a path into a cell, `reviews[0].text`, `completions[*].text` (a list) or `outputs.*`
    (all values of an object, paired by key), or a template, `"{title}: {body}"`. `prompt: ""`: the conversations in
    the answers' cells are the whole prompt. `annotator: ""`: all rankings are by one person, or nobody knows by
    whom. `weight`: a column of weights above 0, such as trust in the annotator, for `consensus` and the
    losses of the reward model and of DPO. `system` and `history`: columns with the system message and the earlier
    turns that come before the prompt."""
    annotations: str | dict[str, dict[str, str | list[str]]] | None = field(default=None, metadata=ADDED)
    """Where a row holds the rankings of several annotators: the path of a list with one entry for each, in which
    the columns are looked up first (`reviews`, or `reviews.*` for an object by annotator); or each annotator's
    name -> the columns that are theirs, `{ana: {ratings: [ana_a, ana_b]}, ben: {ratings: [ben_a, ben_b]}}`."""
    join: JoinConfig | list[JoinConfig] | None = field(default=None, metadata=ADDED)
    """As `TableConfig.join`."""
    header: Annotated[int, Field(ge=1, le=2)] = field(default=1, metadata=ADDED)
    """As `TableConfig.header`."""
    fill_down: list[str] = field(default_factory=list, metadata=ADDED)
    """As `TableConfig.fill_down`."""
    only: dict[str, Cell | list[Cell]] = field(default_factory=dict, metadata=ADDED)
    """As `TableConfig.only`."""
    na_values: list[Cell] = field(default_factory=list, metadata=ADDED)
    """As `TableConfig.na_values`."""
    decimal: Literal[".", ","] = field(default=".", metadata=ADDED)
    """As `TableConfig.decimal`."""
    extract: dict[str, str] = field(default_factory=dict, metadata=ADDED)
    """As `TableConfig.extract`."""
    labels: dict[str, Literal["first", "second", "tie"] | float] = field(default_factory=dict)
    """What the values of the `preference` column (wide) or of `choice` mean, for two answers:
    `{1: first, 2: second, 0: tie}`, or signed strengths, below 0 where the first is better:
    `{"A is much better": -2, "A is better": -1, tie: 0, ...}`. A value that is not named is refused."""
    pairs: list[list[Natural]] = field(default_factory=list, metadata=ADDED)
    """The two completions, by their places from 0, that each label of a row compares, where `preference` (wide) or
    `choice` holds a label per pair of K answers: `[[0, 1], [0, 2], [1, 2]]`. Labels are a list in one cell, or one
    column each, `preference: [first_label, ...]`. Each label is a comparison of its own; see `combine`."""
    combine: Literal["keep", "net_wins"] = field(default="keep", metadata=ADDED)
    """What is done with an annotator's comparisons of answers to one prompt. keep: each is a ranking of its own.
    net_wins: they become one ranking, by the pairs that an answer wins less those that it loses (Copeland)."""
    scale: list[str] = field(default_factory=list, metadata=ADDED)
    """Labels that stand for ratings, lowest first: `[bad, fair, good]` are 1, 2 and 3. Other labels are refused. An
    empty one is an empty cell beside others of the row that are filled: `["", x]` for marked answers."""
    index_from: Literal[0, 1] | None = field(default=None, metadata=ADDED)
    """The number of the first completion, where `choice`, `best`, `worst` or `order` holds numbers. null: 0 for
    `choice`; numbers in the columns of `wide` are refused."""
    unranked: Literal["drop", "last"] = field(default="drop", metadata=ADDED)
    """What is done with an answer without a rank, where others have one. drop: it is left out of the ranking. last:
    it is tied with the other unranked ones, below all that are ranked. Ratings are never filled in."""
    implicit_prompt: bool = field(default=False, metadata=ADDED)
    """Only for `pairs`, without a prompt column: the prompt is the beginning that both texts share, up to the end
    of a word, and the answers are what follows it. Rows whose texts begin differently are left out and counted."""
    consensus: Literal["none", "mean", "zscore", "bradley_terry"] = field(default="none", metadata=ADDED)
    """How the annotators of a prompt are merged into one ranking, which the reward model and DPO then learn from
    (docs/rankings/agreement.md). none: each annotator's ranking is learned from. mean: the mean of an answer's
    ratings. zscore: the same of ratings standardised by each annotator's own mean and standard deviation.
    bradley_terry: strengths fitted to all annotators' pairs. Agreement is measured on single annotators always."""
    text_lists: Literal["refuse", "unwrap", "text"] = "refuse"
    """What is done with text cells that spell a list of texts (`["Hello"]`, as in Kaggle's lmsys table): refuse the
    table; unwrap lists of one text, and leave out rows with longer ones; or take them as text."""
    limit: Count | None = None
    """Use only the first rows."""
    human: bool = True
    """Whether people made them. What is not human is never called so in a report or card."""


@section
class CriteriaConfig:
    """Rankings by several criteria, such as quality and naturalness: a table for each
    (docs/rankings/criteria.md)."""

    criteria: dict[str, RankingTableConfig]
    """Name of a criterion -> its rankings. Two or more; letters, digits and underscores. Criteria may be columns of
    the same file: give its path to each of them."""


def _ranking_kind(value: Any) -> str:
    several = "criteria" in value if isinstance(value, dict) else isinstance(value, CriteriaConfig)
    return "several criteria" if several else "a table of rankings"


RankingSource = Annotated[
    Annotated[RankingTableConfig, Tag("a table of rankings")] | Annotated[CriteriaConfig, Tag("several criteria")],
    Discriminator(_ranking_kind),
]


def rankings_path(criterion: str | None) -> str:
    """The dotted path of the table of a criterion; None: of the only table."""
    return "data.rankings" if criterion is None else f"data.rankings.criteria.{criterion}"


Action = Literal["report", "drop", "ignore"]


@section
class DuplicatesConfig:
    """Rows that repeat an earlier row of the same kind and split: demonstrations with the same prompt and answer,
    prompts, and near-duplicate answers in one ranking. Generated text is not compared. docs/rankings/duplicates.md
    defines both kinds. The first row stays; held-out rows are counted, never dropped."""

    exact: Action = "report"
    """Equal text, ignoring case, white space and Unicode form."""
    near: Action = "report"
    """Texts whose 3-word shingles have a Jaccard similarity of at least `threshold`."""
    threshold: Annotated[float, Field(ge=0.5, le=1)] = 0.8
    """Similarity from which texts are near-duplicates."""


@section
class ContaminationConfig:
    """Held-out prompts that occur in the text that is trained on: demonstrations, rankings, `data.prompts`,
    `reward.pretrain_on` and a table in `base.pretrain.corpus`. Generated text is not compared. Only training rows
    are dropped. docs/rankings/duplicates.md defines both kinds."""

    exact: Action = "report"
    """The whole prompt occurs in the text, ignoring case, punctuation and white space."""
    near: Action = "report"
    """The text contains at least the share `threshold` of the prompt's 3-word shingles."""
    threshold: Annotated[float, Field(ge=0.5, le=1)] = 0.8
    """Share of a prompt's shingles from which a text nearly contains it."""


@section
class DataConfig:
    """Sources. The built-in task may make the demonstrations, and `collect` and `rank` the rankings."""

    demonstrations: TextSource | None = None
    """Prompt and completion pairs for SFT. null: none, which needs `sft: null`, and prompts from the other two."""
    prompts: PromptTableConfig | None = None
    """More prompts for `collect` and `ppo`; the demonstrations' and rankings' prompts are used otherwise."""
    rankings: RankingSource | None = None
    """Existing rankings, for `rank: {source: data}`: a table, or `criteria` with a table for each criterion."""
    eval_rankings: RankingTableConfig | None = field(default=None, metadata=ADDED)
    """Rankings of another source, to evaluate the reward model on and for nothing else: all of them, whatever
    `eval_fraction` says. The report has the accuracy on them beside that on the held-out rankings, and prompts that
    are trained on as well are counted (docs/rankings/formats.md). With several criteria, each reward model is
    evaluated on them."""
    exclude: TableConfig | list[LocalPath] | None = field(default=None, metadata=ADDED)
    """Prompts that are left out of every kind of training and evaluation: a table with a `prompt` column, or a list
    of files with such a column. All conversations that start with the same user turn are left out, ignoring case,
    white space and Unicode form. Rows are counted as `excluded prompt`."""
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    """What is done with rows that repeat another one."""
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)
    """What is done with training rows that contain a held-out prompt."""
    system: str | None = None
    """A system message put before every prompt."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of prompt groups held out from every kind of training, chosen by a hash of the prompt."""

    @property
    def ranking_tables(self) -> dict[str | None, RankingTableConfig]:
        """The tables of rankings by criterion, in the recipe's order; None: there is one table without one."""
        if isinstance(self.rankings, CriteriaConfig):
            return dict[str | None, RankingTableConfig](self.rankings.criteria.items())
        return {} if self.rankings is None else {None: self.rankings}

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criteria of the rankings; empty where they have none."""
        return tuple(self.rankings.criteria) if isinstance(self.rankings, CriteriaConfig) else ()

    @property
    def exclusions(self) -> dict[str, TableConfig]:
        """The tables of `exclude`, by dotted path."""
        if isinstance(self.exclude, TableConfig):
            return {"data.exclude": self.exclude}
        return {f"data.exclude[{i}]": TableConfig(path=path) for i, path in enumerate(self.exclude or ())}
