"""From an artifact, a folder or a function to a scorer."""

import json

import pytest
import tiny
import torch

from pipeline.errors import StageError
from stages.sampling.prompts import EncodedPrompt
from stages.scoring import reward_model
from stages.scoring.load import held_out_members, load_scorer, optimised_members
from stages.scoring.scorer import FunctionScorer

CODEC = tiny.codec()


@pytest.fixture
def inputs(tmp_path):
    base = tiny.base_artifact(tmp_path / "base")
    return {"base": base, "reward": tiny.reward_artifact(tmp_path / "reward", base, members=3)}


def fingerprints(artifact):
    """The texts that are stored with a reward model, as prompts and responses, and their scores (M, N)."""
    rows = artifact.json("reward.json")["fingerprints"]
    prompts = [EncodedPrompt([], row["ids"][:1], "train") for row in rows]
    return (prompts, [row["ids"][1:] for row in rows]), torch.tensor([row["score"] for row in rows]).T


def close(scores, expected):
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["artifact", "path", "string"])
def test_an_artifact_and_its_folder_are_the_same(inputs, kind):
    artifact = inputs["reward"]
    source = {"artifact": artifact, "path": artifact.path, "string": str(artifact.path)}[kind]
    texts, expected = fingerprints(artifact)
    close(load_scorer(source, inputs, CODEC, "cpu").members(*texts), expected)


def test_members_are_held_out_from_the_end(inputs):
    texts, expected = fingerprints(inputs["reward"])
    for members, rows in (
        (optimised_members(0), [0, 1, 2]),
        (optimised_members(1), [0, 1]),
        (optimised_members(2), [0]),
        (held_out_members(1), [2]),
        (held_out_members(2), [1, 2]),
    ):
        scorer = load_scorer(inputs["reward"], inputs, CODEC, "cpu", members=members)
        assert scorer.size == len(rows)
        close(scorer.members(*texts), expected[rows])
        close(scorer(*texts), expected[rows].mean(0))
    with pytest.raises(StageError, match="has 3 members, and all of them are held out"):
        load_scorer(inputs["reward"], inputs, CODEC, "cpu", members=optimised_members(3))


def test_a_bank_that_holds_the_roles_is_used(inputs, monkeypatch):
    alone = reward_model.load_reward(inputs["reward"], inputs["base"], "cpu")
    monkeypatch.setattr(reward_model, "load_reward", lambda *_: pytest.fail("it is loaded already"))
    scorer = load_scorer(inputs["reward"], inputs, CODEC, "cpu", bank=alone.bank)
    assert scorer.model.bank is alone.bank
    texts, expected = fingerprints(inputs["reward"])
    close(scorer.members(*texts), expected)


def test_the_fingerprints_are_verified_on_a_shared_bank_too(inputs):
    alone = reward_model.load_reward(inputs["reward"], inputs["base"], "cpu")
    with torch.no_grad():
        alone.bank.heads["reward-2"].bias += 1
    with pytest.raises(StageError, match="does not give the scores it was stored with"):
        load_scorer(inputs["reward"], inputs, CODEC, "cpu", bank=alone.bank, members=optimised_members(1))


@pytest.mark.parametrize("shared", [True, False])
def test_a_reward_model_of_another_base_is_refused(inputs, shared):
    bank = reward_model.load_reward(inputs["reward"], inputs["base"], "cpu").bank if shared else None
    spec = inputs["reward"].json("reward.json")
    (inputs["reward"].path / "reward.json").write_text(json.dumps(spec | {"base": "another"}))
    with pytest.raises(StageError, match="another base model"):
        load_scorer(inputs["reward"], inputs, CODEC, "cpu", bank=bank)


def test_a_function_is_a_source(inputs):
    scorer = load_scorer(lambda conversations, texts: [len(text) for text in texts], inputs, CODEC, "cpu")
    assert isinstance(scorer, FunctionScorer)
    prompt = EncodedPrompt(tiny.user("q"), CODEC.prompt(tiny.user("q")), "eval")
    assert scorer([prompt], [CODEC.completion("four")]).tolist() == [4.0]


def test_what_is_no_artifact_is_loaded_as_a_classifier_and_named_where_it_is_not_one(inputs, tmp_path):
    with pytest.raises(StageError, match="cannot be loaded"):
        load_scorer(str(tmp_path / "nowhere"), inputs, CODEC, "cpu")
