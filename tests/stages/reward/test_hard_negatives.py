"""Swapped answers as hard negatives: which values are swapped, by what, and where they enter training."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from data.schema import Prompt, Ranking, prompt_key
from data.venues.slots import parse_mr
from pipeline.config.load import LoadedRecipe
from pipeline.config.reward import RewardConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError, RecipeError
from pipeline.memory.phases import packed_rows
from stages.reward import stage
from stages.reward.groups import Order, TokenEncoder, group_rankings
from stages.reward.hard_negatives import Swap, add_hard_negatives, swaps, values_of

E2E = "name[Blue Spice], eatType[coffee shop], customer rating[5 out of 5], near[Raja Indian Cuisine]"
VENUE = "name[Blue Fox], kind[pub], food[Thai], area[harbour]"


def swapped(mr: str, *answers: str, others: tuple[str, ...], seed: int = 0) -> list[Swap]:
    facts = parse_mr(mr)
    values = values_of([facts, *map(parse_mr, others)])
    return sorted(swaps(facts, answers, values, random.Random(seed)), key=lambda swap: (swap.attribute, swap.text))


def texts(mr: str, *answers: str, others: tuple[str, ...], seed: int = 0) -> list[str]:
    return [swap.text for swap in swapped(mr, *answers, others=others, seed=seed)]


# --- What is swapped ---


def test_each_stated_value_is_swapped_for_one_of_another_prompt() -> None:
    answer = "Blue Fox is a pub serving Thai food in the harbour."
    found = swapped(VENUE, answer, others=("food[Greek]", "area[old town], kind[cafe]", "price[cheap]"))
    assert found == [
        Swap("area", answer, "Blue Fox is a pub serving Thai food in the old town."),
        Swap("food", answer, "Blue Fox is a pub serving Greek food in the harbour."),
        Swap("kind", answer, "Blue Fox is a cafe serving Thai food in the harbour."),
    ], "name has one value, and the prompt gives no price"


def test_values_of_several_words_and_signs() -> None:
    answer = "Blue Spice, rated 5 out of 5, is a coffee shop near Raja Indian Cuisine."
    others = ("eatType[pub], customer rating[1 out of 5]", "near[Café Rouge], name[Cotto]")
    assert texts(E2E, answer, others=others) == [
        "Blue Spice, rated 1 out of 5, is a coffee shop near Raja Indian Cuisine.",
        "Blue Spice, rated 5 out of 5, is a pub near Raja Indian Cuisine.",
        "Cotto, rated 5 out of 5, is a coffee shop near Raja Indian Cuisine.",
        "Blue Spice, rated 5 out of 5, is a coffee shop near Café Rouge.",
    ]
    assert texts("price[£20-25]", "It costs £20-25.", others=("price[more than £30]",)) == [
        "It costs more than £30."
    ]


def test_values_in_a_script_without_spaces() -> None:
    assert texts("名称[蓝狐], 菜系[泰国菜]", "蓝狐餐厅供应泰国菜。", others=("菜系[希腊菜]",)) == [
        "蓝狐餐厅供应希腊菜。"
    ]


def test_every_answer_is_swapped() -> None:
    assert texts("area[harbour]", "In the harbour.", "At the harbour!", "Here.", others=("area[suburbs]",)) == [
        "At the suburbs!",
        "In the suburbs.",
    ]


@pytest.mark.parametrize(
    ("mr", "answer", "others", "why"),
    [
        ("food[Thai]", "It is nice.", "food[Greek]", "the value is not stated"),
        ("food[Thai]", "Thai food and Thai wine.", "food[Greek]", "it is stated twice"),
        ("kind[pub]", "A gastropub.", "kind[cafe]", "a word ends with it"),
        ("kind[pub]", "A public house.", "kind[cafe]", "a word starts with it"),
        ("food[Indian], near[Raja Indian Inn]", "Near Raja Indian Inn.", "food[Greek]", "it is part of another"),
        ("price[high], rating[high]", "It is high.", "price[low], rating[low]", "it may be either attribute's"),
        ("friendly[no]", "There is no pub.", "friendly[yes]", "the word is about something else"),
        ("area[harbour]", "In the harbour of the Suburbs.", "area[suburbs]", "the other value is stated too"),
        ("kind[pub]", "A pub.", "kind[gastro pub]", "the other value says the same and more"),
        ("near[the old mill]", "By the old mill.", "near[old mill]", "the other value says the same and less"),
        ("size[large]", "A LARGE place.", "size[Large]", "the other value differs in case only"),
        ("size[large]", "A large place.", "area[large], kind[pub]", "there is no other value"),
        ("style[Italian]", "An Italian place.", "style[Greek]", "the article would tell"),
    ],
)
def test_what_is_not_swapped(mr: str, answer: str, others: str, why: str) -> None:
    assert swapped(mr, answer, others=(others,)) == [], why


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Serving thai food.", "Serving greek food."),
        ("Serving THAI food.", "Serving GREEK food."),
        ("Serving Thai food.", "Serving Greek food."),
    ],
)
def test_the_swapped_value_has_the_case_of_the_stated_one(answer: str, expected: str) -> None:
    assert texts("food[Thai]", answer, others=("food[Greek]",)) == [expected]


def test_a_sentence_still_starts_with_a_capital() -> None:
    others = ("price[less than £20]", "near[the station]")
    assert texts("price[cheap]", "Cheap and good.", others=others) == ["Less than £20 and good."]
    assert texts("near[the museum]", "The museum is near.", others=others) == ["The station is near."]


def test_an_article_stays_right() -> None:
    others = ("food[Greek]", "food[English]")
    assert {texts("food[Italian]", "An Italian pub.", others=others, seed=seed)[0] for seed in range(20)} == {
        "An English pub."
    }
    assert {texts("food[Thai]", "A Thai pub.", others=others, seed=seed)[0] for seed in range(20)} == {
        "A Greek pub."
    }


# --- Where they enter training ---


def ranking(mr: str, *answers: str) -> Ranking:
    return Ranking(tiny.user(mr), list(answers), list(range(1, len(answers) + 1)), "ana", human=True)


def added(
    training_context: Callable[..., tuple[Any, Any]],
    rankings: list[Ranking],
    number: int,
    *,
    seed: int = 0,
    max_length: int = 80,
    weights: dict[str, float] | None = None,
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The groups with hard negatives, the metrics and the printed lines."""
    encoder = TokenEncoder(tiny.codec())
    groups, _ = group_rankings(rankings, encoder, max_length, weights)
    prompts = {prompt_key(row.prompt): Prompt(row.prompt) for row in rankings}
    ctx, notes = training_context(seed=seed)
    config = RewardConfig(hard_negatives=number, max_length=max_length)
    metrics = add_hard_negatives(groups, prompts, encoder, config, ctx)
    return groups, metrics, notes.lines


RANKINGS = [
    ranking("food[Thai], area[harbour]", "Thai, harbour.", "Thai!"),
    ranking("food[Greek], area[suburbs]", "Greek, suburbs.", "Nice."),
]


def test_a_pair_is_one_more_ranking_and_the_others_stay(training_context: Any) -> None:
    groups, metrics, lines = added(training_context, RANKINGS, 9)
    first, second = groups.values()
    assert list(first.completions) == ["Thai, harbour.", "Thai!", *list(first.completions)[2:]]
    original = {"Greek, harbour.": 0, "Thai, suburbs.": 0, "Greek!": 1}
    assert set(first.completions) == {"Thai, harbour.", "Thai!", *original}
    assert first.orders == [
        Order([0, 1], [1, 2]),
        *(Order([original[text], row], [1, 2]) for text, row in first.completions.items() if row > 1),
    ]
    encoder = TokenEncoder(tiny.codec())
    prompt = encoder.prompt(tiny.user("food[Thai], area[harbour]"))
    assert first.rows == [encoder.row(prompt, text) for text in first.completions]
    assert len(second.rows) == 4
    assert metrics == {
        "hard_negatives": 5,
        "hard_negatives_prompts": 2,
        "hard_negatives/area": 2,
        "hard_negatives/food": 3,
    }
    assert lines == ["reward: 5 hard negatives from 2 prompts (wrong food 3, wrong area 2)"]


def test_at_most_so_many_per_prompt_and_the_same_every_time(training_context: Any) -> None:
    rankings = [
        ranking(f"food[{food}], area[{area}]", f"{food}, {area}.", f"{area}: {food}", food)
        for food in ("Thai", "Greek", "Mexican", "Polish")
        for area in ("harbour", "suburbs", "old town")
    ]
    again = [added(training_context, rankings, 2, seed=seed)[0] for seed in (0, 0, 1)]
    made = [[list(group.completions)[3:] for group in groups.values()] for groups in again]
    assert all(len(texts) == 2 for texts in made[0])
    assert made[0] == made[1] != made[2]
    reversed_rows = added(training_context, rankings[::-1], 2)[0]
    assert {key: group.completions for key, group in reversed_rows.items()} == {
        key: group.completions for key, group in again[0].items()
    }, "the order of the rows changes nothing"


def test_weights_of_annotators_do_not_apply_to_them(training_context: Any) -> None:
    rankings = [RANKINGS[0], Ranking(RANKINGS[1].prompt, RANKINGS[1].completions, [1, 2], "bob", human=True)]
    groups, _, _ = added(training_context, rankings, 9, weights={"ana": 0.5, "bob": 1.5})
    first, second = groups.values()
    assert [order.weight for order in first.orders] == [0.5, 1.0, 1.0, 1.0]
    assert [order.weight for order in second.orders] == [1.5, 1.0, 1.0]


def test_a_swapped_answer_that_was_ranked_or_is_too_long_is_left_out(training_context: Any) -> None:
    """Thai could become Greek, which was ranked, or a long value, which exceeds the limit after "Greek, please"."""
    long = "x" * 30
    rankings = [
        ranking("food[Thai]", "Thai.", "Greek."),
        ranking("food[Greek]", "Greek, please.", "Nice."),
        ranking(f"food[{long}]", "Food.", "Nice."),
    ]
    encoder = TokenEncoder(tiny.codec())
    limit = len(encoder.row(encoder.prompt(tiny.user("food[Greek]")), f"{long}."))
    for seed in range(5):
        groups, _, _ = added(training_context, rankings, 9, seed=seed, max_length=limit)
        made = [list(group.completions)[2:] for group in groups.values()]
        assert made == [[f"{long}."], ["Thai, please."], []]


def test_prompts_that_are_no_meaning_representations_are_counted(training_context: Any) -> None:
    _, metrics, lines = added(training_context, [*RANKINGS, ranking("Where is it?", "There.", "Here.")], 1)
    assert metrics["hard_negatives"] == 2
    assert lines[0] == (
        "reward: 1 of 3 training prompts get no hard negatives, because they are not meaning representations"
    )


@pytest.mark.parametrize(
    ("rankings", "phrase"),
    [
        ([ranking("Where?", "There.", "Here.")], "no training prompt is a meaning representation"),
        ([RANKINGS[0]], "found no value to swap"),
        ([ranking(f"food[{food}]", "Nice.", "Good.") for food in ("Thai", "Greek")], "found no value to swap"),
    ],
)
def test_nothing_to_swap_is_an_error(training_context: Any, rankings: list[Ranking], phrase: str) -> None:
    with pytest.raises(DataError, match=phrase) as error:
        added(training_context, rankings, 1)
    assert error.value.where == "reward.hard_negatives"
    assert "reward.hard_negatives to 0" in error.value.hint


# --- The recipe and the stage ---


def test_swapped_answers_have_no_ratings(load: Callable[..., LoadedRecipe]) -> None:
    with pytest.raises(RecipeError, match=r"reward\.hard_negatives: makes pairs without ratings"):
        load("reward.hard_negatives=1", "reward.merits=ratings", "reward.margin=1")
    assert load("reward.hard_negatives=1", "reward.margin=1").recipe.reward.hard_negatives == 1


def test_the_memory_plan_counts_them(load: Callable[..., LoadedRecipe]) -> None:
    values = "rank.source=app", "rank.app.annotators=[ana]", "rank.app.overlap=1", "reward.pack_tokens=0"
    values += ("collect.num_completions=4",)
    assert packed_rows(load(*values).recipe, 3)[0] == 12
    assert packed_rows(load(*values, "reward.hard_negatives=2").recipe, 3)[0] == 18


def test_held_out_values_are_never_used(tmp_path: Path, training_context: Callable[..., tuple[Any, Any]]) -> None:
    """The stage adds them to the training rankings alone, from values of training prompts, and trains on them."""
    base = tiny.base_artifact(tmp_path / "base")
    rank = tiny.rank_artifact(tmp_path / "rank")
    foods = {"train": ("Thai", "Greek"), "eval": ("Polish", "Mexican")}
    rows = [
        row
        | {
            "prompt": tiny.user(f"name[{row['prompt'][0]['content']}], food[{food}]"),
            "completions": [f"{food} {i}" for i in range(3)],
        }
        for position, row in enumerate(rank.jsonl("rankings.jsonl"))
        for food in [foods[row["split"]][position % 2]]
    ]
    rank.file("rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data"),
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
        "rank": rank,
    }
    seen: dict[str, set[str]] = {"train": set(), "eval": set()}
    original = stage._train_members

    def noting(builder: Any, config: Any, data: Any, ctx: Any) -> Any:
        for split, groups in (("train", data.training), ("eval", data.held_out)):
            seen[split] |= {text.split()[0] for group in groups for text in group.completions}
        assert all(len(group.orders) == 3 and len(group.rows) == 5 for group in data.training)
        assert all(len(group.orders) == 1 and len(group.rows) == 3 for group in data.held_out)
        return original(builder, config, data, ctx)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stage, "_train_members", noting)
        ctx, notes = training_context()
        (tmp_path / "out").mkdir()
        config = RewardConfig(lora=tiny.LORA, max_length=80, hard_negatives=2, trainer={"max_steps": 2})
        metrics = stage.run(config, inputs, tmp_path / "out", ctx)
    assert seen == {"train": {"Thai", "Greek"}, "eval": {"Polish", "Mexican"}}
    assert (metrics["rankings"], metrics["completions"], metrics["hard_negatives"]) == (8, 24, 16)
    assert "reward: 16 hard negatives from 8 prompts (wrong food 16)" in notes.lines
    assert "human" not in metrics, "the rankings are still those of people, if they were"
    quality = Artifact("reward", tmp_path / "out", "reward").json("quality.json")
    assert quality["metrics"]["hard_negatives"] == 16
