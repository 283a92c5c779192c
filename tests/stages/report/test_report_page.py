"""The report's page whatever the run: contents, labelled cards, folded sections, glossary, costs and next steps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_run import HOSTILE, FakeRun, Page, annotator, build, interval, part, unjudged
from full_run import FullRun
from markupsafe import Markup
from pipeline_fakes import FakeStages

from pipeline import wording
from pipeline.engine.plan import RunSummary
from pipeline.engine.runner import Runner
from stages.eval.artifact import Evaluation
from stages.report import cost, findings, human, next_steps, plots, tables
from stages.report.glossary import TERMS, Glossary


@pytest.fixture
def fake(stages: FakeStages, runner: Callable[..., Runner]) -> FakeRun:
    return FakeRun(stages, runner)


@pytest.fixture
def full(stages: FakeStages, runner: Callable[..., Runner]) -> FullRun:
    return FullRun(stages, runner)


def judged_by(run: RunSummary, people: int) -> RunSummary:
    """As `tutelage judge` leaves the run."""
    fingerprint = run.stages["eval"].manifest.fingerprint
    rate = interval(0.83, 0.5, 1.0, ties=0.1)
    verdict = {"eval": fingerprint, "prompts": 3, "judges": people, "win_rate": rate, "agreement": part(None)}
    human.judged_file(run.folder, fingerprint).write_text(json.dumps(verdict))
    return run


def without_judge(full: FullRun) -> RunSummary:
    full.evaluation = unjudged()
    return full()


def of_one_person(full: FullRun) -> RunSummary:
    full.ranking |= {"human": True, "annotators": 1, "rankings": 1, "agreement": None, "alpha": None}
    assert full.agreement is not None
    nothing = {name: part(None) for name in ("pairwise", "by_others", "tau", "self_consistency", "first_shown")}
    alone = annotator(1, agreement=part(None), tau=part(None), first_shown=part(None))
    full.agreement |= nothing | {"alpha": None, "by_annotator": {"ana": alone}, "models": []}
    return judged_by(full(), 1)


def of_an_ensemble(full: FullRun) -> RunSummary:
    full.quality |= {"member_accuracy": [0.701, 0.689, 0.7], "disagreement": 0.42}
    return full()


def unmeasured(full: FullRun) -> RunSummary:
    full.quality, full.unfit = {"pairs": 0}, ["it was measured on no held-out pair"]
    return full("reward")


def of_two_rounds(full: FullRun) -> RunSummary:
    full.evaluation["along"] = [{"round": n} | point for n in (1, 2) for point in full.evaluation["along"]]
    full.evaluation["by_round"] = [interval(-0.3, -0.4, -0.2), interval(0.1, -0.1, 0.3)]
    return full(None, "rounds=2")


RUNS: dict[str, Callable[[FullRun], RunSummary]] = {
    **{f"until {stage}": (lambda full, stage=stage: full(stage)) for stage in (
        "base", "data", "sft", "collect", "rank", "reward", "ppo", "dpo", "raft", "eval",
    )},
    "finished": lambda full: full(),
    "judged by people": lambda full: judged_by(full(), 2),
    "without a judge": without_judge,
    "of one person": of_one_person,
    "of an ensemble": of_an_ensemble,
    "unmeasured": unmeasured,
    "of two rounds": of_two_rounds,
    "in the second round": lambda full: full("rank-2", "rounds=2"),
}  # fmt: skip


class Tables(HTMLParser):
    """The cells of a page's tables, row by row: tag, data-label and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[str, str, str]]]] = []
        self._open = False
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append((tag, dict(attributes).get("data-label") or "", ""))
            self._open = True
        elif tag == "i" and self._open:
            self.handle_data("bar")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            kind, label, text = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (kind, label, " ".join(f"{text} {data}".split()))


@pytest.mark.parametrize("kind", RUNS)
def test_every_page_is_whole(full: FullRun, tmp_path: Path, kind: str) -> None:
    printed, page = build(RUNS[kind](full), tmp_path)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    links = [str(attributes["href"]) for tag, attributes in page.elements if tag == "a"]
    sections = [str(attributes["id"]) for tag, attributes in page.elements if tag == "section"]
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in links} <= set(ids)
    for section in sections:
        assert f"#{section}" in links or f"#{section}-content" in links, section
    for table in Tables(page.source).tables:
        header, *rows = table
        assert rows
        for row in rows:
            assert [label for _, label, _ in row[1:]] == [text for _, _, text in header[1:]]
        for column in list(zip(*rows, strict=True))[1:]:
            assert {text for _, _, text in column} - {"", wording.DASH}, "a column without values"
    text = " ".join(page.text.split())
    assert "What to do next" in text
    assert re.search(r"\b1 (?:\w+ )?(?:people|persons|annotators|rankings|judges|prompts|points)\b", text) is None
    assert "no person ranks" not in text
    assert ("judged by" in text) == (kind in ("judged by people", "of one person"))
    assert printed


def test_people_who_judge_do_not_contradict_simulated_annotators(full: FullRun, tmp_path: Path) -> None:
    printed, page = build(judged_by(full(), 2), tmp_path)
    assert "no person ranked anything" not in printed + page.text
    assert "learned from simulated rankings; people only compared the final answers." in printed


# --- Cards --------------------------------------------------------------------------------------------------


TABLE = Markup(
    "<table><thead><tr><th></th><th>Size</th><th class='num'>Fact errors</th></tr></thead>"
    "<tbody><tr><th>A</th><td>{}</td><td class='num'>{}</td></tr></tbody></table>"
)


def test_cells_carry_their_columns_label() -> None:
    html = tables.cards(TABLE.format(HOSTILE, "5 %"))
    [[header, row]] = Tables(html).tables
    assert [text for _, _, text in header] == ["", "Size", "Fact errors"]
    assert row == [("th", "", "A"), ("td", "Size", HOSTILE), ("td", "Fact errors", "5 %")]


@pytest.mark.parametrize("value", ["", wording.DASH, Markup(" <small></small> ")])
def test_a_column_without_values_is_left_out(value: str) -> None:
    html = tables.cards(TABLE.format("2 MB", value))
    assert [text for _, _, text in Tables(html).tables[0][0]] == ["", "Size"]


def test_a_bar_is_a_value() -> None:
    assert "Size" in tables.cards(TABLE.format(Markup('<i style="width: 3%"></i>'), "5 %"))


def test_a_row_with_a_cell_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 2 cells under 3 headings"):
        tables.cards(TABLE.format("2 MB", "5 %").replace("<td>2 MB</td>", ""))


# --- Charts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([plots.Line("held-out", [(20.0, 0.381)])], "Measured once: 0.381 at step 20 (held out)."),
        ([plots.Line("train", []), plots.Line("level", [(0.0, 0.0), (1.0, 1.0)])], "Not measured."),
        ([plots.Line("train", [(1.0, 2.0), (2.0, 1.0)]), plots.Line("held-out", [(2.0, 1.5)])], ""),
    ],
)
def test_a_chart_of_too_few_points_is_a_sentence(lines: list[plots.Line], words: str) -> None:
    chart = plots.Chart("Loss", "nats", lines)
    assert plots.in_words(chart) == words
    assert plots.draw(chart, "c").startswith("<svg" if not words else "<p")


# --- Glossary -----------------------------------------------------------------------------------------------


def test_the_first_use_of_a_term_links_to_the_glossary() -> None:
    glossary = Glossary()
    first = glossary.link("PPO’s KL is 2 nats; its KL was 1. TKLX")
    assert re.findall(r'href="#([\w-]+)"', first) == ["term-ppo", "term-kl", "term-nats"]
    assert first.count(">KL</a>") == 1
    assert "TKLX" in first
    assert glossary.link("PPO and KL") == "PPO and KL"


def test_linked_texts_are_escaped_and_markup_is_kept() -> None:
    assert Glossary().link(HOSTILE).count("<") == 0
    assert Glossary().link(Markup('<em title="KL">SFT</em>')).startswith('<em title="KL"><a class="term"')


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.id)
def test_every_term_is_one_line_and_is_recognised(term: object) -> None:
    assert hasattr(term, "pattern")
    assert len(term.meaning) < 170
    examples = [
        "best of 16",
        "95 % interval",
        "stop token",
        "Kendall’s τ",
        "quantised",
        term.name,
        term.name.lower(),
    ]
    assert any(re.search(term.pattern, example) for example in examples)


# --- Costs and next steps -----------------------------------------------------------------------------------


def test_costs_of_each_model(full: FullRun) -> None:
    run = full()
    evaluation = findings.collect(run).evaluation
    rows = {row.key: row for row in cost.costs(run, evaluation)}
    assert list(rows) == ["sft", "dpo", "raft", "best_of_n", "ppo"]
    assert [row.per_reply for row in rows.values()] == [1, 1, 1, 16, 1]
    assert [row.sampled for row in rows.values()] == [0, 3464, 3464 + 16 * 512, 3464, 3464 + 2048]
    seconds = {name: run.stages[name].manifest.seconds for name in run.stages}
    assert rows["ppo"].seconds == seconds["collect"] + seconds["reward"] + seconds["ppo"]
    text = cost.why_ppo(list(rows.values()), evaluation)
    assert "after 137 replies, more than PPO sampled in training" in text  # 2048 / 15
    assert "Best of 16 gives better answers here, so it suits few replies, and PPO many (PPO’s is" in text
    assert "PPO’s answers are better than RAFT’s (PPO’s is preferred on 55\u00a0% of prompts" in text
    assert cost.why_ppo([rows["sft"]], evaluation) == ""


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.55, 0.65, "PPO’s answers are better than those of best of 16"),
        (0.45, 0.55, "cannot tell PPO’s answers from those of best of 16"),
        (0.35, 0.45, "Best of 16 gives better answers"),
    ],
)
def test_why_ppo_depends_on_the_interval(full: FullRun, low: float, high: float, words: str) -> None:
    full.evaluation["wins"][1] |= {"low": low, "high": high}
    run = full()
    evaluation = Evaluation.of(full.evaluation)
    assert words in cost.why_ppo(cost.costs(run, evaluation), evaluation)


def commands(run: RunSummary) -> list[str]:
    return [step.command.partition("tutelage ")[2] for step in next_steps.steps(run, findings.collect(run))]


def test_the_next_step_of_an_unfinished_run_is_to_run_it(full: FullRun) -> None:
    run = full("sft")
    [step] = next_steps.steps(run, findings.collect(run))
    assert step.text == "Continue with collect, then rank, reward, ppo, dpo, raft, eval, export:"
    assert commands(run) == ["run"]


def test_the_next_step_after_the_gate_is_not_ppo(full: FullRun) -> None:
    full.unfit = ["its scores follow length"]
    run = full("reward")
    assert commands(run) == ["run", "run --force"]
    assert "did not pass the gate" in next_steps.steps(run, findings.collect(run))[0].text


def test_people_are_sent_to_the_ranking_page(full: FullRun) -> None:
    run = full("collect")
    app = replace(run.loaded.recipe, rank=replace(run.loaded.recipe.rank, source="app"))
    run = replace(run, loaded=replace(run.loaded, recipe=app))
    [step] = next_steps.steps(run, findings.collect(full("collect")))
    assert (step.command.partition("tutelage ")[2], "ranking page" in step.text) == ("run rank", True)


def test_the_next_steps_of_a_finished_run(full: FullRun) -> None:
    run = full()
    expected = ["chat sft ppo", "run", "judge --annotators ana,ben", "round", "", "publish --dry-run"]
    assert commands(run) == expected
    export = next(step for step in next_steps.steps(run, findings.collect(run)) if step.path)
    assert (run.folder / export.path / "export.json").is_file()
    assert "judge" not in " ".join(commands(judged_by(run, 2)))


def test_steps_are_on_the_page_as_commands(full: FullRun, tmp_path: Path) -> None:
    _, page = build(full(), tmp_path)
    assert '<code class="command">tutelage chat sft ppo' in page.source
    assert isinstance(page, Page)
