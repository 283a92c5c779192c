import random

import pytest

from data.schema import ranks_from_scores
from data.splits import check_split, split_of_prompt
from data.venues import task as venues
from data.venues.slots import SlotLexicon, format_mr, parse_mr, slot_error_rate
from pipeline.config.data import TaskConfig
from pipeline.config.rank import AnnotatorConfig
from pipeline.errors import DataError

CLEAN = TaskConfig(task="venues", size=400, missing=0.0, invented=0.0, repeated=0.0)


def checks(config: TaskConfig, seed: int = 0):
    demonstrations = venues.demonstrations(config, seed, 0.1)
    return [venues.rubric().check(parse_mr(d.prompt[0]["content"]), d.completion) for d in demonstrations]


def test_a_clean_task_has_no_faults_by_its_rubric() -> None:
    assert all(check.errors == 0 and not check.repeated for check in checks(CLEAN))


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ({"missing": 1.0}, {"missing"}),
        ({"invented": 1.0}, {"invented", "wrong"}),
        ({"repeated": 1.0}, {"repeated"}),
    ],
)
def test_each_configured_fault_appears(values: dict[str, float], kinds: set[str]) -> None:
    config = TaskConfig(
        **{"task": "venues", "size": 300, "missing": 0.0, "invented": 0.0, "repeated": 0.0, **values}
    )
    for check in checks(config):
        shown = {kind for kind in ("missing", "wrong", "invented", "repeated") if getattr(check, kind)}
        assert shown, "every text must have a fault"
        assert shown <= kinds


def test_corpus_and_demonstrations_keep_held_out_prompts_apart() -> None:
    corpus = venues.corpus(CLEAN, 0, 0.3)
    demonstrations = venues.demonstrations(CLEAN, 0, 0.3)
    assert {d.split for d in corpus} == {"train"}
    assert {split_of_prompt(d.prompt, 0.3) for d in corpus} == {"train"}
    assert 0.2 < sum(d.split == "eval" for d in demonstrations) / len(demonstrations) < 0.4
    for demonstration in demonstrations:
        check_split(demonstration, 0.3)


def test_the_seed_determines_the_demonstrations() -> None:
    assert venues.demonstrations(CLEAN, 3, 0.1) == venues.demonstrations(CLEAN, 3, 0.1)
    assert venues.demonstrations(CLEAN, 3, 0.1) != venues.demonstrations(CLEAN, 4, 0.1)


PROMPT = [{"role": "user", "content": "name[Blue Fox], kind[pub], food[Thai], area[harbour]"}]
RIGHT = "Blue Fox is a pub serving Thai food in the harbour."
SHORT = "Blue Fox is a pub serving Thai food."
WRONG = "Blue Fox is a pub serving Greek food in the harbour."
TWICE = "Blue Fox is a pub serving Thai food in the harbour. It is in the harbour."


def utilities(annotator: AnnotatorConfig, texts: list[str], seed: int = 0) -> list[float]:
    return venues.annotate(annotator, PROMPT, texts, random.Random(seed))


def test_an_annotator_without_errors_scores_by_faults() -> None:
    exact = AnnotatorConfig(name="exact", missing=1, invented=2, repeated=0.5, oversight=0, noise=0)
    # A wrong value counts as a missing fact and an invented one.
    assert utilities(exact, [RIGHT, SHORT, WRONG, TWICE]) == [0, -1, -3, -0.5]
    assert ranks_from_scores(utilities(exact, [RIGHT, SHORT, RIGHT]), tie=0.1) == [1, 2, 1]


def test_bias_noise_and_oversight_change_utilities() -> None:
    talkative = AnnotatorConfig(name="talkative", oversight=0, noise=0, verbosity=1)
    assert utilities(talkative, [RIGHT])[0] == pytest.approx(len(RIGHT.split()) / 10)
    noisy = AnnotatorConfig(name="noisy", oversight=0, noise=2)
    drawn = [utilities(noisy, [RIGHT], seed)[0] for seed in range(400)]
    assert sum(u * u for u in drawn) / 400 == pytest.approx(4, rel=0.25)
    blind = AnnotatorConfig(name="blind", oversight=1, noise=0, missing=1)
    # Overlooks missing facts, and counts every stated fact as missing.
    assert utilities(blind, [SHORT]) == [-3]


def test_a_substituted_slot_counts_once() -> None:
    check = venues.rubric().check(
        parse_mr(PROMPT[0]["content"]), "Blue Fox is a cafe with Thai food and low prices."
    )
    assert (check.missing, check.wrong, check.invented, check.repeated) == (["area"], ["kind"], ["price"], [])
    assert (check.given, check.errors) == (4, 3)
    assert slot_error_rate([check, check]) == pytest.approx(3 / 4)


def test_meaning_representations_round_trip_and_errors_are_located() -> None:
    mr = {"name": "Blue Fox", "family friendly": "no"}
    assert parse_mr(format_mr(mr)) == mr
    with pytest.raises(DataError, match="character 16"):
        parse_mr("name[Blue Fox], food Thai")
    with pytest.raises(DataError, match="'stars'"):
        venues.rubric().check({"stars": "5"}, "anything")


def test_an_unknown_or_malformed_lexicon_is_an_error(tmp_path) -> None:
    with pytest.raises(DataError, match="venue"):
        SlotLexicon.load("venue")
    (tmp_path / "bad.yaml").write_text("attributes: [1, 2]")
    with pytest.raises(DataError, match="not a slot lexicon"):
        SlotLexicon.load(str(tmp_path / "bad.yaml"))
