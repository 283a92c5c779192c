"""Every ranking that the reward stage cannot use is counted once, said once, and never leads to a wrong reason."""

import json

import pytest
import tiny

from data.schema import Ranking, write_jsonl
from pipeline.config.reward import GateConfig, PretrainOnConfig, RewardConfig
from pipeline.errors import DataError
from stages.reward import stage
from stages.reward.groups import TokenEncoder, group_rankings

LONG = "b" * 30
MAX = 12


def ranking(completions, ranks, prompt="p", split="train", **more):
    return Ranking(tiny.user(prompt), completions, ranks, "ann", human=False, split=split, **more)


def length(prompt, completion):
    return len(tiny.codec().prompt(tiny.user(prompt)) + tiny.codec().completion(completion))


def rounded(tokens):
    """The limit that is proposed: the next multiple of 8."""
    return next(limit for limit in range(0, 1000, 8) if limit >= tokens)


KINDS = {
    "used": (ranking(["a", "b"], [1, 2]), None),
    "used without a long answer": (ranking(["a", LONG, "b"], [1, 2, 3]), "shortened"),
    "one of two is too long": (ranking(["a", LONG], [1, 2]), "longer than max_length"),
    "only ties are left": (ranking(["a", "b", LONG], [2, 2, 1]), "longer than max_length"),
    "all are too long": (ranking([LONG, LONG + "c"], [1, 2]), "longer than max_length"),
    "all the same": (ranking(["a", "a"], [1, 2]), "all answers equal"),
    "all the same and too long": (ranking([LONG, LONG], [1, 2]), "all answers equal"),
    "all tied": (ranking(["a", "b", "c"], [1, 1, 1]), "all answers tied"),
    "all tied, one too long": (ranking(["a", "b", LONG], [1, 1, 1]), "all answers tied"),
    "strict between equal answers only": (ranking(["a", "a", "b"], [1, 2, 1]), "all answers tied"),
}


def grouped(*rankings, **values):
    return group_rankings(rankings, TokenEncoder(tiny.codec()), MAX, **values)


@pytest.mark.parametrize("kind", KINDS)
def test_each_ranking_has_one_reason(kind):
    given, reason = KINDS[kind]
    _, left_out = grouped(given)
    expected = {} if reason in (None, "shortened") else {reason: 1}
    assert dict(left_out.counts) == expected
    assert left_out.shortened == (reason == "shortened")
    assert (left_out.read, left_out.used) == (1, 1 - len(expected))


def test_reasons_add_up_and_one_line_says_them():
    _, left_out = grouped(*(given for given, _ in KINDS.values()))
    metrics = left_out.metrics()
    longest = len(tiny.codec().prompt(tiny.user("p")) + tiny.codec().completion(LONG + "c"))
    assert metrics == {
        "longest_rankings": longest,
        "read_rankings": 10,
        "dropped_rankings": 8,
        "dropped_rankings/all answers equal": 2,
        "dropped_rankings/all answers tied": 3,
        "dropped_rankings/longer than max_length": 3,
        "rankings_shortened": 1,
        "completions_too_long": 2,
    }
    assert left_out.used + metrics["dropped_rankings"] == left_out.read == len(KINDS)
    line = left_out.describe()
    assert line.startswith("8 of 10 training rankings left out: 3 ")
    assert (
        f"3 with prompt and answer longer than reward.max_length = {MAX} tokens (the longest has {longest})" in line
    )
    assert "1 of 10 training rankings used without some answers" in line
    assert left_out.hint() == (
        f"raise reward.max_length to {rounded(longest)}; rank answers that differ; rank answers strictly, or set "
        "reward.objective: davidson, which learns from ties"
    )


def test_ties_are_no_loss_where_the_objective_learns_from_them():
    given = [given for kind, (given, _) in KINDS.items() if "tied" in kind or "ties" in kind]
    _, left_out = grouped(*given, ties_teach=True)
    assert (dict(left_out.counts), left_out.used, left_out.shortened) == ({}, 3, 2)


# --- The stage ---

FAST = {"per_device_train_batch_size": 2, "learning_rate": 1e-3, "max_steps": 1}


@pytest.fixture
def run(tmp_path, training_context):
    base = tiny.base_artifact(tmp_path / "base")
    inputs = {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data"),
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
    }

    def make(rankings, *, describe=lambda path: path, **values):
        rank = tiny.rank_artifact(tmp_path / "rank")
        write_jsonl(rank.file("rankings.jsonl"), rankings)
        ctx, notes = training_context(describe=describe)
        out = tmp_path / "out"
        out.mkdir()
        config = RewardConfig(**{"lora": tiny.LORA, "max_length": MAX, "trainer": FAST} | values)
        metrics = stage.run(config, inputs | {"rank": rank}, out, ctx)
        return metrics, notes.lines, json.loads((out / "quality.json").read_text())

    return make


def several(split, *, count=4, texts=("a", "b"), ranks=(1, 2)):
    return [ranking(list(texts), list(ranks), prompt=f"{split}{i}", split=split) for i in range(count)]


def test_the_stage_counts_and_says_what_it_leaves_out(run):
    rankings = [
        *several("train"),
        ranking(["a", LONG], [1, 2], prompt="x"),
        ranking(["a", "b"], [1, 1], prompt="y"),
        *several("eval"),
        ranking(["a", LONG], [1, 2], prompt="z", split="eval"),
    ]
    metrics, lines, quality = run(rankings)
    assert (metrics["rankings"], metrics["dropped_rankings"]) == (4, 2)
    assert metrics["dropped_rankings/longer than max_length"] == metrics["dropped_rankings/all answers tied"] == 1
    assert metrics["eval_dropped_rankings"] == metrics["eval_dropped_rankings/longer than max_length"] == 1
    assert metrics["eval_pairs"] == 4
    assert quality["metrics"] == {k: v for k, v in metrics.items() if k not in ("unfit", "warnings")}
    said = [line for line in lines if "left out" in line]
    assert len(said) == 2
    assert said[0].startswith("reward: 2 of 6 training rankings left out: ")
    assert said[1].startswith(
        "reward: 1 of 5 held-out rankings left out: prompt and answer longer than reward.max_length = 12 tokens"
    )
    limit = rounded(length("x", LONG))
    assert f"To use them: raise reward.max_length to {limit}; rank answers strictly" in said[0]
    assert said[1].endswith(f" {limit} keeps all; 20.0 % are lost.")


def test_the_limit_that_is_proposed_keeps_all():
    rows = [ranking(["a", "b" * count], [1, 2], prompt=f"p{count}") for count in range(30, 60)]
    _, left_out = grouped(*rows)
    limit = int(left_out.hint().rpartition(" ")[2])
    assert limit < left_out.longest + 8
    assert group_rankings(rows, TokenEncoder(tiny.codec()), limit)[1].total == 0
    assert group_rankings(rows, TokenEncoder(tiny.codec()), left_out.longest - 1)[1].total == 1


def test_when_everything_is_too_long_the_error_says_so(run):
    with pytest.raises(DataError) as raised:
        run(
            several("train", texts=(LONG, LONG + "bb")), describe={"reward.max_length": "recipe.yaml:7"}.__getitem__
        )
    longest = len(tiny.codec().prompt(tiny.user("train0")) + tiny.codec().completion(LONG + "bb"))
    assert raised.value.what == (
        "reward: 4 of 4 training rankings left out: prompt and answer longer than reward.max_length = 12 tokens "
        f"(the longest has {longest})"
    )
    assert (raised.value.where, raised.value.hint) == (
        "recipe.yaml:7",
        f"raise reward.max_length to {rounded(longest)}",
    )


@pytest.mark.parametrize(
    ("values", "reason", "hint"),
    [
        ({"ranks": (1, 1)}, "4 of 4 training rankings left out: all answers tied", "rank answers strictly"),
        ({"texts": ("a", "a")}, "left out: answers that are all the same text", "rank answers that differ"),
        (
            {"count": 0},
            "reward: there are no training rankings",
            "give rankings with at least one strict preference",
        ),
    ],
)
@pytest.mark.parametrize("objective", ["bradley_terry", "davidson"])
def test_nothing_to_learn_has_its_own_reason(run, values, reason, hint, objective):
    with pytest.raises(DataError) as raised:
        run([*several("train", **values), *several("eval")], objective=objective)
    assert raised.value.what.endswith(reason)
    assert raised.value.hint == hint


def test_a_held_out_split_without_a_strict_pair_is_said_before_training(run):
    held_out = [*several("eval", texts=("a", LONG)), ranking(["a", "b"], [1, 1], prompt="v", split="eval")]
    metrics, lines, quality = run([*several("train"), *held_out])
    assert "no held-out ranking has a strict pair" in lines[1]
    assert "and will fail the gate" in lines[1]
    assert metrics["eval_pairs"] == 0
    (reason,) = metrics["unfit"]
    assert quality["unfit"] == [reason]
    assert reason.startswith(
        "it was measured on no held-out pair (5 of 5 held-out rankings left out: 4 with prompt and"
    )


def test_what_pretraining_leaves_out_is_counted(run, tmp_path):
    rows = [{"prompt": f"more{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
    rows.append({"prompt": "long", "chosen": "a", "rejected": LONG})
    held_out = [json.loads(line) for line in (tmp_path / "data" / "prompts.jsonl").read_text().splitlines()]
    rows += [
        {"prompt": row["prompt"][0]["content"], "chosen": "a", "rejected": "b"}
        for row in held_out
        if row["split"] == "eval"
    ]
    write_jsonl(tmp_path / "more.jsonl", rows)
    source = PretrainOnConfig(path=str(tmp_path / "more.jsonl"), format="pairs", trainer=FAST)
    metrics, lines, _ = run([*several("train"), *several("eval")], pretrain_on=source, gate=GateConfig())
    assert metrics["pretraining_rankings"] == 3
    assert metrics["pretraining_dropped_rankings"] == 1
    assert metrics["pretraining_dropped_rankings/longer than max_length"] == 1
    assert metrics["pretraining_dropped_rows/held-out prompt"] == 4
    assert any("1 of 4 rankings of reward.pretrain_on left out: prompt and answer longer" in line for line in lines)
    assert "reward: 4 rows of reward.pretrain_on left out: 4 held-out prompt." in lines
