from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import merge
from pipeline.errors import RecipeError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def value(text: str) -> Any:
    return merge.plain(merge.parse(text, lambda line: f"line {line}"))


def merged(sets: list[str] | None = None, rivals: merge.Rivals | None = None, **files: str) -> merge.Node:
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)
    root = merge.read(Path("child.yaml"), rivals or {})
    for layer in merge.assignments(sets or []):
        root = merge.overlay(root, layer, rivals or {})
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5e-5", 5e-5),
        ("1E3", 1000.0),
        ("-.5e+2", -50.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("12", 12),
        ("-3", -3),
        ("1_000", 1000),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("'5e-5'", "5e-5"),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("007", "007"),
        ("1e5a", "1e5a"),
        ("e5", "e5"),
        ("[1, 2.0, a]", [1, 2.0, "a"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, expected: Any) -> None:
    got = value(text)
    assert got == expected
    assert type(got) is type(expected)


def test_a_duplicate_key_is_refused_with_both_lines() -> None:
    with pytest.raises(RecipeError, match="seed appears twice") as error:
        value("seed: 1\nname: x\nseed: 2\n")
    assert error.value.where == "line 1 and line 3"


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(RecipeError, match="not valid YAML") as error:
        value("a: 1\nb: [1,\n")
    assert error.value.where == "line 3"


def test_aliases_are_refused() -> None:
    with pytest.raises(RecipeError, match="aliases are not supported; use extends"):
        value("a: &x 1\nb: *x\n")


def test_unknown_tags_are_refused() -> None:
    with pytest.raises(RecipeError, match="not valid YAML"):
        value("a: !!python/object:os.system 1")


def test_later_layers_win_key_by_key_and_lists_are_replaced() -> None:
    root = merged(
        first="a: {x: 1, y: 1}\nlist: [1, 2]\n",
        second="a: {y: 2, z: 2}\n",
        child="extends: [first.yaml, second.yaml]\na: {z: 3}\nlist: [9]\n",
        sets=["a.x=4"],
    )
    assert merge.plain(root) == {"a": {"x": 4, "y": 2, "z": 3}, "list": [9]}
    assert merge.provenance(root) == {
        "a": "--set #1",
        "a.x": "--set #1",
        "a.y": "second.yaml:1",
        "a.z": "child.yaml:2",
        "list": "child.yaml:3",
        "list[0]": "child.yaml:3",
    }


def test_extends_is_relative_to_the_file_that_contains_it() -> None:
    Path("models").mkdir()
    Path("models/tiny.yaml").write_text("extends: parts/lora.yaml\nmodel: tiny\n")
    Path("models/parts").mkdir()
    Path("models/parts/lora.yaml").write_text("lora: {r: 4}\n")
    root = merged(child="extends: models/tiny.yaml\nname: x\n")
    assert merge.plain(root) == {"lora": {"r": 4}, "model": "tiny", "name": "x"}
    assert merge.provenance(root)["lora.r"] == "models/parts/lora.yaml:1"


def test_null_replaces_a_section_and_a_section_replaces_null() -> None:
    root = merged(
        parent="a: {x: 1}\nb: null\n",
        child="extends: parent.yaml\na: null\nb: {y: 2}\n",
    )
    assert merge.plain(root) == {"a": None, "b": {"y": 2}}


def test_rivals_of_an_earlier_layer_are_dropped_unless_the_new_value_is_null() -> None:
    rivals = {"base.model": frozenset({"base.pretrain"})}
    files = {"parent": "base: {pretrain: {size: 1}, dtype: auto}\n"}
    with_model = merged(rivals=rivals, **files, child="extends: parent.yaml\nbase: {model: m}\n")
    assert merge.plain(with_model) == {"base": {"model": "m", "dtype": "auto"}}
    with_null = merged(rivals=rivals, **files, child="extends: parent.yaml\nbase: {model: null}\n")
    assert merge.plain(with_null)["base"]["pretrain"] == {"size": 1}


def test_a_circle_of_extends_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"circle: child.yaml -> a.yaml -> child.yaml"):
        merged(child="extends: a.yaml\n", a="extends: child.yaml\n")


def test_a_missing_file_names_the_recipe_that_extends_it() -> None:
    with pytest.raises(RecipeError, match=r"cannot read the recipe gone.yaml: there is no such file") as error:
        merged(child="extends: gone.yaml\n")
    assert error.value.where == "named in extends of child.yaml"


@pytest.mark.parametrize("text", ["- a\n", "just words\n"])
def test_a_recipe_must_be_a_mapping(text: str) -> None:
    with pytest.raises(RecipeError, match="consists of lines such as"):
        merged(child=text)


@pytest.mark.parametrize("extends", ["{a: b}", "[1, 2]", "5"])
def test_extends_must_be_names(extends: str) -> None:
    with pytest.raises(RecipeError, match="extends must be a file name"):
        merged(child=f"extends: {extends}\n")


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["a.b=1 c=x"], {"a": {"b": 1}, "c": "x"}),
        (["a.b=1", "a.b=2"], {"a": {"b": 2}}),
        (["a=5e-5"], {"a": 5e-5}),
        (["a=[1, 2] b=3"], {"a": [1, 2], "b": 3}),
        (["a={x: 1, y: [2, 3]}"], {"a": {"x": 1, "y": [2, 3]}}),
        (['a="You are nice" b=1'], {"a": "You are nice", "b": 1}),
        (["a= b=1"], {"a": None, "b": 1}),
        (["url=https://x.org/a?b=c"], {"url": "https://x.org/a?b=c"}),
        ([""], {}),
    ],
)
def test_set_values(sets: list[str], expected: dict[str, Any]) -> None:
    assert merge.plain(merged(child="{}", sets=sets)) == expected


@pytest.mark.parametrize("text", ["ppo.kl.target", "=5", "a..b=1", "a.b='unclosed"])
def test_a_malformed_set_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"--set .* assigns no value|cannot read --set"):
        merged(child="{}", sets=[text])
