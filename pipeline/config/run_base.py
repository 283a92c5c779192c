"""`base.model: runs/<recipe>/base`: the base of a finished run as the base model of another recipe.

The artifact is used as it is, so that what was trained on it can be used, too: its precision, quantisation and chat
template are part of it. A recipe that names it gets them as its own values, and may not set others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config.base import BaseConfig

MANIFEST, POINTER, OUT, SPEC = "manifest.json", "current.json", "out", "base.json"
SETTINGS = (
    "dtype",
    "quantization",
    "chat_template",
    "chat_template_kwargs",
    "template_date",
    "fold_turns",
    "control_tokens",
)
"""Values of `base` that an artifact has decided."""


def fill(data: dict[str, Any], provenance: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Completes a recipe whose `base.model` names a run: `model` becomes the artifact's folder, and its settings
    are added to `data` and `provenance`. Changes nothing for any other model.

    Yields the dotted path of each value at fault, and what is wrong with it.
    """
    base = data.get("base")
    model = base.get("model") if isinstance(base, dict) else None
    if not isinstance(base, dict) or not isinstance(model, str):
        return
    runs = _runs(Path(model).expanduser())
    if not runs:
        return
    if len(runs) > 1:
        names = ", ".join(sorted(str(run) for run in runs))
        yield "base.model", f"{model} holds several finished runs: name one of {names}"
        return
    [run] = runs
    try:
        record = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
        stage, config = record["stage"], record["config"]
    except (OSError, ValueError, KeyError, TypeError):
        yield "base.model", f"the manifest of {run} is damaged: run its recipe again with --fresh"
        return
    if stage == "export" and (Path(model).expanduser() / "config.json").is_file():
        return  # a model folder like any other
    if stage != "base":
        yield (
            "base.model",
            f"{run} is a run of {stage}, which holds no base model. Name the recipe's base run; to continue from "
            "its policy, name the folder of a model that its export stage has written",
        )
        return
    if base.get("revision") is not None:
        yield "base.revision", f"belongs to a Hub id, and base.model names a finished run ({run})"
    for name in SETTINGS:
        if name not in config:
            continue
        theirs = config[name]
        if name in base and not _agrees(base[name], theirs) and (name, base[name]) != ("chat_template", "auto"):
            yield f"base.{name}", f"is {json.dumps(theirs)} in {run}, whose model is used as it is: leave it out"
        elif name != "chat_template":
            base[name] = theirs
            provenance.setdefault(f"base.{name}", str(run))
        else:
            base.pop(name, None)  # a file that it named may be gone; the artifact's tokenizer has it
    if base.get("architecture") is None and config.get("architecture") is not None:
        base["architecture"] = config["architecture"]
    base["model"] = str(run / OUT)


def is_artifact(model: str | None) -> bool:
    """Whether a `base.model` is the artifact of a run, as `fill` has named it."""
    return model is not None and (Path(model) / SPEC).is_file() and (Path(model).parent / MANIFEST).is_file()


def source_of(base: BaseConfig) -> tuple[str | None, str | None]:
    """Where the weights of `base.model` are: a file, a folder or a Hub id, and a commit."""
    model, revision = base.model, base.revision
    if model is None or not is_artifact(model):
        return model, revision
    if (Path(model) / "model").is_dir():
        return str(Path(model) / "model"), None
    spec = json.loads((Path(model) / SPEC).read_text(encoding="utf-8"))
    return spec["model"], spec["revision"]


def _runs(path: Path) -> list[Path]:
    """The finished runs that a path names: a run, its `out` or what is in it, a stage's folder, or a recipe's. Of a
    stage with several runs the one of the recipe's present values, if that is recorded."""
    for folder in (path, path.parent, path.parent.parent):
        if (folder / MANIFEST).is_file() and path in (folder, folder / OUT, folder / OUT / "model"):
            return [folder]
    stage = path / "base" if (path / "base").is_dir() else path
    runs = [file.parent for file in stage.glob(f"*/{MANIFEST}")]
    try:
        current = json.loads((stage.parent / POINTER).read_text(encoding="utf-8"))["stages"].get(stage.name)
    except (OSError, ValueError, KeyError, AttributeError):
        current = None
    return [run for run in runs if run.name == current] or runs


def _agrees(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return all(_agrees(value, theirs.get(key)) for key, value in ours.items())
    return bool(ours == theirs)
