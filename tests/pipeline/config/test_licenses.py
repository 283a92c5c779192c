"""Licences are checked against the Hub's list when a recipe is loaded."""

import pytest

from pipeline.config import licenses
from pipeline.config.load import load_recipe
from pipeline.errors import RecipeError

RECIPE = """
name: r
base: {pretrain: {corpus: {task: venues, size: 10}}}
data: {demonstrations: {task: venues, size: 10}}
rank: {source: app, app: {annotators: [a, b]}}
"""


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return lambda *sets: load_recipe(path, sets).recipe.publish


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        ("Apache 2.0", "apache-2.0"),
        ("Apache License, Version 2.0", "apache-2.0"),
        ("apache2", "apache-2.0"),
        ("APACHE-2.0", "apache-2.0"),
        ("MIT License", "mit"),
        ("CC BY 4.0", "cc-by-4.0"),
        ("CC-BY-NC-SA 4.0", "cc-by-nc-sa-4.0"),
        ("Creative Commons Attribution 4.0 International", "cc-by-4.0"),
        ("GPLv3", "gpl-3.0"),
        ("GNU Lesser General Public License v2.1", "lgpl-2.1"),
        ("BSD 3-Clause", "bsd-3-clause"),
        ("Llama 3.1", "llama3.1"),
        ("CC0", "cc0-1.0"),
    ],
)
@pytest.mark.parametrize("name", ["license", "rankings_license"])
def test_other_spellings_are_refused_with_the_identifier(load, name, text, identifier):
    with pytest.raises(RecipeError, match=f"did you mean {identifier}\\?") as caught:
        load(f"'publish.{name}={text}'")
    assert f"publish.{name}" in str(caught.value)
    assert getattr(load(f"publish.{name}={identifier}"), name) == identifier


def test_what_resembles_nothing_is_refused_with_a_way_forward(load):
    with pytest.raises(RecipeError, match=r"write other, and its name as publish.license_name"):
        load("publish.license=beerware")


def test_every_identifier_is_its_own_nearest():
    assert len(licenses.names()) > 70
    for identifier, name in licenses.names().items():
        assert licenses.nearest(identifier) == identifier
        assert licenses.nearest(name) == identifier


@pytest.mark.parametrize("name", ["license", "rankings_license"])
def test_another_licence_has_a_name(load, name):
    with pytest.raises(RecipeError, match=f"publish.{name}_name: is required by publish.{name} = other"):
        load(f"publish.{name}=other")
    with pytest.raises(RecipeError, match="belongs to"):
        load(f"publish.{name}=mit publish.{name}_name=mine")
    with pytest.raises(RecipeError, match="must be an address"):
        load(f"publish.{name}=other publish.{name}_name=mine publish.{name}_link=LICENSE")
    publish = load(f"publish.{name}=other publish.{name}_name=mine publish.{name}_link=https://example.org/l")
    assert getattr(publish, f"{name}_name") == "mine"
