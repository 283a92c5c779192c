"""The base model that a user names: a folder, a GGUF file or a Hub id, and what its files say about it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.base import BaseConfig
from pipeline.config.checkpoint import CONFIG, context_length, folder_refusal
from pipeline.config.paths import nearest
from pipeline.config.rules import is_hub_id
from pipeline.errors import RecipeError, StageError
from pipeline.memory.sources import architecture_of

COMMIT = re.compile(r"[0-9a-f]{40}")
TOKENIZER = "tokenizer.json"
TEMPLATE_TOKENS = 48
"""Tokens that a published chat template may write around a prompt: headers, a date, a default system message."""
PLAIN_TOKENS = 4
"""Tokens around a conversation without a chat template."""
CHARACTERS = 4
"""Characters per token where the tokenizer is not on this machine, roughly that of English."""


@dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
        model, revision: as in a recipe.
        parameters: number of weights; None if no file of it is here and its name does not say.
        parameters_from: where that number is from, for a comment.
        context: the most tokens that it reads; None if not known.
        tokens: text -> its number of tokens.
        counted: how tokens are counted, for a comment.
        around: tokens that the chat template adds, at most.
    """

    model: str
    revision: str | None
    parameters: int | None
    parameters_from: str
    context: int | None
    tokens: Callable[[str], int]
    counted: str
    around: int


def resolve(name: str) -> Base:
    """The base model for PATH, FILE.gguf, or HUB_ID[@commit]. Without a commit the newest one is looked up.

    Raises:
        RecipeError: there is no such folder or model, or its commit cannot be found.
        StageError: the model cannot be trained here.
    """
    path = Path(name).expanduser()
    if path.exists():
        return _local(name, path)
    model, _, commit = name.partition("@")
    if not is_hub_id(model) or "/" not in model or Path(model.partition("/")[0]).is_dir():
        raise _no_folder(name, path)
    return _hub(model, commit)


def _no_folder(name: str, path: Path) -> RecipeError:
    near = nearest(path)
    return RecipeError(
        f"there is no folder or GGUF file {name}",
        where="--base",
        hint=f"did you mean {near}?"
        if near
        else "write the path of a folder or .gguf file, or a Hub id, OWNER/NAME[@COMMIT]",
    )


def _local(name: str, path: Path) -> Base:
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise RecipeError(
                f"the folder {name} holds no {CONFIG}, so it is no model",
                where="--base",
                hint="name the folder that save_pretrained or a download wrote, with config.json and weights",
            )
        if refusal := folder_refusal(path):
            raise StageError(f"{name} cannot be used: {refusal[0]}", where="--base", hint=refusal[1])
    elif path.suffix != ".gguf":
        raise RecipeError(
            f"{name} is a file and no .gguf file",
            where="--base",
            hint="name the model's folder, a .gguf file or a Hub id",
        )
    return _described(name, None, None)


def _hub(model: str, revision: str) -> Base:
    """A model on the Hub. Without a connection its commit must be given, or its files be in the Hub's cache."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    cache = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"
    is_commit = COMMIT.fullmatch(revision) is not None
    if is_commit and _snapshot(cache, revision) is not None:
        return _described(model, revision, cache)
    try:
        commit = str(HfApi().model_info(model, revision=revision or None, timeout=5).sha)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise RecipeError(
            f"the Hub has no model {model}" + (f" with a revision {revision}" if revision else ""),
            where="--base",
            hint="check the spelling; for a private or gated model, log in with `hf auth login`",
        ) from error
    except Exception as error:  # whatever the Hub's HTTP client raises without a connection
        reference = cache / "refs" / (revision or "main")
        if not is_commit and not reference.is_file():
            raise RecipeError(
                f"the commit of {model} cannot be looked up: the Hub does not answer",
                where="--base",
                hint=f"write --base {model}@COMMIT; https://huggingface.co/{model}/commits/main lists commits",
            ) from error
        commit = revision if is_commit else reference.read_text(encoding="utf-8").strip()
        return _described(model, commit, cache, online=False)
    return _described(model, commit, cache)


def _snapshot(cache: Path, commit: str) -> Path | None:
    folder = cache / "snapshots" / commit
    return folder if folder.is_dir() else None


def _described(model: str, commit: str | None, cache: Path | None, online: bool = True) -> Base:
    """Reads the model's files, as far as they are here.

    Args:
        cache: the Hub's folder for the model; None for a local model.
        online: whether its config may be fetched.
    """
    local = Path(model).expanduser()
    parameters, source = None, "(its config does not say)"
    if online or cache is None or _snapshot(cache, str(commit)) is not None:
        with suppress(RecipeError):
            parameters = architecture_of(
                BaseConfig(model=model if cache else str(local), revision=commit)
            ).parameters
            source = "by its config"
    if parameters is None and (stated := _stated_size(model)):
        parameters, source = stated, "by its name"
    folder = _snapshot(cache, str(commit)) if cache else local if local.is_dir() else None
    tokens, counted, around = _tokenizer(folder)
    return Base(model, commit, parameters, source, _context(folder), tokens, counted, around)


def _stated_size(model: str) -> int | None:
    """The number of parameters in a model's name, as in SmolLM2-135M or Qwen3-1.7B."""
    match = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([MB])(?![a-z])", model.rpartition("/")[2], re.IGNORECASE)
    return int(float(match[1]) * {"m": 1e6, "b": 1e9}[match[2].lower()]) if match else None


def _context(folder: Path | None) -> int | None:
    if folder is None or not (folder / CONFIG).is_file():
        return None
    return context_length(_json(folder / CONFIG))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _tokenizer(folder: Path | None) -> tuple[Callable[[str], int], str, int]:
    """Counts tokens, says how, and how many a chat template adds at most."""
    if folder is None or not (folder / TOKENIZER).is_file():
        return _estimate, f"{CHARACTERS} characters counted as a token", TEMPLATE_TOKENS
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    has_template = (folder / "chat_template.jinja").exists() or _json(folder / "tokenizer_config.json").get(
        "chat_template"
    )
    return (
        lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
        "by the base's tokenizer",
        TEMPLATE_TOKENS if has_template else PLAIN_TOKENS,
    )


def _estimate(text: str) -> int:
    return -(-len(text) // CHARACTERS)
