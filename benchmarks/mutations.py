"""Mutation testing: breaks a copy of the code in one place at a time and shows which tests fail first.

    python benchmarks/mutations.py [--list] [--sample N] [WORD ...]

WORD selects the mutations whose names contain one of the words. --sample runs only N of them, different ones each
day.

Exits with 1 if a mutation survives its tests, if its text is not found, or if the tests fail without a mutation.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("pipeline", "ranking", "data", "stages", "tests", "benchmarks", "examples", "recipes", "pyproject.toml")
SHOWN = 2
"""Failed tests after which a mutation counts as caught, and its run ends."""

PPO, MODELS, REWARD = "tests/stages/ppo", "tests/stages/models", "tests/stages/reward"
INVARIANTS, SCORE, SERVE = "tests/invariants", "tests/stages/score", "tests/stages/serve"


@dataclass(frozen=True)
class Mutation:
    """`edits`: (file, text that occurs exactly once, replacement)."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


def mutation(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, ((file, old, new),), tests)


BACKWARD_AFTER_SWITCH = (
    "stages/ppo/update.py",
    """                self.optimizers["value"].backward(loss.loss)
                _accumulate(sums, [loss])
            return sums

        with self.bank.active("value", train=True) as actor:
            sums = self._fitting("value", rows, generator, gradients)
""",
    """                late.append(loss.loss)
                _accumulate(sums, [loss])
            return sums

        late: list[Tensor] = []
        with self.bank.active("value", train=True) as actor:
            sums = self._fitting("value", rows, generator, gradients)
        torch.stack(late).sum().backward()
""",
)
NO_ROUTE_CHECK = ("stages/models/actor.py", "if self._route() != before:", "if False:")

MUTATIONS = [
    mutation(
        "raft: the answer with the lowest reward is selected",
        "stages/raft.py",
        "rewards_PN.argmax(1)",
        "rewards_PN.argmin(1)",
        "tests/stages/test_raft_stage.py",
    ),
    mutation(
        "raft: no penalty for a missing stop token",
        "stages/raft.py",
        "penalised(normalizer(scores), ended_N, config.missing_eos_penalty)",
        "normalizer(scores)",
        "tests/stages/test_raft_stage.py",
    ),
    mutation(
        "raft: scores are not normalised with their own statistics",
        "stages/raft.py",
        "    normalizer.prepare(lambda: scores)\n",
        "",
        "tests/stages/test_raft_stage.py",
    ),
    mutation(
        "raft: a resumed run draws the random numbers of the first part again",
        "stages/raft.py",
        'generator.set_state(state["generator"].clone())',
        "pass",
        "tests/stages/test_raft_stage.py",
    ),
    mutation(
        "raft: labels on the prompt too",
        "stages/raft.py",
        "[*[IGNORED] * len(prompt.ids), *ids]",
        "[*prompt.ids, *ids]",
        "tests/stages/test_raft_stage.py",
    ),
    mutation(
        "quantisation-aware training rounds the weight without the adapter, in DPO and RAFT",
        "stages/training/policy.py",
        "    qat.adapt(model)\n",
        "",
        "tests/stages/test_raft_stage.py",
    ),
    mutation(
        "trl's cast of an NF4 adapter is kept, in DPO and RAFT",
        "stages/training/policy.py",
        "                parameter.copy_(start[name])",
        "                pass",
        "tests/stages/test_raft_stage.py",
    ),
    mutation(
        "rounds: PPO starts from SFT again",
        "stages/ppo/roles.py",
        "start = newest_policy(inputs)",
        "start = sft",
        f"{PPO}/test_ppo_stage.py",
    ),
    mutation(
        "rounds: the reference moves to the newest policy",
        "stages/ppo/roles.py",
        'bank = make(config, base, sft, start, rewards, "cpu" if on_host else device)',
        'bank = make(config, base, start, start, rewards, "cpu" if on_host else device)',
        f"{PPO}/test_ppo_stage.py",
    ),
    mutation(
        "rounds: fingerprints are not compared",
        "stages/ppo/fingerprints.py",
        "if not deviation.is_rounding(exact):",
        "if False:",
        f"{PPO}/test_ppo_stage.py",
    ),
    mutation(
        "rounds: the reward model learns from the first round only",
        "stages/reward/stage.py",
        "for ranked in rounds for row",
        "for ranked in rounds[:1] for row",
        f"{REWARD}/test_reward_stage.py",
    ),
    mutation(
        "rounds: ranked prompts are selected again",
        "stages/collect.py",
        "if prompt_key(prompt.messages) not in ranked]",
        "]",
        "tests/stages/test_collect_stage.py",
    ),
    mutation(
        "rounds: the prompts that members agree on are selected",
        "stages/collect.py",
        "gain_N.argsort(descending=True",
        "gain_N.argsort(descending=False",
        "tests/stages/test_collect_stage.py",
    ),
    mutation(
        "disagreement: confidence counts",
        "stages/scoring/information_gain.py",
        "- _entropy(preferred_MNP).mean(0)",
        "",
        "tests/stages/scoring/test_information_gain.py",
    ),
    mutation(
        "whitening keeps the mean",
        "stages/ppo/advantages.py",
        "white if shift_mean else white + mean",
        "white + mean",
        f"{PPO}/test_advantages.py",
        f"{INVARIANTS}/test_update.py",
    ),
    mutation(
        "score at the first pad",
        "stages/ppo/advantages.py",
        "last = (mask_BT * (position + 1)).argmax(dim=1)",
        "last = mask_BT.sum(1).clamp(max=mask_BT.shape[1] - 1)",
        f"{PPO}/test_advantages.py",
        f"{INVARIANTS}/test_update.py",
    ),
    mutation(
        "KL coefficient off by two",
        "stages/ppo/experience.py",
        "penalty = kl_coef * kl if",
        "penalty = 2 * kl_coef * kl if",
        f"{INVARIANTS}/test_convergence.py",
    ),
    mutation(
        "policy loss of the wrong sign",
        "stages/ppo/losses.py",
        "plain = -advantages_BT * ratio",
        "plain = advantages_BT * ratio",
        f"{INVARIANTS}/test_convergence.py",
    ),
    mutation(
        "convergence: KL sign flipped in the reward",
        "stages/ppo/advantages.py",
        "torch.where(mask_BT, -penalty_BT,",
        "torch.where(mask_BT, penalty_BT,",
        f"{INVARIANTS}/test_convergence.py",
    ),
    mutation(
        "convergence: advantages of the wrong sign",
        "stages/ppo/experience.py",
        "white = whiten(advantages, mask, reduce=world.sum)",
        "white = -whiten(advantages, mask, reduce=world.sum)",
        f"{INVARIANTS}/test_convergence.py",
    ),
    mutation(
        "estimators: the baseline of RLOO includes the response",
        "stages/ppo/estimators.py",
        "return (groups.sum(rewards_B) - rewards_B) / (groups.size - 1)",
        "return groups.sum(rewards_B) / groups.size",
        f"{PPO}/test_estimators.py",
    ),
    mutation(
        "estimators: the baseline of GRPO is added",
        "stages/ppo/estimators.py",
        "advantages_B = rewards_B - self.baseline(rewards_B, groups)",
        "advantages_B = rewards_B + self.baseline(rewards_B, groups)",
        f"{PPO}/test_estimators.py",
    ),
    mutation(
        "estimators: advantages of the wrong sign",
        "stages/ppo/estimators.py",
        "advantages_B = rewards_B - self.baseline(rewards_B, groups)",
        "advantages_B = self.baseline(rewards_B, groups) - rewards_B",
        f"{PPO}/test_estimators.py",
    ),
    mutation(
        "estimators: groups leak into each other",
        "stages/ppo/estimators.py",
        "return cls(rows_B // size, batch_size // size, size, reduce)",
        "return cls((rows_B + 1) // size % (batch_size // size), batch_size // size, size, reduce)",
        f"{PPO}/test_estimators.py",
    ),
    mutation(
        "estimators: a group is only this process's rows",
        "stages/ppo/estimators.py",
        "return self.reduce(torch.zeros(self.count)",
        "return (torch.zeros(self.count)",
        f"{PPO}/test_estimators.py",
    ),
    mutation(
        "estimators: the running baseline includes its batch",
        "stages/ppo/estimators.py",
        "earlier, known = self.total, self.count\n",
        "earlier, known = self.total + float(returns_B.sum()), self.count + len(returns_B)\n",
        f"{PPO}/test_estimators.py",
    ),
    mutation(
        "KL in the loss has the wrong sign",
        "stages/ppo/losses.py",
        "token_loss = coef * ESTIMATORS[estimator](logp_BT, ref_logp_BT)",
        "token_loss = -coef * ESTIMATORS[estimator](logp_BT, ref_logp_BT)",
        f"{PPO}/test_losses.py",
    ),
    mutation(
        "KL in the loss and in the reward",
        "stages/ppo/experience.py",
        "penalty = kl_coef * kl if config.kl_loss is None else torch.zeros_like(kl)",
        "penalty = kl_coef * kl",
        f"{INVARIANTS}/test_updates_without_a_critic.py",
    ),
    mutation(
        "loss types: long responses count more",
        "stages/ppo/losses.py",
        "token_loss_BT = token_loss_BT / mask_BT.sum(1, keepdim=True).clamp(min=1)",
        "token_loss_BT = token_loss_BT / mask_BT.shape[1]",
        f"{PPO}/test_losses.py",
    ),
    mutation(
        "resampling: replaced rows keep their scores",
        "stages/ppo/resampling.py",
        "scores=batch.scores.index_copy(-1, rows_N, new.scores)",
        "scores=batch.scores",
        f"{INVARIANTS}/test_updates_without_a_critic.py",
    ),
    mutation(
        "convergence: mask leaves the stop token out",
        "stages/sampling/episodes.py",
        "(stops.long().cumsum(1) - stops.long()) > 0",
        "stops.long().cumsum(1) > 0",
        f"{INVARIANTS}/test_convergence.py",
    ),
    mutation(
        "convergence: value coefficient of the wrong sign",
        "stages/ppo/update.py",
        "Loss(config.vf_coef * value.loss, value.sums)",
        "Loss(-config.vf_coef * value.loss, value.sums)",
        f"{INVARIANTS}/test_convergence.py",
    ),
    mutation(
        "optimum: the jackknife adds its bias",
        "stages/ppo/optimum.py",
        "return count * kl_P - (count - 1) * left_kl_P,",
        "return (2 - count) * kl_P + (count - 1) * left_kl_P,",
        f"{PPO}/test_optimum.py",
    ),
    mutation(
        "solved coefficient: raw scores",
        "stages/ppo/trainer.py",
        "rewards[shares.rows] = self.rewards(scores, self.ended(episodes))",
        "rewards[shares.rows] = scores",
        f"{PPO}/test_solve.py",
    ),
    mutation(
        "solved coefficient: samples of the policy",
        "stages/ppo/trainer.py",
        'self.sample(prompts, role="reference", share=shares.share)',
        "self.sample(prompts, share=shares.share)",
        f"{PPO}/test_solve.py",
    ),
    mutation(
        "KL sign flipped in the estimator",
        "stages/ppo/kl.py",
        "return log_ratio(logp_BT, ref_logp_BT).clamp(",
        "return log_ratio(ref_logp_BT, logp_BT).clamp(",
        f"{PPO}/test_kl.py",
        f"{INVARIANTS}/test_update.py",
    ),
    mutation(
        "KL sign flipped in the reward",
        "stages/ppo/advantages.py",
        "torch.where(mask_BT, -penalty_BT,",
        "torch.where(mask_BT, penalty_BT,",
        f"{PPO}/test_advantages.py",
        f"{INVARIANTS}/test_update.py",
        f"{INVARIANTS}/test_behaviour.py",
    ),
    mutation(
        "value clip takes the minimum",
        "stages/ppo/losses.py",
        "0.5 * torch.maximum(plain_error, clipped_error)",
        "0.5 * torch.minimum(plain_error, clipped_error)",
        f"{PPO}/test_losses.py",
    ),
    mutation(
        "policy clip takes the minimum",
        "stages/ppo/losses.py",
        "token_loss = torch.maximum(plain, clipped)",
        "token_loss = torch.minimum(plain, clipped)",
        f"{PPO}/test_losses.py",
    ),
    mutation(
        "importance weights without a cap",
        "stages/ppo/mismatch.py",
        ".exp().clamp(max=clip_max).detach()",
        ".exp().detach()",
        f"{PPO}/test_mismatch.py",
    ),
    mutation(
        "importance weights the wrong way round",
        "stages/ppo/mismatch.py",
        "return log_ratio(logp_BT, sampled_logp_BT)",
        "return log_ratio(sampled_logp_BT, logp_BT)",
        f"{PPO}/test_mismatch.py",
        f"{INVARIANTS}/test_sixteen_bits.py",
    ),
    mutation(
        "importance weights are not applied to the loss",
        "stages/ppo/losses.py",
        "token_loss = weights_BT * token_loss",
        "token_loss = 1.0 * token_loss",
        f"{PPO}/test_losses.py",
        f"{INVARIANTS}/test_sixteen_bits.py",
    ),
    mutation(
        "the loss scale stays in the gradients",
        "stages/training/loss_scale.py",
        "parameter.grad.div_(self.value)",
        "parameter.grad.div_(1.0)",
        "tests/stages/training/test_loss_scale.py",
    ),
    mutation(
        "a step that overflowed is taken",
        "stages/ppo/role_optimizer.py",
        "        if not skipped and not silent:\n",
        "        if not silent:\n",
        f"{INVARIANTS}/test_sixteen_bits.py",
    ),
    mutation(
        "full fine-tuning samples in another precision than it trains in",
        "stages/sampling/decoding.py",
        "with actor.computing():",
        "with torch.no_grad():",
        "tests/stages/sampling/test_decoding.py",
    ),
    mutation(
        "the adapter of a quantised layer passes no gradient to its input",
        "stages/models/fast/linear.py",
        "return grad, grad_x, grad_a, grad_b, None\n",
        "return grad, None, grad_a, grad_b, None\n",
        f"{MODELS}/fast/test_linear.py",
    ),
    mutation(
        "16-bit logits are rounded",
        "stages/models/fast/wide.py",
        "    if not plain or dtype == torch.float32:\n",
        "    if plain or dtype == torch.float32:\n",
        f"{MODELS}/fast/test_wide.py",
    ),
    mutation(
        "mask leaves the stop token out",
        "stages/sampling/episodes.py",
        "(stops.long().cumsum(1) - stops.long()) > 0",
        "stops.long().cumsum(1) > 0",
        "tests/stages/sampling/test_episodes.py",
    ),
    mutation(
        "mask extends to the second stop token",
        "stages/sampling/episodes.py",
        "(stops.long().cumsum(1) - stops.long()) > 0",
        "(stops.long().cumsum(1) - stops.long()) > 1",
        "tests/stages/sampling/test_episodes.py",
    ),
    Mutation(
        "backward after the role switch",
        (BACKWARD_AFTER_SWITCH,),
        (f"{INVARIANTS}/test_update.py",),
    ),
    Mutation(
        "backward after the role switch, unchecked",
        (BACKWARD_AFTER_SWITCH, NO_ROUTE_CHECK),
        (f"{PPO}/test_ppo_stage.py",),
    ),
    Mutation("no route check", (NO_ROUTE_CHECK,), (f"{MODELS}/test_bank.py",)),
    mutation(
        "roles switched by peft's set_adapter",
        "stages/models/bank.py",
        "            layer._active_adapter = [] if adapter is None else [adapter]\n",
        "            layer.set_adapter([] if adapter is None else [adapter])\n",
        f"{MODELS}/test_bank.py",
        f"{INVARIANTS}/test_update.py",
    ),
    mutation(
        "temperature not in log-probs",
        "stages/models/logprobs.py",
        "if temperature != 1:",
        "if False:",
        f"{MODELS}/test_logprobs.py",
        "tests/stages/sampling/test_episodes.py",
        f"{INVARIANTS}/test_update.py",
    ),
    mutation(
        "policy loss divided by the micro-batch's tokens",
        "stages/ppo/update.py",
        "                    count=divisor,\n                    cliprange=config.cliprange,",
        "                    count=float(part.mask_BT.sum()),\n                    cliprange=config.cliprange,",
        f"{INVARIANTS}/test_parallel.py::test_micro_batches_do_not_change_an_update",
    ),
    mutation(
        "gradients not clipped",
        "stages/ppo/role_optimizer.py",
        "clip_grad_norm_(self.parameters, self.config.max_grad_norm)",
        'clip_grad_norm_(self.parameters, float("inf"))',
        f"{INVARIANTS}/test_update.py",
    ),
    mutation(
        "whitening by process",
        "stages/ppo/experience.py",
        "white = whiten(advantages, mask, reduce=world.sum)",
        "white = whiten(advantages, mask)",
        f"{INVARIANTS}/test_parallel.py::test_two_processes_match_a_single_process",
    ),
    mutation(
        "gradients not summed over processes",
        "stages/ppo/role_optimizer.py",
        "        self.world.sum_gradients(self.parameters)\n",
        "",
        f"{INVARIANTS}/test_parallel.py::test_two_processes_match_a_single_process",
    ),
    mutation(
        "a process without a share of a minibatch skips it",
        "stages/sampling/episodes.py",
        "        if not len(rows):\n",
        "        if False:\n",
        "tests/stages/sampling/test_episodes.py",
        f"{INVARIANTS}/test_parallel.py::test_two_processes_match_a_single_process",
    ),
    mutation(
        "num_mini_batches without effect",
        "stages/ppo/prompts.py",
        "in order.split(self.batch_size // count):",
        "in order.split(self.batch_size):",
        f"{INVARIANTS}/test_update.py",
    ),
    mutation(
        "missing-EOS penalty accepts only one stop id",
        "stages/ppo/trainer.py",
        "episodes.ended(self.codec.stop_ids)",
        "episodes.ended([min(self.codec.stop_ids)])",
        f"{INVARIANTS}/test_update.py",
    ),
    mutation(
        "entropy averaged over responses",
        "stages/ppo/experience.py",
        'total["entropy"] / tokens',
        'total["entropy"] / episodes',
        f"{INVARIANTS}/test_update.py",
    ),
    mutation(
        "log-probs read one position late",
        "stages/sampling/episodes.py",
        "self.starts_B[rows_N] + t_N - 1",
        "self.starts_B[rows_N] + t_N",
        "tests/stages/sampling/test_episodes.py",
    ),
    mutation(
        "left padding counts in positions",
        "stages/models/passes.py",  # rotary positions are relative, so an offset has no effect there
        "self._positions = (self._mask.cumsum(1) - 1)",
        "self._positions = (torch.ones_like(self._mask).cumsum(1) - 1)",
        f"{MODELS}/test_acceptance.py",
    ),
    mutation(
        "passes are not tested past windows",
        "stages/models/acceptance.py",
        "if far.passes(make):",
        "if near.passes(make):",
        f"{MODELS}/test_acceptance.py",
    ),
    mutation(
        "finished rows keep sampling",
        "stages/sampling/decoding.py",
        "torch.where(unfinished, token, -1)",
        "token",
        "tests/stages/sampling/test_decoding.py",
    ),
    mutation(
        "impossible tokens may be drawn",
        "stages/sampling/decoding.py",
        "right=True",
        "right=False",
        "tests/stages/sampling/test_decoding.py",
    ),
    mutation(
        "advantages see masked values",
        "stages/ppo/advantages.py",
        "next_value = torch.where(keep, values_BT[:, t], next_value)",
        "next_value = values_BT[:, t]",
        f"{PPO}/test_advantages.py",
    ),
    mutation(
        "vf_coef without effect on a trunk",
        "stages/ppo/update.py",
        "Loss(config.vf_coef * value.loss, value.sums)",
        "Loss(value.loss, value.sums)",
        f"{INVARIANTS}/test_update.py",
    ),
    mutation(
        "optimizer moments dropped on resume",
        "stages/ppo/update.py",
        'optimizer.load_state_dict(state["optimizers"][role])',
        "pass",
        f"{INVARIANTS}/test_resume.py",
    ),
    mutation(
        "value role dropped on save",
        "stages/ppo/trainer.py",
        '"roles": {role: self.bank.state_of(role) for role in sorted(self.bank.trainable)}',
        '"roles": {"policy": self.bank.state_of("policy")}',
        f"{INVARIANTS}/test_resume.py",
    ),
    mutation(
        "sampling not resumed",
        "stages/ppo/trainer.py",
        'self.generator.set_state(state["generator"])',
        "pass",
        f"{INVARIANTS}/test_resume.py",
    ),
    mutation(
        "Bradley-Terry weighs by strict pairs",
        "stages/reward/likelihoods.py",
        "differences)[better].sum() / (k * (k - 1) / 2)",
        "differences)[better].sum() / better.sum()",
        f"{REWARD}/test_likelihoods.py",
    ),
    mutation(
        "margins added to the worse answer",
        "stages/reward/likelihoods.py",
        "differences = differences - margins_KK",
        "differences = differences + margins_KK",
        f"{REWARD}/test_likelihoods.py",
    ),
    mutation(
        "a packed completion attends to those before it",
        "stages/scoring/reward_model.py",
        "causal & ((key == 0) | (key == query))",
        "causal & (key >= 0)",
        f"{REWARD}/test_groups.py",
    ),
    mutation(
        "pairs that differ in several kinds of fault count",
        "stages/reward/by_fault.py",
        "if len(different) != 1:",
        "if not different:",
        f"{REWARD}/test_by_fault.py",
    ),
    mutation(
        "swapped answers are ranked above the original",
        "stages/reward/hard_negatives.py",
        "len(group.rows)], [1, 2]))",
        "len(group.rows)], [2, 1]))",
        f"{REWARD}/test_hard_negatives.py",
    ),
    mutation(
        "values are swapped inside words",
        "stages/reward/hard_negatives.py",
        "{WORD_START}{re.escape(value)}{WORD_END}",
        "{re.escape(value)}",
        f"{REWARD}/test_hard_negatives.py",
    ),
    mutation(
        "members share one seed",
        "stages/reward/stage.py",
        "seed = ctx.seed + number",
        "seed = ctx.seed",
        f"{REWARD}/test_ensemble.py",
    ),
    mutation(
        "members keep different scales",
        "stages/reward/builders.py",
        "        ensemble.share_scale_(",
        "        str(",
        f"{REWARD}/test_ensemble.py",
    ),
    mutation(
        "pretraining uses held-out prompts",
        "stages/reward/stage.py",
        "if group_of(ranking.prompt) in held_out:",
        "if False:",
        f"{REWARD}/test_ensemble.py",
    ),
    mutation(
        "score read at the batch's last position",
        "stages/models/heads.py",
        "values_BT[torch.arange(len(lengths_B), device=values_BT.device), lengths_B - 1]",
        "values_BT[:, -1]",
        f"{MODELS}/test_heads.py",
        f"{REWARD}/test_reward_stage.py",
        "tests/stages/scoring/test_scorer.py",
    ),
    mutation(
        "scoring: held-out members contribute to the reward",
        "stages/scoring/load.py",
        "roles = model.roles[members]",
        "roles = model.roles",
        "tests/stages/scoring/test_load_scorer.py",
        f"{PPO}/watch/test_evaluation.py",
    ),
    mutation(
        "scoring: fingerprints are not verified on a shared bank",
        "stages/scoring/load.py",
        "    reward_model.verify(artifact, model, device)\n",
        "",
        "tests/stages/scoring/test_load_scorer.py",
    ),
    mutation(
        "scoring: the stop token is read as it was sampled",
        "stages/scoring/scorer.py",
        "p.ids + self.codec.ended_as_trained(r)",
        "p.ids + list(r)",
        "tests/stages/scoring/test_scorer.py",
    ),
    mutation(
        "packed documents attend to each other",
        "stages/sft.py",
        "            packing=config.packing,\n",
        '            packing=config.packing,\n            packing_strategy="wrapped",\n',
        "tests/stages/test_sft_stage.py",
    ),
    mutation(
        "loss on prompts too",
        "stages/training/demonstrations.py",
        "return ids, [IGNORED] * len(ids)",
        "return ids, list(ids)",
        "tests/stages/test_sft_stage.py",
    ),
    mutation(
        "assistant_only_loss: the end of a turn is not learned",
        "stages/models/turns.py",
        "(blank + len(end) if closes else 0)",
        "0",
        "tests/stages/models/test_turns.py",
    ),
    mutation(
        "assistant_only_loss: only the last answer is learned",
        "stages/training/demonstrations.py",
        "    if every_turn:\n        return",
        "    if not messages:\n        return",
        "tests/stages/test_sft_stage.py",
    ),
    mutation(
        "chat_template_kwargs: the values are not written",
        "stages/models/template_values.py",
        'return "".join(lines) + "\\n" + template',
        "return template",
        "tests/stages/models/test_template_values.py",
    ),
    mutation(
        "duplicates: held-out rows are dropped",
        "data/duplicates.py",
        'return split == "train" and getattr(self.config, kind) == "drop"',
        'return getattr(self.config, kind) == "drop"',
        "tests/data/test_duplicates.py",
        "tests/stages/test_overlaps.py",
    ),
    mutation(
        "contamination: the order of words does not matter",
        "data/contamination.py",
        "if _spoken(self._texts[number]) in spoken:",
        "if shares[number] == 1.0:",
        "tests/data/test_contamination.py",
    ),
    mutation(
        "sharding: gradients are divided by the number of processes",
        "stages/models/sharding.py",
        "unit.set_gradient_divide_factor(1.0)",
        "unit.set_gradient_divide_factor(2.0)",
        "tests/stages/models/test_sharding.py",
        "tests/invariants/test_sharded_ppo.py",
    ),
    mutation(
        "incomplete checkpoints are resumed from",
        "stages/training/trainer.py",
        "if not _is_complete(path):",
        "if False:",
        "tests/stages/test_sft_stage.py",
    ),
    mutation(
        "rankings: a contrarian counts",
        "data/annotators/reliability.py",
        "np.clip(fitted / scale, 0.0, 1.0)",
        "np.clip(fitted / scale, -1.0, 1.0)",
        "tests/data/annotators/test_reliability.py",
    ),
    mutation(
        "rankings: weights are not shrunk",
        "data/annotators/reliability.py",
        "(pairs[name] * s[name] / mean + PRIOR) / (pairs[name] + PRIOR)",
        "s[name] / mean",
        "tests/data/annotators/test_reliability.py",
    ),
    mutation(
        "rankings: the sample keeps parts of prompts",
        "data/annotators/sample.py",
        "if _uniform(key) >= self.share:",
        "if _uniform(key) >= self.share / 2:",
        "tests/data/annotators/test_sample.py",
    ),
    mutation(
        "rankings: tau-a instead of tau-b",
        "data/annotators/agreement.py",
        "/ np.sqrt(np.where(both > 0, both, np.nan))",
        "/ order.shape[1]",
        "tests/data/annotators/test_measures.py",
    ),
    mutation(
        "rankings: alpha pools the raw ranks of rankings of different K",
        "data/annotators/agreement.py",
        "z = (overlap.ranks - (k + 1) / 2) / np.sqrt((k * k - 1) / 12)",
        "z = overlap.ranks - 2.5",
        "tests/data/annotators/test_agreement.py",
    ),
    mutation(
        "rankings: equal answers are ordered",
        "data/annotators/sample.py",
        "rankdata(_equal_texts_tied(ranking))",
        "rankdata(ranking.ranks)",
        "tests/data/annotators/test_agreement.py",
    ),
    mutation(
        "the ceiling counts answers that were not measured",
        "stages/reward/measure.py",
        "completions=[ranking.completions[place] for place in places]",
        "completions=[f'{i} {ranking.completions[p]}' for i, p in enumerate(places)]",
        f"{REWARD}/test_measure.py",
    ),
    mutation(
        "the bag of words sees which side wins",
        "stages/reward/bag_of_words.py",
        "[better - worse, worse - better]",
        "[better - worse, better - worse]",
        f"{REWARD}/test_bag_of_words.py",
    ),
    mutation(
        "a ranking that is too long counts as tied",
        "stages/reward/left_out.py",
        "            self.counts[self.too_long] += 1",
        "            self.counts[TIED] += 1",
        f"{REWARD}/test_left_out.py",
    ),
    mutation(
        "rankings: ties count as wins of the first shown",
        "data/annotators/measures.py",
        "sum(first < rank for rank in others), len(others)",
        "sum(first <= rank for rank in ranks), len(others)",
        "tests/data/annotators/test_measures.py",
    ),
    mutation(
        "rankings: a tie is a whole win",
        "data/annotators/strengths.py",
        "0.5 if ranks[i] == ranks[j] else 1.0",
        "1.0",
        "tests/data/annotators/test_strengths.py",
    ),
    mutation(
        "rankings: pseudonyms without the key",
        "data/tables/export.py",
        "hmac.digest(key, annotator.encode(), 'sha256')",
        "hmac.digest(b'0', annotator.encode(), 'sha256')",
        "tests/data/tables/test_export.py",
    ),
    mutation(
        "rankings: only adjacent rows are grouped",
        "data/tables/spill.py",
        "group[0] if group else self.groups",
        "self.groups",
        "tests/data/tables/test_spill.py",
    ),
    mutation(
        "benchmarks: equal scores of a pair count as right",
        "stages/score/benchmarks.py",
        "return float(chosen > rejected)",
        "return float(chosen >= rejected)",
        f"{SCORE}/test_benchmarks.py",
    ),
    mutation(
        "benchmarks: a shared best answer counts in full",
        "stages/score/benchmarks.py",
        "return float(scores[0] == best) / sum(score == best for score in scores)",
        "return float(scores[0] == best)",
        f"{SCORE}/test_benchmarks.py",
    ),
    mutation(
        "benchmarks: the hard margin ignores the reference prompt",
        "stages/score/benchmarks.py",
        'hard = np.minimum(tied, [kinds["ref"][p].margin for p in both])',
        "hard = tied",
        f"{SCORE}/test_benchmarks.py",
    ),
    mutation(
        "benchmarks: easy and hard are exchanged",
        "stages/score/benchmarks.py",
        """        "easy": float(matrix[np.tril_indices(size, -1)].mean()),""",
        """        "easy": float(matrix[np.triu_indices(size, 1)].mean()),""",
        f"{SCORE}/test_benchmarks.py",
    ),
    mutation(
        "score: an ensemble's scores are not combined as in PPO",
        "stages/score/model.py",
        "combined = aggregate(scores_MN, self.aggregation).tolist()",
        "combined = scores_MN.mean(0).tolist()",
        f"{SCORE}/test_score_model.py",
    ),
    mutation(
        "score: a resumed run starts one row late",
        "stages/score/run.py",
        "completions = sum(len(layout.answers(row).completions) for row in islice(rows, before))",
        "completions = sum(len(layout.answers(row).completions) for row in islice(rows, before + bool(before)))",
        f"{SCORE}/test_score_command.py",
    ),
    mutation(
        "export: the head's bias is lost",
        "stages/export/reward.py",
        "offset=float(head.bias.detach()),",
        "offset=0.0,",
        "tests/stages/export/test_export_reward.py",
    ),
    mutation(
        "export: the template leaves out the start of the answer's turn",
        "stages/export/scoring_template.py",
        "set add_generation_prompt = true",
        "set add_generation_prompt = false",
        "tests/stages/export/test_export_reward.py",
    ),
    # --- Reward terms ---
    mutation(
        "terms: the weight is left out",
        "stages/ppo/terms.py",
        "total_N = total_N + term.weight * scaled_N",
        "total_N = total_N + scaled_N",
        f"{PPO}/test_terms.py",
    ),
    mutation(
        "terms: held-out terms are trained on",
        "pipeline/config/terms.py",
        "return not self.held_out and self.weight != 0",
        "return self.weight != 0",
        f"{PPO}/test_terms.py",
    ),
    mutation(
        "terms: showing a score observes it",
        "stages/ppo/terms.py",
        "scaled_N = self.normalizers[term.name].scaled(scores_N)",
        "scaled_N = self.normalizers[term.name](scores_N)",
        f"{PPO}/test_terms.py",
    ),
    mutation(
        "terms: responses without a score enter the statistics as 0",
        "stages/ppo/terms.py",
        "return scores_N[~scores_N.isnan()]",
        "return scores_N.nan_to_num(nan=0.0)",
        f"{PPO}/test_terms.py",
    ),
    mutation(
        "terms: the mean is over all responses, not those with a score",
        "stages/ppo/terms.py",
        "mean = total / max(count, 1)",
        "mean = total / max(responses, 1)",
        f"{PPO}/test_terms.py",
    ),
    mutation(
        "terms: the value head ignores the weight",
        "stages/ppo/terms.py",
        "return normalizer.mean, normalizer.std / term.weight",
        "return normalizer.mean, normalizer.std",
        f"{PPO}/test_terms.py",
    ),
    mutation(
        "terms: statistics are not resumed",
        "stages/ppo/terms.py",
        "            normalizer.load_state_dict(state[name])\n",
        "            normalizer.state_dict()\n",
        f"{PPO}/test_terms.py",
    ),
    mutation(
        "terms: points keep the scale of their update",
        "stages/ppo/watch/evaluation.py",
        '                point |= {"score": float(scores.mean()), "scores": scores.tolist()}\n',
        "                assert scores is not None\n",
        f"{PPO}/test_terms_stage.py",
    ),
    mutation(
        "terms: a length below the target costs nothing",
        "stages/scoring/measures.py",
        "-abs(len(response) - self.target)",
        "-max(0, len(response) - self.target)",
        "tests/stages/scoring/test_term_measures.py",
    ),
    mutation(
        "terms: the overlong penalty starts at the limit",
        "stages/scoring/measures.py",
        "(self.limit - self.falls - len(response)) / self.falls",
        "(self.limit - len(response)) / self.falls",
        "tests/stages/scoring/test_term_measures.py",
    ),
    mutation(
        "functions: NaN is accepted",
        "stages/scoring/functions.py",
        "        if not math.isfinite(number):\n",
        "        if math.isinf(number):\n",
        "tests/stages/scoring/test_reward_functions.py",
    ),
    mutation(
        "functions: too few values are accepted",
        "stages/scoring/functions.py",
        "    if len(values) != count:\n",
        "    if len(values) > count:\n",
        "tests/stages/scoring/test_reward_functions.py",
    ),
    mutation(
        "endpoint: replies of other processes are not read",
        "stages/scoring/endpoint.py",
        "            self._refresh()  # another process may have asked\n",
        "            pass\n",
        "tests/stages/scoring/test_llm_rating.py",
    ),
    mutation(
        "serve: joined rows attend to slots that were never written",
        "stages/models/fast/plain.py",
        "target[rows_of_part, :, filled:width] = 0",
        "pass",
        f"{SERVE}/test_joining.py",
    ),
    mutation(
        "serve: log-probs after temperature",
        "stages/serve/decoding.py",
        "logprobs_NV = logits_NV.float().log_softmax(-1)",
        "logprobs_NV = (logits_NV.float() / 0.7).log_softmax(-1)",
        f"{SERVE}/test_completions.py",
    ),
]


def run(folder: Path, tests: tuple[str, ...], *options: str) -> tuple[int, list[str], str]:
    """Exit code, the names of failed tests, and pytest's output."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rfE",
        "--tb=line",
        "-p",
        "no:cacheprovider",
        *options,
        *tests,
    ]
    # No bytecode: Python validates it by the source's size and second, and a mutation may change neither.
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    # The name of each failed test function once, with the number of its failed cases.
    named = re.findall(r"^(?:FAILED|ERROR) (?:\S+::(\w+))?", done.stdout, flags=re.MULTILINE)
    counts = Counter(name or "(collection)" for name in named)
    failed = [f"{name} ({n})" if n > 1 else name for name, n in counts.items()]
    return done.returncode, failed, done.stdout + done.stderr


def try_out(folder: Path, mutation: Mutation) -> tuple[str, list[str]]:
    """Applies a mutation, runs its tests and reverts it. Returns a verdict and the failed tests."""
    originals: dict[Path, str] = {}
    for file, old, new in mutation.edits:
        path = folder / file
        text = path.read_text(encoding="utf-8")
        originals.setdefault(path, text)
        if text.count(old) != 1:
            verdict = f"its text occurs {text.count(old)} times in {file}"
            break
        path.write_text(text.replace(old, new), encoding="utf-8")
    else:
        code, failed, _ = run(folder, mutation.tests, f"--maxfail={SHOWN}")
        verdict = "caught" if code == 1 and failed else "SURVIVED" if code == 0 else f"pytest ended with {code}"
    for path, text in originals.items():
        path.write_text(text, encoding="utf-8")
    return verdict, failed if verdict == "caught" else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only mutations whose names contain one of these")
    parser.add_argument("--list", action="store_true", help="print the names of the mutations and exit")
    parser.add_argument("--sample", type=int, help="run only N of them, different ones each day")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if not arguments.words or any(w in m.name for w in arguments.words)]
    if arguments.sample:
        start = date.today().toordinal() * arguments.sample
        chosen = [chosen[(start + i) % len(chosen)] for i in range(min(arguments.sample, len(chosen)))]
    if arguments.list:
        print("\n".join(m.name for m in chosen))
        return 0
    survived = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in COPIED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / part)
        code, failed, output = run(folder, tuple(dict.fromkeys(t for m in chosen for t in m.tests)), "-n", "2")
        if code:
            print(output)
            print(f"the tests fail without any mutation: {', '.join(failed)}")
            return 1
        for m in chosen:
            start = time.monotonic()
            verdict, failed = try_out(folder, m)
            survived += verdict != "caught"
            print(f"{m.name:<52} {verdict:<10} {time.monotonic() - start:4.0f} s  {', '.join(failed)}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} mutations caught")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
