"""Public schemas that are recognised by their columns, with the recipe's section that reads each.

To add one: a `Schema` in `SCHEMAS`. The first that fits a table wins, so a schema comes before those whose paths
are a subset of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data.tables.columns import key_of
from data.tables.guess.guess import DEMONSTRATIONS, RANKINGS, Guess, Open, finish
from data.tables.guess.sample import Sample
from pipeline.errors import DataError

Columns = Mapping[str, str | list[str]]


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What a table of a public data set looks like, and how a recipe describes it.

    Attributes:
        name: of the data set or the tool, as it is shown.
        paths: what the table has, as `Sample.paths` writes it: columns, keys of objects after a dot, and `[]` for
            the items of a list, as in `answers[].rank`.
        values: a column -> the values that occur in it, as a recipe's `labels` write them; others may not.
        table: dotted path of the recipe's section.
        without: columns that it does not have.
        format, columns, labels, more, human: the section; `more` are other values of it.
        optional: columns of the section that not every table of the schema has.
        note: what a person should know.
        ask: a question that the table does not answer.
        hint: for a table that cannot be read as it is, what to do; it then has no section.
    """

    name: str
    paths: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    table: str = RANKINGS
    format: str = ""
    columns: Columns = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    human: bool = True
    note: str = ""
    ask: Open | None = None
    hint: str = ""

    def fits(self, sample: Sample) -> bool:
        return (
            sample.paths.issuperset(self.paths)
            and sample.paths.isdisjoint(self.without)
            and all(
                {key_of(cell) for cell in sample.cells(column)} <= set(values)
                for column, values in self.values.items()
            )
        )

    def guess(self, sample: Sample) -> Guess:
        """The section. Raises `DataError` for a table that cannot be read as it is."""
        if self.hint:
            raise DataError(f"the table has the schema of {self.name}", where=sample.path, hint=self.hint)
        there = {ours: path.rpartition("[].")[2] for ours, path in self.optional.items() if path in sample.paths}
        guess = Guess(
            self.format,
            {**self.columns, **there},
            labels=dict(self.labels),
            human=self.human,
            values=dict(self.more),
            table=self.table,
            schema=self.name,
            notes=[self.note] if self.note else [],
            open=[self.ask] if self.ask else [],
        )
        return finish(guess, sample)


SCHEMAS = (
    Schema(
        name="UltraFeedback",
        paths=("instruction", "completions[].response", "completions[].overall_score"),
        format="scored",
        columns={"prompt": "instruction", "text": "response", "score": "overall_score"},
        human=False,
        note="the scores are GPT-4's, not people's",
    ),
    Schema(
        name="Nectar",
        paths=("prompt", "answers[].answer", "answers[].rank", "answers[].model"),
        format="scored",
        columns={"completions": "answers", "text": "answer", "rank": "rank", "model": "model"},
        human=False,
        note="the ranks are GPT-4's, not people's",
    ),
    Schema(
        name="HelpSteer2",
        paths=("prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"),
        format="long",
        columns={"completion": "response", "rating": "helpfulness"},
        note="helpfulness is the overall rating; correctness, coherence, complexity and verbosity are others",
    ),
    Schema(
        name="HelpSteer2 preference",
        paths=("prompt", "response_1", "response_2", "preference_strength"),
        format="wide",
        columns={"completions": ["response_1", "response_2"], "preference": "preference_strength"},
    ),
    Schema(
        name="HelpSteer3",
        paths=("context", "response1", "response2", "overall_preference"),
        format="wide",
        columns={
            "prompt": "context",
            "completions": ["response1", "response2"],
            "preference": "overall_preference",
        },
        note="preference: individual_preference reads each annotator's, without their names",
    ),
    Schema(
        name="MT-bench human judgments",
        paths=("question_id", "conversation_a[].content", "conversation_b[].content", "winner", "judge", "turn"),
        without=("anony", "language", "tstamp"),
        format="wide",
        columns={
            "prompt": "conversation_a[0].content",
            "completions": ["conversation_a[1].content", "conversation_b[1].content"],
            "models": ["model_a", "model_b"],
            "preference": "winner",
            "annotator": "judge",
        },
        more={"only": {"turn": 1}},
        note="turn 2 compares answers to different conversations, which are no ranking",
    ),
    Schema(
        name="Chatbot Arena",
        paths=("conversation_a[].content", "conversation_b[].content", "model_a", "model_b", "winner"),
        format="wide",
        columns={
            "completions": ["conversation_a", "conversation_b"],
            "models": ["model_a", "model_b"],
            "preference": "winner",
        },
        optional={"annotator": "judge"},
    ),
    Schema(
        name="OASST trees",
        paths=("message_tree_id", "prompt.replies", "prompt.text"),
        format="tree",
        columns={"prompt": "prompt"},
    ),
    Schema(
        name="OASST messages",
        paths=("message_id", "message_tree_id", "text", "role"),
        hint="a row is one message, whose prompt is in other rows: use the data set's trees (*.trees.jsonl.gz)",
    ),
    Schema(
        name="SHP",
        paths=("history", "human_ref_A", "human_ref_B", "labels"),
        values={"labels": ("0", "1")},
        format="wide",
        columns={"prompt": "history", "completions": ["human_ref_A", "human_ref_B"], "preference": "labels"},
        labels={"1": "first", "0": "second"},
        note="the labels are votes of a forum, aggregated",
    ),
    Schema(
        name="WebGPT comparisons",
        paths=("question.full_text", "answer_0", "answer_1", "score_0", "score_1"),
        format="wide",
        columns={
            "prompt": "question.full_text",
            "completions": ["answer_0", "answer_1"],
            "ratings": ["score_0", "score_1"],
        },
    ),
    Schema(
        name="TL;DR comparisons",
        paths=("info.post", "info.title", "info.subreddit", "summaries[].text", "choice"),
        format="choice",
        columns={
            "prompt": "SUBREDDIT: r/{info.subreddit}\n\nTITLE: {info.title}\n\nPOST: {info.post}\n\nTL;DR:",
            "completions": "summaries",
        },
        optional={"model": "summaries[].policy", "annotator": "worker"},
    ),
    Schema(
        name="PKU-SafeRLHF",
        paths=("prompt", "response_0", "response_1", "better_response_id", "safer_response_id"),
        values={"better_response_id": ("0", "1")},
        format="wide",
        columns={"completions": ["response_0", "response_1"], "preference": "better_response_id"},
        labels={"0": "first", "1": "second"},
        note="better_response_id is helpfulness; preference: safer_response_id reads harmlessness",
    ),
    Schema(
        name="TRL unpaired preferences",
        paths=("prompt", "completion", "label"),
        values={"label": ("true", "false")},
        hint="a row says whether one answer is good, and a ranking needs two answers to a prompt: write pairs of a "
        "good and a bad answer to the same prompt, with the columns prompt, chosen and rejected",
    ),
    Schema(
        name="LLaMA-Factory sharegpt rankings",
        paths=("conversations[].from", "conversations[].value", "chosen.value", "rejected.value"),
        format="pairs",
        columns={"prompt": "conversations", "chosen": "chosen", "rejected": "rejected"},
    ),
    Schema(
        name="LLaMA-Factory alpaca rankings",
        paths=("instruction", "input", "chosen", "rejected"),
        format="pairs",
        columns={"prompt": "{instruction}\n{input}", "chosen": "chosen", "rejected": "rejected"},
    ),
    Schema(
        name="Alpaca",
        paths=("instruction", "input", "output"),
        without=("chosen", "rejected"),
        table=DEMONSTRATIONS,
        columns={"prompt": "{instruction}\n{input}", "completion": "output"},
    ),
)


def known(sample: Sample) -> Guess | None:
    """The guess about a table with the schema of a public data set or a tool; None for another table."""
    return next((schema.guess(sample) for schema in SCHEMAS if schema.fits(sample)), None)
