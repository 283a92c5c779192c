"""Reward functions: TRL's calling conventions, and what is said when one fails."""

import time

import pytest
import tiny

from data.schema import prompt_key
from pipeline.errors import StageError
from pipeline.functions import FunctionName
from stages.sampling.prompts import EncodedPrompt
from stages.scoring import functions
from stages.scoring.functions import RewardFunction

CODEC = tiny.codec()
TEXTS = ["good one", "the culprit", "another one"]
RESPONSES = [CODEC.completion(text) for text in TEXTS]
PROMPTS = [EncodedPrompt(tiny.user(f"question {i}"), [5], "train") for i in range(3)]
COLUMNS = {prompt_key(PROMPTS[0].messages): {"solution": "4"}, prompt_key(PROMPTS[2].messages): {"solution": [1]}}


def scorer(function, **values):
    values = {"timeout": 5.0, "source": "rewards.py:f", "where": "ppo.reward.terms[0].function"} | values
    return RewardFunction(function, CODEC, name="term", **values)


def scores(function, **values):
    return scorer(function, **values)(PROMPTS, RESPONSES).tolist()


def test_a_function_gets_what_trl_passes():
    received = {}

    def conversational(prompts, completions, solution, **kwargs):
        received.update(kwargs, prompts=prompts, completions=completions, solution=solution)
        return [1, True, 0.5]

    assert scores(conversational, columns=COLUMNS) == [1, 1, 0.5]
    assert received["prompts"] == [prompt.messages for prompt in PROMPTS]
    assert received["completions"] == [[{"role": "assistant", "content": text}] for text in TEXTS]
    assert received["completion_ids"] == RESPONSES
    assert received["solution"] == ["4", None, [1]]


def test_the_standard_format_is_text():
    received = []

    def standard(prompts, completions):
        received.extend([prompts, completions])
        return [0.0] * len(completions)

    scores(standard, conversational=False)
    assert received == [["question 0", "question 1", "question 2"], TEXTS]


def test_functions_may_be_coroutines_and_objects():
    async def later(completions, **kwargs):
        return [float(len(completion[0]["content"])) for completion in completions]

    class Callable:
        def __call__(self, completion_ids):
            return [float(len(ids)) for ids in completion_ids]

    assert scores(later) == [float(len(text)) for text in TEXTS]
    assert scores(Callable()) == [float(len(response)) for response in RESPONSES]


def test_none_is_no_score():
    members = scorer(lambda completions: [None, 1.0, 2.0]).members(PROMPTS, RESPONSES)
    assert members.isnan().tolist() == [[True, False, False]]
    assert scores(lambda completions: [None, 1.0, 2.0]) == [0, 1, 2]  # as a judge


def contents(completions):
    return [completion[0]["content"] for completion in completions]


def raises(completions):
    if "the culprit" in contents(completions):
        raise ValueError("cannot parse it")
    return [0.0] * len(completions)


def not_a_number(completions):
    return [float("nan") if text == "the culprit" else 0.0 for text in contents(completions)]


def infinite(completions):
    return [float("inf") if text == "the culprit" else 0.0 for text in contents(completions)]


def a_word(completions):
    return ["7" if text == "the culprit" else 0.0 for text in contents(completions)]


def short(completions):
    return [0.0 for text in contents(completions) if text != "the culprit"]


def slow(completions):
    if "the culprit" in contents(completions):
        time.sleep(3)
    return [0.0] * len(completions)


def leaves(completions):
    if "the culprit" in contents(completions):
        raise SystemExit(1)
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (raises, "raised ValueError: cannot parse it"),
        (leaves, "raised SystemExit: 1"),
        (not_a_number, "returned nan, which is not a finite number"),
        (infinite, "returned inf, which is not a finite number"),
        (a_word, "returned '7', which is not a finite number"),
        (short, "returned 0 values for 1 completion"),
        (slow, "took longer than its limit of"),
    ],
)
def test_a_failure_names_the_prompt_and_the_completion_at_fault(function, what):
    with pytest.raises(StageError) as error:
        scores(function, timeout=0.5)
    message = str(error.value)
    assert f"the reward function rewards.py:f {what}" in message
    assert "prompt: user: question 1\n" in message
    assert "completion: the culprit\n" in message
    assert "where: ppo.reward.terms[0].function" in message
    assert "good one" not in message


def test_an_error_names_the_line_of_the_function():
    with pytest.raises(StageError, match=r"test_reward_functions\.py:\d+\)"):
        scores(raises)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda completions: [0.0] if len(completions) == 1 else [1.0, 2.0], "returned 2 values for 3 completions"),
        (lambda completions: [0.0] if len(completions) == 1 else 1 / 0, "raised ZeroDivisionError"),
        (lambda completions: [0.0] if len(completions) == 1 else 7, "returned 7 instead of a list"),
    ],
)
def test_where_no_row_fails_alone_the_first_of_the_batch_is_shown(function, what):
    with pytest.raises(StageError) as error:
        scores(function)
    message = str(error.value)
    assert what in message
    assert "the first of a batch of 3; none of them was seen to fail alone" in message
    assert "prompt: user: question 0\n  completion: good one\n" in message


def test_the_search_for_the_row_at_fault_ends_after_the_time_limit():
    def sleeps(completions):
        time.sleep(0.3 if len(completions) == 1 else 2.0)
        return [0.0] * len(completions)

    started = time.monotonic()
    with pytest.raises(StageError, match="took longer than its limit"):
        RewardFunction(sleeps, CODEC, name="f", source="f", where="w", timeout=1.0)(PROMPTS * 50, RESPONSES * 50)
    assert time.monotonic() - started < 15  # 150 calls would take 45 seconds


def test_long_texts_are_cut_in_errors():
    with pytest.raises(StageError, match=r"x \.\.\. \(5,000 characters\)") as error:
        scorer(not_a_number_at_all)([PROMPTS[0]], [CODEC.completion("x" * 5000)])
    assert len(str(error.value)) < 1500


def not_a_number_at_all(completions):
    return [float("nan")] * len(completions)


def test_arguments_that_nobody_passes_are_refused():
    with pytest.raises(StageError, match=r"needs answer, and is called with prompts, completions, completion_ids"):
        scorer(lambda completions, answer: [0.0])


# --- Loading ---

FILE = """
from dataclasses import dataclass

@dataclass
class Weights:
    good: float = 2.0

def good(completions, **kwargs):
    return [Weights().good * ("good" in c[0]["content"]) for c in completions]
"""


def test_a_file_is_loaded_where_the_recipe_names_it(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(FILE)
    function = functions.load(FunctionName(str(path), "good"), "w")
    assert scores(function) == [2, 0, 0]
    copy = tmp_path / "copy.py"
    copy.write_text(FILE.replace("2.0", "3.0"))
    assert scores(functions.load(FunctionName(str(path), "good"), "w", copy)) == [3, 0, 0]


def test_an_installed_function_is_imported():
    function = functions.load(FunctionName("trl.rewards", "get_soft_overlong_punishment"), "w")
    assert function(9, 3)(completion_ids=[[1] * 9]) == [-1.0]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import nowhere_to_be_seen\n", "cannot be imported: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", "cannot be imported: SystemExit"),
        ("good = 3\n", "has no function good"),
    ],
)
def test_a_file_that_does_not_load_is_refused(tmp_path, text, what):
    path = tmp_path / "rewards.py"
    path.write_text(text)
    with pytest.raises(StageError, match=what) as error:
        functions.load(FunctionName(str(path), "good"), "ppo.reward.terms[0].function")
    assert error.value.where == "ppo.reward.terms[0].function"
