"""Scorers on the Hub: their files in the Hub's cache, so that they can be checked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline import network
from pipeline.config.recipe import Recipe
from pipeline.config.rules import is_hub_id
from pipeline.config.term_rules import terms_of
from pipeline.errors import RecipeError

FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""Those that a checkpoint is loaded from. Older ones without safetensors are fetched when they are loaded."""


def scorers(recipe: Recipe) -> dict[str, tuple[str, str]]:
    """Dotted path -> Hub id and revision: of `ppo.reward_model` and of the reward's terms, as far as they are on
    the Hub."""
    named = {"ppo.reward_model": (recipe.ppo.reward_model, recipe.ppo.reward_model_revision)}
    named |= {f"{path}.model": (term.model, term.revision) for path, term in terms_of(recipe).items()}
    return {
        path: (model, revision)
        for path, (model, revision) in named.items()
        if model is not None and revision is not None and is_hub_id(model)
    }


def folders(recipe: Recipe, named: Mapping[str, str | None]) -> Iterator[tuple[str, str, Path]]:
    """Dotted path, value and folder of the named scorers whose files are on this machine: in a local folder, or in
    the Hub's cache."""
    fetched = scorers(recipe)
    for path, name in named.items():
        if not name:
            continue
        folder = cached(*fetched[path]) if path in fetched else Path(name)
        if folder is not None and folder.is_dir():
            yield path, name, folder


def cached(model: str, revision: str) -> Path | None:
    """The folder of its files in the Hub's cache, without asking the Hub; None if its weights are not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(model, revision=revision, allow_patterns=list(FILES), local_files_only=True)
        )
    except (LocalEntryNotFoundError, ValueError):
        return None
    return folder if any(folder.glob("*.safetensors")) else None


def fetch(model: str, revision: str, where: str) -> Path:
    """As `cached`, after fetching what is not there. Raises `network.NoNetwork` without a network, and
    `RecipeError` if the Hub refuses.

    Args:
        where: the recipe's place that names it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if folder := cached(model, revision):
        return folder
    try:
        with network.hub(model, where=where, offline=network.local_model(model)):
            return Path(snapshot_download(model, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"cannot fetch {model} at {revision}: {reason}",
            where=where,
            hint="check its name and revision on the Hub; a gated or private model needs a login: `hf auth login`",
        ) from None
