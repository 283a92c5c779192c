"""What `reward.max_length` leaves out, before the `reward` stage runs: for `tutelage plan` and `check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from data.schema import Ranking, Split, read_rankings_file
from pipeline.config.reward import RewardConfig
from pipeline.engine.stage import Artifact
from stages.artifacts import rankings_file
from stages.left_out import of_split
from stages.models.text import load_codec
from stages.reward.groups import TokenEncoder, group_rankings
from stages.reward.left_out import TEACHES_TIES

MOST = 2000
"""Rankings of each split that are encoded."""


def lines(
    config: RewardConfig, base: Artifact, ranked: Sequence[Artifact], criterion: str | None = None
) -> Iterator[str]:
    """The lines that the stage will print about rankings with answers that are too long; none where all fit.

    Args:
        ranked: whose rankings the stage will read.
        criterion: of several, the one whose rankings count.

    Raises `StageError` if the base artifact has no usable tokenizer, or its chat template refuses a prompt.
    """
    encoder = TokenEncoder(load_codec(base))
    splits: tuple[Split, Split] = ("train", "eval")
    for split in splits:
        rankings = _of_split(ranked, split, criterion)
        _, left_out = group_rankings(
            islice(rankings, MOST),
            encoder,
            config.max_length,
            ties_teach=split == "train" and config.objective in TEACHES_TIES,
            prefix=of_split(split),
        )
        if left_out.longest:
            yield left_out.line() + (f" (Of the first {MOST:,}.)" if next(rankings, None) else "")


def _of_split(ranked: Sequence[Artifact], split: Split, criterion: str | None) -> Iterator[Ranking]:
    for artifact in ranked:
        for ranking in read_rankings_file(rankings_file(artifact)):
            if ranking.split == split and ranking.criterion == criterion:
                yield ranking
