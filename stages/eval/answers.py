"""The models' answers to held-out prompts, and their losses on held-out demonstrations and text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from data.splits import group_of
from data.tables import corpus
from data.tables.mapping import located
from pipeline.config.data import TableConfig
from pipeline.config.evaluate import EvalConfig
from pipeline.engine.rounds import by_round
from pipeline.engine.stage import Artifact, RunContext
from pipeline.errors import DataError
from stages.artifacts import excluded_groups
from stages.eval.artifact import BASELINES, reference_of
from stages.eval.wins import Array
from stages.left_out import LeftOut
from stages.models.actor import Actor
from stages.models.adapters import load_actor
from stages.models.text import IGNORED, Codec
from stages.sampling.episodes import response_logprobs
from stages.sampling.prompts import EncodedPrompt
from stages.sampling.sampler import SamplingParams, sampler_of
from stages.scoring.scorer import Scorer
from stages.training.demonstrations import encode_demonstrations

TEXT_WIDTH = 512
"""Tokens of held-out text in one row."""


Rows = list[tuple[list[int], list[int]]]
"""Pairs of a context and the continuation whose loss is measured, as ids."""


@dataclass(frozen=True)
class Answers:
    """S answers of a model to each of P prompts.

    Attributes:
        ids, texts: by prompt, then by answer.
        weights_PS: the probability of each answer; rows sum to 1.
        kl_P: log-ratio of each prompt's answer between the model and the reference, nats; None if not measured.
        losses: nats per token, for `nll` (held-out demonstrations) and `text_nll` (held-out text).
    """

    ids: list[list[list[int]]]
    texts: list[list[str]]
    weights_PS: Array
    kl_P: Array | None = None
    losses: Mapping[str, float | None] | None = None

    @property
    def picked(self) -> list[int]:
        """Which answer to each prompt is shown: the most probable one, the first of equals."""
        picked: list[int] = self.weights_PS.argmax(1).tolist()
        return picked

    @property
    def shown(self) -> list[str]:
        """One answer to each prompt."""
        return [texts[i] for texts, i in zip(self.texts, self.picked, strict=True)]

    def finished(self, stop_ids: Collection[int]) -> list[bool]:
        """Whether each shown answer ends with a stop token; the others are cut at the length limit."""
        return [rows[i][-1] in stop_ids for rows, i in zip(self.ids, self.picked, strict=True)]

    def expected(self, values_PS: Array) -> Array:
        """(P,): the expectation of values of the answers."""
        mean: Array = (self.weights_PS * values_PS).sum(1)
        return mean

    def score(self, scorer: Scorer, prompts: Sequence[EncodedPrompt]) -> Array:
        """(P, S): the score of each answer."""
        repeated = [prompt for prompt, rows in zip(prompts, self.ids, strict=True) for _ in rows]
        scores = scorer(repeated, [row for rows in self.ids for row in rows])
        return np.asarray(scores, dtype=float).reshape(len(prompts), -1)


def evaluated(inputs: Mapping[str, Artifact]) -> dict[str, Artifact | None]:
    """The models to compare, by name, in order. None stands for the base model without an adapter."""
    *earlier, last = by_round(inputs, "ppo").items()
    policies = {f"ppo-{number}": policy for number, policy in earlier} | {"ppo": last[1]}
    others = {name: inputs[name] for name in BASELINES if name in inputs}
    sft = {"sft": inputs["sft"]} if "sft" in inputs else {}
    return {"base": None, **sft, **policies, **others}


def answer_all(
    inputs: Mapping[str, Artifact],
    prompts: Sequence[EncodedPrompt],
    demonstrations: Rows,
    codec: Codec,
    config: EvalConfig,
    ctx: RunContext,
) -> dict[str, Answers]:
    """Samples each model's answers with the same random numbers, and measures its KL from the reference (for models
    trained from it) and its loss on held-out demonstrations and text."""
    datasets = {"nll": demonstrations}
    if config.text is not None:
        datasets["text_nll"] = _text_rows(config.text, excluded_groups(inputs["data"]), codec, ctx)
    asked = [prompt.ids for prompt in prompts]
    reference = load_actor(inputs["base"], inputs.get("sft"), ctx.device)
    answers, start = {}, reference_of(inputs)
    for name, artifact in evaluated(inputs).items():
        actor = reference if name == start else load_actor(inputs["base"], artifact, ctx.device)
        trained = name not in ("base", "sft")
        steps = len(asked) * (3 if trained else 1) + sum(map(len, datasets.values()))
        with ctx.progress(f"eval {name}", total=steps) as bar:
            ids = sample(actor, asked, codec, config, ctx.seed, bar.advance)
            kl = np.zeros(len(ids)) if name == start else None
            if trained:
                ours, theirs = (
                    _logprobs(model, asked, ids, codec, config, config.temperature, bar.advance)
                    for model in (actor, reference)
                )
                kl = np.asarray((ours - theirs).double())
            losses = {metric: _loss(actor, rows, codec, config, bar.advance) for metric, rows in datasets.items()}
        weights = np.ones((len(ids), 1))
        texts = [[codec.decode(row)] for row in ids]
        answers[name] = Answers([[row] for row in ids], texts, weights, kl, losses)
    return answers


def sample_reference(
    inputs: Mapping[str, Artifact],
    prompts: Sequence[EncodedPrompt],
    codec: Codec,
    config: EvalConfig,
    ctx: RunContext,
    count: int,
) -> Answers:
    """Samples `count` answers of the reference to each prompt, independently of those in `answer_all`."""
    actor = load_actor(inputs["base"], inputs.get("sft"), ctx.device)
    asked = [prompt.ids for prompt in prompts for _ in range(count)]
    with ctx.progress("eval best of n", total=len(asked)) as bar:
        rows = sample(actor, asked, codec, config, ctx.seed + 1, bar.advance)
    ids = [rows[i : i + count] for i in range(0, len(rows), count)]
    texts = [[codec.decode(row) for row in rows] for rows in ids]
    return Answers(ids, texts, np.full((len(prompts), count), 1 / count))


def sample(
    actor: Actor,
    prompts: Sequence[list[int]],
    codec: Codec,
    config: EvalConfig,
    seed: int,
    on_batch: Callable[[int], None],
) -> list[list[int]]:
    """Samples one response per prompt."""
    params = SamplingParams(
        max_new_tokens=config.response_length, stop_ids=codec.stop_ids, temperature=config.temperature
    )
    sampler = sampler_of(codec, config.batch_size)
    return sampler.sample(actor, prompts, params, seed, on_batch=on_batch).responses


def _logprobs(
    actor: Actor,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    codec: Codec,
    config: EvalConfig,
    temperature: float,
    on_batch: Callable[[int], None],
) -> Tensor:
    totals_B, _ = response_logprobs(
        actor,
        prompts,
        responses,
        codec.stop_ids,
        codec.pad_id,
        temperature=temperature,
        batch_size=config.batch_size,
        on_batch=on_batch,
    )
    return totals_B


def _loss(
    actor: Actor, rows: Rows, codec: Codec, config: EvalConfig, on_batch: Callable[[int], None]
) -> float | None:
    """Nats per token of the continuations; None without rows."""
    if not rows:
        return None
    contexts, continuations = [row[0] for row in rows], [row[1] for row in rows]
    logps = _logprobs(actor, contexts, continuations, codec, config, 1.0, on_batch)
    return -float(logps.double().sum()) / sum(map(len, continuations))


def held_out_demonstrations(
    data: Artifact, codec: Codec, config: EvalConfig, advance: Callable[[], None]
) -> tuple[Rows, LeftOut]:
    """At most `num_prompts` held-out demonstrations, and what was left out because it is too long. `advance` is
    called for each."""
    limit = config.max_prompt_length + config.response_length
    key = "eval.max_prompt_length + eval.response_length"
    rows, left_out = encode_demonstrations(data, codec, "eval", limit, key=key, advance=advance)
    starts = [sum(label == IGNORED for label in row["labels"]) for row in rows[: config.num_prompts]]
    pairs = zip(rows, starts, strict=False)
    return [(row["input_ids"][:start], row["input_ids"][start:]) for row, start in pairs], left_out


def _text_rows(source: TableConfig, excluded: Collection[str], codec: Codec, ctx: RunContext) -> Rows:
    """Held-out text in rows of `TEXT_WIDTH` tokens, with the first token as the context. Documents with a prompt
    are single rows, with the prompt as the context; those whose prompt is in an `excluded` group are left out."""
    rows: Rows = []
    with located("eval.text", source, ctx.describe):
        documents = list(corpus.documents(source, ctx.seed, 0.0))
    left_out = 0
    for *prompt, text in documents:
        if prompt and group_of([{"role": "user", "content": prompt[0]}]) in excluded:
            left_out += 1
            continue
        ids = codec.encode(text)
        if prompt:
            rows.append((codec.prompt([{"role": "user", "content": prompt[0]}]), [*ids, codec.end_id]))
            continue
        cuts: Any = (ids[i : i + TEXT_WIDTH] for i in range(0, len(ids), TEXT_WIDTH))
        rows += [(row[:1], row[1:]) for row in cuts if len(row) > 1]
    if left_out:
        ctx.say(f"eval.text: {left_out:,} of {len(documents):,} texts left out: excluded prompt (data.exclude)")
    if not rows:
        raise DataError("there is no text to evaluate on", where=source.path, hint="check eval.text.columns")
    return rows
