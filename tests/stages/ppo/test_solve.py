"""The KL coefficient that is solved before training."""

import json
import math

import ppo_case
import pytest
import torch

from pipeline.config.ppo import KLConfig, ScoreConfig
from pipeline.errors import StageError
from stages.ppo.solve import Solution, solve


def gaussian(seed=0, std=1.0):
    """Scores N(2, std) of responses to prompts, and the rows that were asked for."""
    generator, rows = torch.Generator().manual_seed(seed), []

    def sample(batch):
        rows.append(list(batch))
        return 2 + std * torch.randn(len(batch), generator=generator)

    return sample, rows


def config(**values):
    return KLConfig(**({"kind": "solved", "target": 0.5, "num_prompts": 200, "num_generations": 32} | values))


@pytest.mark.parametrize(("target", "std"), [(0.2, 1.0), (0.5, 1.0), (0.5, 4.0)])
def test_the_coefficient_is_that_of_the_closed_form(target, std):
    sample, _ = gaussian(std=std)
    solution = solve(config(target=target), 500, sample, torch.Generator().manual_seed(1))
    expected = std / math.sqrt(2 * target)
    assert solution.target.beta == pytest.approx(expected, rel=0.05)
    assert solution.target.beta_low < solution.target.beta < solution.target.beta_high
    assert solution.target.beta_high - solution.target.beta_low < 0.3 * expected
    assert solution.target.score == pytest.approx(2 + std * math.sqrt(2 * target), rel=0.05)
    assert solution.reference_score == pytest.approx(2, abs=0.05 * std)


def test_every_chosen_prompt_gets_the_same_number_of_samples():
    sample, rows = gaussian()
    solution = solve(config(target=0.1, num_prompts=50), 60, sample, torch.Generator())
    assert len(rows) == 1
    counts = {row: rows[0].count(row) for row in rows[0]}
    assert set(counts.values()) == {32}
    assert len(counts) == solution.num_prompts == 50
    assert max(counts) < 60


def test_fewer_prompts_than_asked_for_are_all_used():
    sample, rows = gaussian()
    assert solve(config(num_prompts=50), 7, sample, torch.Generator()).num_prompts == 7
    assert set(rows[0]) == set(range(7))


def test_more_samples_are_drawn_where_few_do_not_resolve_the_target():
    sample, rows = gaussian()
    solution = solve(config(target=1.0, num_generations=8), 200, sample, torch.Generator())
    assert solution.num_generations > 8
    assert solution.reach >= 1.0
    assert sum(map(len, rows)) == 200 * solution.num_generations
    assert len(rows) > 1


def test_a_target_that_no_number_of_samples_resolves_is_refused():
    sample, rows = gaussian()
    with pytest.raises(StageError, match=r"4 nats per response cannot be solved: 256 samples") as error:
        solve(config(target=4.0, num_prompts=20), 200, sample, torch.Generator())
    assert "kind: adaptive" in error.value.hint
    assert sum(map(len, rows)) == 20 * 256


def test_a_reward_model_that_prefers_nothing_is_refused():
    with pytest.raises(StageError, match="the same score"):
        solve(config(), 200, lambda rows: torch.tensor(rows).float(), torch.Generator())


def test_the_table_shows_what_each_kl_buys():
    sample, _ = gaussian()
    solution = solve(config(num_generations=64), 500, sample, torch.Generator())
    kls = [point.kl for point in solution.table]
    assert kls == sorted(kls)
    assert 0.5 not in kls, "the target has a row of its own"
    assert max(kls) <= solution.reach
    scores = [point.score for point in solution.table]
    assert scores == sorted(scores)
    text = "\n".join(solution.lines())
    assert "solved for a KL of 0.5 nats per response from 64 samples for each of 200 prompts" in text
    assert text.count("<- kl.target") == 1
    assert len(solution.lines()) == len(kls) + 3


def test_a_solution_survives_a_checkpoint():
    sample, _ = gaussian()
    solution = solve(config(), 100, sample, torch.Generator())
    assert Solution.of(json.loads(json.dumps(solution.state_dict()))) == solution


# --- In PPO ---

SOLVED = {"kl": config(target=0.3, num_prompts=11, num_generations=16), "batch_size": 8}


def test_ppo_trains_with_the_solved_coefficient_throughout():
    trainer = ppo_case.make(**SOLVED)
    trainer.start()
    beta = trainer.solution.target.beta
    metrics = [trainer.step() for _ in range(3)]
    assert [row["objective/kl_coef"] for row in metrics] == [beta] * 3


def test_samples_are_scored_as_ppo_scores_its_episodes():
    """Normalised, clipped, and less the penalty for a missing stop token."""
    values = {
        "score": ScoreConfig(normalization="reference", clip=0.5),
        "missing_eos_penalty": 3.0,
        "temperature": 0.8,
    }
    trainer = ppo_case.make(**SOLVED | values)
    trainer.start()
    rewards = trainer.reference_rewards([0, 1, 2] * 10)
    assert rewards.shape == (30,)
    levels = {round(float(value), 4) for value in rewards}
    assert max(levels) <= 0.5
    assert min(levels) < -0.5, "some responses are cut, and pay for it"
    assert min(levels) >= -3.5


def test_the_samples_follow_the_reference_rather_than_the_policy():
    """A policy that has learned changes nothing: in a later round the budget is still that from SFT."""
    betas = []
    for seed in (2, 3):
        trainer = ppo_case.make(**SOLVED)
        with torch.no_grad():
            for parameter in trainer.bank.parameters_of("policy"):
                parameter.add_(0.1 * seed)
        trainer.is_copy = False
        trainer.start()
        betas.append(trainer.kl.value)
    assert betas[0] == betas[1]


def test_a_checkpoint_holds_the_solution(tmp_path):
    first = ppo_case.make(**SOLVED)
    first.start()
    first.step()
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second = ppo_case.make(seed=99, **SOLVED)
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert second.solution == first.solution
    assert second.kl.value == first.kl.value
    assert second.step()["objective/kl_coef"] == first.step()["objective/kl_coef"]


def test_progress_counts_every_sample(training_context):
    ctx, notes = training_context()
    trainer = ppo_case.make(**SOLVED)
    trainer.start(ctx.progress)
    assert notes.bars["ppo: samples for the KL coefficient"] == (
        trainer.solution.num_prompts * trainer.solution.num_generations
    )
