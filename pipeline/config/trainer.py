"""Checks the `trainer:` sections, whose names are those of trl and transformers, without importing either.

The names and their types are in trainer_fields.json. `python -m pipeline.config.trainer` writes that file from the
installed versions, and a test checks that it matches them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.config.recipe import Recipe

FIELDS_FILE = Path(__file__).with_name("trainer_fields.json")

EVAL_BATCH_SIZE = 8
"""transformers' default of `per_device_eval_batch_size`."""


def _sections(section: type[Any], path: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every `trainer:` field below a section of the recipe, with its dotted path."""
    hints = typing.get_type_hints(section)
    for known in dataclasses.fields(section):
        dotted = f"{path}.{known.name}" if path else known.name
        if "trainer" in known.metadata:
            yield dotted, known
        for part in typing.get_args(hints[known.name]) or (hints[known.name],):
            if dataclasses.is_dataclass(part):
                yield from _sections(part, dotted)  # type: ignore[arg-type]


FIELDS = dict(_sections(Recipe))
"""Dotted path of each `trainer:` section -> its field."""

SECTIONS: dict[str, str] = {path: known.metadata["trainer"] for path, known in FIELDS.items()}
"""Dotted path of each `trainer:` section -> the class whose names it holds."""

_FOLDER = "the runner chooses the folders"
_HUB = "`tutelage publish` uploads, from finished artifacts only"
_DTYPE = "`base.dtype` decides it for every stage"
_DATA = "the data stage prepares the columns"
_MODEL = "the base stage makes model and tokenizer"
_SHARDING = "`--nproc` (make NPROC=2) decides how many processes share the work"
_DIVIDED = "`sharding: full` at the top of the recipe divides models among processes, with PyTorch's FSDP2"
_PARALLEL = (
    "layers are not divided (tensor, context and sequence parallelism); `sharding: full` divides the weights"
)
_BATCH = "an optimizer step is the same for any number of processes; see `micro_batch_size` beside `trainer`"
_CHECKPOINT = "a resumed run needs complete checkpoints"
_SCREEN = "the runner controls the display and the metrics; see `report_to` at the top of the recipe"
_SEED = "every generator derives from `seed` at the top of the recipe"
_STEPS = "the stage decides this"
_REFERENCE = "the reference is the SFT model, whose log-probs the stage computes once"

OWNED = {
    "output_dir": _FOLDER,
    "logging_dir": _FOLDER,
    "resume_from_checkpoint": "the runner resumes an interrupted stage by itself",
    "seed": _SEED,
    "data_seed": _SEED,
    "push_to_hub": _HUB,
    "trackio_space_id": _HUB,
    "trackio_bucket_id": _HUB,
    "trackio_static_space_id": _HUB,
    "report_to": _SCREEN,
    "run_name": _SCREEN,
    "project": _SCREEN,
    "disable_tqdm": _SCREEN,
    "use_cpu": "`device` at the top of the recipe decides it",
    "local_rank": _SHARDING,
    "ddp_backend": _SHARDING,
    "ddp_timeout": _SHARDING,
    "ddp_find_unused_parameters": _SHARDING,
    "ddp_bucket_cap_mb": _SHARDING,
    "ddp_broadcast_buffers": _SHARDING,
    "ddp_static_graph": _SHARDING,
    "accelerator_config": _SHARDING,
    "average_tokens_across_devices": _BATCH,
    "auto_find_batch_size": _BATCH,
    "include_num_input_tokens_seen": "`num_tokens` in metrics.jsonl counts them",
    "length_column_name": _DATA,
    "save_only_model": _CHECKPOINT,
    "save_on_each_node": _CHECKPOINT,
    "ignore_data_skip": _CHECKPOINT,
    "deepspeed": _DIVIDED,
    "fsdp": _DIVIDED,
    "fsdp_config": _DIVIDED,
    "parallelism_config": _PARALLEL,
    "do_train": _STEPS,
    "do_eval": _STEPS,
    "do_predict": _STEPS,
    "fp16": _DTYPE,
    "bf16": _DTYPE,
    "fp16_full_eval": _DTYPE,
    "bf16_full_eval": _DTYPE,
    "remove_unused_columns": _DATA,
    "label_names": _DATA,
    "dataset_kwargs": _DATA,
    "dataset_text_field": _DATA,
    "completion_only_loss": "the loss is on completions only",
    "assistant_only_loss": "set it beside `trainer`: `sft.assistant_only_loss`",
    "max_length": "set it beside `trainer`: `sft.max_length`, `dpo.max_length`, `raft.response_length`",
    "packing": "set it beside `trainer`: `sft.packing`",
    "packing_strategy": "packed documents must not attend to each other, which only the default ensures",
    "eval_packing": "set it beside `trainer`: `sft.packing`",
    "model_init_kwargs": _MODEL,
    "trust_remote_code": _MODEL,
    "chat_template_path": "`base.chat_template` decides it",
    "eos_token": _MODEL,
    "pad_token": _MODEL,
    "beta": "set it beside `trainer`: `dpo.beta`",
    "truncation_mode": "pairs that are too long are left out",
    "padding_free": "trl disables it",
    "precompute_ref_log_probs": _REFERENCE,
    "precompute_ref_batch_size": _REFERENCE,
    "sync_ref_model": _REFERENCE,
    "ref_model_mixup_alpha": _REFERENCE,
    "ref_model_sync_steps": _REFERENCE,
}
"""Names that a recipe must not set -> why."""


def owner(name: str) -> str | None:
    """Why a recipe must not set this trainer value; None if it may."""
    return _HUB if name.startswith("hub_") else OWNED.get(name)


@cache
def trainer_fields() -> Mapping[str, Mapping[str, str]]:
    """Config class -> field name -> types, such as "float | null"."""
    fields: dict[str, dict[str, str]] = json.loads(FIELDS_FILE.read_text(encoding="utf-8"))
    return fields


_JSON_KINDS = {bool: "bool", int: "int", float: "float", str: "str", dict: "dict", list: "list"}


def fits(value: Any, kinds: str) -> bool:
    """Whether a JSON value has one of the types. An int is accepted as a float; a bool is only a bool."""
    allowed = kinds.split(" | ")
    if "any" in allowed:
        return True
    if value is None:
        return "null" in allowed
    if isinstance(value, float) and not math.isfinite(value):
        return False
    kind = _JSON_KINDS[type(value)]
    return kind in allowed or (kind == "int" and "float" in allowed)


def problems(path: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """The problems of one `trainer:` section: name, message and, for an unknown name, the valid names."""
    known = trainer_fields()[SECTIONS[path]]
    for name, value in values.items():
        if name not in known:
            yield name, "unknown key", [k for k in known if owner(k) is None]
        elif reason := owner(name):
            yield name, f"must not be set here: {reason}", []
        elif not fits(value, known[name]):
            yield name, f"must be {known[name].replace(' | ', ' or ')}, got {json.dumps(value)}", []


def _kinds(annotation: Any) -> set[str]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_kinds(part) for part in typing.get_args(annotation)))
    if origin is typing.Literal:
        return {_JSON_KINDS[type(value)] for value in typing.get_args(annotation)}
    plain = origin or annotation
    if plain is type(None):
        return {"null"}
    if isinstance(plain, type) and issubclass(plain, Enum):
        return {"str"}
    return {_JSON_KINDS.get(plain, "any")}


def installed_fields() -> dict[str, dict[str, str]]:
    """The content of trainer_fields.json for the installed versions. Imports trl, which takes seconds."""
    from transformers import TrainingArguments
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.sft_config import SFTConfig

    names = {}
    for name, config in {
        "transformers.TrainingArguments": TrainingArguments,
        "trl.SFTConfig": SFTConfig,
        "trl.DPOConfig": DPOConfig,
    }.items():
        hints = typing.get_type_hints(config)
        names[name] = {
            f.name: " | ".join(sorted(_kinds(hints[f.name]))) for f in dataclasses.fields(config) if f.init
        }
    return names


if __name__ == "__main__":
    FIELDS_FILE.write_text(json.dumps(installed_fields(), indent=1) + "\n", encoding="utf-8")
