"""An encoder as the reward model, from rankings to PPO's scores."""

import json

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from pipeline.config.ppo import PPOConfig
from pipeline.config.reward import RewardConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.ppo import roles
from stages.reward import stage
from stages.sampling.prompts import load_prompts
from stages.scoring.classifier import load_reward_classifier, new_classifier
from stages.scoring.load import load_scorer
from stages.scoring.text_encoder import TextEncoder

FAST = {"per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-2, "num_train_epochs": 12}


@pytest.fixture
def encoder(tmp_path):
    """A BERT whose characters are numbered otherwise than the policy's."""
    tokenizer = tiny.tokenizer(None, characters=tiny.CHARACTERS[::-1])
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=48,
        initializer_range=0.3,
        pad_token_id=tiny.PAD,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.fixture
def inputs(tmp_path):
    base = tiny.base_artifact(tmp_path / "base")
    return {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data"),
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
        "rank": tiny.rank_artifact(tmp_path / "rank"),
    }


def run(inputs, out, ctx, encoder, **values):
    config = RewardConfig(**({"model": encoder, "max_length": 40, "trainer": FAST, "lora": None} | values))
    out.mkdir()
    metrics = stage.run(config, inputs, out, ctx)
    return Artifact("reward", out, "reward"), metrics


RESPONSES = [[20, 1], [21, 22, 23, 1], [25, 26, 27, 28, 29]]


@pytest.mark.parametrize("lora", [None, tiny.LORA], ids=["full", "lora"])
def test_from_rankings_to_ppos_scores(inputs, tmp_path, training_context, encoder, lora):
    ctx, notes = training_context()
    artifact, _ = run(inputs, tmp_path / "out", ctx, encoder, lora=lora)
    losses = [values["loss"] for _, values in notes.logged if "loss" in values]
    assert losses[-1] < 0.7 * losses[0]
    inputs["reward"] = artifact
    bank, reward = roles.build(PPOConfig(value="adapter"), inputs, tiny.codec(), "cpu")
    assert set(bank.roles) == {"reference", "policy", "value"}, "what reads text shares nothing with the policy"
    codec = tiny.codec()
    prompts, _ = load_prompts(inputs["data"], codec, "train", 40)
    prompts = prompts[: len(RESPONSES)]
    found = reward(prompts, RESPONSES)

    # By hand: the classifier's own tokenizer reads the turns' text and the decoded response.
    model = AutoModelForSequenceClassification.from_pretrained(artifact.file("classifier")).eval()
    alphabet = {i: c for c, i in codec.tokenizer.get_vocab().items()}
    theirs = tiny.tokenizer(None, characters=tiny.CHARACTERS[::-1]).get_vocab()
    for prompt, response, score in zip(prompts, RESPONSES, found.tolist(), strict=True):
        text = [*prompt.messages[0]["content"], "\n", *(alphabet[i] for i in response if i != tiny.EOS)]
        ids = torch.tensor([[theirs[c] for c in [*text, "<eos>"]]])
        with torch.no_grad():
            assert score == pytest.approx(model(input_ids=ids).logits.item(), abs=1e-4)

    score = load_scorer(artifact, inputs, codec, "cpu", batch_size=2)
    np.testing.assert_allclose(score(prompts, RESPONSES), found, atol=1e-5)


def test_its_fingerprints_are_verified(inputs, tmp_path, training_context, encoder):
    artifact, _ = run(
        inputs, tmp_path / "out", training_context()[0], encoder, trainer=FAST | {"num_train_epochs": 1}
    )
    load_reward_classifier(artifact, "cpu")
    spec = artifact.json("reward.json")
    spec["fingerprints"][0]["score"] += 0.3
    (artifact.path / "reward.json").write_text(json.dumps(spec))
    with pytest.raises(StageError, match=r"off by 0\.3"):
        load_reward_classifier(artifact, "cpu")


def test_texts_that_lose_their_beginning_are_reported_once(inputs, tmp_path, training_context, encoder):
    artifact, _ = run(
        inputs, tmp_path / "out", training_context()[0], encoder, trainer=FAST | {"num_train_epochs": 1}
    )
    codec, lines = tiny.codec(), []
    prompts, _ = load_prompts(inputs["data"], codec, "train", 40)
    score = load_scorer(artifact, inputs, codec, "cpu", say=lines.append)
    score(prompts[:2], [[20, 1], [21, 1]])
    assert lines == []
    for _ in range(2):
        score(prompts[:2], [[20] * 60, [21, 1]])
    length = len(prompts[0].messages[0]["content"]) + 1 + 60 + 1  # a newline after the prompt, and EOS
    assert lines == [
        "reward model: 1 of 2 texts lose their beginning: longer than the 48 tokens that it reads (the longest has "
        f"{length}). Lower max_prompt_length or response_length."
    ]


def test_texts_longer_than_it_reads_are_refused_before_training(inputs, tmp_path, training_context, encoder):
    with pytest.raises(StageError, match=r"reads 48 tokens and reward\.max_length is 60"):
        run(inputs, tmp_path / "out", training_context()[0], encoder, max_length=60)


def test_what_is_cut_keeps_what_closes_the_text(inputs, tmp_path, training_context, encoder):
    made = TextEncoder(new_classifier(RewardConfig(model=encoder, lora=None, max_length=40), "cpu"), tiny.codec())
    prompt = made.prompt(tiny.user("what"))
    row = made.row(prompt, "abcd")
    assert made.classifier.tokenizer.decode(made.cut(row, made.prompt_length(prompt))) == "what\nab<eos>"
