"""The text that a base model is pretrained on."""

from __future__ import annotations

from collections.abc import Iterator

from data import venues
from data.sources import read_table
from data.splits import split_of_prompt
from pipeline.config.data import TableConfig, TaskConfig
from pipeline.errors import DataError


def documents(config: TaskConfig | TableConfig, seed: int, held_out: float) -> Iterator[tuple[str, ...]]:
    """Yields `(text,)` for running text and `(prompt, completion)` for a demonstration. Raises `DataError`.

    Prompts of the share `held_out` that `data.splits` holds out are left out.
    """
    if isinstance(config, TaskConfig):
        for d in venues.corpus(config, seed, held_out):
            yield d.prompt[-1]["content"], d.completion
        return
    names = {ours: config.columns.get(ours, ours) for ours in ("text", "prompt", "completion")}
    for row in read_table(config):
        if names["text"] in row:
            yield (row.text(names["text"]),)
        elif names["prompt"] in row and names["completion"] in row:
            prompt = row.text(names["prompt"])
            if split_of_prompt([{"role": "user", "content": prompt}], held_out) == "train":
                yield prompt, row.text(names["completion"])
        else:
            raise DataError(
                "a corpus needs a `text` column, or `prompt` and `completion`",
                where=f"{row.where}; its columns: {', '.join(row)}",
                mend="name them in base.pretrain.corpus.columns",
            )
