"""Fake stages that write the kinds of files that are published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_run import FakeRun

MODEL = "publish.model=me/model"


def write_model(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
    (out_dir / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (out_dir / "config.json").write_text("{}\n")
    return {}


def write_policy(fake: FakeRun) -> Callable[..., dict[str, Any]]:
    """Like the `ppo` stage with LoRA: writes an adapter, and a file that must not be published."""

    def run(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        (out_dir / "adapter").mkdir()
        (out_dir / "adapter/adapter_model.safetensors").write_bytes(b"\0" * 512)
        (out_dir / "adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None, "r": 2}))
        (out_dir / "fingerprints.json").write_text("[]")
        return fake._ppo(config, inputs, out_dir, ctx)

    return run


def write_base(fake: FakeRun) -> Callable[..., dict[str, Any]]:
    def run(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        (out_dir / "tokenizer").mkdir()
        (out_dir / "tokenizer/tokenizer.json").write_text("{}")
        (out_dir / "tokenizer/chat_template.jinja").write_text("{{ messages }}")
        return fake._base(config, inputs, out_dir, ctx)

    return run
