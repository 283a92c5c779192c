from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.config import trainer


@pytest.mark.parametrize(
    ("value", "kinds", "expected"),
    [
        (1, "float", True),
        (1, "int", True),
        (1.5, "int", False),
        (True, "int", False),
        (True, "float", False),
        (True, "bool", True),
        (1, "bool", False),
        ("5e-5", "float", False),
        (None, "float | null", True),
        (None, "float", False),
        ({}, "dict | str", True),
        ([], "list", True),
        (float("nan"), "float", False),
        ([1], "any", True),
    ],
)
def test_fits(value: Any, kinds: str, expected: bool) -> None:
    assert trainer.fits(value, kinds) is expected


def test_unknown_owned_and_ill_typed_names_are_each_refused() -> None:
    values = {
        "learnign_rate": 1e-4,
        "output_dir": "x",
        "hub_model_id": "x",
        "max_steps": 1.5,
        "max_length": 8,
    }
    found = {name: message for name, message, _ in trainer.problems("sft.trainer", values)}
    assert found["learnign_rate"] == "unknown key"
    assert "the runner chooses the folders" in found["output_dir"]
    assert "tutelage publish" in found["hub_model_id"]
    assert found["max_steps"] == "must be int, got 1.5"
    assert "sft.max_length" in found["max_length"]


def test_the_sections_are_those_of_the_recipe() -> None:
    assert trainer.SECTIONS == {
        "base.pretrain.trainer": "transformers.TrainingArguments",
        "sft.trainer": "trl.SFTConfig",
        "reward.trainer": "transformers.TrainingArguments",
        "reward.pretrain_on.trainer": "transformers.TrainingArguments",
        "dpo.trainer": "trl.DPOConfig",
        "raft.trainer": "trl.SFTConfig",
    }


def test_the_defaults_of_the_stages_are_valid_values() -> None:
    for path, field in trainer.FIELDS.items():
        assert list(trainer.problems(path, field.metadata["trainer_defaults"])) == []


def test_valid_values_pass() -> None:
    values = {"learning_rate": 2e-4, "num_train_epochs": 1, "lr_scheduler_type": "cosine", "logging_steps": 5}
    for path in trainer.SECTIONS:
        assert list(trainer.problems(path, values)) == []


def test_each_section_knows_its_own_class() -> None:
    values = {"dataset_num_proc": 2}
    assert list(trainer.problems("sft.trainer", values)) == []
    assert [name for name, *_ in trainer.problems("reward.trainer", values)] == ["dataset_num_proc"]


def test_every_owned_name_exists() -> None:
    names = {name for fields in trainer.trainer_fields().values() for name in fields}
    assert set(trainer.OWNED) - names <= {"logging_dir"}  # older transformers have it


@pytest.mark.slow
def test_the_names_are_those_of_the_installed_versions() -> None:
    assert json.loads(trainer.FIELDS_FILE.read_text()) == trainer.installed_fields()
