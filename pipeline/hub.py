"""Uploads finished artifacts to the Hugging Face Hub: listed files, and a card made from manifests."""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.config.rules import is_hub_id
from pipeline.config.section import content
from pipeline.errors import RecipeError, StageError
from pipeline.files import readable_bytes
from pipeline.fingerprint import files_below
from pipeline.plan import RunSummary
from pipeline.report import exported
from pipeline.rounds import by_round, newest

CARD = "README.md"

TEXT_FILES = {".csv", ".html", ".jinja", ".json", ".jsonl", ".md", ".py", ".txt", ".yaml", ".yml"}

_TOKENS = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16})\b")
_HOMES = re.compile(r"(?:/home|/Users)/[\w.-]+/")


@dataclass(frozen=True)
class Upload:
    """Files for one repository."""

    repository: str
    kind: Literal["model", "dataset"]
    private: bool
    files: Mapping[str, Path]
    card: str

    def describe(self) -> str:
        """Exactly what `send` would upload."""
        visibility = "private" if self.private else "public"
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        sizes[CARD] = len(self.card.encode())
        lines = [f"{readable_bytes(sizes[name]):>10}  {name}" for name in sorted(sizes)]
        return "\n".join([f"{visibility} {self.kind} {self.repository}", *lines, "", self.card])

    def send(self) -> str:
        """Uploads in one commit and returns its address. Raises `StageError`."""
        from httpx2 import HTTPError
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import LocalTokenNotFoundError

        api = HfApi(library_name="tutelage")
        contents: dict[str, Any] = {**self.files, CARD: self.card.encode()}
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=given) for name, given in contents.items()
        ]
        try:
            api.create_repo(self.repository, repo_type=self.kind, private=self.private, exist_ok=True)
            # An older repository keeps its visibility whatever create_repo asks for.
            if self.private and not api.repo_info(self.repository, repo_type=self.kind).private:
                raise StageError(
                    f"{self.repository} is public already, and a private upload was asked for",
                    mend="name another repository, make this one private, or give --public",
                )
            commit = api.create_commit(
                self.repository, operations, commit_message="Upload by tutelage", repo_type=self.kind
            )
        except LocalTokenNotFoundError:
            raise StageError(
                "the Hub wants to know who uploads", mend="run `hf auth login`, or set HF_TOKEN"
            ) from None
        except HTTPError as error:
            raise StageError(f"the Hub refused: {error}", where=self.repository) from error
        return str(commit.commit_url)


def uploads(run: RunSummary, private: bool | None = None) -> list[Upload]:
    """What the recipe's `publish` section asks for. Raises an error when something must not go out: a model
    without evaluation, a file that names this machine's folders or holds a token."""
    publish = run.loaded.recipe.publish
    if publish.model is None and publish.rankings is None:
        raise RecipeError(
            "the recipe does not say where to publish",
            where=run.loaded.describe("publish"),
            mend="set publish.model=owner/name (and publish.rankings=owner/name)",
        )
    is_private = publish.private if private is None else private
    made = []
    if publish.model is not None:
        export, evaluation = run.need("export"), run.need("eval")
        exported, evaluated = (newest(made.manifest.inputs, "ppo") for made in (export, evaluation))
        if exported.fingerprint != evaluated.fingerprint:
            raise StageError(
                "the exported model is not the one that was evaluated",
                where=str(export.folder),
                mend=f"run `tutelage run {run.loaded.arguments}`",
            )
        card = model_card(run, publish.model)
        made.append(_upload(publish.model, "model", is_private, export.artifact.path, card))
    if publish.rankings is not None:
        folder = run.folder / "rankings"
        for path in _rankings(run):
            with path.open(encoding="utf-8") as lines:
                _refuse_private_text("rankings.jsonl", lines)  # in the Parquet files it could not be read
        export_rankings(run, folder)
        card = (folder / CARD).read_text(encoding="utf-8")
        made.append(_upload(publish.rankings, "dataset", is_private, folder, card))
    return made


def export_rankings(run: RunSummary, folder: Path, only: str | None = None) -> Any:
    """Writes the run's rankings as a data set for the Hub; returns what `data.export` says of it."""
    export = importlib.import_module("data.export")
    recipe = run.loaded.recipe
    return export.export_rankings(
        _rankings(run),
        folder,
        name=f"Rankings of {recipe.name}",
        key=export.key_file(run.folder / "annotators.key"),
        license=recipe.publish.rankings_license,
        only=only,
        seed=recipe.seed,
    )


def _rankings(run: RunSummary) -> list[Path]:
    """Of every round. Raises `StageError` when the last one's are not there yet."""
    run.need("rank")
    return [ranked.artifact.file("rankings.jsonl") for ranked in by_round(run.stages, "rank").values()]


def _upload(repository: str, kind: Literal["model", "dataset"], private: bool, folder: Path, card: str) -> Upload:
    files = {name: path for name, path in files_below(folder).items() if name != CARD}
    for name, path in files.items():
        if path.suffix in TEXT_FILES:
            _refuse_private_text(name, path.read_text(encoding="utf-8", errors="replace").splitlines())
    _refuse_private_text(CARD, card.splitlines())
    return Upload(repository, kind, private, files, card)


def _machine_folders() -> Iterator[str]:
    for folder in (Path.home(), Path.cwd(), Path(tempfile.gettempdir())):
        if folder != folder.parent:
            yield f"{folder}/"


def _refuse_private_text(name: str, lines: Iterable[str]) -> None:
    folders = tuple(_machine_folders())
    for number, line in enumerate(lines, start=1):
        if _TOKENS.search(line):
            problem = "an access token"
        elif _HOMES.search(line) or any(folder in line for folder in folders):
            problem = "a path of this machine"
        else:
            continue
        raise StageError(
            f"{name} holds {problem} and is not uploaded",
            where=f"{name}:{number}",
            mend="make the stage again without it",
        )


def model_card(run: RunSummary, repository: str) -> str:
    """The model's README.md."""
    recipe = run.loaded.recipe
    evaluation = run.need("eval").manifest
    base = recipe.base.model if recipe.base.model and is_hub_id(recipe.base.model) else None
    simulated = run.need("export").manifest.simulated
    header = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base} if base else {}),
        "tags": ["tutelage", "rlhf", "ppo", *(["simulated-annotators"] if simulated else [])],
    }
    origin = base or ("pretrained from scratch" if recipe.base.pretrain else Path(str(recipe.base.model)).name)
    numbers = {name: value for name, value in evaluation.metrics.items() if isinstance(value, int | float)}
    rows = [f"| {name} | {value:.4g} |" for name, value in numbers.items() if not isinstance(value, bool)]
    return _card(
        header,
        f"# {repository.partition('/')[2]}",
        f"Base model: {origin}. Supervised fine-tuning, a reward model from rankings, and PPO with a KL "
        "penalty, made by tutelage.",
        _whose(run),
        "## Evaluation\n\nOn held-out prompts.\n\n| metric | value |\n|---|---|\n" + "\n".join(rows),
        *filter(None, [exported.markdown(exported.read(run))]),
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{repository}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{repository}")\n'
        'chat = [{"role": "user", "content": "..."}]\n'
        "inputs = tokenizer.apply_chat_template("
        'chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))\n```",
        f"## Recipe\n\n```yaml\n{_recipe_yaml(run)}```",
    )


def _whose(run: RunSummary) -> str:
    """Who ranked: what is not human is never called so."""
    rank = run.need("rank").manifest
    if rank.simulated:
        return "**The rankings were made by simulated annotators, not by people.**"
    if rank.metrics.get("human") is True:
        return "The rankings were made by people."
    return "It is not recorded whether people made the rankings."


def _card(header: Mapping[str, Any], *sections: str) -> str:
    metadata = yaml.safe_dump(dict(header), sort_keys=False)
    return "\n\n".join([f"---\n{metadata}---", *sections]) + "\n"


def _recipe_yaml(run: RunSummary) -> str:
    return yaml.safe_dump(_without_folders(content(run.loaded.recipe)), sort_keys=False, allow_unicode=True)


def _without_folders(value: Any) -> Any:
    """Absolute paths by their last name only: the folders above are nobody's business."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
