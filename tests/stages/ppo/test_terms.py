"""The reward as a sum of weighted terms: scaling, held-out terms, terms that do not apply, and what is logged."""

import math

import numpy as np
import ppo_case
import pytest
import torch

from pipeline.config.ppo import AggregateConfig, KLConfig, ScoreConfig
from pipeline.config.terms import TermConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.models.distributed import World
from stages.ppo.terms import CombinedScorer, TermNormalizer, TermSignal
from stages.scoring.scorer import Scorer
from stages.scoring.terms import WrittenTerms

RAW = np.array([[3.0, 5.0, 9.0, 11.0], [0.0, 1.0, 1.0, 0.0], [np.nan, 20.0, 26.0, np.nan]], dtype="float32")


class Fixed(Scorer):
    """Scores that are known beforehand, whatever the responses are."""

    name, optional = "fixed", True

    def __init__(self, scores):
        self.scores = torch.as_tensor(scores)

    def members(self, prompts, responses):
        return self.scores[None, : len(responses)]


def term(name, weight=1.0, normalization="none", clip=None, **values):
    score = ScoreConfig(normalization=normalization, clip=clip)
    return TermConfig(name=name, weight=weight, pattern="x", score=score, **values)


def normalizer(*terms):
    return TermNormalizer(terms, ScoreConfig(), World())


def test_the_reward_is_the_weighted_sum_of_terms_scaled_on_their_own():
    three = normalizer(term("a", 0.5, "running"), term("b", -2.0, clip=0.25), term("c", 3.0, "running", clip=0.5))
    a = (RAW[0] - RAW[0].mean()) / RAW[0].std()
    b = np.clip(RAW[1], -0.25, 0.25)
    c = np.nan_to_num(np.clip((RAW[2] - 23.0) / 3.0, -0.5, 0.5))
    np.testing.assert_allclose(three(torch.from_numpy(RAW)), 0.5 * a - 2 * b + 3 * c, atol=1e-5)


@pytest.mark.parametrize("values", [{"held_out": True}, {"weight": 0.0}])
def test_held_out_terms_change_no_reward_and_keep_no_statistics(values):
    raw = torch.from_numpy(RAW[:2])
    both = normalizer(term("a"), term("b", normalization="running", **values))
    assert torch.equal(both(raw), raw[0])
    assert both.state_dict()["b"]["count"] == 0


def test_showing_a_score_does_not_move_running_statistics():
    running = normalizer(term("a", normalization="running"))
    running(torch.from_numpy(RAW[:1]))
    before = running.state_dict()
    running.shown(torch.tensor([[100.0]]))
    assert running.state_dict() == before


def test_models_are_scaled_as_ppo_score_says_and_other_terms_are_not():
    named = ScoreConfig(normalization="running", clip=2.0)
    assert TermConfig(name="m", model="reward").scaling(named) == named
    assert TermConfig(name="p", pattern="x").scaling(named) == ScoreConfig(normalization="none", clip=None)
    assert TermConfig(name="p", pattern="x", score=ScoreConfig(clip=1.0)).scaling(named) == ScoreConfig(clip=1.0)


def test_the_reference_is_sampled_once_for_all_terms_that_need_it():
    two = normalizer(term("a", normalization="reference"), term("b"))
    samples = []
    for _ in range(2):
        two.prepare(lambda: samples.append(1) or torch.from_numpy(RAW[:2]))
    assert samples == [1]
    expected = (RAW[0] - RAW[0].mean()) / RAW[0].std() + RAW[1]
    np.testing.assert_allclose(two(torch.from_numpy(RAW[:2])), expected, atol=1e-5)
    normalizer(term("b")).prepare(lambda: pytest.fail("not wanted"))


@pytest.mark.parametrize(
    ("row", "phrase"), [([2.0] * 4, "all .* the score 2:"), ([math.nan] * 4, "none .* a score:")]
)
def test_a_reference_without_spread_is_refused(row, phrase):
    two = normalizer(term("a"), term("flat", normalization="reference"))
    with pytest.raises(StageError, match=f"the term flat gives {phrase}") as error:
        two.prepare(lambda: torch.tensor([RAW[0].tolist(), row]))
    assert error.value.where == "ppo.reward.terms[1].score.normalization"


def test_a_term_that_never_applies_is_no_error_under_running_statistics():
    running = normalizer(term("a", normalization="running"))
    assert running(torch.full((1, 3), math.nan)).tolist() == [0, 0, 0]


def test_each_term_is_logged():
    terms = [term("a"), term("b", held_out=True), term("c")]
    signal = TermSignal([Fixed(row) for row in RAW], AggregateConfig(terms=terms))
    scores = signal([None] * 4, [[1]] * 4)
    np.testing.assert_array_equal(scores, RAW)
    metrics = signal.metrics(scores, World())
    assert metrics["rewards/a/mean"] == pytest.approx(RAW[0].mean())
    assert metrics["rewards/a/std"] == pytest.approx(RAW[0].std())
    assert metrics["rewards/b/mean"] == pytest.approx(0.5)
    assert (metrics["rewards/c/mean"], metrics["rewards/c/std"]) == (pytest.approx(23), pytest.approx(3))
    assert [metrics[f"rewards/{name}/applied"] for name in "abc"] == [1, 1, 0.5]


def test_scores_of_all_processes_are_gathered_in_order():
    class Second(World):
        """The second of two processes; the other one's share is known."""

        def __init__(self):
            self.rank, self.size = 1, 2

        def together(self, mine, count):
            other = [[float(i)] for i in range(0, count, 2)]
            return [(other if i % 2 == 0 else mine)[i // 2] for i in range(count)]

    class Lengths(Scorer):
        name = "lengths"

        def members(self, prompts, responses):
            return torch.tensor([[float(len(response)) for response in responses]])

    signal = TermSignal([Lengths()], AggregateConfig(terms=[term("a")]))
    responses = [[7] * i for i in range(5)]
    assert signal.everywhere([None] * 5, responses, Second()).tolist() == [[0, 1, 2, 3, 4]]


def test_the_value_head_is_scaled_to_its_part_of_the_reward():
    mixed = normalizer(
        term("p"),
        TermConfig(name="m", model="reward", weight=0.5, score=ScoreConfig(normalization="running", clip=None)),
    )
    mixed(torch.from_numpy(RAW[:2]))
    mean, std = mixed.run_model_scale()
    expected = 0.5 * (RAW[1] - RAW[1].mean()) / RAW[1].std()
    np.testing.assert_allclose((RAW[1] - mean) / std, expected, atol=1e-6)
    assert normalizer(TermConfig(name="m", model="reward", held_out=True)).run_model_scale() is None


# --- In training ---


def test_ppo_optimises_the_sum(monkeypatch):
    trainer = ppo_case.make(reward=ppo_case.TERMS, scorer=ppo_case.TERM_SCORES)
    optimised = []
    rewards = trainer.rewards
    monkeypatch.setattr(
        trainer, "rewards", lambda *given: optimised.append((given[0], rewards(*given))) or optimised[-1][1]
    )
    trainer.start()
    metrics = trainer.step()
    raw, reward = optimised[-1]
    state = trainer.normalizer.normalizers["scaled"]
    scaled = torch.nan_to_num((raw[2] - state.mean) / state.std, nan=0.0)
    # `model` is scaled as ppo.score says, which is not at all here.
    torch.testing.assert_close(reward, 0.5 * raw[0] - 2 * raw[1].clamp(-0.5, 0.5) + scaled)
    assert metrics["objective/scores"] == pytest.approx(float(reward.mean()), abs=1e-5)
    assert metrics["rewards/shown/mean"] == pytest.approx(float(raw[3].mean()))


def test_the_kl_coefficient_is_solved_for_the_sum(monkeypatch):
    terms = [term("a", 2.0, "reference", clip=1.0), term("b", 0.25)]
    kl = KLConfig(kind="solved", target=0.2, num_prompts=7, num_generations=9)
    trainer = ppo_case.make(
        reward=AggregateConfig(terms=terms), scorer=[ppo_case.varied, ppo_case.count_of(20)], kl=kl
    )
    raw, solved = [], []
    reward, sample = trainer.reward, trainer.reference_rewards

    class Noted:
        normalizer, metrics = reward.normalizer, reward.metrics

        def __call__(self, *given):
            raw.append(reward(*given))
            return raw[-1]

    trainer.reward = Noted()
    monkeypatch.setattr(trainer, "reference_rewards", lambda *given: solved.append(sample(*given)) or solved[-1])
    trainer.start()
    first, second = torch.cat(raw[1:], 1)  # the first scores are the reference's, for the normaliser
    mean, std = raw[0][0].double().mean(), raw[0][0].double().std(unbiased=False)
    expected = 2 * ((first - mean) / std).clamp(-1, 1) + 0.25 * second
    torch.testing.assert_close(torch.cat(solved), expected.float(), atol=1e-5, rtol=1e-5)
    assert trainer.kl.value == trainer.solution.target.beta


# --- What eval reads ---


def test_the_combined_scorer_scores_as_ppo_did(tmp_path):
    terms = [term("a", 0.5, "running", clip=1.0), term("b", held_out=True), term("c", -1.0, "running")]
    trained = TermNormalizer(terms, ScoreConfig(), World())
    trained(torch.from_numpy(RAW))
    written = WrittenTerms(
        terms=terms, score=ScoreConfig(), reward=AggregateConfig(), statistics=trained.state_dict()
    )
    written.write(tmp_path)
    read = WrittenTerms.read(Artifact("ppo", tmp_path, ""))
    assert read == written
    combined = CombinedScorer([Fixed(RAW[0] + 1), Fixed(RAW[2])], read)
    expected = trained.shown(torch.from_numpy(np.stack([RAW[0] + 1, RAW[1], RAW[2]])))
    assert torch.equal(combined([None] * 4, [[1]] * 4), expected)
    assert combined.normalizer.state_dict()["a"] == trained.state_dict()["a"]
