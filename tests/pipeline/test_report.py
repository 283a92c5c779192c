from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pipeline_fakes import FakeStages, write_all

from pipeline.config.load import LoadedRecipe
from pipeline.engine import registry
from pipeline.engine.plan import RunSummary
from pipeline.engine.runner import Runner
from stages.report import charts, comparison, findings, human, plots, verdict, wording
from stages.report.build import build_report

HOSTILE = "</p><script>alert('x')</script><img src=https://evil.example/x onerror=alert(1)>"


def model(rate: float, **changes: Any) -> dict[str, Any]:
    facts = {"missing": 0.5, "wrong": 0.1, "invented": 0.2, "repeated": 0.2, "faultless": 0.4}
    rates = {"slot_error_rate": rate, "slot_error_low": rate - 0.01, "slot_error_high": rate + 0.01}
    rest = {"score": 1.8, "length": 21.6, "ended": 1.0, "distinct_2": 0.31, "kl": None, "nll": 0.381}
    return {**rates, **facts, **rest, **changes}


def interval(value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, **more}


def evaluation() -> dict[str, Any]:
    looks = zip((0, 8, 16), (0.0, 0.9, 1.86), (1.8, 2.4, 2.7), (0.13, 0.09, 0.06), strict=True)
    return {
        "judge": "venues",
        "prompts": 256,
        "bootstrap": 2000,
        "models": {
            "base": model(0.16),
            "sft": model(0.13),
            "ppo": model(0.0585, kl=1.86, score=2.7, length=20.7, distinct_2=0.284, nll=0.392),
        },
        "win_rate": interval(0.71, 0.66, 0.76, ties=0.2, by="judge venues"),
        "reduction": interval(-0.55, -0.61, -0.48),
        "along": [
            {"update": update, "kl": kl, "score": score, "length": 21.0, "slot_error_rate": rate}
            for update, kl, score, rate in looks
        ],
    }


def unjudged() -> dict[str, Any]:
    """As `eval` writes it without a judge."""
    made = evaluation()
    del made["win_rate"], made["reduction"]
    kept = ("score", "length", "ended", "distinct_2", "kl", "nll")
    made["models"] = {name: {key: numbers[key] for key in kept} for name, numbers in made["models"].items()}
    for look in made["along"]:
        del look["slot_error_rate"]
    return made | {"judge": None}


QUALITY = {
    "pairs": 1506,
    "prompts": 150,
    "accuracy": 0.712,
    "accuracy_low": 0.684,
    "accuracy_high": 0.74,
    "length_accuracy": 0.51,
    "ece": 0.033,
    "brier": 0.175,
    "length_correlation": 0.36,
    "accuracy_by_prompt": 0.705,
    "above_length": 0.202,
    "above_length_low": 0.15,
    "above_length_high": 0.25,
    "bag_of_words_accuracy": 0.704,
    "above_bag_of_words": 0.008,
    "above_bag_of_words_low": -0.01,
    "above_bag_of_words_high": 0.03,
    "agreement": 0.731,
    "agreement_low": 0.681,
    "agreement_high": 0.779,
    "agreement_pairs": 1234,
    "predicted_by_others": 0.72,
    "ended_preferred": 0.93,
    "accuracy_by_annotator": {"careful": 0.78, HOSTILE: 0.66},
}
TABLES = {
    "by_annotator": [
        {"annotator": "careful", "pairs": 900, "accuracy": 0.78},
        {"annotator": HOSTILE, "pairs": 600, "accuracy": 0.66},
        *({"annotator": f"worker {i}", "pairs": 1, "accuracy": 0.0} for i in range(7)),
    ],
    "by_prompt": [{"low": i / 10, "high": (i + 1) / 10, "count": i * i} for i in range(10)],
    "scores": [{"low": i - 3.0, "high": i - 2.0, "count": 9 - abs(i - 5)} for i in range(10)],
}
RANKING = {
    "rankings": 1600,
    "tie_share": 0.17,
    "agreement": 0.69,
    "agreement_low": 0.67,
    "agreement_high": 0.71,
    "predicted_by_others": 0.7,
    "alpha": 0.41,
    "annotators": 4,
    "human": False,
}


def part(value: float | None, pairs: int = 100) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "pairs": 0}
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "pairs": pairs}


def annotator(count: int, **more: Any) -> dict[str, Any]:
    shares = {"agreement": part(0.7), "tau": part(0.4), "self_consistency": part(None), "first_shown": part(0.63)}
    return {"rankings": count, **shares, "longer": part(0.55), "seconds": None, "weight": 1.07, **more}


def agreement() -> dict[str, Any]:
    """As `rank` writes it; more annotators than the page has room for."""
    return {
        "pairwise": part(0.69, 4321),
        "by_others": part(0.7),
        "alpha": 0.41,
        "tau": part(0.38),
        "overlaps": 800,
        "annotators": 4,
        "self_consistency": part(0.83, 60),
        "first_shown": part(0.63),
        "longer": part(0.55),
        "seconds": {"median": 41.6, "p90": 120.0, "rankings": 1600},
        "sample": {"rankings": 1600, "of": 6400, "prompts": 400, "share": 0.25},
        "weights": {},
        "by_annotator": {f"worker {i}": annotator(1000 - i) for i in range(70)}
        | {HOSTILE: annotator(5000, seconds={"median": 12.3, "p90": 20.0, "rankings": 9})},
        "models": [
            {"model": "large", "strength": 0.5, "low": 0.4, "high": 0.6, "win_rate": 0.62, "pairs": 900},
            {"model": "small", "strength": -0.5, "low": -0.6, "high": -0.4, "win_rate": 0.38, "pairs": 900},
        ],
    }


SAMPLE = {
    "prompt": "name[Blue Mill], food[Thai]",
    "answers": {"base": HOSTILE, "sft": "Blue Mill is a pub.", "ppo": "Blue Mill serves Thai food."},
    "faults": {
        "sft": {"missing": ["food"], "wrong": [], "invented": ["kind"], "repeated": []},
        "ppo": {"missing": [], "wrong": [], "invented": [], "repeated": []},
    },
}


class FakeRun:
    """Makes a finished run of fake stages. What they find may be changed before."""

    def __init__(self, stages: FakeStages, runner: Callable[..., Runner]) -> None:
        self.runner = runner
        self.ranking, self.quality, self.evaluation = dict(RANKING), dict(QUALITY), evaluation()
        self.agreement: dict[str, Any] | None = None
        self.dropped: list[dict[str, Any]] = []
        self.unfit: list[str] = []
        self.warnings: list[str] = []
        self.left_out: dict[str, int] = {}
        self.forced_past_gate: list[str] = []
        for name in ("base", "data", "sft", "rank", "reward", "ppo", "eval"):
            stages.does[name] = getattr(self, f"_{name}")

    def __call__(self, until: str | None = None, *sets: str) -> RunSummary:
        made = self.runner(*sets)
        made.run(until)
        return made.planner.summary()

    def found(self) -> findings.Findings:
        return findings.collect(self("eval"))

    def _base(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        for step in range(1, 1001):
            ctx.metrics.log(step, loss=6 / step)
        return write_all(config, inputs, out, ctx) | {"parameters": 491904}

    def _sft(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        ctx.metrics.log(10, loss=0.385)
        ctx.metrics.log(20, eval_loss=0.381)
        return write_all(config, inputs, out, ctx) | {"demonstrations": 2703}

    def _data(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        (out / "dropped.jsonl").write_text("".join(json.dumps(place) + "\n" for place in self.dropped))
        reasons: dict[str, Any] = {"read_rankings": 900} if self.dropped else {}
        for place in self.dropped:
            name = f"dropped_{place['table']}/{place['reason']}"
            reasons[name] = reasons.get(name, 0) + 1
        return write_all(config, inputs, out, ctx) | reasons

    def _rank(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        if self.agreement is not None:
            (out / "agreement.json").write_text(json.dumps(self.agreement))
        return write_all(config, inputs, out, ctx) | self.ranking

    def _reward(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        ctx.metrics.log(10, loss=0.5, accuracy=0.6)
        ctx.metrics.log(20, loss=0.4, accuracy=0.7)
        ctx.metrics.log(20, eval_accuracy=0.69)
        table = [
            {"predicted": 0.2, "observed": 0.25, "count": 700},
            {"predicted": 0.8, "observed": 0.75, "count": 700},
        ]
        metrics = {f"eval_{name}": value for name, value in self.quality.items()}
        tables = {} if not self.quality["pairs"] else TABLES
        quality = {
            "metrics": metrics,
            "reliability": table,
            **tables,
            "unfit": self.unfit,
            "warnings": self.warnings,
        }
        (out / "quality.json").write_text(json.dumps(quality))
        return {**metrics, "rankings": 1600, "completions": 3157, **self.left_out}

    def _ppo(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        for update in range(1, 17):
            share = update / 16
            ctx.metrics.log(
                update,
                **{"objective/kl": 1.86 * share, "objective/scores": 1.8 + share},
                **{name: share for _, _, name, _ in charts.PPO},
            )
        looks = [look | {"prompts": [], "responses": []} for look in self.evaluation["along"]]
        (out / "looks.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
        forced = {"forced_past_gate": self.forced_past_gate} if self.forced_past_gate else {}
        return {"updates": 16, "episodes": 2048, **forced}

    def _eval(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        (out / "eval.json").write_text(json.dumps(self.evaluation))
        sample = SAMPLE if self.evaluation["judge"] else SAMPLE | {"faults": {}}
        (out / "samples.jsonl").write_text(json.dumps(sample) + "\n")
        return {"prompts": 256, "judge": str(self.evaluation["judge"])}


@pytest.fixture
def fake(stages: FakeStages, runner: Callable[..., Runner]) -> FakeRun:
    return FakeRun(stages, runner)


class Page(HTMLParser):
    """The elements and the visible text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._stack: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._stack.append(tag)

    def handle_data(self, data: str) -> None:
        if self._stack[-1:] != ["style"]:
            self.text += data.replace(wording.SPACE, " ")


def build(run: RunSummary, tmp_path: Path) -> tuple[str, Page]:
    path = tmp_path / "made" / "report.html"
    return build_report(run, path), Page(path)


# --- The file -----------------------------------------------------------------------------------------------


def test_a_full_run_is_told_with_its_numbers(fake: FakeRun, tmp_path: Path) -> None:
    run = fake()
    said, page = build(run, tmp_path)
    assert said.startswith("PPO helped.")
    for line in said.replace(wording.SPACE, " ").splitlines():
        assert line.removeprefix("Note: ")[:60] in " ".join(page.text.split())
    for made in run.stages.values():
        assert made.manifest.key[:12] in page.text
    for text in ("missing: food", "invented: kind", "no fault", "491,904 parameters", "small.yaml:7"):
        assert text in page.text
    assert page.source.count("<svg") == 3 + len(charts.TRAINING) + len(charts.PPO) + 1 + 2
    numbers = json.loads((tmp_path / "made" / "report.json").read_text())
    assert numbers["verdict"]["tone"] == "good"
    assert numbers["evaluation"] == fake.evaluation
    assert numbers["samples"] == [SAMPLE]
    assert numbers["reward"]["held_out"] == QUALITY
    assert [stage["name"] for stage in numbers["stages"]] == [name for name in registry.STAGES if name != "dpo"]
    assert numbers["stages"][-1]["inputs"].keys() == {"base", "data", "reward", "ppo", "eval"}


@pytest.mark.parametrize("until", [None, "data", "rank", "reward", "ppo"])
def test_an_unfinished_run_is_told_as_far_as_it_goes(
    fake: FakeRun, load: Callable[..., LoadedRecipe], tmp_path: Path, until: str | None
) -> None:
    run = fake(until) if until else RunSummary(load(), tmp_path, {})
    said, page = build(run, tmp_path)
    assert said.startswith("Not evaluated yet.")
    assert "Not finished: " in page.text
    assert ("Reward model and simulated annotators" in page.text) == (until in ("rank", "reward", "ppo"))
    assert ("no evidence that answers are better" in said) == (until == "ppo")


def test_the_file_loads_nothing_and_runs_nothing(fake: FakeRun, tmp_path: Path) -> None:
    _, page = build(fake(), tmp_path)
    assert {"script", "link", "iframe", "img", "object"}.isdisjoint(tag for tag, _ in page.elements)
    for _, attributes in page.elements:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "@import" not in page.source
    assert page.source.count("url(") == page.source.count("url(#")
    assert HOSTILE in page.text, "what a model says is shown as it is"


def test_ids_are_unique_and_references_find_them(fake: FakeRun, tmp_path: Path) -> None:
    _, page = build(fake(), tmp_path)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {attributes["href"] for tag, attributes in page.elements if tag == "use"}
    clips = {attributes["clip-path"] for _, attributes in page.elements if "clip-path" in attributes}
    assert used
    assert {str(href)[1:] for href in used} | {str(clip)[5:-1] for clip in clips} <= set(ids)


def test_the_same_run_gives_the_same_bytes(fake: FakeRun, tmp_path: Path) -> None:
    run = fake()
    build(run, tmp_path)
    files = [tmp_path / "made" / name for name in ("report.html", "report.json")]
    first = [file.read_bytes() for file in files]
    build(run, tmp_path)
    assert [file.read_bytes() for file in files] == first


def test_what_is_simulated_is_never_called_human(fake: FakeRun, tmp_path: Path) -> None:
    said, page = build(fake(), tmp_path)
    assert "Annotators are simulated" in said
    assert "1,600 by 4 simulated annotators" in page.text
    assert "human" not in page.text.lower()


def test_people_are_called_people(fake: FakeRun, tmp_path: Path) -> None:
    fake.ranking["human"] = True
    said, page = build(fake("rank"), tmp_path)
    assert "simulated" not in said
    assert "1,600 rankings by 4 people" in page.text


def test_an_ensembles_members_are_named(fake: FakeRun, tmp_path: Path) -> None:
    fake.quality |= {"member_accuracy": [0.701, 0.689, 0.7], "disagreement": 0.42}
    _, page = build(fake("reward"), tmp_path)
    text = page.text.replace(wording.SPACE, " ")
    assert "Each of 3 members alone" in text
    assert "70 %, 69 %, 70 %" in text


def test_of_many_annotators_the_busiest_are_shown(fake: FakeRun, tmp_path: Path) -> None:
    _, page = build(fake("reward"), tmp_path)
    assert "worker 5" in page.text
    assert "worker 6" not in page.text
    assert "of 9 annotators" in page.text


def test_unknown_agreement_is_said(fake: FakeRun, tmp_path: Path) -> None:
    fake.quality |= dict.fromkeys(("agreement", "agreement_low", "agreement_high", "predicted_by_others"))
    _, page = build(fake("reward"), tmp_path)
    assert "their agreement is not known" in page.text
    assert "Two annotators agree" not in page.text


def test_the_ceiling_is_the_agreement_on_held_out_prompts(fake: FakeRun, tmp_path: Path) -> None:
    """Not that of all rankings, which is another number."""
    _, page = build(fake("reward"), tmp_path)
    text = " ".join(page.text.split())
    assert "The agreement of two annotators on the same held-out prompts (1,234 pairs) is about the ceiling" in text
    assert "Two annotators agree 0.73 0.68 to 0.78" in text


def test_a_bag_of_words_stands_beside_the_reward_model(fake: FakeRun, tmp_path: Path) -> None:
    fake.warnings = ["it may be no better than a bag of words"]
    said, page = build(fake("reward"), tmp_path)
    text = " ".join(page.text.split())
    assert "A bag of words 0.70" in text
    assert "Better than a bag of wordsby 1 % (−1 % to 3 %)" in text
    assert "Warning: it may be no better than a bag of words." in text
    assert "Of the reward model of this run: it may be no better than a bag of words." in said


def test_what_the_reward_stage_left_out_is_listed(fake: FakeRun, tmp_path: Path) -> None:
    fake.left_out = {
        "read_rankings": 1603,
        "dropped_rankings": 3,
        "dropped_rankings/longer than max_length": 3,
        "eval_read_rankings": 200,
        "eval_dropped_rankings/all answers tied": 7,
    }
    _, page = build(fake("reward"), tmp_path)
    text = " ".join(page.text.split())
    assert "training rankingsreward stage longer than max_length 3 1,603" in text
    assert "held-out rankingsreward stage all answers tied 7 200" in text


# --- The verdict --------------------------------------------------------------------------------------------


def test_good_with_its_price(fake: FakeRun) -> None:
    reached = verdict.reach(fake.found())
    text = reached.text.replace(wording.SPACE, " ")
    assert reached.tone == "good"
    assert "fell from 13.0 % to 5.9 %, by 55 % (95 % interval 48 to 61 %)" in text
    assert "beats SFT’s on 71 % of them (66 to 76 %; ties count half)" in text
    assert "1.86 nats of KL a response" in text
    for price in ("20.7 tokens (were 21.6)", "28.4 % of word pairs", "0.392 nats (was 0.381)"):
        assert price in text


@pytest.mark.parametrize(
    ("reduction", "win_rate", "tone", "said"),
    [
        ((0.3, 0.1, 0.5), (0.4, 0.35, 0.45), "bad", "PPO did not help"),
        ((0.3, 0.1, 0.5), (0.5, 0.45, 0.55), "bad", "rose from"),
        ((-0.05, -0.2, 0.1), (0.5, 0.45, 0.55), "unclear", "−20 to +10 %) holds zero"),
        ((-0.05, -0.2, 0.1), (0.6, 0.55, 0.65), "unclear", "chance"),
        ((-0.3, -0.5, -0.1), (0.5, 0.45, 0.55), "good", "PPO helped."),
        ((-0.3, -0.5, -0.1), (0.4, 0.35, 0.45), "unclear", "of two minds"),
    ],
)
def test_the_interval_decides(
    fake: FakeRun, reduction: tuple[float, ...], win_rate: tuple[float, ...], tone: str, said: str
) -> None:
    fake.evaluation["reduction"] = interval(*reduction)
    fake.evaluation["win_rate"] = interval(*win_rate, ties=0.3)
    reached = verdict.reach(fake.found())
    assert reached.tone == tone
    assert said in reached.text.replace(wording.SPACE, " ")


def test_without_errors_before_the_win_rate_decides(fake: FakeRun) -> None:
    fake.evaluation["models"]["sft"] = model(0.0)
    fake.evaluation["reduction"] = interval(-1.0, -1.0, -1.0)
    fake.evaluation["win_rate"] = interval(0.3, 0.25, 0.35, ties=0.4)
    reached = verdict.reach(fake.found())
    assert reached.tone == "bad"
    assert "by 100" not in reached.text


def test_without_a_judge_nothing_is_claimed(fake: FakeRun, tmp_path: Path) -> None:
    fake.evaluation = unjudged()
    said, page = build(fake("eval"), tmp_path)
    assert said.startswith("Whether PPO helped is not known. No independent judge read the answers.")
    assert "PPO helped." not in page.text
    assert "Fact errors" not in page.text
    assert "no fault" not in page.text
    assert json.loads((tmp_path / "made" / "report.json").read_text())["verdict"]["tone"] == "unknown"


def test_an_unfit_reward_model_is_named(fake: FakeRun, tmp_path: Path) -> None:
    fake.unfit = ["its accuracy on held-out pairs is 0.510, below 0.55"]
    said, page = build(fake("reward"), tmp_path)
    assert "The reward model of this run is unfit for PPO: its accuracy" in said
    assert "Unfit for PPO: its accuracy" in page.text


def test_force_is_named(fake: FakeRun) -> None:
    fake.unfit = fake.forced_past_gate = ["its scores follow length"]
    [caveat] = [text for text in verdict.reach(fake.found()).caveats if "unfit" in text]
    assert "its scores follow length" in caveat
    assert "--force" in caveat


def test_an_unmeasured_reward_model_is_shown_as_such(fake: FakeRun, tmp_path: Path) -> None:
    fake.quality, fake.unfit = {"pairs": 0}, ["it was measured on no held-out pair at all"]
    _, page = build(fake("reward"), tmp_path)
    assert "measured on no held-out pair" in page.text


def test_kl_beyond_its_target_and_answers_without_end_are_named(fake: FakeRun) -> None:
    fake.evaluation["models"]["ppo"] |= {"kl": 7.5, "ended": 0.8}
    text = verdict.reach(fake.found()).text.replace(wording.SPACE, " ")
    assert "beyond the recipe’s target of 6 nats" in text
    assert "Only 80 % of PPO’s answers end" in text


@pytest.mark.parametrize(
    ("rates", "scores", "expected"),
    [
        ((0.2, 0.05, 0.25), (1.0, 2.0, 3.0), True),
        ((0.2, 0.05, 0.07), (1.0, 2.0, 3.0), False),  # within what 64 prompts can tell
        ((0.2, 0.05, 0.25), (1.0, 2.0, 1.5), False),  # the score fell too: not over-optimised, only worse
        ((0.2, 0.10, 0.05), (1.0, 2.0, 3.0), False),
    ],
)
def test_overoptimisation_is_a_rise_of_score_and_errors(
    rates: tuple[float, ...], scores: tuple[float, ...], expected: bool
) -> None:
    looks = [
        {"update": update, "slot_error_rate": rate, "score": score}
        for update, (rate, score) in enumerate(zip(rates, scores, strict=True))
    ]
    found = verdict.overoptimised(looks, prompts=64)
    assert found == ((looks[1], looks[2]) if expected else None)


# --- Parts --------------------------------------------------------------------------------------------------


def test_changes_are_judged_by_their_direction() -> None:
    rows = {row.metric.key: row for row in comparison.rows(evaluation())}
    assert (rows["slot_error_rate"].tone, rows["slot_error_rate"].change) == ("good", "−7.2 points")
    assert rows["slot_error_rate"].intervals["sft"].replace(wording.SPACE, " ") == "12.0 to 14.0 %"
    assert rows["nll"].tone == rows["distinct_2"].tone == "bad"
    assert rows["score"].tone == rows["length"].tone == rows["missing"].tone == ""
    assert rows["kl"].change == ""
    assert comparison.rows(None) == []


def test_long_curves_are_thinned_by_means() -> None:
    points = [(float(x), 2.0 * x) for x in range(1000)]
    few = plots.thinned(points, 300)
    assert len(few) == 250
    assert few[0] == (1.5, 3.0)
    assert plots.thinned(points[:300], 300) == points[:300]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.number(0.5381), "0.538"),
        (wording.number(2703.0), "2,703"),
        (wording.number(0.0), "0"),
        (wording.fixed(-0.001), "0.00"),
        (wording.fixed(-1.5, 1, sign=True), "−1.5"),
        (wording.fixed(0.0, 1, sign=True), "0.0"),
        (wording.fixed(None), "–"),
        (wording.listing(["a", "b", "c"]), "a, b and c"),
        (wording.listing([]), ""),
    ],
)
def test_numbers_read_well(written: str, expected: str) -> None:
    assert written == expected


# --- Rankings -----------------------------------------------------------------------------------------------


def test_rankings_are_told_with_annotators_models_and_what_was_left_out(fake: FakeRun, tmp_path: Path) -> None:
    fake.agreement = agreement()
    fake.dropped = [{"table": "rankings", "row": row, "reason": "missing rating"} for row in range(3, 43)]
    _, page = build(fake(), tmp_path)
    text = " ".join(page.text.split())
    for said in (
        "they agree on 69.0 % (64.0 to 74.0 %) of 4,321 pairs, those of training and held-out prompts together",
        "the one shown first 63 % (58 to 68 %)",
        "Measured on 1,600 of 6,400 rankings: all those of 400 prompts",
        "42 s median; 9 of 10 below 120 s",
        "83 % of 60 pairs",
        "48 more annotators, of 59",
        "large +0.50 wins 62 %",
        "missing rating 40 900 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, …",
    ):
        assert said in text
    assert "<script" not in page.source
    assert text.index(HOSTILE) < text.index("worker 0") < text.index("worker 58")
    assert "worker 59" not in text
    head = next(part for part in page.source.split("<thead>") if "Agrees with others" in part).split("</thead>")[0]
    assert "Agrees with self" not in head  # nobody has it
    assert "First shown wins" in head
    numbers = json.loads((tmp_path / "made" / "report.json").read_text())
    assert numbers["rankings"]["all_annotators"] == 71
    assert numbers["dropped"][0]["count"] == 40


def test_rankings_of_which_little_is_known(fake: FakeRun, tmp_path: Path) -> None:
    measures = ("pairwise", "by_others", "tau", "self_consistency", "first_shown", "longer")
    nothing = {name: part(None) for name in measures}
    shares = {name: part(None) for name in ("agreement", "tau", "self_consistency", "first_shown", "longer")}
    fake.agreement = agreement() | nothing
    fake.agreement |= {"alpha": None, "seconds": None, "models": []}
    fake.agreement["by_annotator"] = {"unknown": {"rankings": 3, **shares, "seconds": None, "weight": 1.0}}
    fake.ranking |= {"agreement": None, "predicted_by_others": None, "alpha": None}
    _, page = build(fake("rank"), tmp_path)
    text = " ".join(page.text.split())
    assert "how far they agree is not known" in text
    assert "nobody ranked anything twice" in text
    assert "Models behind the answers" not in text
    assert "Left out" not in text


# --- What people say ----------------------------------------------------------------------------------------


def people(run: RunSummary, value: float, low: float, high: float, eval_: str | None = None) -> None:
    """As `tutelage judge` writes it."""
    fingerprint = run.stages["eval"].manifest.fingerprint
    found = {
        "eval": eval_ or fingerprint,
        "prompts": 100,
        "judges": 3,
        "win_rate": interval(value, low, high, ties=0.1),
        "agreement": interval(0.8, 0.7, 0.9, pairs=60),
    }
    human.judged_file(run.folder, fingerprint).write_text(json.dumps(found))


def test_people_answer_where_no_judge_can(fake: FakeRun, tmp_path: Path) -> None:
    fake.evaluation = unjudged()
    run = fake()
    people(run, 0.61, 0.53, 0.69)
    said, page = build(run, tmp_path)
    assert said.startswith(
        "PPO helped. 3 people compared the answers to 100 held-out prompts blind: PPO’s beats SFT’s on "
        "61\N{NO-BREAK SPACE}% of them (95 % interval 53 to 69\N{NO-BREAK SPACE}%; ties count half)."
    )
    assert "Two of them agree on 80\N{NO-BREAK SPACE}%" in said
    assert "People prefer it to SFT" in page.text
    people(run, 0.4, 0.3, 0.45)
    assert verdict.reach(findings.collect(run)).tone == "bad"
    people(run, 0.5, 0.4, 0.6)
    assert verdict.reach(findings.collect(run)).tone == "unclear"


def test_people_and_the_judge_of_facts(fake: FakeRun) -> None:
    run = fake()
    people(run, 0.61, 0.53, 0.69)
    both = verdict.reach(findings.collect(run))
    assert both.tone == "good"
    assert "3 people compared" in both.evidence
    assert "By the independent judge (venues)" in both.evidence
    people(run, 0.3, 0.2, 0.4)
    assert verdict.reach(findings.collect(run)).headline == "People and the judge of facts are at odds."
    people(run, 0.5, 0.4, 0.6)
    assert verdict.reach(findings.collect(run)).tone == "good"


def test_what_people_said_of_other_answers_is_not_shown(fake: FakeRun) -> None:
    run = fake()
    people(run, 0.3, 0.2, 0.4, eval_="0" * 64)
    assert findings.collect(run)["human"] is None
    people(run, 0.3, 0.2, 0.4)
    fake.evaluation["prompts"] = 255
    assert findings.collect(fake(None, "eval.num_prompts=255"))["human"] is None
