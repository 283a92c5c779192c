"""Adds the recipes/ folder to the wheel as pipeline/recipes/. Everything else is in pyproject.toml, which cannot
list a package outside of the folders that it searches."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["pipeline*", "data*", "ranking*", "stages*"]), "pipeline.recipes"],
    package_dir={"pipeline.recipes": "recipes"},
    package_data={
        "pipeline.recipes": ["**/*.yaml"],
        "pipeline.config": ["*.json", "*.txt"],
        "data.venues": ["lexicons/*.yaml"],
        "ranking": ["static/*", "templates/*.html", "messages/*.yaml"],
        "stages.models": ["chat_templates/*.jinja"],
        "stages.serve": ["static/*", "templates/*.html"],
        "stages.report": ["templates/*.html", "*.css", "messages/*.yaml"],
    },
)
