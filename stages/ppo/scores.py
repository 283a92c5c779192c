"""What the reward model says about responses, and what is done to it before it becomes a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.config.ppo import ScoreConfig
from pipeline.errors import StageError
from stages.distributed import World
from stages.models.bank import Bank
from stages.models.text import Codec
from stages.ppo.trajectory import Episodes
from stages.reward.model import actor_scorer, score_rows


class Scorer(Protocol):
    """Scores (B,) of episodes on the CPU, float32; higher is better."""

    def __call__(self, episodes: Episodes) -> Tensor: ...


def token_scorer(score: Any, batch_size: int, device: str | torch.device) -> Scorer:
    """A reward model with the policy's tokenizer: ids go in as they were sampled."""

    def scores(episodes: Episodes) -> Tensor:
        rows = [row[:n] for row, n in zip(episodes.ids_BL.tolist(), episodes.lengths_B.tolist(), strict=True)]
        return score_rows(score, rows, batch_size, device)

    return scores


def bank_scorer(bank: Bank, batch_size: int) -> Scorer:
    """The bank's own reward role."""

    def scores(episodes: Episodes) -> Tensor:
        with bank.active("reward") as actor:
            return token_scorer(actor_scorer(actor), batch_size, actor.device)(episodes)

    return scores


class TextScorer:
    """A sequence classifier (one label) with a tokenizer of its own: text is the boundary.

    The prompt's conversation and the decoded response are rendered by the classifier's chat template, or joined
    as prompt text and response where it has none.
    """

    def __init__(self, model: Any, tokenizer: Any, codec: Codec, batch_size: int) -> None:
        if model.config.num_labels != 1:
            raise StageError(
                f"a reward model has one label and this classifier has {model.config.num_labels}",
                where="ppo.reward_model",
                mend="use a classifier trained with num_labels=1",
            )
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
            raise StageError(
                "the reward model's pad token is its EOS token: it would read the score at the wrong place",
                where="ppo.reward_model",
                mend="give its tokenizer and config a pad token of their own",
            )
        model.config.pad_token_id = tokenizer.pad_token_id
        tokenizer.truncation_side = "left"  # of a text that is too long, the end is the response
        self.model, self.tokenizer, self.codec, self.batch_size = model, tokenizer, codec, batch_size

    def __call__(self, episodes: Episodes) -> Tensor:
        texts = []
        for ids, start, end in zip(
            episodes.ids_BL.tolist(),
            episodes.prompt_lengths_B.tolist(),
            episodes.lengths_B.tolist(),
            strict=True,
        ):
            prompt = self.codec.tokenizer.decode(ids[:start], skip_special_tokens=True)
            texts.append(self.render(prompt, self.codec.decode(ids[start:end])))
        return self.score(texts)

    def render(self, prompt: str, response: str) -> str:
        if self.tokenizer.chat_template:
            turns = [
                {"role": "user", "content": prompt.strip()},
                {"role": "assistant", "content": response},
            ]
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        return prompt + response + (self.tokenizer.eos_token or "")

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> Tensor:
        scores = torch.zeros(len(texts))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = self.tokenizer([texts[i] for i in rows], padding=True, truncation=True, return_tensors="pt")
            logits = self.model(**batch.to(self.model.device)).logits
            scores[rows] = logits[:, 0].float().cpu()
        return scores


class ScoreNormalizer:
    """Subtracts a mean, divides by a standard deviation, clips; the moments are part of the checkpoint."""

    def __init__(self, config: ScoreConfig, world: World) -> None:
        self.config, self.world = config, world
        self.count, self.mean, self.square = 0.0, 0.0, 0.0

    @property
    def std(self) -> float:
        return max((self.square / self.count) ** 0.5 if self.count else 1.0, 1e-6)

    def observe(self, scores_B: Tensor) -> None:
        """Takes scores into the moments, over all processes (Chan et al. 1979, parallel variance)."""
        wide = scores_B.double()
        count, total = self.world.sum(torch.stack([torch.tensor(float(len(wide))).double(), wide.sum()])).tolist()
        mean = total / count
        square = float(self.world.sum(((wide - mean) ** 2).sum()[None])[0])
        both = self.count + count
        self.square += square + (mean - self.mean) ** 2 * self.count * count / both
        self.mean += (mean - self.mean) * count / both
        self.count = both

    def prepare(self, sample: Callable[[], Tensor]) -> None:
        """Before training: the moments of the reference's answers, when the recipe wants them."""
        if self.config.normalization == "reference" and not self.count:
            self.observe(sample())

    def __call__(self, scores_B: Tensor) -> Tensor:
        if self.config.normalization == "running":
            self.observe(scores_B)
        if self.config.normalization != "none":
            scores_B = (scores_B - self.mean) / self.std
        clip = self.config.clip
        return scores_B if clip is None else scores_B.clamp(-clip, clip)

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self.square = state["count"], state["mean"], state["square"]
