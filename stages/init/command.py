"""The steps of `init`: from a user's own tables and base model to a recipe."""

from __future__ import annotations

import difflib
import glob
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import typer
import yaml

from data.tables.formats import FORMATS
from data.tables.guess.guess import Guess
from data.tables.guess.rankings import rankings as guess_rankings
from data.tables.guess.sample import Sample
from data.tables.guess.section import FILL_IN, config_of
from data.tables.guess.texts import demonstrations as guess_demonstrations
from data.tables.labels import VERDICTS
from data.tables.sources import HUB
from data.tables.suggest import listed
from pipeline import invocation
from pipeline.cli.app import echo
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.config.load import load_recipe
from pipeline.config.paths import nearest
from pipeline.engine.plan import Planner
from pipeline.errors import DataError, RecipeError, TutelageError
from pipeline.files import write_atomic
from stages.init import base as bases
from stages.init import measure, show, sizing, write

DEFAULT_BASE = "HuggingFaceTB/SmolLM2-135M@93efa2f097d58c2a74874c7e644dbc9b0cee75a2"
"""Offered on a terminal: the base of recipes/smollm2-135m.yaml."""
DEMONSTRATION_COLUMNS = ("prompt", "completion", "messages")
COMPARED = 2000
"""Rankings on which agreement is measured here. The `rank` stage measures all of them."""

Table = TypeVar("Table", TableConfig, RankingTableConfig)


def interactive() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


@dataclass(frozen=True)
class Dialog:
    """The steps of `init`.

    Attributes:
        asks: whether a person is asked for what is missing, and may correct what is proposed.
    """

    asks: bool

    def run(
        self,
        demonstrations: str | None,
        rankings: str | None,
        base: str | None,
        name: str,
        annotators: str,
        out: Path | None,
        force: bool,
    ) -> None:
        """Asks, guesses, shows, sizes and writes. Raises a `TutelageError` for what only the user can fix."""
        if self.asks:
            complete_paths()
            if demonstrations is None:
                question = "Table of demonstrations (empty: no SFT)"
                demonstrations = self._ask(question, "" if not annotators else None, _check_file) or None
            if rankings is None and not annotators:
                question = "Table of rankings (empty: people will rank in a browser)"
                rankings = self._ask(question, "" if demonstrations else None, _check_file) or None
            base = base or self._ask("Base model: folder, .gguf file or Hub id", DEFAULT_BASE, bases.resolve)
            if not rankings and not annotators:
                annotators = self._ask("Who will rank (ana,ben)")
        people = [person.strip() for person in annotators.split(",") if person.strip()]
        first, base = _required(demonstrations, rankings, base, people)
        out = out or _beside(first)
        name = name or _name(out)
        self._check_output(out, force)
        for path in filter(None, (demonstrations, rankings)):
            _check_file(path)
        model = bases.resolve(base)

        guess, table, ranking_guess, ranked = Guess(), None, Guess(), None
        if demonstrations:
            guess = self._demonstrations(TableConfig(path=demonstrations))
            table = _with_columns(TableConfig(path=demonstrations), guess)
        if rankings:
            ranking_guess = self._rankings(rankings)
            ranked = _ranking_table(rankings, ranking_guess)
        tables = measure.read(table, ranked, ranking_guess)
        sizes = measure.measure(tables, model)
        values = sizing.values(model, sizes)
        more = f" in the first {measure.ROWS:,} rows"
        counted = {}
        if demonstrations:
            cut = more * tables.cut_demonstrations
            counted["demonstrations"] = f"{len(tables.demonstrations):,} demonstrations" + cut
        if tables.rankings:
            counted["rankings"] = show.ranked(tables.rankings) + more * tables.cut_rankings
        draft = write.Draft(
            name=name,
            command=_command(demonstrations, rankings, base),
            base=model,
            demonstrations=demonstrations,
            demonstration_columns=guess,
            rankings=rankings,
            ranking_columns=ranking_guess,
            counted=counted,
            annotators=people,
            values=values,
        )
        text = write.text(draft)
        _check(text, out.name)
        _save(out, text)
        _say_next(out, text, values.notes)

    def _ask(self, question: str, default: str | None = None, check: Callable[[str], object] | None = None) -> str:
        """An answer, asked for again while `check` raises."""
        while True:
            answer = str(typer.prompt(question, default=default, show_default=bool(default))).strip()
            try:
                if answer and check:
                    check(answer)
            except TutelageError as error:
                echo(str(error))
            else:
                return answer

    def _check_output(self, out: Path, force: bool) -> None:
        if not out.exists() or force:
            return
        if not (self.asks and out.is_file() and typer.confirm(f"{out} exists. Overwrite it?")):
            raise RecipeError(
                f"{out} exists already", where="--out", hint="give another --out, or --force to overwrite it"
            )

    def _demonstrations(self, table: TableConfig) -> Guess:
        sample = Sample.of(table)

        def reading(guess: Guess) -> list[str]:
            rows, _ = measure.demonstrations(_with_columns(table, guess), show.ROWS)
            return list(show.demonstrations(rows))

        try:
            guess = guess_demonstrations(sample)
        except DataError as error:
            if not self.asks:
                raise
            echo(str(error))
            guess = Guess(unused=list(sample.columns))
        return self._agree(f"{table.path}: demonstrations", guess, sample, reading)

    def _rankings(self, path: str) -> Guess:
        sample = Sample.of(TableConfig(path=path))

        def reading(guess: Guess) -> list[str]:
            rows, cut = measure.rankings(_ranking_table(path, guess), COMPARED)
            first = f"first {COMPARED:,} rows: " if cut else ""
            lines = [f"  {first}{show.ranked(rows)}", *show.rankings(rows)]
            return [*lines, f"  {show.overlap(rows, _names_annotators(guess))}"]

        try:
            guess = guess_rankings(sample)
        except DataError as error:
            if not self.asks:
                raise
            echo(str(error))
            guess = Guess("wide", unused=list(sample.columns))
        return self._agree(f"{path}: rankings", guess, sample, reading)

    def _agree(self, title: str, guess: Guess, sample: Sample, reading: Callable[[Guess], Sequence[str]]) -> Guess:
        """Shows a guess and the rows that it reads, and lets a person correct it until they accept."""
        while True:
            guess.sort()
            echo(title + (f", format {guess.format}" if guess.format else ""))
            for line in show.mapping(guess):
                echo(line)
            try:
                if not guess.open:
                    for line in reading(guess):
                        echo(line)
            except TutelageError as error:
                if not self.asks:
                    raise
                echo(str(error))
            echo("")
            if not self.asks:
                return guess
            question = "Press Enter to accept, or correct a column, as in annotator=rater"
            answer = self._ask(question, "", lambda text: correct(guess, text, sample))
            if not answer:
                return guess


def complete_paths() -> None:
    """Lets the Tab key complete names of files, where Python has readline."""
    try:
        import readline
    except ImportError:
        return

    def completed(text: str, state: int) -> str | None:
        paths = sorted(glob.glob(f"{glob.escape(text)}*"))
        return f"{paths[state]}{os.sep * Path(paths[state]).is_dir()}" if state < len(paths) else None

    readline.set_completer_delims("")
    readline.set_completer(completed)
    readline.parse_and_bind("tab: complete")


def correct(guess: Guess, answer: str, sample: Sample) -> None:
    """Applies a correction, `ours=theirs`: a column, a list of columns with commas, nothing to drop it, or the
    format or labels. Raises `DataError` for a name that is not known."""
    ours, equals, theirs = (part.strip() for part in answer.partition("="))
    format = FORMATS.get(guess.format)
    known = [column.name for column in format.columns] if format else list(DEMONSTRATION_COLUMNS)
    known += ["format", "labels"] if format else []
    if not equals or ours not in known:
        raise DataError(f"{ours!r} is not one of {', '.join(known)}", hint="write as in annotator=rater")
    if ours == "format":
        if theirs not in FORMATS:
            raise DataError(f"there is no format {theirs!r}", hint=f"use one of {', '.join(FORMATS)}")
        guess.format, guess.columns, guess.open = theirs, {}, []
        return
    if ours == "labels":
        guess.labels = _labels(theirs)
        guess.open = [item for item in guess.open if not item.line.startswith("labels")]
        return
    form = next((column.form for column in format.columns if column.name == ours), "name") if format else "name"
    names = [column.strip() for column in theirs.split(",")] if form == "list" or "," in theirs else [theirs]
    outside = [column for column in names if column and column not in sample.columns]
    if outside and guess.format not in ("argilla", "label_studio", "scored", "choice", "tree"):
        near = difflib.get_close_matches(outside[0], sample.columns, n=1)
        raise DataError(
            f"the table has no column {outside[0]!r}",
            hint=f"did you mean {near[0]}?" if near else f"it has {listed(sample.columns)}",
        )
    guess.open = [item for item in guess.open if ours not in re.findall(r"\w+", item.line.partition(":")[0])]
    guess.why.pop(ours, None)
    guess.columns.pop(ours, None)
    for group in format.alternatives if format else ():
        for other in group if ours in group else ():
            guess.columns.pop(other, None)
    if theirs:
        guess.columns[ours] = names if form == "list" or len(names) > 1 else names[0]
    used = guess.used()
    guess.unused = [column for column in sample.columns if column not in used and sample.cells(column)]


def _labels(text: str) -> dict[str, str]:
    """Labels as a recipe has them, from `1: first, 2: second`. Raises `DataError`."""
    try:
        labels = yaml.safe_load(f"{{{text.strip('{}')}}}")
    except yaml.YAMLError:
        labels = {}
    if not labels or not {str(value) for value in labels.values()} <= VERDICTS.keys():
        raise DataError("labels are first, second or tie", hint="write as in labels=1: first, 2: second, 0: tie")
    return {str(key): str(value) for key, value in labels.items()}


def _names_annotators(guess: Guess) -> bool:
    return "annotator" in guess.columns or guess.format in ("native", "argilla", "label_studio")


def _with_columns(table: TableConfig, guess: Guess) -> TableConfig:
    """The table with the guessed columns; for one that is open, the first candidate, which is only measured."""
    columns = {ours: theirs for ours, theirs in guess.columns.items() if isinstance(theirs, str)}
    for item in guess.open:
        role, _, candidates = item.line.partition(": ")
        columns.setdefault(role, candidates.partition(" or ")[0])
    return TableConfig(path=table.path, columns=columns)


def _ranking_table(path: str, guess: Guess) -> RankingTableConfig:
    table = config_of(guess, path)
    assert isinstance(table, RankingTableConfig)
    return table


def _required(
    demonstrations: str | None, rankings: str | None, base: str | None, people: Sequence[str]
) -> tuple[str, str]:
    """The first table, and the base model. Raises `RecipeError` for what is missing."""
    first = demonstrations or rankings
    lacking = [option for option, value in (("--demonstrations", first), ("--base", base)) if not value]
    if not rankings and not people:
        lacking.append("--rankings (or --annotators ana,ben, who will rank in a browser)")
    if lacking or not first or not base:
        raise RecipeError(
            f"init needs {', '.join(lacking)}",
            hint="for example --demonstrations my/demonstrations.csv --rankings my/rankings.csv --base "
            f"{DEFAULT_BASE.partition('@')[0]}; on a terminal it asks",
        )
    return first, base


def _is_local(path: str) -> bool:
    return not path.startswith((HUB, "https://", "http://"))


def _check_file(path: str) -> None:
    """Raises `DataError` with the nearest name if a local table does not exist."""
    local = Path(path).expanduser()
    if not _is_local(path) or local.exists():
        return
    near = nearest(local)
    raise DataError(
        f"there is no file or folder {path}",
        hint=f"did you mean {near}?" if near else "paths are relative to the working directory",
    )


def _beside(table: str) -> Path:
    folder = Path(table).expanduser().parent if _is_local(table) else Path()
    return folder / "recipe.yaml"


def _name(out: Path) -> str:
    """A name for the recipe: that of its file, or of its folder where the file is called recipe."""
    words = out.resolve().parent.name if out.stem == "recipe" else out.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", words).strip("-._")[:80] or "my-model"


def _command(demonstrations: str | None, rankings: str | None, base: str) -> str:
    values = {"--demonstrations": demonstrations, "--rankings": rankings, "--base": base}
    return invocation.command("init", *(part for key, value in values.items() if value for part in (key, value)))


def _check(text: str, name: str) -> None:
    """Loads the recipe, and checks it against the model, as `check` does. Raises what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8")
        planner = Planner(load_recipe(path), Path(folder))
        planner.check_model(None)


def _save(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, text)
    except OSError as error:
        raise RecipeError(
            f"the recipe cannot be written: {error.strerror or error}", where=str(out), hint="give another --out"
        ) from error


def _say_next(out: Path, text: str, notes: Sequence[str]) -> None:
    """Says what was written and which commands come next. Raises `DataError` for lines that must be filled in."""
    path = Path(os.path.relpath(out)) if out.resolve().is_relative_to(Path.cwd()) else out
    invocation.remember(recipe=str(path))
    echo(f"recipe: {path}")
    for note in notes:
        echo(f"note: {note}")
    open_lines = [number for number, line in enumerate(text.splitlines(), 1) if FILL_IN in line]
    if open_lines:
        raise DataError(
            f"the recipe is written, and {len(open_lines)} line{'s' * (len(open_lines) > 1)} must be filled in",
            where=", ".join(f"{path}:{number}" for number in open_lines),
            hint=f"replace each with what it asks for, then {invocation.command('check')}",
        )
    echo("next:")
    for command, what in (
        ("check", "opens tables and model"),
        ("run", "all stages, then the report"),
    ):
        echo(f"  {invocation.command(command):40}  # {what}")
