"""Evaluates an exported file against the trained policy: the same metrics for both, on held-out prompts.

The divergence is KL(policy || file): sampled over prefixes, from the policy's answers, and summed exactly over the
next token at each position. It is non-negative, and has much less variance than an estimate from log-probs of the
sampled tokens alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.bootstrap import bootstrap
from data.venues.slots import slot_error_rate
from pipeline.config.export import ExportConfig
from pipeline.engine.rounds import newest
from pipeline.engine.stage import Artifact, RunContext
from pipeline.memory.limits import positions_at_once
from stages.criteria import criteria_of
from stages.eval.artifact import Evaluation
from stages.eval.judges import load_proxy
from stages.eval.prompts import unseen_prompts
from stages.models.actor import Actor
from stages.models.microbatch import MicroBatch
from stages.models.text import IGNORED, Codec
from stages.sampling.episodes import Episodes, response_logprobs
from stages.sampling.prompts import EncodedPrompt
from stages.sampling.sampler import SamplingParams, sampler_of
from stages.scoring.load import load_scorer, optimised
from stages.scoring.scorer import Scorer
from stages.scoring.slots import SlotScorer
from stages.scoring.terms import WrittenTerms
from stages.training.demonstrations import encode_demonstrations

Measures = dict[str, Any]
OnBatch = Callable[[int], None]
"""Called with the number of rows of each finished batch."""


def _ignore(_: int) -> None:
    pass


@dataclass(frozen=True)
class ReferenceMetrics:
    """Evaluates models on held-out prompts and demonstrations, with the reward model and the judge.

    The first prompts, lengths, temperature and judge of `eval` are used. Every model samples with the same random
    numbers.

    Attributes:
        scorer: the reward model that PPO optimised; with several criteria, the sum of its terms.
        judge: the slot lexicon of `eval`, if it has one.
    """

    prompts: Sequence[EncodedPrompt]
    demonstrations: Sequence[Mapping[str, list[int]]]
    params: SamplingParams
    bootstrap: int
    judge: SlotScorer | None
    scorer: Scorer
    codec: Codec
    seed: int
    batch_size: int

    @classmethod
    def of(
        cls, config: ExportConfig, inputs: Mapping[str, Artifact], codec: Codec, ctx: RunContext
    ) -> ReferenceMetrics:
        evaluated = Evaluation.read(inputs["eval"])
        settings = evaluated.settings
        assert settings is not None
        prompts, _ = unseen_prompts(inputs, codec, settings.max_prompt_length)  # `eval` reports what is left out
        prompts = prompts[: min(config.num_prompts, evaluated.prompts)]
        limit = settings.max_prompt_length + settings.response_length
        rows, _ = encode_demonstrations(inputs["data"], codec, "eval", limit)
        params = SamplingParams(
            max_new_tokens=settings.response_length,
            stop_ids=codec.stop_ids,
            temperature=settings.temperature,
        )
        return cls(
            prompts=prompts,
            demonstrations=rows[: len(prompts)],
            params=params,
            bootstrap=evaluated.bootstrap,
            judge=None if evaluated.judge is None else SlotScorer(evaluated.judge, codec),
            scorer=_scorer(inputs, codec, ctx),
            codec=codec,
            seed=ctx.seed,
            batch_size=config.batch_size,
        )

    def steps(self, *, compared: bool) -> int:
        """How often `on_batch` counts a row while a model answers, is measured and, if `compared`, diverges."""
        return (3 if compared else 2) * len(self.prompts) + len(self.demonstrations)

    def answers(self, actor: Actor, on_batch: OnBatch = _ignore) -> list[list[int]]:
        """Samples one response per prompt, with the same random numbers for every actor."""
        asked = [prompt.ids for prompt in self.prompts]
        sampler = sampler_of(self.codec, self.batch_size)
        return sampler.sample(actor, asked, self.params, self.seed, on_batch=on_batch).responses

    def measure(self, actor: Actor, answers: Sequence[list[int]], on_batch: OnBatch = _ignore) -> Measures:
        """Metrics of a model and its answers: `score` (the reward model's mean), `perplexity` on held-out
        demonstrations (None if there are none) and, with a judge, `slot_error_rate` with its 95 % interval."""
        self.scorer.on_batch = on_batch
        metrics: Measures = {
            "score": float(self.scorer(self.prompts, answers).mean()),
            "perplexity": self._perplexity(actor, on_batch),
        }
        if self.judge is not None:
            errors = self.judge.errors(self.prompts, answers)
            low, high = bootstrap(
                [e.errors for e in errors],
                [e.given for e in errors],
                resamples=self.bootstrap,
                seed=self.seed,
            )
            metrics |= {
                "slot_error_rate": slot_error_rate(errors),
                "slot_error_low": low,
                "slot_error_high": high,
            }
        return metrics

    def divergence(
        self, policy: Actor, other: Actor, answers: Sequence[list[int]], on_batch: OnBatch = _ignore
    ) -> Measures:
        """`kl`, KL(policy || other) in nats per response, `kl_per_token`, and `top_1`, the share of positions where
        both have the same most likely token. `answers` are the policy's."""
        asked = [prompt.ids for prompt in self.prompts]
        episodes = Episodes.build(asked, answers, self.codec.stop_ids, self.codec.pad_id, policy.device)
        total, agreed, tokens = 0.0, 0, 0

        def compare(rows: Tensor) -> None:
            nonlocal total, agreed, tokens
            kl_N, same_N = token_divergence(policy, other, episodes.select(rows), self.params.temperature)
            total += float(kl_N.cpu().double().sum())
            agreed += int(same_N.sum())
            tokens += len(kl_N)
            on_batch(len(rows))

        MicroBatch.of(self.batch_size).each(episodes.by_length(torch.arange(len(episodes))), compare)
        return {"kl": total / len(episodes), "kl_per_token": total / tokens, "top_1": agreed / tokens}

    def _perplexity(self, actor: Actor, on_batch: OnBatch) -> float | None:
        if not self.demonstrations:
            return None
        starts = [sum(label == IGNORED for label in row["labels"]) for row in self.demonstrations]
        rows = [row["input_ids"] for row in self.demonstrations]
        logps_B, tokens_B = response_logprobs(
            actor,
            [ids[:start] for ids, start in zip(rows, starts, strict=True)],
            [ids[start:] for ids, start in zip(rows, starts, strict=True)],
            self.codec.stop_ids,
            self.codec.pad_id,
            temperature=1.0,
            batch_size=self.batch_size,
            on_batch=on_batch,
        )
        return math.exp(-float(logps_B.double().sum()) / int(tokens_B.sum()))


def _scorer(inputs: Mapping[str, Artifact], codec: Codec, ctx: RunContext) -> Scorer:
    """The reward model that PPO optimised; with several criteria, the sum of its terms."""
    if criteria_of(newest(inputs, "reward")) and WrittenTerms.read(newest(inputs, "ppo")) is not None:
        return load_proxy(inputs, codec, ctx.device, ctx.say, ctx.recipe_dir)
    source, revision = optimised(inputs)
    return load_scorer(source, inputs, codec, ctx.device, revision=revision, say=ctx.say)


@torch.no_grad()
def token_divergence(policy: Actor, other: Actor, episodes: Episodes, temperature: float) -> tuple[Tensor, Tensor]:
    """KL(policy || other) over the next token, nats (N,), and whether both have the same most likely token, (N,)
    bool, at each valid response token of the episodes, in order. Logits are computed in chunks."""
    ours, theirs = (episodes.predicting_hidden(episodes.hidden(actor)) for actor in (policy, other))
    vocabulary = policy.lm.get_output_embeddings().weight.shape[0]
    size = positions_at_once(vocabulary, ours.device.type)
    kls, same = [], []
    for a, b in zip(ours.split(size), theirs.split(size), strict=True):
        p, q = (
            torch.log_softmax(actor.project(hidden).float() / temperature, -1)
            for actor, hidden in ((policy, a), (other, b))
        )
        kls.append((p.exp() * (p - q)).sum(-1).clamp(min=0))  # rounding may leave it slightly negative
        same.append(p.argmax(-1) == q.argmax(-1))
    return torch.cat(kls), torch.cat(same)
