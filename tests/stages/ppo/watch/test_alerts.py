"""The flight alerts: each rule holds in the run it is about and is silent in a healthy one."""

import json
import subprocess
import sys

import pytest

from pipeline.config.ppo import KLConfig, PPOConfig
from stages.ppo.watch import selection
from stages.ppo.watch.alerts import RULES, AlertLog

UPDATES = 24
CONFIG = PPOConfig(kl=KLConfig(kind="adaptive", init=0.05, target=2.0))


def healthy(update):
    """As a good run of the quickstart goes: score up, entropy and KL settle."""
    share = min(1.0, update / 12)
    return {
        "objective/kl": 1.9 * share,
        "objective/kl_coef": 0.05 - 0.015 * share,
        "objective/entropy": 0.40 - 0.14 * share,
        "objective/scores": 1.4 + share,
        "objective/scores_std": 1.25 - 0.5 * share,
        "objective/scores_disagreement": 0.38 + 0.03 * share,
        "objective/rlhf_reward": -0.1 + 0.9 * share,
        "response/length": 19.0 + share,
        "response/ended": 1.0 - 0.02 * share,
        "policy/approxkl_avg": 0.004,
        "policy/clipfrac_avg": 0.01,
        "policy/grad_norm": 0.2,
        "val/ratio": 0.998,
        "val/explained_variance": -2.2 + 2.5 * share,
        "lr": 1e-3,
    }


def run(change=None, config=CONFIG):
    """What was said, by update, and the alerts."""
    alerts, said = AlertLog(config), {}
    for update in range(1, UPDATES + 1):
        metrics = healthy(update)
        metrics |= change(update, metrics) if change else {}
        if lines := alerts.update(update, metrics):
            said[update] = lines
    return said, alerts


def rise(name, start, by):
    return lambda update, metrics: {name: start + by * max(0, update - 8)}


WRONG = {
    "not-finite": lambda u, m: {"objective/scores": float("nan")} if u > 8 else {},
    "ended-falls": rise("response/ended", 1.0, -0.03),
    "kl-spikes": lambda u, m: {"objective/kl": 6.0} if u == 15 else {},
    "kl-beyond-target": lambda u, m: {"objective/kl": 5.0} if u > 8 else {"objective/kl": 0.5 * u},
    "kl-negative": lambda u, m: {"objective/kl": -0.5} if u > 8 else {},
    "kl-coef-runs-away": lambda u, m: {"objective/kl_coef": 0.05 * 1.3**u},
    "penalty-wins": rise("objective/rlhf_reward", -0.1, -0.2),
    "length-grows": rise("response/length", 19.0, 2.0),
    "length-shrinks": rise("response/length", 19.0, -1.0),
    "entropy-collapses": lambda u, m: {"objective/entropy": 0.4 * 0.85**u},
    "clips-much": lambda u, m: {"policy/clipfrac_avg": 0.4},
    "steps-far": lambda u, m: {"policy/approxkl_avg": 0.2},
    "ratio-drifts": lambda u, m: {"val/ratio": 1.3},
    "critic-useless": lambda u, m: {"val/explained_variance": -0.5},
    "gradient-spikes": lambda u, m: {"policy/grad_norm": 9.0} if u == 15 else {},
    "scores-alike": lambda u, m: {"objective/scores_std": 1.2 * 0.7**u},
    "rewards-equal": lambda u, m: {"objective/equal_rewards": 0.9},
    "members-disagree": rise("objective/scores_disagreement", 0.4, 0.1),
    "stands-still": lambda u, m: {"objective/kl": 0.001},
}


def test_every_rule_is_tried():
    assert set(WRONG) == {rule.name for rule in RULES}


@pytest.mark.parametrize("name", WRONG)
def test_a_rule_finds_what_it_is_about(name):
    said, alerts = run(WRONG[name])
    assert [event["rule"] for event in alerts.events] == [name]
    (update, (line,)) = next(iter(said.items()))
    assert len(said) == 1, "once"
    event = alerts.events[0]
    rule = next(rule for rule in RULES if rule.name == name)
    assert line == f"alert, update {update}: {event['symptom']}. Likely cause: {rule.cause}. Hint: {rule.hint}."
    assert event["update"] == update > 1


def test_a_healthy_run_is_left_alone():
    said, alerts = run()
    assert said == {}
    assert alerts.events == []


@pytest.mark.parametrize("missing", ["objective/scores_disagreement", "val/explained_variance", "objective/kl"])
def test_a_metric_that_is_not_there_says_nothing(missing):
    said, _ = run(lambda update, metrics: {missing: None})
    assert said == {}


def test_a_fixed_coefficient_has_no_target_to_miss():
    fixed = PPOConfig(kl=KLConfig(kind="fixed", init=0.05, target=2.0))
    assert run(WRONG["kl-beyond-target"], fixed)[0] == {}


def test_it_counts_on_and_says_when_it_was_last():
    _, alerts = run(lambda u, m: {"policy/clipfrac_avg": 0.4 if 3 < u < 11 else 0.0})
    (event,) = alerts.events
    assert event["update"] < event["last"] < UPDATES
    assert event["updates"] == event["last"] - event["update"] + 1


def test_it_goes_on_from_its_state_as_if_never_stopped():
    whole = run(WRONG["length-grows"])[1]
    first, second = AlertLog(CONFIG), AlertLog(CONFIG)
    for update in range(1, UPDATES + 1):
        if update == 16:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        metrics = healthy(update) | WRONG["length-grows"](update, {})
        (first if update < 16 else second).update(update, metrics)
    assert second.events == whole.events
    assert second.state_dict() == whole.state_dict()


# --- At evaluations ---


def point(update, judge, score, responses):
    judged, scores = [judge + 0.01 * i for i in range(8)], [score + 0.01 * i for i in range(8)]
    values = {"judged": judged, "scores": scores, "judge": sum(judged) / 8, "score": sum(scores) / 8}
    return {"update": update, "responses": responses, **values}


def test_the_fall_of_the_judge_and_the_stop_are_events_of_their_own():
    alerts, different = AlertLog(CONFIG), [str(i) for i in range(8)]
    evaluations = [
        point(u, judge, score, different) for u, judge, score in ((0, 0, 0), (4, 1, 1), (8, 0.5, 2), (12, 0, 3))
    ]
    lines = []
    for n in range(1, len(evaluations) + 1):
        fall = selection.regression(evaluations[:n], n - 1, 0.05)
        lines.append(alerts.evaluation(evaluations[:n], fall, stop=n == 4))
    assert [len(said) for said in lines] == [0, 0, 1, 1]
    assert "the judge’s score fell from 1.035 to 0.535" in lines[2][0]
    assert lines[3][0].startswith("alert, update 12: stopped: since update 4")
    assert [(event["rule"], event["updates"]) for event in alerts.events] == [("judge-falls", 2), ("stopped", 1)]


def test_answers_that_become_alike():
    alerts = AlertLog(CONFIG)
    evaluations = [
        point(0, 0, 0, list("abcdefgh")),
        point(4, 0, 1, list("abcdabcd")),
        point(8, 0, 2, list("aaaaabbb")),
    ]
    assert alerts.evaluation(evaluations[:2], None, stop=False) == []
    (line,) = alerts.evaluation(evaluations, None, stop=False)
    assert "25% of the answers to held-out prompts are distinct, 100% at the start" in line


def test_the_rules_need_no_torch():
    code = "import sys, stages.ppo.watch.alerts; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
