"""The report in another language: every text has a translation, and no page shows an English one."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from catalogues import LEFT, RIGHT, Bracketed, marked, placeholders
from fake_run import HOSTILE, SAMPLE
from full_run import ALERT, FullRun
from jinja2 import Environment, nodes
from pipeline_fakes import FakeStages
from repository import ROOT
from test_report_page import RUNS

from data.tables.sources import HINTS
from data.venues.slots import KINDS
from pipeline.config.load import DEFAULT
from pipeline.engine.registry import STAGES
from pipeline.engine.runner import Runner
from pipeline.language import Language
from stages import contamination, left_out, rank
from stages.commands import report_of_run
from stages.ppo.watch import alerts
from stages.report import charts, exported, model_table, overlaps, win_rates
from stages.report.build import MESSAGES, PEOPLE, build_report, compare_reports
from stages.report.glossary import TERMS
from stages.reward.left_out import EQUAL, TIED
from stages.training.demonstrations import UNLOCATED

REPORT = ROOT / "stages" / "report"
CATALOGUES = sorted(path.stem for path in MESSAGES.glob("*.yaml"))


@pytest.fixture
def full(stages: FakeStages, runner: Callable[..., Runner]) -> FullRun:
    return FullRun(stages, runner)


def calls(path: Path, *names: str) -> Iterator[tuple[ast.Call, ast.expr]]:
    """The calls of functions by these names, with their first argument."""
    source = path.read_text(encoding="utf-8")
    if not any(f"{name}(" in source for name in names):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and getattr(node.func, "id", "") in names:
            yield node, node.args[0]


def text_of(argument: ast.expr) -> str:
    return str(argument.value) if isinstance(argument, ast.Constant) else ""


def template_texts() -> set[str]:
    templates = Environment(extensions=["jinja2.ext.i18n"])
    Language().install(templates)
    texts = set()
    for path in (REPORT / "templates").glob("*.html"):
        tree = templates.parse(path.read_text(encoding="utf-8"))
        texts.update(" ".join(text.split()) if "\n" in text else text for text in marked(tree))
        for node in tree.find_all(nodes.Filter):
            if node.name == "counted" and node.args and isinstance(node.args[0], nodes.Const):
                texts.add(f"{{number}} {node.args[0].value}")
    return texts


def code_texts() -> set[str]:
    texts = set()
    for folder in ("pipeline", "data", "stages"):
        for path in (ROOT / folder).rglob("*.py"):
            for node, argument in calls(path, "translate", "mark"):
                assert not isinstance(argument, ast.JoinedStr | ast.BinOp), f"{path.name}:{node.lineno}"
                texts.add(text_of(argument))
    for path in REPORT.glob("*.py"):
        texts |= {f"{{number}} {text_of(noun)}" for node, _ in calls(path, "counted") for noun in node.args[1:2]}
    return texts - {""}


def constants() -> set[str]:
    """Texts that are translated where they are shown."""
    tables = [(title, unit) for chart in (charts.TRAINING, charts.DPO, charts.RAFT) for _, title, unit, _ in chart]
    tables += [(title, unit) for title, unit, _, _ in charts.PPO]
    tables += [(metric.label, metric.unit) for metric in model_table.METRICS]
    tables += [(term.name, term.meaning) for term in TERMS]
    return {
        *(text for pair in tables for text in pair),
        *(term.pattern for term in TERMS),
        *win_rates.NAMES.values(),
        *(name for name in exported.HEADER if name),
        *exported.LABELS.values(),
        *overlaps.WORDS.values(),
        *contamination.REASONS.values(),
        *(spec.summary for spec in STAGES.values()),
        *KINDS,
        *(f"{{number}} {one}" for one, _ in PEOPLE.values()),
        *("Code", "Hardware", "Packages"),
        DEFAULT,
    }


def pattern(text: ast.expr) -> str:
    """A text as the section `recorded` of a catalogue has it, with {} for its values."""
    if isinstance(text, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "{}" for part in text.values)
    return text_of(text)


def sentences(path: str, but: str = "") -> set[str]:
    """The texts in the functions of a module that are sentences, not names or docstrings."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name != but]
    texts = {
        pattern(node)
        for function in functions
        for statement in function.body[ast.get_docstring(function) is not None :]
        for node in ast.walk(statement)
        if isinstance(node, ast.JoinedStr | ast.Constant)
    }
    parts = {
        text_of(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
        if isinstance(part, ast.Constant)
    }
    return {text for text in texts - parts if re.search(r"[a-z]+ [a-z]+", text)}


def reasons() -> set[str]:
    """Why the stages leave rows out."""
    texts = {*HINTS, EQUAL, TIED, rank.ALL_THE_SAME, rank.NOT_RANKED, UNLOCATED, *contamination.REASONS.values()}
    for path in (ROOT / "data" / "tables").glob("*.py"):
        for node, _ in calls(path, "LeftOut", "nothing"):
            texts |= {pattern(reason) for reason in node.args[1:2]}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "dropped.add":
                texts.add(pattern(node.args[0]))
    return texts - {""}


def recorded_texts() -> set[str]:
    """Sentences in artifacts that the report shows."""
    rules = [*alerts.RULES, alerts.ALIKE, alerts.FALLS]
    return {
        *sentences("stages/reward/gate.py", but="summary"),
        *(sentences("stages/ppo/watch/alerts.py") - {"alert, update {}: {}. Likely cause: {}. Hint: {}."}),
        *sentences("stages/ppo/watch/selection.py"),
        *sentences("pipeline/config/terms.py"),
        *(text for rule in rules for text in (rule.cause, rule.hint)),
        *reasons(),
        *(prefix.replace("{rows}", "{}") for prefix in left_out.PREFIXES.values()),
    }


@pytest.mark.parametrize("code", CATALOGUES)
def test_every_text_has_a_translation_and_every_translation_a_text(code: str) -> None:
    catalogue = yaml.safe_load((MESSAGES / f"{code}.yaml").read_text(encoding="utf-8"))["texts"]
    texts = template_texts() | code_texts() | constants()
    assert len(texts) > 400
    assert set(catalogue) - texts == set(), "not used"
    assert texts - set(catalogue) == set(), "not translated"
    for text, translation in catalogue.items():
        assert translation
        assert placeholders(translation) == placeholders(text)


@pytest.mark.parametrize("code", CATALOGUES)
def test_every_sentence_of_an_artifact_has_a_translation(code: str) -> None:
    language = Language.of(MESSAGES, code)
    assert len(recorded_texts()) > 90
    for text in recorded_texts():
        assert text in language.recorded, text
    for text, translation in language.recorded.items():
        values = [f"<{at}>" for at in range(text.count("{}"))]
        shown = language.of_record(text.format(*values))
        assert shown == translation.format(*values)
        assert text in ("{} {} not finite",) or all(shown.count(value) == 1 for value in values)


class Visible(HTMLParser):
    """The texts of a page that people read or hear, without code and the lists of names and values."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text = ""
        self._hidden: list[bool] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        if tag not in ("meta", "link", "img", "br"):
            data = tag in ("style", "code") or "pairs" in (named.get("class") or "")
            self._hidden.append(data or any(self._hidden[-1:]))
        if not any(self._hidden):
            self.text += " " + "".join(f" {named[name]} " for name in ("aria-label", "title") if named.get(name))

    def handle_endtag(self, tag: str) -> None:
        self._hidden.pop()

    def handle_data(self, data: str) -> None:
        if not any(self._hidden):
            self.text += data


def visible(page: str, *without: str) -> str:
    """The visible text of a page; `without` is where a part with nothing but data starts and ends."""
    start, end = (page.index(mark) for mark in without)
    return Visible(page[:start] + page[end:]).text


def words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]{2,}", text))


DATA = words(
    f"{HOSTILE} {SAMPLE} A is fine. {' '.join(STAGES)} {ALERT['rule']} kB MB GB tutelage small large ana"
    " careful worker"
)
"""Words of the run itself: its prompts, answers, names and stages."""


def in_chinese(full: FullRun) -> FullRun:
    runner = full.runner
    full.runner = lambda *sets: runner("report.language=zh", *sets)
    full.unfit, full.warnings = [], []
    return full


@pytest.mark.parametrize("kind", RUNS)
def test_no_report_has_a_text_outside_of_the_catalogue(
    full: FullRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr(Language, "of", classmethod(lambda cls, folder, code: cls(code, Bracketed(), Bracketed())))
    build_report(RUNS[kind](in_chinese(full)), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    rest, depth = "", 0
    for character in visible(page, f"{LEFT}Environment", f"{LEFT}Recipe, and"):
        depth += (character == LEFT) - (character == RIGHT)
        rest += character if depth == 0 else " "
    assert words(rest) - DATA == set()
    assert '<html lang="zh">' in page


@pytest.mark.parametrize("kind", RUNS)
def test_a_report_in_chinese(full: FullRun, tmp_path: Path, kind: str) -> None:
    full = in_chinese(full)
    full.warnings = ["it may be no better (0.712) than a logistic regression on the words of the answers (0.704): "
                     "the 95 % interval of its lead is −1 to +3 points (set reward.gate.above_bag_of_words to true "
                     "to stop PPO in this case)"]  # fmt: skip
    full.left_out = {"sft": {"read_demonstrations": 9, "dropped_demonstrations/longer than max_length": 2}}
    build_report(RUNS[kind](full), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = visible(page, "环境</summary>", "配方，以及")
    for data in (HOSTILE, *SAMPLE["answers"].values(), ALERT["symptom"], ALERT["cause"]):
        text = text.replace(str(data), "")
    english = re.findall(r"[A-Za-z’]+(?: [a-z’]+){2,}", text)
    names = DATA | words("Beirami et al. Gao et al. alpha - beta log d")
    assert [sentence for sentence in english if words(sentence) - names] == []
    assert LEFT not in text
    assert '<html lang="zh">' in page
    if "eval" in kind or kind == "finished":
        for part in ("奖励模型", "95% 置信区间", "胜率", "KL 散度", "留出提示", "长于 max_length", "个百分点"):
            assert part in text, part


def test_another_language_reruns_nothing_but_the_report(full: FullRun, runner: Callable[..., Runner]) -> None:
    full("base")
    for code in ("en", "zh"):
        planner = runner("dpo.enabled=true", f"report.language={code}").planner
        assert planner.plan("base")[0].action == "skip"
        report_of_run(planner, changed=False)
        assert f'<html lang="{code}">' in (planner.folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("languages", "expected"), [(("zh", "zh"), "zh"), (("en", "zh"), "en")])
def test_a_comparison_is_in_the_language_of_both_reports(
    full: FullRun, tmp_path: Path, languages: tuple[str, str], expected: str
) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder, code in zip(folders, languages, strict=True):
        build_report(full("eval", f"report.language={code}"), folder / "report.html")
    text = compare_reports(*folders, tmp_path / "comparison.html")
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert f'<html lang="{expected}">' in page
    seed = {"en": "Seed", "zh": "随机种子"}[expected]
    assert f"<th>{seed}</th>" in page
    widths = {"en": len("Seed"), "zh": 2 * len("随机种子")}
    [label] = re.findall(rf"^{seed} *(?=0 )", text, re.MULTILINE)
    [top] = re.findall(r"^ +(?=first )", text, re.MULTILINE)
    assert len(label) - len(seed) + widths[expected] == len(top)
