"""The observable effects of one PPO update."""

import copy
import math

import numpy as np
import ppo_case
import pytest
import tiny
import torch

from pipeline.config.ppo import KLConfig, ScoreConfig
from pipeline.errors import StageError
from stages.models.bank import Actor
from stages.ppo import experience
from stages.sampling.episodes import Episodes

KINDS = list(tiny.BANKS)


def norm(trainer, role):
    gradients = [p.grad for p in trainer.bank.parameters_of(role) if p.grad is not None]
    return float(torch.stack([g.norm() for g in gradients]).norm())


def watch(trainer, role, probe):
    """Calls `probe()` before each optimizer step of a role; returns the list of its results."""
    seen = []
    trainer.optimisation.optimizers[role].optimizer.register_step_pre_hook(lambda *_: seen.append(probe()))
    return seen


def steps(trainer, role):
    return watch(trainer, role, lambda: 1)


def gradients(trainer, role="policy"):
    return [p.grad.clone() for p in trainer.bank.parameters_of(role)]


# --- Experience ---


@pytest.fixture
def data():
    """Experience of a policy that has moved away from its reference, gamma = lam = 1."""
    trainer = ppo_case.make(bank=tiny.lora_bank(distinct=True), gamma=1.0, lam=1.0)
    episodes = trainer.sample(trainer.next_prompts())
    scores, rewards = torch.arange(8.0), torch.arange(8.0) / 2 - 1
    batch = experience.build(trainer.bank, episodes, scores, rewards, trainer.config, 0.3, trainer.world)
    return batch, rewards, trainer


def test_returns_are_rewards_to_go(data):
    batch, rewards, _ = data
    mask = batch.episodes.mask_BT.numpy()
    log_ratio = (batch.logp_BT - batch.ref_logp_BT).numpy().astype(float)
    assert np.abs(log_ratio[mask]).max() > 0.1
    for row, length in enumerate(mask.sum(1)):
        for t in range(length):
            penalty = np.clip(log_ratio[row, t:length], -10, 10).sum()
            expected = float(rewards[row]) - 0.3 * penalty
            assert batch.returns_BT[row, t].item() == pytest.approx(expected, abs=1e-4), (row, t)
    assert not batch.returns_BT[~batch.episodes.mask_BT].any()


def test_advantages_are_whitened_returns_minus_values(data):
    batch, _, _ = data
    mask = batch.episodes.mask_BT
    raw = (batch.returns_BT - batch.values_BT)[mask].numpy().astype(float)
    advantages = batch.advantages_BT[mask].numpy()
    np.testing.assert_allclose(advantages, (raw - raw.mean()) / raw.std(), atol=1e-4)
    assert not batch.advantages_BT[~mask].any()


def test_metrics_match_their_definitions(data):
    batch, rewards, trainer = data
    mask = batch.episodes.mask_BT.numpy()
    ratio = (batch.logp_BT - batch.ref_logp_BT).numpy().astype(float)[mask]
    returns, values = (x[batch.episodes.mask_BT].numpy().astype(float) for x in (batch.returns_BT, batch.values_BT))
    scored = experience.score_tokens(trainer.bank, "policy", batch.episodes, trainer.config, entropy=True)
    expected = {
        "objective/entropy": float(scored.entropy_BT.sum()) / mask.sum(),
        "objective/kl": np.clip(ratio, -10, 10).sum() / 8,
        "objective/kl_k3": np.clip(np.exp(-ratio) - 1 + ratio, -10, 10).sum() / 8,
        "objective/kl_coef": 0.3,
        "objective/scores": 3.5,
        "objective/scores_std": np.std(np.arange(8)),
        "objective/non_score_reward": -0.3 * np.clip(ratio, -10, 10).sum() / 8,
        "objective/rlhf_reward": float(rewards.mean()) - 0.3 * np.clip(ratio, -10, 10).sum() / 8,
        "response/length": mask.sum() / 8,
        "val/explained_variance": 1 - np.var(returns - values) / np.var(returns),
    }
    for name, number in expected.items():
        assert batch.metrics[name] == pytest.approx(number, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("kind", KINDS)
def test_kl_is_zero_and_the_ratio_is_one_before_the_first_step(kind):
    trainer = ppo_case.make(kind, learning_rate=1e-12, temperature=0.7)
    metrics = trainer.step()
    # Not exactly: the policy's log-probs come from the rollout, whose matrix products have other shapes.
    assert metrics["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["objective/kl_k3"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-7)
    assert metrics["policy/clipfrac_avg"] == 0.0


def test_the_first_gradient_equals_reinforce():
    """At ratio one the policy's gradient is -sum(A grad log p) / tokens, computed here from the model's logits."""
    trainer = ppo_case.make(num_mini_batches=1, num_ppo_epochs=1, max_grad_norm=1e9, temperature=0.8)
    batches = []
    build = experience.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            experience, "build", lambda *args, **values: batches.append(build(*args, **values)) or batches[-1]
        )
        observed = watch(trainer, "policy", lambda: gradients(trainer))
        start = trainer.bank.state_of("policy")
        trainer.step()
    trainer.bank.load_state_of("policy", start)
    episodes, advantages = batches[0].episodes, batches[0].advantages_BT
    total, count = 0.0, int(episodes.mask_BT.sum())
    with trainer.bank.active("policy", train=True) as actor:
        for row in range(8):
            ids = episodes.ids_BL[row : row + 1, : int(episodes.lengths_B[row])]
            start_of_response = int(episodes.prompt_lengths_B[row])
            logp = torch.log_softmax(actor.lm(ids).logits[0] / 0.8, -1)
            for t in range(ids.shape[1] - start_of_response):
                position = start_of_response + t
                total = total - advantages[row, t] * logp[position - 1, ids[0, position]] / count
        total.backward()
    assert any(g.abs().max() > 1e-3 for g in observed[0])
    for actual, expected in zip(observed[0], gradients(trainer), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6)


# --- Steps of the optimizers ---


@pytest.mark.parametrize(("epochs", "parts"), [(1, 1), (3, 2), (2, 8)])
def test_every_minibatch_is_one_optimizer_step(epochs, parts):
    trainer = ppo_case.make(num_ppo_epochs=epochs, num_mini_batches=parts)
    policy, value = steps(trainer, "policy"), steps(trainer, "value")
    metrics = trainer.step()
    assert len(policy) == len(value) == epochs * parts
    assert metrics["optimizer_steps"] == 2 * epochs * parts
    trainer.step()
    assert len(policy) == 2 * epochs * parts


def test_minibatches_of_an_epoch_cover_the_batch_once():
    trainer = ppo_case.make(num_mini_batches=4)
    epochs = [torch.cat(list(trainer.shares.mini_batches(4, trainer.generator))).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2], "each epoch has another order"


@pytest.mark.parametrize("role", ["policy", "value"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_clipped(kind, role):
    trainer = ppo_case.make(kind, max_grad_norm=1e-3)
    norms = watch(trainer, role, lambda: norm(trainer, role))
    metrics = trainer.step()
    unclipped = metrics["policy/grad_norm" if role == "policy" else "val/grad_norm"]
    assert unclipped > 1e-2
    assert norms == pytest.approx([1e-3] * 4, rel=1e-2)


def test_small_gradients_are_not_clipped():
    trainer = ppo_case.make(max_grad_norm=1e9)
    norms = watch(trainer, "policy", lambda: norm(trainer, "policy"))
    metrics = trainer.step()
    assert metrics["policy/grad_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_critic_warm_up_does_not_change_the_policy(kind):
    trainer = ppo_case.make(kind, critic_warmup_updates=2)
    policy, value = trainer.bank.checksum("policy"), trainer.bank.checksum("value")
    for _ in range(2):
        metrics = trainer.step()
        assert metrics["optimizer_steps"] == 4
        assert trainer.bank.checksum("policy") == policy
        assert trainer.bank.checksum("value") != value
    trainer.step()
    assert trainer.bank.checksum("policy") != policy


def test_reaching_target_kl_ends_the_epochs_of_an_update():
    trainer = ppo_case.make(target_kl=1e-7, num_ppo_epochs=4, num_mini_batches=2)
    policy = steps(trainer, "policy")
    trainer.step()
    # The first minibatch is measured before any step: its KL is zero. The second minibatch's is not.
    assert len(policy) == 2
    trainer.step()
    assert len(policy) == 4, "the next update starts over"


def test_an_update_below_target_kl_runs_all_epochs():
    trainer = ppo_case.make(target_kl=1e3)
    policy = steps(trainer, "policy")
    trainer.step()
    assert len(policy) == 4


@pytest.mark.parametrize(
    ("values", "factors"),
    [
        ({"lr_scheduler_type": "constant"}, [1, 1, 1, 1]),
        ({"lr_scheduler_type": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"lr_scheduler_type": "cosine"}, [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]),
        ({"lr_scheduler_type": "linear", "warmup_updates": 2}, [1 / 3, 2 / 3, 1, 0.5]),
    ],
)
def test_learning_rates_follow_the_schedule(values, factors):
    trainer = ppo_case.make(num_ppo_epochs=1, num_mini_batches=1, value_learning_rate=1e-2, **values)
    used = watch(trainer, "value", lambda: trainer.optimisation.optimizers["value"].lr)
    rates = [trainer.step()["lr"] for _ in range(4)]
    assert rates == pytest.approx([3e-3 * f for f in factors])
    assert used == pytest.approx([1e-2 * f for f in factors])


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_value_head_on_the_trunk_may_have_a_learning_rate_of_its_own(kind):
    start, same, other = (
        ppo_case.make(kind=kind, value="trunk", **extra) for extra in ({}, {}, {"value_learning_rate": 3e-2})
    )
    for trainer in (same, other):
        trainer.optimisation.optimizers["policy"].set_schedule(1.0)
        trainer.step()

    def moved(trainer, head):
        before, after = ppo_case.weights(start), ppo_case.weights(trainer)
        return max(float((after[n] - before[n]).abs().max()) for n in after if ("head" in n) == head)

    assert moved(other, head=True) > 5 * moved(same, head=True)
    assert moved(other, head=False) < 2 * moved(same, head=False)
    resumed = ppo_case.make(kind=kind, value="trunk", value_learning_rate=3e-2)
    resumed.load_state_dict(copy.deepcopy(other.state_dict()))
    for trainer in (other, resumed):
        trainer.step()
    ppo_case.assert_close(ppo_case.weights(resumed), ppo_case.weights(other), 0.0)


# --- Prompts, scores, penalties ---


def test_every_prompt_is_used_before_any_is_used_again():
    trainer = ppo_case.make()
    drawn = [tuple(prompt.ids) for _ in range(11) for prompt in trainer.next_prompts()]
    for start in range(0, 88, 11):
        assert sorted(drawn[start : start + 11]) == sorted(tuple(prompt.ids) for prompt in ppo_case.PROMPTS)
    assert drawn[:11] != drawn[11:22]


@pytest.mark.parametrize("penalty", [None, 0.75])
def test_missing_eos_penalty_accepts_every_stop_id(penalty):
    sampled = []

    def scorer(prompts, responses):
        sampled.extend(responses)
        return torch.zeros(len(responses))

    trainer = ppo_case.make(scorer=scorer, missing_eos_penalty=penalty, batch_size=32, num_mini_batches=1)
    metrics = trainer.step()
    ends = [response[-1] for response in sampled]
    assert len(set(ends) & ppo_case.STOPS) > 1, "responses must end with several of the stop ids"
    unended = sum(end not in ppo_case.STOPS for end in ends) / 32
    assert 0 < unended < 1
    assert metrics["response/ended"] == pytest.approx(1 - unended)
    assert metrics["objective/rlhf_reward"] == pytest.approx(-(penalty or 0) * unended, abs=1e-5)


def test_scores_are_normalised_by_reference_responses():
    seen = []

    def scorer(prompts, responses):
        seen.append(ppo_case.varied(prompts, responses))
        return seen[-1]

    trainer = ppo_case.make(scorer=scorer, score=ScoreConfig(normalization="reference", clip=None))
    trainer.start()
    metrics = trainer.step()
    reference, scores = (x.numpy().astype(float) for x in seen)
    expected = (scores - reference.mean()) / reference.std()
    assert metrics["objective/rlhf_reward"] == pytest.approx(expected.mean(), abs=1e-4)
    assert metrics["objective/scores"] == pytest.approx(scores.mean(), abs=1e-5)


def test_ptx_adds_the_language_modelling_gradient():
    """`ptx_coef` times the mean cross-entropy over all labels of the demonstrations."""
    observed = {}
    for coef in (0.0, 0.5):
        trainer = ppo_case.make(ptx_coef=coef, max_grad_norm=1e9, temperature=0.7)
        start = trainer.bank.state_of("policy")
        observed[coef] = watch(trainer, "policy", lambda t=trainer: gradients(t))
        metrics = trainer.step()
    trainer.bank.load_state_of("policy", start)
    ids, labels = ppo_case.demonstrations(torch.Generator())
    with trainer.bank.active("policy", train=True) as actor:
        logits = actor.lm(ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
    expected = gradients(trainer)
    assert any(g.abs().max() > 1e-3 for g in expected)
    for plain, mixed, language in zip(observed[0.0][0], observed[0.5][0], expected, strict=True):
        torch.testing.assert_close(mixed - plain, 0.5 * language, rtol=1e-3, atol=1e-6)
    assert metrics["loss/ptx_avg"] == pytest.approx(loss.item(), rel=0.2), "the mean over all steps"


@pytest.mark.parametrize("size", [1, 2])
def test_ptx_uses_micro_batches(size, monkeypatch):
    """No pass has more rows than a micro-batch of episodes, and the gradient equals that of the full batch."""
    results, sizes = {}, []
    hidden = Actor.hidden

    def watched(actor, ids, packing=None):
        sizes.append(len(ids))
        return hidden(actor, ids, packing)

    for micro in (None, size):
        trainer = ppo_case.make(ptx_coef=0.5, micro_batch_size=micro, max_grad_norm=1e9, num_mini_batches=1)
        with monkeypatch.context() as patch:
            patch.setattr(Actor, "hidden", watched)
            del sizes[:]
            with trainer.bank.active("policy", train=True) as actor:
                loss = trainer.optimisation._ptx(actor, micro, trainer.generator)
        results[micro] = (
            loss,
            [p.grad.clone() for p in trainer.optimisation.optimizers["policy"].parameters],
            list(sizes),
        )
    assert results[None][2] == [3]
    assert results[size][2] == ([1, 1, 1] if size == 1 else [2, 1])
    torch.testing.assert_close(results[size][0], results[None][0])
    for small, full in zip(results[size][1], results[None][1], strict=True):
        torch.testing.assert_close(small, full, rtol=1e-4, atol=1e-7)


def test_entropy_bonus_raises_entropy():
    entropies = {}
    for coef in (0.0, 1.0):
        trainer = ppo_case.make(entropy_coef=coef, learning_rate=1e-2, scorer=lambda _, r: torch.zeros(len(r)))
        entropies[coef] = [trainer.step()["objective/entropy"] for _ in range(4)][-1]
    assert entropies[1.0] > entropies[0.0] + 0.1


# --- Run-time checks ---


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_roles_do_not_change_and_tampering_is_detected(kind):
    trainer = ppo_case.make(kind)
    trainer.step()
    trainer.step()
    trainer.frozen.check()
    with torch.no_grad():
        trainer.bank.parameters_of("reference")[0].view(-1)[0] += 1e-3
    with pytest.raises(StageError, match="frozen role 'reference' has changed"):
        trainer.frozen.check()


@pytest.mark.parametrize("kind", KINDS)
def test_shared_weights_do_not_change(kind):
    trainer = ppo_case.make(kind)
    trainable = {id(p) for role in trainer.bank.trainable for p in trainer.bank.parameters_of(role)}
    shared = [(name, p, p.clone()) for name, p in trainer.bank.named_parameters() if id(p) not in trainable]
    trainer.step()
    assert shared
    for name, parameter, before in shared:
        assert torch.equal(parameter, before), name


def test_a_policy_that_differs_from_the_reference_is_refused():
    trainer = ppo_case.make(bank=tiny.lora_bank(distinct=True))
    with pytest.raises(StageError, match="policy and reference differ before the first step"):
        trainer.step()


def test_a_policy_with_random_outputs_is_refused():
    trainer = ppo_case.make()
    layer = trainer.bank.model.get_base_model().model.layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda module, _, y: y + torch.randn_like(y) if module.training else y)
    with pytest.raises(StageError, match="ratio to itself"):
        trainer.step()


def test_a_role_without_gradient_is_an_error():
    trainer = ppo_case.make(cliprange_value=1e-9, vf_coef=0.0)
    for parameter in trainer.bank.parameters_of("value"):
        parameter.register_hook(torch.zeros_like)
    with pytest.raises(StageError, match="value role gets no gradient"):
        trainer.step()


def test_a_gradient_that_is_not_finite_is_an_error():
    trainer = ppo_case.make()
    trainer.step()
    trainer.bank.parameters_of("policy")[0].register_hook(lambda g: g * float("nan"))
    before = trainer.bank.checksum("policy")
    with pytest.raises(StageError, match="policy role's gradient is nan at update 2"):
        trainer.step()
    assert trainer.bank.checksum("policy") == before


# --- Memory ---


def with_scarce_memory(monkeypatch, trainer, *failing):
    """Steps once. Memory runs out in the backward passes `failing`, counted from one, after their gradient is
    accumulated. Returns the number of sequences in each pass that records a gradient."""
    hidden, done, sizes, passes = Actor.hidden, torch.Tensor.backward, [], []

    def watched(actor, ids, packing=None):
        states = hidden(actor, ids, packing)
        if states.requires_grad:
            sizes.append(len(ids))
        return states

    def backward(tensor, *args, **kwargs):
        done(tensor, *args, **kwargs)
        passes.append(tensor)
        if len(passes) in failing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(Actor, "hidden", watched)
        patch.setattr(torch.Tensor, "backward", backward)
        trainer.step()
    return sizes


@pytest.mark.parametrize("kind", KINDS)
def test_a_minibatch_that_runs_out_of_memory_is_retried_with_smaller_passes(kind, monkeypatch):
    """The minibatch of four fails as one pass, is retried in twos, fails half-way, and is retried in ones, with the
    PPO-ptx demonstrations that it drew first. The result is bit-identical to a run that used ones throughout."""
    values = ppo_case.EVERYTHING | {"num_ppo_epochs": 1, "rollout_batch_size": "auto"}
    drawn = []

    def demonstrations(generator):
        drawn.append(torch.rand(1, generator=generator).item())
        return ppo_case.demonstrations(generator)

    messages = []
    trainer = ppo_case.make(kind, micro_batch_size="auto", **values)
    trainer.optimisation.demonstrations, trainer.micro._say = demonstrations, messages.append
    sizes = with_scarce_memory(monkeypatch, trainer, 1, 3)
    assert sizes[:3] == [4, 2, 2]
    assert trainer.micro.size == 1
    assert messages == [
        "out of memory: training goes on with 2 sequences at once instead of 4",
        "out of memory: training goes on with 1 sequences at once instead of 2",
    ]

    plenty = ppo_case.make(kind, micro_batch_size="auto", **values)
    plenty.optimisation.demonstrations = demonstrations
    fit, gradients_of = plenty.optimisation._fitting, plenty.micro
    del drawn[:]

    def smaller(*args):
        gradients_of.size = 1
        return fit(*args)

    plenty.optimisation._fitting = smaller
    plenty.step()
    assert len(drawn) == 2, "one draw per minibatch"
    ppo_case.assert_close(ppo_case.weights(trainer), ppo_case.weights(plenty), tolerance=0)
    assert torch.equal(trainer.generator.get_state(), plenty.generator.get_state())


def test_running_out_of_memory_with_a_fixed_micro_batch_is_an_error(monkeypatch):
    with pytest.raises(torch.OutOfMemoryError):
        with_scarce_memory(monkeypatch, ppo_case.make(micro_batch_size=2), 2)
    with pytest.raises(torch.OutOfMemoryError):  # one sequence does not fit
        with_scarce_memory(monkeypatch, ppo_case.make(micro_batch_size="auto"), 1, 2, 3)


def test_the_reduced_micro_batch_is_checkpointed(monkeypatch):
    first = ppo_case.make(micro_batch_size="auto")
    with_scarce_memory(monkeypatch, first, 1)
    second = ppo_case.make(micro_batch_size="auto", seed=9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.micro.size == first.micro.size == 2
    fixed = ppo_case.make(micro_batch_size=4, seed=9)
    fixed.load_state_dict(copy.deepcopy(first.state_dict()))
    assert fixed.micro.size == 4, "the current recipe takes precedence"
    first.step()
    second.step()
    ppo_case.assert_close(ppo_case.weights(second), ppo_case.weights(first), tolerance=0)


@pytest.mark.parametrize("wanted", ["auto", 8])
def test_decoding_halves_its_batch_when_memory_runs_out(wanted, monkeypatch):
    expected = ppo_case.make(rollout_batch_size=4).sample(ppo_case.PROMPTS[:8])
    trainer = ppo_case.make(rollout_batch_size=wanted)
    decode, sizes = Actor.decode, []

    def scarce(actor, ids, *args):
        sizes.append(len(ids))
        if len(ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return decode(actor, ids, *args)

    monkeypatch.setattr(Actor, "decode", scarce)
    assert torch.equal(trainer.sample(ppo_case.PROMPTS[:8]).ids_BL, expected.ids_BL)
    assert sizes == [8, 4, 4]
    assert trainer.decoding.size == 4, "the next rollout starts with what fits"


# --- A value head on the policy's trunk ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_trunk_value_head_and_the_policy_train_in_one_step(kind):
    trainer = ppo_case.make(kind, value="trunk", num_ppo_epochs=1, num_mini_batches=1)
    before = trainer.bank.state_of("policy")
    taken = steps(trainer, "policy")
    metrics = trainer.step()
    after = trainer.bank.state_of("policy")
    assert list(trainer.optimisation.optimizers) == ["policy"]
    assert len(taken) == metrics["optimizer_steps"] == 1
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {"head.weight", "head.bias"} < changed
    assert "loss/value_avg" in metrics


def test_vf_coef_weights_the_value_loss_of_a_trunk():
    """The head's gradient is proportional to vf_coef, and zero when vf_coef is zero."""
    grads = {}
    for coef in (0.0, 0.1, 0.4):
        trainer = ppo_case.make(value="trunk", vf_coef=coef, max_grad_norm=1e9)
        seen = watch(trainer, "policy", lambda t=trainer: t.bank.heads["policy"].weight.grad.clone())
        trainer.step()
        grads[coef] = seen[0]
    assert not grads[0.0].any()
    assert grads[0.1].any()
    torch.testing.assert_close(grads[0.4], 4 * grads[0.1])


def test_episodes_are_sampled_at_the_temperature_of_their_log_probs():
    """The mean log-prob of sampled tokens is minus the mean entropy of the distributions they are drawn from."""
    trainer = ppo_case.make(
        batch_size=512, num_mini_batches=1, temperature=0.5, kl=KLConfig(kind="fixed", init=0.0)
    )
    episodes = trainer.sample([ppo_case.PROMPTS[i % 11] for i in range(512)])
    assert isinstance(episodes, Episodes)
    scored = experience.score_tokens(trainer.bank, "policy", episodes, trainer.config, entropy=True)
    logp, entropy = scored.logp_BT, scored.entropy_BT
    n = int(episodes.mask_BT.sum())
    spread = float(logp[episodes.mask_BT].std()) / n**0.5
    assert -logp.sum().item() / n == pytest.approx(entropy.sum().item() / n, abs=4 * spread)
