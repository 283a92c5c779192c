"""A language model that rates single responses, behind an endpoint (stages/scoring/endpoint.py)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config.terms import RatingConfig
from pipeline.engine.stage import Silent
from stages.models.text import Codec
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.endpoint import Endpoint
from stages.scoring.llm_judge import as_request
from stages.scoring.scorer import Scorer

LOWEST, HIGHEST = 1, 10
INSTRUCTION = """\
You rate an answer to a request. {criteria}
Reason in a few sentences, then end with your rating in double brackets: a whole number from [[1]] (worst) to [[10]]
(best)."""


class RatingScorer(Scorer):
    """The rating of each response, 1 to 10; NaN where the reply holds none.

    Args:
        folder: where replies are kept.
        where: dotted path of its section in the recipe, for errors.
        pause: as of `Endpoint`.
    """

    optional = True

    def __init__(
        self, config: RatingConfig, folder: Path, codec: Codec, name: str, where: str, *, pause: float = 1.0
    ) -> None:
        self.config, self.codec, self.name = config, codec, name
        self.endpoint = Endpoint(
            config, folder, where=where, without="remove the term", pause=pause, most=config.max_requests
        )

    def members(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
        asked = [
            [
                {"role": "system", "content": INSTRUCTION.format(criteria=self.config.criteria)},
                {
                    "role": "user",
                    "content": f"<request>\n{as_request(prompt.messages)}\n</request>\n<answer>\n"
                    f"{self.codec.decode(response)}\n</answer>",
                },
            ]
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        ratings = [rating(reply) for reply in self.endpoint.replies(asked, Silent.progress(""))]
        self.on_batch(len(responses))
        return torch.tensor([[float("nan") if value is None else value for value in ratings]])


def rating(reply: str) -> float | None:
    """The last number from 1 to 10 in double brackets; None when there is none."""
    numbers = [float(number) for number in re.findall(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]", reply)]
    valid = [number for number in numbers if LOWEST <= number <= HIGHEST]
    return valid[-1] if valid else None
