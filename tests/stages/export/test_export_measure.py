from __future__ import annotations

import math

import numpy as np
import pytest
import small
import torch

from pipeline.config.export import ExportConfig
from stages.export.measure import ReferenceMetrics, token_divergence
from stages.models.actor import Actor
from stages.models.text import Codec
from stages.sampling.episodes import Episodes

PROMPTS, ANSWERS = [[5, 6, 7], [8, 9]], [[10, 11, 0], [12, 13, 14, 15]]


def test_divergence_is_the_sum_over_the_vocabulary_along_the_answers(codec: Codec) -> None:
    ours, theirs = (small.small_lm(codec.tokenizer, seed) for seed in (0, 1))
    episodes = Episodes.build(PROMPTS, ANSWERS, codec.stop_ids, codec.pad_id)
    kl_N, same_N = token_divergence(Actor(ours), Actor(theirs), episodes, 0.7)
    expected, same = [], []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        with torch.no_grad():
            logits = [lm(torch.tensor([prompt + answer])).logits[0].double().numpy() / 0.7 for lm in (ours, theirs)]
        for at in range(len(prompt) - 1, len(prompt) + len(answer) - 1):
            p, q = (np.exp(x[at]) / np.exp(x[at]).sum() for x in logits)
            expected.append(float((p * np.log(p / q)).sum()))
            same.append(p.argmax() == q.argmax())
    np.testing.assert_allclose(kl_N.numpy(), expected, rtol=1e-4)
    assert same_N.tolist() == same
    assert len(expected) == 7


def test_a_model_does_not_diverge_from_itself(codec: Codec) -> None:
    actor = Actor(small.small_lm(codec.tokenizer))
    episodes = Episodes.build(PROMPTS, ANSWERS, codec.stop_ids, codec.pad_id)
    kl_N, same_N = token_divergence(actor, actor, episodes, 1.0)
    assert kl_N.tolist() == [0.0] * 7
    assert same_N.all()


def test_files_are_measured_as_eval_measured(tmp_path, training_context, codec: Codec) -> None:
    made = small.artifacts(tmp_path / "inputs")
    ctx, _ = training_context()
    reference = ReferenceMetrics.of(ExportConfig(num_prompts=64), made, codec, ctx)
    assert len(reference.prompts) == 5, "no more than eval saw, of the six there are"
    assert reference.params.max_new_tokens == 8
    lm = small.small_lm(codec.tokenizer)
    actor = Actor(lm)
    answers = reference.answers(actor)
    assert all(len(answer) <= 8 for answer in answers)
    found = reference.measure(actor, answers)
    assert set(found) == {"score", "perplexity"}, "without a judge there are no facts"
    nats = tokens = 0.0
    for row in reference.demonstrations:
        with torch.no_grad():
            loss = lm(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        count = sum(label >= 0 for label in row["labels"])
        nats, tokens = nats + float(loss) * count, tokens + count
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    whole = reference.divergence(actor, Actor(small.small_lm(codec.tokenizer, 1)), answers)
    assert whole["kl"] * 5 == pytest.approx(whole["kl_per_token"] * sum(map(len, answers)))
    assert whole["kl"] > 0.01
