"""What is published: listed files of finished stages, checked against their manifests, and one card per repository.

A file is refused if it is on no list here, if it differs from what its manifest records, or if it holds a secret or
a path of this machine (`stages.publish.scan`). `stages.publish.send` does the upload.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from pipeline import invocation
from pipeline.config.rules import is_hub_id
from pipeline.config.run_base import source_of
from pipeline.device import resolve
from pipeline.engine import manifest, registry
from pipeline.engine.fingerprint import files_below
from pipeline.engine.plan import RunSummary, StageRun
from pipeline.engine.rounds import by_round, newest
from pipeline.engine.stage import Progress
from pipeline.errors import RecipeError, StageError
from pipeline.files import readable_bytes
from stages.artifacts import rankings_file
from stages.criteria import OPTION, check_option, of_criterion
from stages.publish import card, curves, scan

CARD = "README.md"
CURVES = "training.png"

MODEL_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("*.gguf", "Modelfile"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("*.jinja", "vocab.json", "vocab.txt", "merges.txt", "*.model"),
)
"""Names of the files of a model and its tokenizer that may be published. No pickles, and no trainer state."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

Content = Path | bytes
Opener = Callable[..., AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Upload:
    """Files for one repository.

    Attributes:
        files: name in the repository -> a local file, or the content itself. Without the card.
        card: the content of README.md.
        left_out: files of the artifact that are on no list and are not uploaded.
    """

    repository: str
    kind: Literal["model", "dataset"]
    private: bool
    files: Mapping[str, Content]
    card: str
    left_out: tuple[str, ...] = ()

    @property
    def contents(self) -> dict[str, Content]:
        """All that is uploaded, small files first."""
        everything: dict[str, Content] = {CARD: self.card.encode(), **self.files}
        return dict(sorted(everything.items(), key=lambda item: (size(item[1]), item[0])))

    def describe(self, verbose: bool = False) -> str:
        """The exact files and sizes, with `verbose` the card too, as text."""
        visibility = "private" if self.private else "public"
        sizes = {name: size(content) for name, content in self.contents.items()}
        lines = [f"{readable_bytes(sizes[name]):>10}  {name}" for name in sorted(sizes)]
        total = f"{readable_bytes(sum(sizes.values())):>10}  in {len(sizes)} files"
        out = [f"not on the upload list: {', '.join(self.left_out)}"] if self.left_out else []
        end = ["", self.card] if verbose else []
        return "\n".join([f"{visibility} {self.kind} {self.repository}", *lines, total, *out, *end, ""])


def size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def uploads(run: RunSummary, progress: Opener, private: bool | None = None) -> list[Upload]:
    """The uploads that the recipe's `publish` section asks for: the rankings first, since the model's card links
    them.

    Raises:
        RecipeError: it asks for nothing, or for an adapter of a base that is not on the Hub.
        StageError: a stage is not finished, the exported model is not the evaluated one, a file differs from its
            manifest, or a file holds a secret or a path of this machine.
    """
    publish = run.loaded.recipe.publish
    if publish.model is None and publish.rankings is None and publish.reward is None:
        raise RecipeError(
            "the recipe does not say where to publish",
            where=run.loaded.place("publish"),
            hint="set publish.model=owner/name (and publish.rankings=owner/name, publish.reward=owner/name)",
        )
    is_private = publish.private if private is None else private
    planned = []
    if publish.rankings is not None:
        planned.append(_rankings_upload(run, publish.rankings, is_private))
    if publish.reward is not None:
        planned.append(_reward_upload(run, publish.reward, is_private, progress))
    if publish.model is not None:
        _check_evidence(run)
        files, left_out = _adapter(run, progress) if publish.adapter else _merged(run, progress)
        planned.append(_model_upload(run, publish.model, is_private, files, left_out))
    return planned


def export_rankings(
    run: RunSummary,
    folder: Path,
    only: Literal["human", "simulated"] | None = None,
    criterion: str | None = None,
) -> Any:
    """Writes the run's rankings, or with several criteria those by one of them, as a data set for the Hub; returns
    the summary of `data.tables.export`."""
    from data.tables import export

    recipe = run.loaded.recipe
    check_option(recipe.data.criteria, criterion, recipe.name)
    return export.export_rankings(
        _rankings(run, criterion),
        folder,
        name=f"Rankings of {recipe.name}" + (f" by {criterion}" if criterion else ""),
        key=export.key_file(run.folder / "annotators.key"),
        license=recipe.publish.rankings_license,
        license_name=recipe.publish.rankings_license_name,
        license_link=recipe.publish.rankings_license_link,
        only=only,
        seed=recipe.seed,
    )


def export_reward_model(
    run: RunSummary, folder: Path, repository: str, device: str, criterion: str | None = None, **options: Any
) -> Any:
    """Writes the recipe's newest reward model as a sequence classifier, with its card; returns
    `stages.export.reward.Exported`.

    Args:
        criterion: whose reward model it is, where the rankings have several criteria; None:
            `publish.reward_criterion`.
        repository: the name in the card.
        options: values of `stages.export.reward.Options` instead of those of the recipe.
    """
    from stages.export.reward import Options, export_reward
    from stages.publish.reward_card import reward_card

    recipe = run.loaded.recipe
    criterion = criterion or recipe.publish.reward_criterion
    check_option(recipe.data.criteria, criterion, recipe.name)
    reward = of_criterion(run.need("reward").artifact, criterion, OPTION)
    values = {
        "dtype": recipe.export.dtype,
        "member": recipe.publish.reward_member,
        "merge_quantized": recipe.export.merge_quantized,
    } | options
    chosen = Options(**values, system=recipe.data.system, max_length=recipe.reward.max_length)
    exported = export_reward(run.need("base").artifact, reward, folder, device, chosen)
    (folder / CARD).write_text(reward_card(run, reward, repository, exported, criterion), encoding="utf-8")
    return exported


def _rankings(run: RunSummary, criterion: str | None = None) -> list[Path]:
    """The rankings files of every round. Raises `StageError` if the last round's are not finished."""
    run.need("rank")
    ranked = [stage_run.artifact for stage_run in by_round(run.stages, "rank").values()]
    return [rankings_file(of_criterion(artifact, criterion, OPTION)) for artifact in ranked]


def _rankings_upload(run: RunSummary, repository: str, private: bool) -> Upload:
    findings: list[scan.Finding] = []
    for path in _rankings(run):  # scanned here, because Parquet files are not text
        with path.open(encoding="utf-8") as lines:
            findings += scan.in_lines(path.name, lines, quoted=True)
    scan.refuse(findings)
    folder = run.folder / "rankings"
    export_rankings(run, folder)
    text = (folder / CARD).read_text(encoding="utf-8").replace("owner/name", repository)
    scan.refuse(list(scan.in_lines(CARD, text.splitlines())))
    files: dict[str, Content] = {name: path for name, path in files_below(folder).items() if name != CARD}
    return Upload(repository, "dataset", private, files, text)


def _reward_upload(run: RunSummary, repository: str, private: bool, progress: Opener) -> Upload:
    """The reward model as a sequence classifier. It needs the stages up to `reward` only."""
    from stages.scoring import exported

    for name in ("base", "rank", "reward"):
        _verify(run, run.need(name), progress)
    folder = run.folder / "reward-model"
    with progress("export the reward model"):
        export_reward_model(run, folder, repository, resolve(run.loaded))
    files, left_out = _listed(files_below(folder), (*MODEL_FILES, exported.FILE))
    text = (folder / CARD).read_text(encoding="utf-8")
    return _scanned(Upload(repository, "model", private, files, text, tuple(left_out)))


def _check_evidence(run: RunSummary) -> None:
    """Raises `StageError` unless every stage is finished and the published model is the evaluated one."""
    recipe = run.loaded.recipe
    for name in registry.steps(recipe):
        if not (name == "export" and recipe.publish.adapter):
            run.need(name)
    evaluated = newest(run.need("eval").manifest.inputs, "ppo").fingerprint
    if recipe.publish.adapter:
        published, where = run.need("ppo").manifest.fingerprint, run.need("ppo").folder
    else:
        published = newest(run.need("export").manifest.inputs, "ppo").fingerprint
        where = run.need("export").folder
    if published != evaluated:
        raise StageError(
            "the exported model is not the one that was evaluated",
            where=str(where),
            hint=f"run `{invocation.command('run')}`",
        )


def _merged(run: RunSummary, progress: Opener) -> tuple[dict[str, Content], list[str]]:
    """The export artifact: the merged model, its tokenizer, and quantised files."""
    export = run.need("export")
    _verify(run, export, progress)
    paths = {name: export.artifact.path / name for name in export.manifest.files}
    files, left_out = _listed(paths, MODEL_FILES)
    if "config.json" not in files:
        raise StageError(
            "the export has no merged model, so the code in the card would not work",
            where=str(export.artifact.path),
            hint="set publish.adapter=true, or export a merged model",
        )
    return files, left_out


def _adapter(run: RunSummary, progress: Opener) -> tuple[dict[str, Content], list[str]]:
    """The policy's LoRA adapter, with the name of its base, and the tokenizer."""
    policy = run.need("ppo")
    model, revision = source_of(run.loaded.recipe.base)
    if model is None or not is_hub_id(model):
        raise RecipeError(
            "an adapter needs a base that others can load, and this recipe's base is not on the Hub",
            where=run.loaded.place("publish.adapter"),
            hint="publish the merged model (publish.adapter=false), or train on a base from the Hub",
        )
    if "adapter/adapter_config.json" not in policy.manifest.files:
        raise RecipeError(
            "the policy is a whole model and has no adapter",
            where=run.loaded.place("publish.adapter"),
            hint="set publish.adapter=false",
        )
    for stage_run in (policy, run.need("base")):
        _verify(run, stage_run, progress)
    files, _ = _listed({name: policy.artifact.path / "adapter" / name for name in ADAPTER_FILES}, ADAPTER_FILES)
    config = json.loads(policy.artifact.file("adapter/adapter_config.json").read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": model, "revision": revision}
    files["adapter_config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    tokenizer, left_out = _listed(files_below(run.need("base").artifact.file("tokenizer")), MODEL_FILES)
    return {**files, **tokenizer}, left_out


def _listed(paths: Mapping[str, Path], patterns: tuple[str, ...]) -> tuple[dict[str, Content], list[str]]:
    files: dict[str, Content] = {}
    left_out = []
    for name, path in paths.items():
        if any(fnmatch(Path(name).name, pattern) for pattern in patterns):
            files[name] = path
        elif name != CARD:
            left_out.append(name)
    return files, left_out


def _verify(run: RunSummary, stage_run: StageRun, progress: Opener) -> None:
    """Compares every byte with the manifest. Raises `StageError` if a file has changed since the stage finished."""
    stage = stage_run.manifest.stage
    hint = f"run the stage again: `{invocation.command('run', stage, '--fresh')}`"
    with progress(f"check {stage}"):
        manifest.verify(stage_run.folder, stage_run.manifest, hint, contents=True)


def _model_upload(
    run: RunSummary, repository: str, private: bool, files: dict[str, Content], left_out: list[str]
) -> Upload:
    drawn = curves.training(run)
    if drawn is not None:
        files = {**files, CURVES: drawn}
    text = card.model_card(run, repository, sorted(files), curves=CURVES if drawn is not None else None)
    return _scanned(Upload(repository, "model", private, files, text, tuple(left_out)))


def _scanned(upload: Upload) -> Upload:
    """The upload, if its files and its card hold no secret and no path of this machine. Raises `StageError`."""
    findings: list[scan.Finding] = []
    for name, content in upload.contents.items():
        if isinstance(content, Path):
            findings += scan.in_file(name, content)
        elif name != CURVES:
            findings += scan.in_lines(name, content.decode().splitlines())
    scan.refuse(findings)
    return upload
