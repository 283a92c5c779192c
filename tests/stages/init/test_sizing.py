"""The values that `tutelage init` proposes follow the size of the model and the counts and lengths of texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.schema import Demonstration, Ranking
from data.splits import split_of
from data.tables.guess.guess import Guess
from data.tables.guess.section import scalar
from pipeline.config.load import load_recipe
from pipeline.config.recipe import Recipe
from pipeline.errors import RecipeError, StageError
from stages.init import base as bases
from stages.init import measure, sizing, write
from stages.init.base import Base


def model(parameters: int | None = 10**9, context: int | None = None) -> Base:
    """A model of a token per word, whose template adds 5 tokens to a turn."""
    return Base("./m", None, parameters, "", context, lambda text: len(text.split()), "words", 5)


def tables(prompts: int, *, ranked: int = 0, words: int = 20, longest: int = 0) -> measure.Tables:
    """`prompts` demonstrations of `words` words, one of them with `longest`; the last `ranked` prompts are ranked
    too, by two people."""
    asked = [[{"role": "user", "content": f"question number {number}"}] for number in range(prompts)]
    answers = ["word " * (longest if longest and number == 0 else words) for number in range(prompts)]
    rankings = [
        Ranking(prompt, ["word " * words, "word"], [1, 2], annotator, True)
        for prompt in asked[prompts - ranked :]
        for annotator in ("ana", "ben")
    ]
    rows = [Demonstration(prompt, text) for prompt, text in zip(asked, answers, strict=True)]
    return measure.Tables(rows, rankings)


def sized(base: Base, data: measure.Tables, folder: Path) -> Recipe:
    """The recipe that is written, as it loads."""
    values = sizing.values(base, measure.measure(data, base))
    ranking = Guess("long") if data.rankings else Guess()
    path = "r.csv" if data.rankings else None
    people = [] if data.rankings else ["ana"]
    draft = write.Draft("n", "init", base, "d.csv", Guess(), path, ranking, {"demonstrations": ""}, people, values)
    (folder / "recipe.yaml").write_text(write.text(draft))
    return load_recipe(folder / "recipe.yaml").recipe


@pytest.mark.parametrize("parameters", [None, 260_000, 135_000_000, 360_000_000, 1_700_000_000, 8_000_000_000])
@pytest.mark.parametrize("ranked", [0, 100])
def test_recipes_of_every_size_load(parameters: int | None, ranked: int, tmp_path: Path) -> None:
    recipe = sized(model(parameters), tables(200, ranked=ranked), tmp_path)
    assert (recipe.sft.lora is None) == (recipe.reward.lora is None) == (parameters == 260_000)


def test_larger_models_get_lower_rates_of_ppo(tmp_path: Path) -> None:
    sizes = (1e6, 1e8, 5e8, 2e9, 8e9)
    rates = [sized(model(int(size)), tables(50, ranked=50), tmp_path).ppo.learning_rate for size in sizes]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == len(rates)


@pytest.mark.parametrize(
    ("parameters", "recipe"),
    [
        (135e6, "smollm2-135m.yaml"),
        (360e6, "tldr/smollm2-360m.yaml"),
        (17e8, "tldr/qwen3-1.7b.yaml"),
        (8e9, "tldr/llama-3.1-8b.yaml"),
    ],
)
def test_rates_are_those_of_the_recipe_that_is_named(parameters: float, recipe: str) -> None:
    kind = sizing.class_of(model(int(parameters)))
    assert f"recipes/{recipe}" in kind.basis
    shipped = load_recipe(Path(__file__).parents[3] / "recipes" / recipe).recipe
    rates = (
        shipped.sft.trainer["learning_rate"],
        shipped.reward.trainer["learning_rate"],
        shipped.ppo.learning_rate,
    )
    assert rates == (kind.sft, kind.reward, kind.ppo)
    if kind.kl_basis.startswith("recipes"):
        assert (shipped.ppo.kl.init, shipped.ppo.kl.target) == (kind.init, kind.target)


@pytest.mark.parametrize(("prompts", "least"), [(60, 12), (120, 30), (200, 30), (5000, 300)])
def test_thirty_prompts_are_held_out_where_the_table_allows_it(prompts: int, least: int, tmp_path: Path) -> None:
    data = tables(prompts, ranked=prompts)
    fraction = sized(model(), data, tmp_path).data.eval_fraction
    groups = {row.prompt[0]["content"] for row in data.demonstrations}
    held_out = sum(split_of(group, fraction) == "eval" for group in groups)
    assert held_out >= least
    assert fraction <= 0.4
    assert f"{held_out} of {prompts} prompts" in (tmp_path / "recipe.yaml").read_text()


def test_the_ranked_prompts_are_those_that_count(tmp_path: Path) -> None:
    some = sized(model(), tables(1000, ranked=60), tmp_path).data.eval_fraction
    assert some > sized(model(), tables(1000, ranked=1000), tmp_path).data.eval_fraction


def test_lengths_hold_the_longest_texts(tmp_path: Path) -> None:
    recipe = sized(model(), tables(50, ranked=20, words=100), tmp_path)
    assert 101 <= recipe.ppo.response_length <= 128
    assert recipe.ppo.max_prompt_length >= 3 + 5
    assert recipe.sft.max_length >= 3 + 5 + 101
    assert recipe.reward.max_length >= 3 + 5 + 101


def test_one_long_text_does_not_decide(tmp_path: Path) -> None:
    assert sized(model(), tables(200, words=20, longest=900), tmp_path).ppo.response_length == 32
    text = (tmp_path / "recipe.yaml").read_text()
    assert "the longest demonstrated answer has about 901 tokens; 1 of 200 are longer than this" in text


def test_lengths_stay_within_the_context(tmp_path: Path) -> None:
    recipe = sized(model(context=64), tables(50, ranked=20, words=100), tmp_path)
    assert recipe.sft.max_length == recipe.reward.max_length == 64
    assert recipe.ppo.max_prompt_length + recipe.ppo.response_length <= 64


def test_few_held_out_prompts_are_left_to_eval(tmp_path: Path) -> None:
    assert sized(model(), tables(60, ranked=60), tmp_path).ppo.eval_updates == 0
    many = sized(model(), tables(3000, ranked=3000), tmp_path).ppo
    assert many.eval_updates > 0
    assert many.eval_prompts == 64


# Bases


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No connection, and an empty cache."""

    def refused(*arguments: Any, **values: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("me/SmolLM2-135M", 135e6), ("Qwen/Qwen3-1.7B-Base", 1.7e9), ("me/llama-3.2-3b", 3e9), ("me/gpt2", None)],
)
def test_the_name_may_say_the_size(name: str, parameters: float | None) -> None:
    base = bases.resolve(f"{name}@{'0' * 40}")
    assert base.parameters == parameters
    assert base.tokens("x" * 40) == 10


CONFIG = {"model_type": "llama", "vocab_size": 100, "hidden_size": 8, "intermediate_size": 16,
          "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 77,
          "tie_word_embeddings": True}  # fmt: skip
PARAMETERS = 100 * 8 + 2 * (4 * 8 * 8 + 3 * 8 * 16 + 2 * 8) + 8


def test_the_newest_commit_and_the_config_are_looked_up(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub / "models--me--tiny-7B/snapshots" / ("a" * 40)

    def fetch(model: str, revision: str | None) -> Path:
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps(CONFIG))
        return snapshot / "config.json"

    class Info:
        sha = "a" * 40

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *arguments, **values: Info)
    monkeypatch.setattr("pipeline.memory.sources._fetch", fetch)
    base = bases.resolve("me/tiny-7B")
    assert (base.revision, base.parameters, base.context) == ("a" * 40, PARAMETERS, 77)


def test_a_folder_says_its_size_and_context(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    base = bases.resolve(str(tmp_path))
    assert base.context == 77
    assert base.parameters == PARAMETERS
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(StageError, match="stored quantised"):
        bases.resolve(str(tmp_path))


def test_names_that_no_model_can_have_are_refused() -> None:
    for name in ("no such model", "gone/model.gguf", "single"):
        with pytest.raises(RecipeError, match="no folder or GGUF file"):
            bases.resolve(name)


@pytest.mark.parametrize("name", ["a", "Answer A", "x: y", "[a]", "true", "3", "a#b", 'say "so"', "", "ä,b", "- a"])
def test_names_survive_yaml(name: str) -> None:
    shown = scalar(name)
    assert yaml.safe_load(f"{{columns: [{shown}, {shown}]}}") == {"columns": [name, name]}
    assert yaml.safe_load(f"path: {shown}") == {"path": name}


def test_columns_that_need_quotes_are_quoted(tmp_path: Path) -> None:
    base, data = model(), tables(30, ranked=30)
    values = sizing.values(base, measure.measure(data, base))
    guess = Guess("long", {"completion": "Answer: text", "rank": "#"})
    draft = write.Draft("n", "init", base, "d.csv", Guess(), "r.csv", guess, {"demonstrations": ""}, [], values)
    (tmp_path / "recipe.yaml").write_text(write.text(replace(draft, name="1")))
    recipe = load_recipe(tmp_path / "recipe.yaml").recipe
    assert recipe.data.rankings is not None
    assert recipe.data.rankings.columns == guess.columns
    assert recipe.name == "1"
