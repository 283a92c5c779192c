"""Mistakes of users: each message names the true cause and the place, and the commands in it work when pasted.

No test here trains anything.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import recorded
from pipeline_fakes import FakeStages
from test_docs import parsed
from typer.testing import CliRunner, Result

from pipeline import invocation, network
from stages.__main__ import app

VOTES = "question,reply_1,reply_2,pos_1,pos_2,rater\n" + "".join(
    f"Where is room {room}?,Floor {room % 7}.,Room {room} is on floor {room % 7}.,2,1,ana\n" for room in range(20)
)
RECIPE = """\
name: mine
device: cpu
base: {pretrain: {corpus: {task: venues, size: 40}}}
data:
  demonstrations: {path: my/demonstrations.csv}
  rankings:
    path: my/votes.csv
    format: wide
    columns: {prompt: question, completions: [reply_1, reply_2], ranks: [pos_1, pos_2], annotator: rater}
ppo:
  kl: {target: 6}
"""
PEOPLE = "rank.source=app rank.app.annotators=[ana] rank.app.overlap=1"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe, its tables, a model's folder and files that are no recipes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my/model").mkdir(parents=True)
    (tmp_path / "my/model/config.json").write_text("{}")
    (tmp_path / "my/votes.csv").write_text(VOTES)
    (tmp_path / "my/demonstrations.csv").write_text("prompt,completion\nWhere?,There.\nWho?,Me.\n")
    (tmp_path / "my/lexicon.yaml").write_text("{}")
    (tmp_path / "my/template.jinja").write_text("{{ messages }}")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "typo.yaml").write_text(RECIPE.replace("ppo:\n", "ppo:\n  total_episode: 5\n"))
    (tmp_path / "votes.yaml").write_text(RECIPE.replace("my/votes.csv", "my/vote.csv"))
    (tmp_path / "base.yaml").write_text(
        RECIPE.replace("pretrain: {corpus: {task: venues, size: 40}}", "model: my/modle")
    )
    (tmp_path / "nothing.yaml").write_text("# to do\n")
    (tmp_path / "list.yaml").write_text("- name: mine\n")
    (tmp_path / "latin.yaml").write_bytes("name: mine\ndevice: cpü\n".encode("latin-1"))
    return tmp_path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(network, "hub_is_reachable", lambda: False)
    monkeypatch.setattr(network, "PAUSE", 0.0)
    return


def invoke(command: str) -> Result:
    result = CliRunner().invoke(app, shlex.split(command))
    assert not isinstance(result.exception, Exception), result.exception
    assert "Traceback" not in result.output
    return result


def check(values: str) -> str:
    return f"check -r recipe.yaml -s {shlex.quote(values)}"


MISTAKES = {
    # a recipe that is not there, or is none
    "check -r recipee.yaml": ["recipee.yaml: there is no such file", "did you mean recipe.yaml?"],
    "plan -r recipes/quikstart.yaml": ["there is no such file", "did you mean the shipped recipe quickstart?"],
    "plan -r zzz.yaml": [
        "there is no such file",
        "recipe that is shipped: e2e-human-criteria, e2e-human, hh-rlhf/*",
    ],
    "plan -r .": ["cannot read the recipe .: it is a folder", "name a file in it, such as "],
    "check -r nothing.yaml": ["the recipe nothing.yaml is empty", "extends: quickstart"],
    "check -r list.yaml": ["this file is a list", "where: list.yaml:1"],
    "check -r latin.yaml": ["byte 0xfc, which is not UTF-8", "where: latin.yaml:2", "encoding UTF-8"],
    "run quickstart -r recipe.yaml": ["quickstart and --recipe recipe.yaml both name a recipe"],
    # commands, stages and options
    "trian": ["there is no command trian", "commands are "],
    "chta": ["there is no command chta", "did you mean chat?"],
    "rank": ["there is no command rank; it is a stage", "run `tutelage run rank`"],
    "quickstart": ["there is no command quickstart; it is a recipe", "run `tutelage run quickstart`"],
    "run pppo -r recipe.yaml": ["no stage or shipped recipe called pppo", "did you mean ppo?"],
    "run ppo-2 -r recipe.yaml": ["there is no stage called ppo-2", "the stages are base, data"],
    "run dpo -r recipe.yaml": ["this recipe has no dpo stage", "where: recipe.yaml", "with dpo.enabled=true"],
    "run --frehs": ["No such option: --frehs", "--fresh", "`tutelage run --help`"],
    "run -r recipe.yaml --nproc 0": ["Invalid value for '--nproc'", "greater than or equal to 1"],
    "export-rankings -r recipe.yaml": ["export-rankings needs a folder", "--recipe recipe.yaml"],
    # --set
    check("ppo.kl.target 8"): ["--set 'ppo.kl.target 8' assigns no value", "write ppo.kl.target=8"],
    check("ppo.kl.target = 8"): ["assigns no value", "write ppo.kl.target=8, without spaces"],
    check('name="x'): ["a quotation mark is not closed"],
    check("ppo.kl.traget=8"): ["ppo.kl.traget: unknown key; did you mean target?", "where: --set #1"],
    check("ppo.kl.target=8,seed=1"): ["must be a number", "separate assignments with spaces"],
    check("ppo=8"): ["ppo: must be a section of keys, got 8; its keys are adam_beta1, "],
    # values with units, and names of values
    check("hardware.memory=16XB"): ['hardware.memory: must be a size such as 16GB or 15.5GiB, got "16XB"'],
    check("rank.app.lease_minutes=30min"): ['must be a number, got "30min"; write 30, without a unit'],
    check("ppo.kl.target=6,5"): ['got "6,5"; write 6.5'],
    check("data.eval_fraction=20%"): ['got "20%"; write 0.2'],
    check("data.eval_fraction=20"): ["must be less than 1, got 20; write 20 % as 0.2"],
    check("ppo.total_episodes=10k"): ['must be a whole number, got "10k"; write 10000'],
    check("ppo.total_episodes=10,000"): ['got "10,000"; write 10000'],
    check("device=gpu"): ['got "gpu"; write cuda'],
    check("base.dtype=bf16"): ['got "bf16"; write bfloat16'],
    check("base.quantization=nf5"): ['(activations, qat), got "nf5"; did you mean nf4?'],
    check("name=a/b"): ['got "a/b"; write a-b'],
    check(f'{PEOPLE} rank.app.annotators=["Ana B"]'): ['got "Ana B"; write Ana-B'],
    check(f"{PEOPLE} rank.app.port=99999"): ["rank.app.port: must be less than or equal to 65535, got 99999"],
    check(f"{PEOPLE} rank.app.host=http://0.0.0.0"): ["rank.app.host: must be a name or an address alone"],
    check(f"{PEOPLE} rank.app.host=0.0.0.0:80"): ["the port is rank.app.port"],
    "check -r typo.yaml": ["ppo.total_episode: unknown key; did you mean total_episodes?", "typo.yaml:11"],
    # files and folders
    "check -r votes.yaml": [
        "data.rankings.path: there is no file or folder my/vote.csv",
        "votes.yaml:7",
        "did you mean my/votes.csv?",
    ],
    "check -r base.yaml": [
        "base.model: there is no folder my/modle; did you mean my/model?",
        "base.yaml:3",
        "set base.revision",
    ],
    check("reward.model=my/modle"): ["reward.model: there is no folder my/modle; did you mean my/model?"],
    check("ppo.reward_model=my/modle"): ["ppo.reward_model: there is no folder my/modle", "my/model?"],
    check("eval.reward_model=my/modle"): ["eval.reward_model: there is no file or folder my/modle", "my/model?"],
    check("eval.judge=venuse"): [
        "venuse is neither a known name nor a file",
        "did you mean venues?",
        "none, venues, venues-zh, e2e or a path",
    ],
    check("eval.judge=my/lexicn.yaml"): ["there is no file or folder my/lexicn.yaml", "my/lexicon.yaml?"],
    check("reward.rubric=venuse"): ["venuse is neither a known name nor a file", "did you mean venues?"],
    check("reward.rubric=my"): ["reward.rubric: must be a slot lexicon, and my is a folder"],
    check("reward.rubric=venues data.eval_fraction=0.9 base.pretrain.held_out=0.9"): [
        "the rubric venues does not fit a held-out prompt: 'Where is room",
        "is not a meaning representation",
        "my/votes.csv",
        "set reward.rubric: none",
    ],
    check("base.chat_template=my/templte.jinja"): ["there is no file or folder", "my/template.jinja?"],
    "annotate my/votess.csv --annotators ana --out out.jsonl": ["there is no file my/votess.csv", "my/votes.csv?"],
    # where results go
    "run data -r recipe.yaml --runs /proc/x": ["cannot write runs to /proc/x", "--runs or TUTELAGE_RUNS"],
    "run data -r recipe.yaml --runs /dev/null/x": ["/dev/null is not a folder"],
    "run data -r recipe.yaml --runs my/votes.csv": ["my/votes.csv is not a folder"],
    "run data -r recipe.yaml --runs /no/such/disk": ["there is no folder /no", "create /no/such"],
    "annotate my/votes.csv --annotators ana --out none/such/out.jsonl": ["there is no folder none", "--out"],
    "compare my my --out my": ["cannot write comparison.html to my: it is a folder", "my/comparison.html"],
    "export-rankings my/votes.csv -r recipe.yaml": ["my/votes.csv is not a folder", "name another folder"],
    # runs that are not finished
    "judge -r recipe.yaml --annotators ana": ["eval is not finished", "`tutelage run eval --recipe recipe.yaml`"],
    "publish -r recipe.yaml": ["does not say where to publish", "where: recipe.yaml"],
    # no network
    "run data -r recipe.yaml -s data.rankings.path=hub://me/votes@abc": [
        "no network: the data set me/votes is not in the Hub's cache",
        "give a local file",
    ],
    "run base -r recipe.yaml -s 'base.pretrain=null base.model=me/model base.revision=abc'": [
        "no network: config.json of me/model is not in the Hub's cache",
        "hf download me/model --local-dir FOLDER",
    ],
    "run data -r recipe.yaml -s data.demonstrations.path=https://files.invalid/x.csv": [
        "https://files.invalid/x.csv cannot be fetched: the server's name cannot be resolved",
        "put the file at ",
    ],
}


@pytest.mark.parametrize(("command", "words"), MISTAKES.items(), ids=MISTAKES)
def test_a_message_names_the_cause_and_the_fix(command: str, words: list[str], tmp_path: Path) -> None:
    result = invoke(command)
    assert result.exit_code in (2, 3, 4), result.output
    for word in words:
        assert word in result.stderr, result.stderr
    assert result.stderr.count("hint:") <= 1
    assert not list(tmp_path.glob("runs/*/*/*/manifest.json"))


def test_a_folder_that_may_not_be_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    result = invoke("run data -r recipe.yaml --runs there")
    assert result.exit_code == 2
    assert "cannot write runs to there: Permission denied" in result.stderr


COMMANDS = re.compile(r"`((?:make|tutelage) [^`]*)`")


@pytest.mark.parametrize("made", [False, True], ids=["tutelage", "make"])
@pytest.mark.parametrize(
    "mistake",
    [
        "judge -r recipe.yaml -s 'seed=1' -s 'ppo.kl.target=4' --annotators ana --runs there",
        "export-rankings -r recipe.yaml -s seed=1 --runs there",
        "run sft -r recipe.yaml -s 'hardware.memory=1MB seed=1' --runs there",
        "rank",
        "run --frehs",
    ],
)
def test_printed_commands_work_when_pasted(
    mistake: str, made: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if made:
        monkeypatch.setenv(invocation.MAKE, "1")
    printed = [command for command in COMMANDS.findall(invoke(mistake).stderr) if "--help" not in command]
    assert bool(printed) == ("--frehs" not in mistake)
    for command in printed:
        program, *arguments = shlex.split(command)
        assert program == ("make" if made else "tutelage")
        if made:
            [[program, *arguments]] = recorded(command, folder)
        values = parsed(arguments)
        if "-r recipe.yaml" in mistake:
            assert str(values["recipe"]) == "recipe.yaml"
            assert "seed=1" in values["sets"][0]
            assert str(values["runs"]) == "there"
            assert "--set ''" not in command


def test_a_printed_command_runs(folder: Path, stages: FakeStages) -> None:
    [command] = COMMANDS.findall(invoke("judge -r recipe.yaml -s seed=1 --annotators ana").stderr)
    assert command == "tutelage run eval --recipe recipe.yaml --set seed=1"
    result = invoke(command.removeprefix("tutelage "))
    assert result.exit_code == 0, result.output
    assert stages.calls[-1] == "eval"


def test_the_gate_is_overridden_by_the_command_that_it_prints(folder: Path, stages: FakeStages) -> None:
    def refuse(config: object, inputs: object, out_dir: Path, ctx: object) -> dict[str, object]:
        from pipeline.errors import StageError

        raise StageError("unfit", hint=f"`{invocation.again('--force')}`")

    stages.does["ppo"] = refuse
    for command, repeated in (
        ("run -r recipe.yaml", "tutelage run --force --recipe recipe.yaml"),
        ("run ppo -r recipe.yaml --fresh", "tutelage run ppo --fresh --force --recipe recipe.yaml"),
    ):
        assert f"`{repeated}`" in invoke(command).stderr
