"""`tutelage init`, from two tables and a model to a recipe that runs."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT
from tiny import base_artifact
from typer.testing import CliRunner

from data.schema import read_rankings_file
from pipeline.config.load import LoadedRecipe, load_recipe
from pipeline.config.recipe import Recipe
from pipeline.invocation import MAKE
from stages.__main__ import app
from stages.init import command as initialise
from stages.init import measure

PROMPTS = [f"Tell me about the {thing} of {name}." for name in ("Ana", "Ben", "Cleo", "Dan", "Eve") for thing in
           ("cat", "dog", "house", "boat", "tree", "hat", "bell", "drum", "lamp", "coat")]  # fmt: skip


def write_tables(folder: Path) -> None:
    """40 demonstrations, and 60 rankings of 3 or 4 answers to 30 prompts by two people."""
    folder.mkdir()
    with (folder / "demos.jsonl").open("w") as file:
        for prompt in PROMPTS[:40]:
            file.write(json.dumps({"instruction": prompt, "output": f"It is fine. {prompt}"}) + "\n")
    answers, places = [f"reply_{i}" for i in range(1, 5)], [f"pos_{i}" for i in range(1, 5)]
    generator = random.Random(0)
    with (folder / "votes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", *answers, *places, "rater"])
        for number, prompt in enumerate(PROMPTS[-30:]):
            count = 3 + number % 2
            texts = [f"It is {word}." for word in ("fine", "large", "old", "odd")[:count]]
            for rater in ("ana", "ben"):
                order = sorted(range(count), key=lambda place: place + generator.gauss(0, 0.5))
                ranks = [order.index(place) + 1 for place in range(count)]
                empty = [""] * (4 - count)
                table.writerow([prompt, *texts, *empty, *ranks, *empty, rater])


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tables in `my/` and a small model in `model/`."""
    monkeypatch.chdir(tmp_path)
    write_tables(tmp_path / "my")
    base = base_artifact(tmp_path / "base").path
    (base / "model").rename(tmp_path / "model")
    for file in (base / "tokenizer").iterdir():
        file.rename(tmp_path / "model" / file.name)
    return tmp_path


TABLES = ("--demonstrations", "my/demos.jsonl", "--rankings", "my/votes.csv")
BASE = ("--base", "model")


def run(*arguments: str, answers: str | None = None) -> Any:
    return CliRunner().invoke(app, [*arguments], input=answers)


def succeeds(*arguments: str, answers: str | None = None) -> str:
    result = run(*arguments, answers=answers)
    assert result.exit_code == 0, result.output
    return str(result.output)


def fails(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code in (2, 3, 4), result.output
    return str(result.output)


def recipe() -> Recipe:
    return load_recipe("my/recipe.yaml").recipe


def test_one_command_leads_to_a_recipe_that_runs(workplace: Path) -> None:
    """The case of a first user: two tables with names of their own, a model, one attempt."""
    output = succeeds("init", *TABLES, *BASE)
    assert "60 rankings of 3 to 4 answers to 30 prompts, by 2 annotators" in output
    assert "      1. It is fine." in output
    assert "tutelage check --recipe my/recipe.yaml" in output
    assert "is valid" in succeeds("check", "-r", "my/recipe.yaml")
    succeeds("run", "rank", "-r", "my/recipe.yaml", "-s", "device=cpu base.check_tokens=2")
    [file] = workplace.glob("runs/my/rank/*/out/rankings.jsonl")
    rankings = list(read_rankings_file(file))
    assert len(rankings) == 60
    assert {ranking.annotator for ranking in rankings} == {"ana", "ben"}
    assert {len(ranking.completions) for ranking in rankings} == {3, 4}
    [manifest] = workplace.glob("runs/my/data/*/manifest.json")
    metrics = json.loads(manifest.read_text())["metrics"]
    assert metrics["dropped_rankings"] == metrics["dropped_demonstrations"] == 0
    assert metrics["prompts_eval"] >= 0.3 * 50 - 3


@pytest.mark.slow
def test_one_command_leads_to_a_report(workplace: Path) -> None:
    succeeds("init", *TABLES, *BASE)
    tiny = (
        "device=cpu base.check_tokens=2 sft.trainer.max_steps=4 reward.trainer.max_steps=4 reward.gate=null "
        "ppo.total_episodes=64 eval.bootstrap=50"
    )
    output = succeeds("run", "-r", "my/recipe.yaml", "-s", tiny)
    assert "runs/my/report.html" in output
    assert (workplace / "runs/my/report.html").is_file()


def test_every_value_has_a_reason(workplace: Path) -> None:
    succeeds("init", *TABLES, *BASE)
    inside = False
    for line in Path("my/recipe.yaml").read_text().splitlines():
        inside = (inside and bool(line)) or line in ("sft:", "reward:", "ppo:", "eval:")
        if inside and not line.endswith(":"):
            assert "  # " in line, line


def test_values_follow_the_tables_and_the_model(workplace: Path) -> None:
    succeeds("init", *TABLES, *BASE)
    written = recipe()
    assert written.data.rankings is not None
    assert written.data.rankings.columns["annotator"] == "rater"
    assert written.sft.lora is None
    assert written.reward.lora is None
    longest = max(map(len, PROMPTS))
    assert longest < written.ppo.max_prompt_length < 4 * longest  # the test's tokenizer has a token per character
    assert written.eval.max_prompt_length == written.ppo.max_prompt_length
    assert written.ppo.kl.horizon < written.ppo.total_episodes / 5


def test_commands_are_printed_as_they_were_called(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAKE, "1")
    output = succeeds("init", *TABLES, *BASE)
    assert "make check RECIPE=my/recipe.yaml" in output
    assert "make run RECIPE=my/recipe.yaml" in output


def test_an_existing_recipe_stays(workplace: Path) -> None:
    succeeds("init", *TABLES, *BASE)
    Path("my/recipe.yaml").write_text("name: mine\n")
    assert "exists already" in fails("init", *TABLES, *BASE, "--yes")
    assert Path("my/recipe.yaml").read_text() == "name: mine\n"
    succeeds("init", *TABLES, *BASE, "--force")
    assert recipe().name == "my"


def test_without_rankings_people_rank(workplace: Path) -> None:
    succeeds("init", *TABLES[:2], *BASE, "--annotators", "ana,ben", "--name", "app", "--out", "new/app.yaml")
    written = load_recipe("new/app.yaml").recipe
    assert (written.name, written.rank.source, written.rank.app.annotators) == ("app", "app", ["ana", "ben"])
    assert written.collect.max_prompt_length == written.ppo.max_prompt_length
    assert (written.collect.num_prompts or 0) + (written.collect.eval_prompts or 0) == 40


def test_what_is_open_is_written_as_a_line_to_fill_in(workplace: Path) -> None:
    rows = [{"question": p, "reply_1": "x", "reply_2": "y", "label": 1 + i % 2} for i, p in enumerate(PROMPTS)]
    Path("my/labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = fails("init", *TABLES[:2], "--rankings", "my/labels.jsonl", *BASE)
    lines = Path("my/recipe.yaml").read_text().splitlines()
    [number] = [number for number, line in enumerate(lines, 1) if "FILL IN" in line]
    assert f"my/recipe.yaml:{number}" in output
    assert "column label does not say which answer its values 1, 2 prefer" in lines[number - 1]
    assert load_recipe("my/recipe.yaml")
    lines[number - 1 : number + 1] = ["    labels: {1: first, 2: second}"]
    Path("my/recipe.yaml").write_text("\n".join(lines))
    succeeds("run", "rank", "-r", "my/recipe.yaml", "-s", "device=cpu base.check_tokens=2")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ["init needs --demonstrations, --base, --rankings", "--annotators"]),
        (("--demonstrations", "my/demo.jsonl", *TABLES[2:], *BASE),
         ["no file or folder my/demo.jsonl", "my/demos.jsonl?"]),
        ((*TABLES, "--base", "modle"), ["no folder or GGUF file modle", "did you mean model?"]),
        ((*TABLES, "--base", "my/model"), ["no folder or GGUF file my/model"]),
        ((*TABLES, "--base", "my"), ["no config.json"]),
        ((*TABLES, "--base", "my/votes.csv"), ["no .gguf file"]),
        ((*TABLES[:2], "--rankings", "empty.csv", *BASE), ["the table has no rows", "empty.csv"]),
        ((*TABLES[:2], "--rankings", "my/demos.jsonl", *BASE), ["no format of rankings", "instruction, output"]),
        (("--demonstrations", "odd.csv", *TABLES[2:], *BASE), ["looks like the prompt", "alpha, beta"]),
        ((*TABLES, *BASE, "--out", "model/config.json/recipe.yaml"), ["cannot be written", "recipe.yaml"]),
    ],
)  # fmt: skip
def test_mistakes_are_named_in_one_message(arguments: tuple[str, ...], parts: list[str], workplace: Path) -> None:
    Path("empty.csv").write_text("question,reply_1,reply_2,pos_1,pos_2\n")
    Path("odd.csv").write_text("alpha,beta\n1,2\n")
    output = fails("init", *arguments)
    for part in parts:
        assert part in output
    assert not Path("my/recipe.yaml").exists()


def test_a_hub_id_needs_its_commit_without_a_network(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any, **values: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workplace / "cache"))
    output = fails("init", *TABLES, "--base", "owner/tiny-135M")
    assert "write --base owner/tiny-135M@COMMIT" in output
    succeeds("init", *TABLES, "--base", f"owner/tiny-135M@{'a' * 40}")
    written = recipe()
    assert (written.base.model, written.base.revision) == ("owner/tiny-135M", "a" * 40)
    assert written.sft.lora is not None
    assert written.ppo.learning_rate == 1e-4
    (workplace / "cache/models--owner--tiny-135M/refs").mkdir(parents=True)
    (workplace / "cache/models--owner--tiny-135M/refs/main").write_text("b" * 40)
    succeeds("init", *TABLES, "--base", "owner/tiny-135M", "--force")
    assert recipe().base.revision == "b" * 40


def test_tables_longer_than_what_is_counted_are_said_to_be(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "ROWS", 20)
    monkeypatch.setattr(initialise, "COMPARED", 10)
    output = succeeds("init", *TABLES, *BASE)
    assert "first 10 rows: 10 rankings" in output
    text = Path("my/recipe.yaml").read_text()
    assert "20 demonstrations in the first 20 rows" in text
    assert "20 rankings of 3 to 4 answers to 10 prompts, by 2 annotators in the first 20 rows" in text
    assert "in the rows that were counted" in text


# On a terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialise, "interactive", lambda: True)


def test_a_terminal_asks_for_what_is_missing(workplace: Path, terminal: None) -> None:
    output = succeeds("init", answers="my/demo.jsonl\nmy/demos.jsonl\nmy/votes.csv\nmodle\nmodel\n\n\n")
    assert "did you mean my/demos.jsonl?" in output
    assert "did you mean model?" in output
    written: LoadedRecipe = load_recipe("my/recipe.yaml")
    assert written.recipe.base.model == "model"
    assert written.recipe.data.rankings is not None


def test_a_terminal_asks_who_ranks(workplace: Path, terminal: None) -> None:
    succeeds("init", answers="my/demos.jsonl\n\nmodel\nana, ben\n\n")
    assert recipe().rank.app.annotators == ["ana", "ben"]


def test_a_mapping_can_be_corrected(workplace: Path, terminal: None) -> None:
    rows = [{"ask": p, "answer": "x y", "response": "no", "who": "ana"} for p in PROMPTS]
    Path("my/two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = "completion=respnse\nnonsense\ncompletion=response\nprompt=ask\n\n\n"
    output = succeeds("init", "--demonstrations", "my/two.jsonl", *TABLES[2:], *BASE, answers=answers)
    assert "did you mean response?" in output
    assert output.count("my/two.jsonl: demonstrations\n") == 3, (
        "shown again after a correction, not after a mistake"
    )
    assert "'nonsense' is not one of prompt, completion, messages" in output
    assert getattr(recipe().data.demonstrations, "columns") == {"prompt": "ask", "completion": "response"}  # noqa: B009


def test_ranks_can_be_corrected_to_ratings(workplace: Path, terminal: None) -> None:
    succeeds("init", *TABLES, *BASE, answers="\nratings=pos_1, pos_2, pos_3, pos_4\nannotator=\n\n")
    rankings = recipe().data.rankings
    assert rankings is not None
    assert rankings.columns["ratings"] == ["pos_1", "pos_2", "pos_3", "pos_4"]
    assert not {"ranks", "annotator"} & rankings.columns.keys()


def test_labels_can_be_explained(workplace: Path, terminal: None) -> None:
    rows = [{"question": p, "reply_1": "x", "reply_2": "y", "label": 1 + i % 2} for i, p in enumerate(PROMPTS)]
    Path("my/labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = "\nlabels=1: best, 2: second\nlabels=1: first, 2: second\n\n"
    output = succeeds("init", *TABLES[:2], "--rankings", "my/labels.jsonl", *BASE, answers=answers)
    assert "labels are first, second or tie" in output
    assert "50 rankings of 2 answers to 50 prompts" in output
    rankings = recipe().data.rankings
    assert rankings is not None
    assert rankings.labels == {"1": "first", "2": "second"}


def test_an_existing_recipe_is_overwritten_after_a_question(workplace: Path, terminal: None) -> None:
    succeeds("init", *TABLES, *BASE, "--yes")
    Path("my/recipe.yaml").write_text("name: mine\n")
    assert run("init", *TABLES, *BASE, answers="n\n").exit_code == 2
    assert Path("my/recipe.yaml").read_text() == "name: mine\n"
    succeeds("init", *TABLES, *BASE, answers="y\n\n\n")
    assert recipe().name == "my"


def test_the_makefile_passes_arguments_on(tmp_path: Path) -> None:
    from commands import recorded

    assert recorded("make init ARGS='--demonstrations a.csv --base b'", tmp_path) == [
        ["tutelage", "init", "--demonstrations", "a.csv", "--base", "b"]
    ]
    assert "\ninit: venv ##" in (ROOT / "Makefile").read_text()


def test_rankings_alone_give_a_recipe_without_sft(workplace: Path) -> None:
    succeeds("init", "--rankings", "my/votes.csv", *BASE, "--yes")
    loaded = load_recipe("my/recipe.yaml")
    recipe = loaded.recipe
    assert recipe.sft is None
    assert recipe.data.demonstrations is None
    assert recipe.data.rankings is not None
    assert recipe.rank.source == "data"
    assert recipe.ppo.lora is None  # as the reward model: every weight of so small a model
    assert recipe.reward.lora is None
    assert "the longest ranked answer has about" in Path("my/recipe.yaml").read_text()
    assert "7 stages" in succeeds("check", "--recipe", "my/recipe.yaml")
    shown = run("init", *BASE, "--annotators", "ana,ben", "--out", "other.yaml", "--yes")
    assert "init needs --demonstrations" in shown.output
