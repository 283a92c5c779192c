"""A language model as the judge of pairs, behind an OpenAI-compatible endpoint (stages/scoring/endpoint.py).

Each pair is shown in both orders, since such judges favour a position (Zheng et al. 2023, arXiv:2306.05685, section
3.3): a verdict counts only where both orders agree, anything else is a tie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from data.schema import Message
from pipeline.config.evaluate import LLMJudgeConfig
from pipeline.engine.stage import Progress
from stages.scoring.endpoint import Endpoint
from stages.scoring.judge import Pair, PairJudge, Verdicts

INSTRUCTION = """\
You compare two answers to the same request. {criteria}
The order of the answers says nothing. Reason in a few sentences, then end with exactly one of
[[A]] (the first answer is better), [[B]] (the second is better) or [[C]] (neither is better)."""


class LLMJudge(PairJudge):
    """Asks the endpoint about pairs.

    Args:
        folder: where replies are kept.
        pause: as of `Endpoint`.

    Raises `StageError` when the key's environment variable is not set.
    """

    def __init__(self, config: LLMJudgeConfig, folder: Path, *, pause: float = 1.0) -> None:
        self.config = config
        self.name = config.model
        self._endpoint = Endpoint(
            config, folder, where="eval.llm_judge", without="set eval.llm_judge to null", pause=pause
        )

    def compare(self, pairs: Sequence[Pair], progress: AbstractContextManager[Progress]) -> Verdicts:
        """Asks about every pair in both orders. Raises `StageError` when the endpoint refuses; earlier replies are
        kept."""
        asked = [self._messages(pair, swapped) for pair in pairs for swapped in (False, True)]
        letters = [verdict(reply) for reply in self._endpoint.replies(asked, progress)]
        outcomes = [
            (_won(first, ours="A"), _won(second, ours="B"))
            for first, second in zip(letters[::2], letters[1::2], strict=True)
        ]
        return Verdicts(
            wins=[first if first == second else 0.5 for first, second in outcomes],
            disagreed=sum(first != second for first, second in outcomes),
            unreadable=sum(letter is None for letter in letters),
        )

    def _messages(self, pair: Pair, swapped: bool) -> list[dict[str, str]]:
        first, second = (pair.theirs, pair.ours) if swapped else (pair.ours, pair.theirs)
        shown = f"<request>\n{as_request(pair.prompt)}\n</request>\n<A>\n{first}\n</A>\n<B>\n{second}\n</B>"
        return [
            {"role": "system", "content": INSTRUCTION.format(criteria=self.config.criteria)},
            {"role": "user", "content": shown},
        ]


def as_request(prompt: Sequence[Message]) -> str:
    """A conversation as a judge reads it."""
    return "\n\n".join(
        message["content"] if len(prompt) == 1 else f"{message['role']}: {message['content']}" for message in prompt
    )


def verdict(reply: str) -> str | None:
    """A, B or C: the last one in double brackets; None when there is none."""
    letters = re.findall(r"\[\[\s*([ABC])\s*\]\]", reply)
    return letters[-1] if letters else None


def _won(letter: str | None, ours: str) -> float:
    return 0.5 if letter not in ("A", "B") else float(letter == ours)
