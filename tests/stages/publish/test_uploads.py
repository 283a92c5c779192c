"""What is published of a run, and what stays here."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_run import RANKING
from hub_run import MODEL, write_model
from pipeline_fakes import FakeStages, write_rankings

from pipeline.engine.plan import RunSummary
from pipeline.engine.runner import Runner
from pipeline.engine.stage import Silent
from pipeline.errors import RecipeError, StageError
from stages.publish import uploads
from stages.publish.uploads import CURVES, Upload

Finished = Callable[..., RunSummary]
SHAPE = (
    "base.architecture={vocab_size: 100, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, num_key_value_heads: 2}"
)
"""Of a model on the Hub; with it nothing is fetched."""


def planned(run: RunSummary, private: bool | None = None) -> list[Upload]:
    return uploads.uploads(run, Silent.progress, private)


def header(upload: Upload) -> dict[str, Any]:
    return dict(yaml.safe_load(upload.card.split("---\n")[1]))


def test_the_card_distinguishes_simulated_from_human_rankings(finished: Finished) -> None:
    [upload] = planned(finished(MODEL))
    assert upload.private
    assert sorted(upload.files) == ["config.json", "model.safetensors", CURVES]
    assert "simulated-annotators" in header(upload)["tags"]
    assert "simulated annotators, not by people" in upload.card
    assert "**PPO helped.**" in upload.card
    assert "| Fact errors, of given facts | " in upload.card
    assert 'from_pretrained("me/model")' in upload.card
    assert "target: 6.0" in upload.card
    shown = upload.describe()
    assert "private model me/model" in shown
    assert "2 kB  model.safetensors" in shown
    assert "in 4 files" in shown


def test_the_cards_example_is_a_short_prompt_of_the_run(finished: Finished, stages: FakeStages) -> None:
    rows = [
        {"split": "train", "prompt": [{"role": "user", "content": "seen"}]},
        {"split": "eval", "prompt": [{"role": "user", "content": "long " * 100}]},
        {"split": "eval", "prompt": [{"role": "user", "content": 'Describe the "Ünicorn".'}]},
        {"split": "eval", "prompt": [{"role": "user", "content": "Describe the Blue Fox, which is a pub."}]},
    ]

    def data(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        (out_dir / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"demonstrations": 1}

    [upload] = planned(finished(MODEL))
    assert '"What makes a good answer?"' in upload.card, "there are no prompts"
    stages.does["data"] = data
    [upload] = planned(finished(MODEL, "seed=1"))
    [line] = [line for line in upload.card.splitlines() if line.startswith("chat = ")]
    assert ast.literal_eval(line.removeprefix("chat = ")) == rows[2]["prompt"]


def test_the_card_counts_people_only_where_people_ranked(finished: Finished) -> None:
    [upload] = planned(finished(MODEL))
    assert "0 people" not in upload.card
    [upload] = planned(finished(MODEL, "rank.app.annotators=[ana] rank.app.overlap=1"))
    assert "1 person" in upload.card
    assert "ana" not in re.findall(r"\w+", upload.card)


def test_the_metadata_has_what_the_hub_asks_for(finished: Finished) -> None:
    given = header(planned(finished(MODEL, "publish.license=apache-2.0"))[0])
    assert given["license"] == "apache-2.0"
    assert (given["library_name"], given["pipeline_tag"]) == ("transformers", "text-generation")
    assert "base_model" not in given  # pretrained here
    [entry] = given["model-index"]
    assert entry["name"] == "model"
    [result] = entry["results"]
    assert result["dataset"]["type"] == "tutelage/venues"
    win_rate, reduction = result["metrics"]
    assert (win_rate["type"], win_rate["value"]) == ("win_rate", 0.71)
    assert "95 % interval 0.66 to 0.76" in win_rate["name"]
    assert (reduction["type"], reduction["value"]) == ("reduction", -0.55)


def test_a_licence_that_is_not_on_the_hub_s_list_has_a_name_and_a_link(finished: Finished) -> None:
    terms = ["license=other", "license_name=mine", "license_link=https://example.org/mine"]
    rankings = "rank.source=data data.rankings={path: hub://you/ranked@def, format: native}"
    sets = [f"publish.{value}" for value in terms] + [f"publish.rankings_{value}" for value in terms]
    uploads = planned(finished(MODEL, rankings, "publish.rankings=me/rankings", *sets))
    names = ("license", "license_name", "license_link")
    model = next(upload for upload in uploads if upload.kind == "model")
    assert [header(model)[name] for name in names] == ["other", "mine", "https://example.org/mine"]


def test_base_and_data_sets_of_the_hub_are_named(finished: Finished) -> None:
    sets = f"base.model=me/base base.revision=abc {SHAPE} data.demonstrations.path=hub://you/chat/part@abc"
    rankings = "rank.source=data data.rankings={path: hub://you/ranked@def, format: native}"
    [_, upload] = planned(finished(MODEL, sets, rankings, "publish.rankings=me/rankings"))
    assert header(upload)["base_model"] == "me/base"
    assert header(upload)["base_model_relation"] == "finetune"
    assert header(upload)["datasets"] == ["me/rankings", "you/chat", "you/ranked"]
    assert "commit `abc`" in upload.card


def test_an_adapter_names_its_base_and_brings_the_tokenizer(finished: Finished) -> None:
    sets = f"base.model=me/base base.revision=abc {SHAPE} data.demonstrations.path=hub://you/chat@abc"
    data = "rank.source=data data.rankings={path: hub://you/ranked@def, format: native}"
    [upload] = planned(finished(MODEL, sets, data, "publish.adapter=true"))
    assert sorted(upload.files) == [
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json", CURVES,
    ]  # fmt: skip
    config = upload.files["adapter_config.json"]
    assert isinstance(config, bytes)
    assert json.loads(config) == {"base_model_name_or_path": "me/base", "r": 2, "revision": "abc"}
    assert header(upload)["library_name"] == "peft"
    assert "AutoPeftModelForCausalLM" in upload.card


def test_an_adapter_without_a_base_for_others_is_refused(finished: Finished) -> None:
    with pytest.raises(RecipeError, match="is not on the Hub"):
        planned(finished(MODEL, "publish.adapter=true"))


def test_human_rankings_are_called_human_only_when_recorded(finished: Finished, stages: FakeStages) -> None:
    stages.does["rank"] = lambda *given: write_rankings(*given) | RANKING | {"human": True}
    assert "made by people" in planned(finished(MODEL))[0].card
    stages.does["rank"] = write_model
    assert "not recorded whether people" in planned(finished(MODEL + " seed=1"))[0].card


def test_made_pairs_are_not_called_rankings_of_people(finished: Finished, stages: FakeStages) -> None:
    write_reward = stages.does["reward"]

    def reward(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        metrics = write_reward(config, inputs, out_dir, ctx) | {"hard_negatives": 1}
        quality = json.loads((out_dir / "quality.json").read_text())
        (out_dir / "quality.json").write_text(json.dumps(quality | {"metrics": metrics}))
        return dict(metrics)

    stages.does["reward"] = reward
    stages.does["rank"] = lambda *given: write_rankings(*given) | RANKING | {"human": True}
    card = planned(finished(MODEL))[0].card
    assert (
        "The rankings were made by people. The reward model also learned from 1 pair that was made, not ranked by"
        in card
    )


def test_rankings_are_a_data_set_of_their_own(finished: Finished) -> None:
    rankings, model = planned(finished(MODEL, "publish.rankings=me/rankings"), private=False)
    assert (rankings.kind, model.kind) == ("dataset", "model")
    assert not rankings.private
    assert list(rankings.files) == ["data/train-00000-of-00001.parquet"]
    assert "simulated annotators, not by people" in rankings.card
    assert 'load_dataset("me/rankings")' in rankings.card
    assert "https://huggingface.co/datasets/me/rankings" in model.card


def test_a_card_counts_annotators_and_does_not_name_them(finished: Finished) -> None:
    [upload] = planned(finished(MODEL, "rank.app.annotators=[janedoe,johndoe]"))
    assert "2 people" in upload.card
    assert "doe" not in upload.card


def leaking(text: str) -> Callable[..., dict[str, Any]]:
    """A `rank` stage with this text for an answer."""

    def leak(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        write_rankings(config, inputs, out_dir, ctx)
        rows = (out_dir / "rankings.jsonl").read_text()
        (out_dir / "rankings.jsonl").write_text(rows + rows.replace('"x"', json.dumps(text)))
        return RANKING

    return leak


def test_a_token_in_a_ranking_stays_here(finished: Finished, stages: FakeStages) -> None:
    stages.does["rank"] = leaking("hf_" + "a" * 30)
    with pytest.raises(StageError, match="a Hugging Face token") as caught:
        planned(finished(MODEL, "publish.rankings=me/rankings"))
    assert caught.value.where.startswith("rankings.jsonl:2")


def test_answers_may_speak_of_home_folders(finished: Finished, stages: FakeStages) -> None:
    stages.does["rank"] = leaking("type `cd /home/user/src`")
    assert planned(finished("publish.rankings=me/rankings"))


def test_nothing_is_uploaded_without_a_destination_or_evidence(
    finished: Finished, runner: Callable[..., Runner]
) -> None:
    with pytest.raises(RecipeError, match="where to publish"):
        planned(finished())
    other = runner(MODEL, "seed=1")
    other.run("ppo")
    with pytest.raises(StageError, match="eval is not finished"):
        planned(other.planner.summary())


@pytest.mark.parametrize("stage", ["data", "reward", "export"])
def test_an_unfinished_manifest_is_no_evidence(
    finished: Finished, runner: Callable[..., Runner], stage: str
) -> None:
    (finished(MODEL).need(stage).folder / "manifest.json").unlink()
    with pytest.raises(StageError, match=f"{stage} is not finished"):
        planned(runner(MODEL).planner.summary())


def test_a_model_that_changed_after_its_stage_is_refused(finished: Finished) -> None:
    run = finished(MODEL)
    file = run.need("export").artifact.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(StageError, match=r"the contents of model\.safetensors"):
        planned(run)


def test_another_policy_than_the_evaluated_one_is_refused(finished: Finished) -> None:
    run = finished(MODEL)
    file = run.need("eval").folder / "manifest.json"
    made = json.loads(file.read_text())
    made["inputs"]["ppo"]["fingerprint"] = "0" * 64
    file.write_text(json.dumps(made))
    from pipeline.engine import manifest

    found = manifest.read(file.parent)
    assert found
    stages = {**run.stages, "eval": type(run.stages["eval"])(file.parent, found)}
    with pytest.raises(StageError, match="not the one that was evaluated"):
        planned(RunSummary(run.loaded, run.folder, stages))


def test_unlisted_files_are_not_uploaded(finished: Finished, stages: FakeStages) -> None:
    def export(*given: Any) -> dict[str, Any]:
        for name in ("optimizer.pt", "training_args.bin", "trainer_state.json", "state/checkpoint.pt", "notes.txt"):
            (given[2] / name).parent.mkdir(exist_ok=True)
            (given[2] / name).write_bytes(b"\0secret")
        (given[2] / "gguf").mkdir()
        (given[2] / "gguf/model-Q4_0.gguf").write_bytes(b"GGUF\0")
        (given[2] / "gguf/Modelfile").write_text("FROM ./model-Q4_0.gguf\n")
        return write_model(*given)

    stages.does["export"] = export
    run = finished(MODEL)
    (run.need("export").artifact.path / "later.safetensors").write_bytes(b"no manifest vouches for it")
    [upload] = planned(run)
    assert set(upload.files) == {
        "config.json",
        "model.safetensors",
        "gguf/model-Q4_0.gguf",
        "gguf/Modelfile",
        CURVES,
    }
    assert upload.left_out == (
        "notes.txt", "optimizer.pt", "state/checkpoint.pt", "trainer_state.json", "training_args.bin",
    )  # fmt: skip
    assert "not on the upload list: notes.txt, optimizer.pt" in upload.describe()
    assert "`gguf/model-Q4_0.gguf`" in upload.card


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hf_" + "a" * 34, "a Hugging Face token"),
        ("/home/jane/models/x", "a path of this machine"),
        ("{cwd}/models/x", "a path of this machine"),
    ],
)
def test_a_file_that_gives_something_away_is_refused(
    finished: Finished, stages: FakeStages, text: str, problem: str
) -> None:
    def leak(*given: Any) -> dict[str, Any]:
        (given[2] / "config.json").write_text("\n" + text.format(cwd=Path.cwd()))
        return {}

    stages.does["export"] = leak
    with pytest.raises(StageError, match=f"config.json holds {problem}: nothing was uploaded") as error:
        planned(finished(MODEL))
    assert error.value.where == f"config.json:2 ({problem})"


def test_an_export_without_a_merged_model_is_refused(finished: Finished, stages: FakeStages) -> None:
    def export(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        (out_dir / "adapter").mkdir()
        (out_dir / "adapter/adapter_model.safetensors").write_bytes(b"\0")
        return {}

    stages.does["export"] = export
    with pytest.raises(StageError, match="has no merged model"):
        planned(finished(MODEL))


def test_absolute_paths_of_the_recipe_stay_here(finished: Finished) -> None:
    judge = Path.cwd() / "judge.yaml"
    judge.write_text("")
    card = planned(finished(MODEL, f"eval.judge={judge}"))[0].card
    assert "judge: judge.yaml" in card


def test_the_progress_display_is_closed(finished: Finished) -> None:
    opened: list[str] = []
    uploads.uploads(finished(MODEL), lambda name: opened.append(name) or nullcontext())  # type: ignore[func-returns-value, arg-type]
    assert opened == ["check export"]
