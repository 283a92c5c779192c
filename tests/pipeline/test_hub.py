from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from pipeline_fakes import FakeStages, write_all, write_rankings

from pipeline import hub
from pipeline.errors import RecipeError, StageError
from pipeline.plan import RunSummary
from pipeline.runner import Runner

MODEL = "publish.model=me/model"


def write_model(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
    (out_dir / "model.safetensors").write_bytes(b"\x00" * 2048)
    (out_dir / "config.json").write_text("{}")
    return {}


@pytest.fixture
def finished(runner: Callable[..., Runner], stages: FakeStages) -> Callable[..., RunSummary]:
    stages.does["rank"] = write_rankings
    stages.does["eval"] = lambda *given: write_all(*given) | {"fact_error_ppo": 0.1234, "judge": "venues"}
    stages.does["export"] = write_model

    def make(*sets: str) -> RunSummary:
        made = runner(*sets)
        made.run()
        return made.planner.summary()

    return make


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of the Hub's API, which finds every repository private."""
    calls: list[Any] = []

    class Api:
        is_private = True

        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repository: str, **options: Any) -> None:
            calls.append(("create_repo", repository, options))

        def repo_info(self, repository: str, **options: Any) -> Any:
            return types.SimpleNamespace(private=self.is_private)

        def create_commit(self, repository: str, operations: Any, **options: Any) -> Any:
            calls.append(("create_commit", repository, [op.path_in_repo for op in operations]))
            return types.SimpleNamespace(commit_url=f"https://hub/{repository}/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return calls


def test_the_model_goes_out_with_a_card_that_tells_simulated_from_human(
    finished: Callable[..., RunSummary], api: list[Any]
) -> None:
    [upload] = hub.uploads(finished(MODEL))
    assert upload.private
    assert sorted(upload.files) == ["config.json", "model.safetensors"]
    _, header, text = upload.card.split("---\n", 2)
    assert "simulated-annotators" in yaml.safe_load(header)["tags"]
    assert "simulated annotators, not by people" in text
    assert "| fact_error_ppo | 0.1234 |" in text
    assert 'from_pretrained("me/model")' in text
    assert "target: 6.0" in text
    shown = upload.describe()
    assert "private model me/model" in shown
    assert "2 kB  model.safetensors" in shown
    assert api == []
    assert upload.send() == "https://hub/me/model/commit/1"
    assert api == [
        ("create_repo", "me/model", {"repo_type": "model", "private": True, "exist_ok": True}),
        ("create_commit", "me/model", ["config.json", "model.safetensors", "README.md"]),
    ]


def test_human_rankings_are_called_human_only_when_recorded(
    finished: Callable[..., RunSummary], stages: FakeStages
) -> None:
    stages.does["rank"] = lambda *given: write_all(*given) | {"human": True}
    assert "made by people" in hub.uploads(finished(MODEL))[0].card
    stages.does["rank"] = write_all
    assert "not recorded whether people" in hub.uploads(finished(MODEL + " seed=1"))[0].card


def test_rankings_are_a_data_set_of_their_own(finished: Callable[..., RunSummary]) -> None:
    model, rankings = hub.uploads(finished(MODEL, "publish.rankings=me/rankings"), private=False)
    assert (model.kind, rankings.kind) == ("model", "dataset")
    assert not rankings.private
    assert list(rankings.files) == ["data/train-00000-of-00001.parquet"]
    assert "simulated annotators, not by people" in rankings.card


def test_a_token_in_a_ranking_stays_here(finished: Callable[..., RunSummary], stages: FakeStages) -> None:
    def leak(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        made = write_rankings(config, inputs, out_dir, ctx)
        text = (out_dir / "rankings.jsonl").read_text().replace('"x"', f'"hf_{"a" * 30}"')
        (out_dir / "rankings.jsonl").write_text(text)
        return made

    stages.does["rank"] = leak
    with pytest.raises(StageError, match="an access token"):
        hub.uploads(finished(MODEL, "publish.rankings=me/rankings"))


def test_nothing_is_uploaded_without_a_destination_or_evidence(
    finished: Callable[..., RunSummary], runner: Callable[..., Runner], stages: FakeStages
) -> None:
    with pytest.raises(RecipeError, match="where to publish"):
        hub.uploads(finished())
    other = runner(MODEL, "seed=1")
    other.run("eval")
    with pytest.raises(StageError, match="export is not finished"):
        hub.uploads(other.planner.summary())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hf_" + "a" * 34, "an access token"),
        ("/home/jane/models/x", "a path of this machine"),
        ("{cwd}/models/x", "a path of this machine"),
    ],
)
def test_a_file_that_gives_something_away_is_refused(
    finished: Callable[..., RunSummary], stages: FakeStages, text: str, problem: str
) -> None:
    def leak(*given: Any) -> dict[str, Any]:
        (given[2] / "config.json").write_text("\n" + text.format(cwd=Path.cwd()))
        return {}

    stages.does["export"] = leak
    with pytest.raises(StageError, match=f"config.json holds {problem}") as error:
        hub.uploads(finished(MODEL))
    assert error.value.where == "config.json:2"


def test_absolute_paths_of_the_recipe_stay_here(finished: Callable[..., RunSummary]) -> None:
    judge = Path.cwd() / "judge.yaml"
    judge.write_text("")
    card = hub.uploads(finished(MODEL, f"eval.judge={judge}"))[0].card
    assert "judge: judge.yaml" in card


def test_a_public_repository_gets_no_private_upload(
    finished: Callable[..., RunSummary], api: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "is_private", False, raising=False)
    [upload] = hub.uploads(finished(MODEL))
    with pytest.raises(StageError, match="is public already"):
        upload.send()
    assert [call[0] for call in api] == ["create_repo"]
