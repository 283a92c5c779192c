from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import tiny
import torch

from pipeline.config.evaluate import EvalConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError, StageError
from stages.eval.answers import Answers
from stages.eval.judges import load_proxy, scoring_judges
from stages.models.text import Codec
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.reward_model import load_reward, score_rows

MR = "name[Blue Mill], food[Thai]"


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    base = tiny.base_artifact(tmp_path / "base")
    (tmp_path / "ppo").mkdir()
    return {
        "base": base,
        "reward": tiny.reward_artifact(tmp_path / "reward", base, members=3),
        "ppo": Artifact("ppo", tmp_path / "ppo", "ppo", {"held_out_members": 1}),
    }


def asked() -> tuple[list[EncodedPrompt], Answers]:
    codec = tiny.codec()
    prompts = [EncodedPrompt(tiny.user(text), codec.prompt(tiny.user(text)), "eval") for text in ("ab", "cde")]
    texts = [["one", "two."], ["x", "yes, yes"]]
    ids = [[codec.completion(text) for text in row] for row in texts]
    return prompts, Answers(ids, texts, np.full((2, 2), 0.5))


def test_the_proxy_and_the_held_out_member_share_an_ensemble(inputs: dict[str, Artifact]) -> None:
    prompts, answers = asked()
    rows = [prompt.ids + ids for prompt, of in zip(prompts, answers.ids, strict=True) for ids in of]
    model: Any = load_reward(inputs["reward"], inputs["base"], "cpu")
    members = np.asarray(score_rows(model.members, rows, 4, "cpu")).reshape(3, 2, 2)
    [judge] = scoring_judges(EvalConfig(reward_model="ensemble"), inputs, tiny.codec(), "cpu")
    np.testing.assert_allclose(answers.score(judge.scores, prompts), members[2], rtol=1e-5)
    proxy = answers.score(load_proxy(inputs, tiny.codec(), "cpu"), prompts)
    np.testing.assert_allclose(proxy, members[:2].mean(0), rtol=1e-5)
    all_of_them = inputs | {"ppo": Artifact("ppo", inputs["ppo"].path, "ppo")}
    proxy = answers.score(load_proxy(all_of_them, tiny.codec(), "cpu"), prompts)
    np.testing.assert_allclose(proxy, members.mean(0), rtol=1e-5)


def test_another_reward_model_judges_and_the_same_one_is_refused(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    other = tiny.reward_artifact(tmp_path / "other", inputs["base"], seed=9)
    prompts, answers = asked()
    [judge] = scoring_judges(EvalConfig(reward_model=str(other.path)), inputs, tiny.codec(), "cpu")
    model: Any = load_reward(other, inputs["base"], "cpu")
    ids = torch.tensor([prompts[1].ids + answers.ids[1][0]])
    with torch.no_grad():
        expected = float(model(ids, torch.tensor([ids.shape[1]])))
    assert answers.score(judge.scores, prompts)[1, 0] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(StageError, match="the very reward model"):
        scoring_judges(EvalConfig(reward_model=str(inputs["reward"].path)), inputs, tiny.codec(), "cpu")


def test_the_proxy_is_the_reward_model_that_ppo_named(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    other = tiny.reward_artifact(tmp_path / "other", inputs["base"], seed=9)
    prompts, answers = asked()
    found = {}
    for name, place in (("run", None), ("other", str(other.path))):
        ppo = Artifact("ppo", tmp_path / "ppo", "ppo", {"reward_model": place, "reward_model_revision": None})
        found[name] = answers.score(load_proxy(inputs | {"ppo": ppo}, tiny.codec(), "cpu"), prompts)
    judge = scoring_judges(EvalConfig(reward_model=str(other.path)), inputs, tiny.codec(), "cpu")[0]
    np.testing.assert_allclose(found["other"], answers.score(judge.scores, prompts), rtol=1e-5)
    assert np.abs(found["other"] - found["run"]).min() > 1e-3
    with pytest.raises(StageError, match="the very reward model"):
        scoring_judges(EvalConfig(reward_model=str(other.path)), inputs | {"ppo": ppo}, tiny.codec(), "cpu")


def test_a_classifier_that_is_no_artifact_reads_text(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=tiny.VOCABULARY, num_labels=1, max_position_embeddings=64, **sizes)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    tiny.tokenizer(None).save_pretrained(tmp_path / "bert")
    prompts, answers = asked()
    [judge] = scoring_judges(EvalConfig(reward_model=str(tmp_path / "bert")), inputs, tiny.codec(), "cpu")
    found = answers.score(judge.scores, prompts)
    assert found.shape == (2, 2)
    assert len(set(found.ravel().tolist())) == 4


def test_the_lexicon_counts_faults(tmp_path: Path) -> None:
    codec = Codec(published.byte_level())
    prompt = EncodedPrompt(tiny.user(MR), codec.prompt(tiny.user(MR)), "eval")
    texts = [["Blue Mill serves Thai food.", "Blue Mill is a pub.", "Blue Mill serves Thai food, Thai food."]]
    answers = Answers([[codec.completion(text) for text in texts[0]]], texts, np.full((1, 3), 1 / 3))
    [judge] = scoring_judges(EvalConfig(judge="venues"), {"ppo": Artifact("ppo", tmp_path, "")}, codec, "cpu")
    # Nothing wrong; food missing and a kind invented; food said twice.
    assert answers.score(judge.scores, [prompt]).tolist() == [[0.0, -2.0, -1.0]]


def test_a_lexicon_refuses_prompts_that_are_no_meaning_representations(tmp_path: Path) -> None:
    prompts, answers = asked()
    inputs = {"ppo": Artifact("ppo", tmp_path, "")}
    [judge] = scoring_judges(EvalConfig(judge="venues"), inputs, tiny.codec(), "cpu")
    with pytest.raises(DataError, match="not a meaning representation"):
        answers.score(judge.scores, prompts)
