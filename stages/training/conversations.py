"""Checks the data against the policy's chat template and tokenizer, before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data.schema import Message
from pipeline.engine.rounds import by_round
from pipeline.engine.stage import Artifact, Metrics, RunContext
from pipeline.errors import DataError
from stages.artifacts import MERGED
from stages.models.templates import Refused, fold
from stages.models.text import Codec

TABLES = ("demonstrations", "prompts", "rankings")
"""The tables of the `data` artifact whose texts are checked."""


def check_conversations(
    data: Artifact,
    codec: Codec,
    say: Callable[[str], None],
    advance: Callable[[], None] = lambda: None,
    tables: Sequence[str] = TABLES,
) -> Metrics:
    """Renders every prompt of the `data` artifact. `advance` is called for each prompt and answer.

    Args:
        tables: whose prompts and answers are counted. (A prompt of several tables belongs to the first.)

    Returns the number of prompts and answers that spell a control token (`texts_with_control_tokens`) and of
    answers that end with a stop token (`answers_with_stop_token`), and prints those that are not zero.

    Raises `DataError` that names the first row that the chat template refuses.
    """
    first: tuple[dict[str, Any], Refused] | None = None
    count = refused = spelled = stopped = 0
    for row in data.jsonl("prompts.jsonl"):
        count += 1
        counted = row.get("table", TABLES[0]).partition(".")[0] in tables  # rankings.criteria.quality: rankings
        spelled += counted and any(
            codec.control.spelled(codec.cleaned(message)["content"]) for message in row["prompt"]
        )
        try:
            codec.template.render(row["prompt"], generation=True)
        except Refused as error:
            refused += 1
            first = first or (row, error)
        advance()
    if first is not None:
        raise _refusal(*first, f"{refused:,} of {count:,}", data, codec)
    for text in _answers(data, tables):
        stripped = codec.without_stop(text)
        stopped += stripped != text
        spelled += codec.control.spelled(stripped)
        advance()
    if stopped:
        say(f"{stopped:,} answers end with the text of a stop token, which is removed")
    if spelled:
        kind = "text" if codec.literal else "the tokens"
        say(f"{spelled:,} prompts and answers spell control tokens, encoded as {kind} (base.control_tokens)")
    return {"texts_with_control_tokens": spelled, "answers_with_stop_token": stopped}


def check_first(inputs: Mapping[str, Artifact], codec: Codec, ctx: RunContext) -> Metrics:
    """`check_conversations` for the stages that read the data first after the SFT stage, or without one. SFT has
    counted the texts that it trains on, and does not run again when the other tables change. Nothing in later
    rounds."""
    if by_round(inputs, "ppo") or len(by_round(inputs, "rank")) > 1:
        return {}
    tables = TABLES[1:] if "sft" in inputs else TABLES
    with ctx.progress("checking prompts and answers") as bar:
        return check_conversations(inputs["data"], codec, ctx.say, bar.advance, tables)


def _answers(data: Artifact, tables: Sequence[str]) -> Iterator[str]:
    if "demonstrations" in tables:
        for row in data.jsonl("demonstrations.jsonl"):
            yield row["completion"]
    for table in ("rankings.jsonl", f"{MERGED}.jsonl"):
        if "rankings" in tables and data.has(table):
            for row in data.jsonl(table):
                yield from row["completions"]


def _refusal(row: dict[str, Any], error: Refused, share: str, data: Artifact, codec: Codec) -> DataError:
    prompt, table = row["prompt"], row.get("table", "prompts")
    source = data.metrics.get(f"source_{table}", f"generated {table}")
    return DataError(
        f"the chat template refuses {share} prompts: {error.words}",
        where=f"{source}, row {row.get('row', 0)} (data.{table}): {', '.join(m['role'] for m in prompt)}",
        hint=_hint(prompt, codec),
    )


def _hint(prompt: list[Message], codec: Codec) -> str:
    def accepts(messages: list[Message]) -> bool:
        try:
            codec.template.as_given(messages, generation=True)
        except Refused:
            return False
        return True

    other = "or choose another base.chat_template"
    if not accepts(fold(prompt, system=not codec.template.takes_system)):
        return f"remove such rows, {other}"
    if accepts([message for message in prompt if message["role"] != "system"]):
        return (
            "set base.fold_turns: true, which puts system text before the first user turn; or remove data.system "
            f"and the system turns, {other}"
        )
    return f"set base.fold_turns: true, which joins consecutive turns of one role; or remove such rows, {other}"
