from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from pipeline_fakes import FakeStages
from repository import ROOT
from typer.testing import CliRunner, Result

from pipeline.errors import DataError
from stages.__main__ import app


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The stages of each report that was asked for."""
    made: list[list[str]] = []

    def build_report(run: Any, path: Path, *compared: Any) -> str:
        made.append(list(run.stages))
        path.write_text('<html lang="en">')
        return "PPO halved the errors."

    module = types.ModuleType("stages.report.build")
    module.build_report = build_report  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stages.report.build", module)
    monkeypatch.setitem(sys.modules, "stages.report", types.ModuleType("stages.report"))
    return made


def invoke(command: str, **options: Any) -> Result:
    words = shlex.split(command)
    return CliRunner().invoke(app, [*words[:1], "-r", "small.yaml", *words[1:]], **options)


def test_run_ends_in_the_report_and_a_second_run_in_nothing(
    recipe_file: Path, stages: FakeStages, reports: list[list[str]]
) -> None:
    first = invoke("run")
    assert first.exit_code == 0, first.output
    assert "PPO halved the errors." in first.output
    assert "report: runs/small/report.html" in first.output
    second = invoke("run")
    assert "nothing to do" in second.output
    assert second.output.count("up to date (key") == len(stages.calls) == 9
    assert "report: runs/small/report.html" in second.output
    assert len(reports) == 1


def test_the_report_follows_the_values(recipe_file: Path, stages: FakeStages, reports: list[list[str]]) -> None:
    invoke("run")
    invoke("run -s ppo.kl.target=8")
    calls = len(stages.calls)
    invoke("run")  # nothing to run, but the report is still the other values'
    assert len(stages.calls) == calls
    assert len(reports) == 3


def test_run_a_stage_makes_no_report(recipe_file: Path, stages: FakeStages, reports: list[list[str]]) -> None:
    assert invoke("run sft").exit_code == 0
    assert stages.calls == ["base", "data", "sft"]
    assert reports == []
    assert invoke("report").exit_code == 0
    assert reports == [["base", "data", "sft"]]


def test_one_more_round_than_is_finished(recipe_file: Path, stages: FakeStages, reports: list[list[str]]) -> None:
    first = invoke("round")
    assert first.exit_code == 0, first.output
    assert "0 rounds are finished; now rounds=1" in first.output
    assert len(stages.calls) == 9
    assert "to keep this round" not in first.output
    for rounds in (2, 3):
        stages.calls.clear()
        more = invoke("round")
        assert f"now rounds={rounds}" in more.output
        assert f"set rounds={rounds} in the recipe" in more.output
        assert stages.calls == ["collect", "rank", "reward", "ppo", "eval", "export"]
        assert reports[-1][-3:] == [f"ppo-{rounds}", "eval", "export"]
    stages.calls.clear()
    assert invoke("round -s rounds=5").exit_code == 0
    assert stages.calls == ["collect", "rank", "reward", "ppo", "eval", "export"], "one round, whatever the recipe"


def test_plan_gives_reasons(recipe_file: Path, stages: FakeStages, reports: list[list[str]]) -> None:
    invoke("run")
    output = invoke('plan --set "ppo.kl.target=8"').output
    table, memory = output.split("\n\n", 1)
    assert memory.startswith("memory on cpu")
    rows = [line.split(maxsplit=2) for line in table.splitlines()[1:]]
    assert {row[0]: row[1] for row in rows} == {
        **dict.fromkeys(("base", "data", "sft", "collect", "rank", "reward"), "skip"),
        "ppo": "run",
        "eval": "run",
        "export": "run",
    }
    assert rows[6][2].strip() == "changed: ppo.kl.target 6.0 -> 8.0"


def test_show_prints_every_value_with_its_origin(recipe_file: Path) -> None:
    lines = invoke("show -s seed=3").output.splitlines()
    shown = dict(line.split("#", 1) for line in lines)
    shown = {key.strip(): where.strip() for key, where in shown.items()}
    assert shown["seed: 3"] == "--set #1"
    assert shown["ppo.kl.target: 6.0"] == "small.yaml:7"
    assert shown["ppo.gamma: 1.0"] == "default"


def test_status_tells_finished_stale_incomplete_and_missing(recipe_file: Path, stages: FakeStages) -> None:
    def stop(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        (ctx.state_dir / "checkpoint").write_text("")
        raise KeyboardInterrupt

    stages.does["collect"] = stop
    assert invoke("run").exit_code == 130
    rows = {line.split()[0]: line.split()[1] for line in invoke("status").output.splitlines()[1:10]}
    assert rows["sft"] == "finished"
    assert rows["collect"] == "incomplete"
    assert rows["ppo"] == "missing"
    output = invoke("status -s sft.max_length=99").output
    assert "sft is stale: changed: sft.max_length 256 -> 99" in output


def test_check_reads_artifacts_on_request(recipe_file: Path, stages: FakeStages) -> None:
    invoke("run data")
    [file] = Path("runs/small/data").glob("*/out/given.json")
    text = file.read_text()
    file.write_text(text.replace("0.25", "0.75"))
    assert invoke("check").exit_code == 0
    result = invoke("check --artifacts")
    assert result.exit_code == 4
    assert "contents of given.json" in result.stderr


TABLES = """\
name: small
device: cpu
base: {pretrain: {corpus: {task: venues, size: 10}}}
data:
  demonstrations: {path: demos.jsonl}
  prompts: {path: hub://owner/name@123}
  rankings:
    path: votes.csv
    format: wide
    columns:
      prompt: question
      completions: [reply_1, reply_2]
      ranks: [pos_1, pos_2]
rank: {source: data}
"""


@pytest.fixture
def tables(recipe_file: Path, stages: FakeStages) -> None:
    recipe_file.write_text(TABLES)
    Path("demos.jsonl").write_text(json.dumps({"prompt": "p", "completion": "c"}) + "\n")
    Path("votes.csv").write_text("question,reply_1,reply_2,pos_1,pos_2,rater\nq,x,y,1,2,ana\nr,x,y,2,1,ben\n")


def test_check_describes_the_tables(tables: None) -> None:
    result = invoke("check")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "data.demonstrations: demos.jsonl, all 1 row: 1 demonstration of 1 prompt",
        "data.prompts: hub://owner/name@123 was not opened, since it is not a local file",
        "data.rankings: votes.csv, all 2 rows: 2 rankings of 2 prompts, by unknown (2)",
        "data.rankings: 2 rankings of 2 prompts, by annotators who are not named; answers per ranking: 2 (2)",
        "data.rankings: 0.0 % of 2 pairs are tied",
        "data.rankings: no two annotators ordered the same answers: their agreement is not known",
        "data.rankings: the answer listed first is better in 50.0 % of 2 strict pairs",
        "data.rankings: column 'rater' is not used. If it names who ranked, set data.rankings.columns: {annotator: "
        "rater}",
        "small.yaml is valid: 8 stages",
    ]


def test_check_lists_the_problems_of_all_tables(tables: None) -> None:
    Path("demos.jsonl").write_text(json.dumps({"instruction": "p", "output": "c"}) + "\n")
    result = invoke("check -s data.rankings.columns.annotator=worker -s eval.text.path=gone.csv")
    assert result.exit_code == 2
    assert "5 problems" not in result.stderr
    assert "4 problems in small.yaml and its tables" in result.stderr
    for words in (
        "data.demonstrations: the table has no column 'prompt'; 'instruction' is probably the prompt\n"
        "    where: small.yaml:5\n"
        "    hint:  set data.demonstrations.columns: {prompt: instruction, completion: output}",
        "data.rankings.columns.annotator: the table has no column 'worker'; did you mean 'rater'?\n"
        "    where: --set #1\n"
        "    hint:  set data.rankings.columns: {annotator: rater}",
        "eval.text.path: there is no file or folder gone.csv\n    where: --set #2",
    ):
        assert words in result.stderr
    assert "is valid" not in result.output


def test_check_exits_with_the_code_of_what_is_wrong(tables: None) -> None:
    Path("votes.csv").write_text("question,reply_1,reply_2,pos_1,pos_2\nq,x,y,first,2\nr,x,y,2,1\n")
    result = invoke("check")
    assert result.exit_code == 3
    assert "column 'pos_1' must be a number, got 'first'\n  where: votes.csv:2" in result.stderr
    assert invoke("check -s data.rankings.columns.prompt=frage").exit_code == 2


def test_clean_never_removes_what_people_made(recipe_file: Path, stages: FakeStages) -> None:
    invoke("run rank")
    folder = Path("runs/small")
    for name in ("rankings.sqlite", "rankings.sqlite-wal", "rankings.key", "judged-0123456789ab.json"):
        (folder / name).write_text("dear")
    cleaned = invoke("clean --all -y")
    assert cleaned.exit_code == 0
    assert (
        "kept, because people made it: runs/small/judged-0123456789ab.json, runs/small/rankings.key"
        in cleaned.output
    )
    assert not (folder / "rank").exists()
    invoke("run rank --fresh")
    for name in ("rankings.sqlite", "rankings.sqlite-wal", "rankings.key", "judged-0123456789ab.json"):
        assert (folder / name).read_text() == "dear"


def test_clean_keeps_what_the_values_use(recipe_file: Path, stages: FakeStages) -> None:
    invoke("run data")
    invoke("run data -s seed=1")
    assert len(list(Path("runs/small/data").iterdir())) == 2
    declined = invoke("clean", input="n\n")
    assert "runs/small/data/" in declined.output
    assert len(list(Path("runs/small/data").iterdir())) == 2
    assert invoke("clean --yes").exit_code == 0
    [kept] = Path("runs/small/data").iterdir()
    assert json.loads((kept / "manifest.json").read_text())["seed"] == 0
    assert "nothing to remove" in invoke("clean").output
    invoke("clean --all -y")
    assert not Path("runs/small").exists()


def test_chat_gets_the_run(recipe_file: Path, stages: FakeStages, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        "stages.chat.chat", lambda run, models, **options: calls.append((list(run.stages), models, options))
    )
    invoke("run sft")
    result = invoke("chat base sft --temperature 0")
    assert result.exit_code == 0, result.output
    [(names, models, options)] = calls
    assert names == ["base", "data", "sft"]
    assert models == ["base", "sft"]
    assert options == {"device": "cpu", "temperature": 0.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 128}


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("plan -s ppo.kl.tagret=8", 2, "ppo.kl.tagret: unknown key; did you mean target?"),
        ("plan -s seed=x", 2, "seed: must be a whole number"),
        ("plan -s eval.judge=gone.yaml", 2, "there is no file or folder gone.yaml"),
        ("plan pppo", 2, "there is no stage or shipped recipe called pppo"),
        ("run quickstrat", 2, "did you mean quickstart?"),
        ("plan -s ppo.guards.judge=none", 2, "ppo.guards: unknown key; it is now called monitor"),
        ("plan ppo-2", 2, "there is no stage called ppo-2"),
        ("plan quickstart", 2, "quickstart and --recipe small.yaml both name a recipe"),
        ("show -r gone.yaml", 2, "cannot read the recipe gone.yaml"),
        ("publish", 2, "does not say where to publish"),
    ],
)
def test_mistakes_are_one_message_and_an_exit_code(
    recipe_file: Path, stages: FakeStages, command: str, code: int, message: str
) -> None:
    result = invoke(command)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.output + result.stderr


def test_a_name_like_no_other_lists_stages_and_recipes(recipe_file: Path) -> None:
    result = CliRunner().invoke(app, ["run", "xyzzy"])
    assert result.exit_code == 2
    assert "stages are base, data, sft, collect" in result.stderr
    assert "recipes are e2e-human-criteria, e2e-human, hh-rlhf/*, oasst1/*" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "finished", "name"),
    [
        ("run quickstart", 9, "quickstart"),
        ("run --recipe quickstart", 9, "quickstart"),
        ("run small.yaml", 9, "small"),
        ("run sft --recipe quickstart", 3, "quickstart"),
        ("run sft", 3, "quickstart"),
        ("run", 9, "quickstart"),
    ],
)
def test_the_argument_of_run_is_a_stage_or_a_recipe(
    arguments: str, finished: int, name: str, recipe_file: Path, stages: FakeStages, reports: list[list[str]]
) -> None:
    result = CliRunner().invoke(app, shlex.split(arguments))
    assert result.exit_code == 0, result.output
    assert len(stages.calls) == finished
    assert len(list(Path("runs", name).glob("*/*/manifest.json"))) == finished


def test_a_message_is_not_taken_for_markup(recipe_file: Path, stages: FakeStages) -> None:
    def bad(*_: Any) -> dict[str, Any]:
        raise DataError("row [3] has [red] in it")

    stages.does["base"] = bad
    result = invoke("run base")
    assert result.exit_code == 3
    assert "row [3] has [red] in it" in result.stderr


def test_an_interruption_is_one_line_and_130(recipe_file: Path, stages: FakeStages) -> None:
    def stop(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    stages.does["base"] = stop
    result = invoke("run base")
    assert result.exit_code == 130
    assert "interrupted during base" in result.stderr


def test_a_bug_keeps_its_traceback(recipe_file: Path, stages: FakeStages) -> None:
    def bug(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError("bug")

    stages.does["base"] = bug
    assert isinstance(invoke("run base").exception, ZeroDivisionError)


def test_the_runs_folder_comes_from_the_environment(recipe_file: Path, stages: FakeStages) -> None:
    assert invoke("run data", env={"TUTELAGE_RUNS": "elsewhere"}).exit_code == 0
    assert Path("elsewhere/small/data").is_dir()
    assert not Path("runs").exists()


def test_the_module_runs_as_a_command(recipe_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "stages", "plan", "-r", "small.yaml", "-s", "ppo.lamm=1"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "ppo.lamm: unknown key; did you mean lam?"


def test_make_help_lists_every_command_in_order_of_use_and_then_the_developers_targets() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(len(line) <= 80 for line in listed.splitlines())
    users, developers = (
        [line.split()[0] for line in block.splitlines() if line.startswith("  ") and line[2] != " "]
        for block in listed.split("Developing Tutelage:")
    )
    assert {command.name or command.callback.__name__ for command in app.registered_commands} <= set(users)
    order = ["check", "plan", "run", "STAGE", "round", "report", "chat", "serve", "judge", "compare", "annotate"]
    order += ["export-rankings", "score", "evaluate-reward", "export-reward", "publish", "clean"]
    assert [name for name in users if name in order] == order
    assert {"test", "slow", "lint", "types", "docs"} <= set(developers)


def test_make_passes_recipe_and_values_untouched(tmp_path: Path) -> None:
    said = subprocess.run(
        [
            *shlex.split("make --no-print-directory -o .venv/.installed ppo RECIPE=recipes/x.yaml"),
            "SET=a.b=c d='e f'",
            "TUTELAGE=printf '%s\\n'",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.splitlines() == [
        "run",
        "ppo",
        "--recipe",
        "recipes/x.yaml",
        "--set",
        "a.b=c d='e f'",
    ]


def test_export_rankings(recipe_file: Path, stages: FakeStages) -> None:
    def rank(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        prompt = [{"role": "user", "content": "p"}]
        rows = [
            {"prompt": prompt, "completions": ["x", "y"], "ranks": [1, 2], "annotator": name, "human": human}
            for name, human in (("Ada Byron", True), ("bot", False))
        ]
        (out_dir / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {}

    stages.does["rank"] = rank
    early = invoke("export-rankings made")
    assert early.exit_code == 4
    assert "rank is not finished" in early.stderr
    invoke("run rank")
    done = invoke("export-rankings made -s publish.rankings_license=cc0-1.0")
    assert done.exit_code == 0, done.output
    assert "made: 2 train, 2 files" in done.output
    assert "license: cc0-1.0" in Path("made/README.md").read_text()
    assert b"Byron" not in Path("made/data/train-00000-of-00001.parquet").read_bytes()
    assert b"bot" in Path("made/data/train-00000-of-00001.parquet").read_bytes()
    assert "made: 1 train" in invoke("export-rankings made --only human").output
    assert len(stages.calls) == 5  # a licence makes nothing again
    Path("other").mkdir()
    Path("other/file").touch()
    assert invoke("export-rankings other").exit_code == 3


@pytest.mark.parametrize(
    ("command", "needs", "example"),
    [
        ("judge", "judge needs the people who compare the answers", "judge --annotators ana,ben"),
        ("export-rankings", "export-rankings needs a folder to write", "export-rankings my-rankings"),
        ("export-reward", "export-reward needs a folder to write", "export-reward my-reward-model"),
    ],
)
def test_what_is_missing_is_said_with_an_example(
    recipe_file: Path, stages: FakeStages, command: str, needs: str, example: str
) -> None:
    result = invoke(f"{command} -s rank.app.annotators=[]")
    assert result.exit_code == 2
    assert result.stderr.startswith(needs)
    assert result.stderr.count("hint:") == 1
    assert f"`tutelage {example}" in result.stderr
    assert "Usage" not in result.output + result.stderr


@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        ("", "a file of answers, --annotators and --out"),
        ("answers.jsonl", "--annotators and --out"),
        ("answers.jsonl --out r.jsonl", "--annotators"),
    ],
)
def test_annotate_says_what_it_needs(arguments: str, needs: str) -> None:
    result = CliRunner().invoke(app, ["annotate", *shlex.split(arguments)])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == f"annotate needs {needs}"
    assert "tutelage annotate answers.jsonl --annotators ana,ben --out rankings.jsonl" in result.stderr


def test_versions_are_printed_without_importing_the_packages() -> None:
    code = (
        "import sys\nfrom stages.__main__ import app\n"
        "try:\n    app(['--version'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    versions = dict(line.split() for line in done.stdout.splitlines())
    assert list(versions)[:5] == ["tutelage", "python", "torch", "trl", "transformers"]


def test_no_type_is_shown_beside_flags() -> None:
    for command in ([], ["run"], ["publish"], ["annotate"]):
        shown = CliRunner().invoke(app, [*command, "--help"]).output
        assert "<bool>" not in shown
        assert "--help" in shown
    assert "<path>" in shown


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tutelage pl", {"plan"}),
        ("tutelage run pp", {"ppo"}),
        ("tutelage plan quickstart-", {"quickstart-nf4", "quickstart-overoptimised", "quickstart-qat"}),
        ("tutelage plan sm", {"small.yaml", "smollm2-135m"}),
        ("tutelage status --recipe sm", {"small.yaml", "smollm2-135m"}),
    ],
)
def test_a_shell_completes_commands_stages_and_recipes(recipe_file: Path, line: str, expected: set[str]) -> None:
    words = line.split()
    completion = {"_TUTELAGE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner().invoke(app, [], prog_name="tutelage", env=completion)
    offered = set(result.output.split())
    assert expected <= offered
    assert all(name.startswith(words[-1]) for name in offered)


def test_clean_removes_a_report_of_removed_runs(recipe_file: Path, stages: FakeStages) -> None:
    invoke("run data")
    folder = Path("runs/small")

    def report() -> None:
        [run] = Path("runs/small/data").iterdir()
        entries = [{"name": "data", "key": run.name + "f" * 52}, {"name": "ppo", "key": None}]
        (folder / "report.json").write_text(json.dumps({"stages": entries}))
        (folder / "report.html").write_text("PPO helped.")
        (folder / "rankings.key").write_text("by people")

    report()
    invoke("run data -s seed=1")
    assert "removed" not in invoke("clean -y").output, "the report describes a run that is kept"
    assert (folder / "report.html").exists()
    output = invoke("clean -y -s seed=1").output
    assert "removed runs/small/report.html, which described runs that are gone" in output
    assert not (folder / "report.html").exists()
    assert not (folder / "report.json").exists()
    invoke("run data")
    invoke("clean -y")
    report()
    assert "removed runs/small/report.html" in invoke("clean --all -y").output
    assert sorted(path.name for path in folder.iterdir()) == ["current.json", "rankings.key"]
