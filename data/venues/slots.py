"""A fact checker: which attributes of a prompt does a text state, and which does it make up?

A prompt is a meaning representation such as `name[Blue Spice], food[Thai], area[riverside]`. A *lexicon* lists, for
each attribute, how its values appear in text. Together they give the slot errors of a description:

- missing: an attribute of the prompt that the text does not state;
- wrong: an attribute of the prompt that the text states with another value;
- invented: an attribute that the text states although the prompt does not;
- repeated: a further statement of an attribute's value (except names).

The slot error rate is `(missing + wrong + invented) / given` over all texts (Wen et al. 2015, "Semantically
Conditioned LSTM-based NLG", section 5; there with wrong counted as one error, as here).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import DataError

MeaningRepresentation = dict[str, str]

KINDS = ("missing", "wrong", "invented", "repeated")
"""The kinds of fault: the fields of `SlotErrors`."""
LEXICONS = Path(__file__).parent / "lexicons"

_SLOT = re.compile(r"\s*([^\[\],]+)\[([^\]]*)\]\s*(?:,|$)")


def parse_mr(text: str) -> MeaningRepresentation:
    """`"name[Blue Spice], food[Thai]"` -> `{"name": "Blue Spice", "food": "Thai"}`. Raises `DataError`."""
    slots: MeaningRepresentation = {}
    position = 0
    while position < len(text):
        match = _SLOT.match(text, position)
        if match is None:
            raise DataError(
                f"{text!r} is not a meaning representation, from character {position + 1} on",
                hint="write it as attribute[value], attribute[value]",
            )
        slots[match[1].strip()] = match[2].strip()
        position = match.end()
    return slots


def format_mr(slots: Mapping[str, str]) -> str:
    """The inverse of `parse_mr`."""
    return ", ".join(f"{attribute}[{value}]" for attribute, value in slots.items())


@dataclass(frozen=True)
class SlotErrors:
    """The errors of one text: attribute names, one entry per error. `given`: how many attributes the prompt has."""

    given: int
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Fact errors. Repetition is clumsy, not false."""
        return len(self.missing) + len(self.wrong) + len(self.invented)


def slot_error_rate(checks: Iterable[SlotErrors]) -> float:
    """Fact errors per attribute of the prompts, over all texts."""
    checks = list(checks)
    return sum(check.errors for check in checks) / max(1, sum(check.given for check in checks))


@dataclass(frozen=True)
class Attribute:
    """How one attribute appears in text.

    Attributes:
        values: value -> pattern; a pattern's matches are the places that state the value.
        verbatim: a pattern with `{value}` for values that the lexicon does not list (names, places).
        unique: whether stating it twice is a repetition.
    """

    values: dict[str, re.Pattern[str]]
    verbatim: str | None
    unique: bool

    def patterns(self, given: str | None) -> dict[str, re.Pattern[str]]:
        """value -> pattern: the prompt's value first, then the listed ones."""
        listed = dict(self.values)
        if given in listed:
            return {given: listed.pop(given), **listed}
        if given is not None and self.verbatim is not None:
            return {given: _compile([self.verbatim.replace("{value}", re.escape(given))]), **listed}
        return listed


class SlotLexicon:
    """The attributes of a domain. The lexicons in data/venues/lexicons/ show the YAML form."""

    def __init__(self, attributes: Mapping[str, Attribute]) -> None:
        self.attributes = dict(attributes)

    @classmethod
    def load(cls, name_or_path: str) -> SlotLexicon:
        """A built-in lexicon by name, or another one by path. Raises `DataError`."""
        path = LEXICONS / f"{name_or_path}.yaml"
        if not path.exists():
            path = Path(name_or_path)
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in LEXICONS.glob("*.yaml")))
            raise DataError(f"there is no slot lexicon {name_or_path!r}", hint=f"use a path, or one of {known}")
        try:
            return cls.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, re.error, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"the file is not a slot lexicon: {error}",
                where=str(path),
                hint="compare it with data/venues/lexicons/venues.yaml",
            ) from error

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> SlotLexicon:
        words = description.get("words") or {}
        return cls(
            {
                name: Attribute(
                    values={
                        str(value): _compile([forms] if isinstance(forms, str) else forms, words)
                        for value, forms in (spec.get("values") or {}).items()
                    },
                    verbatim=spec.get("verbatim"),
                    unique=spec.get("unique", True),
                )
                for name, spec in description["attributes"].items()
            }
        )

    def check(self, mr: Mapping[str, str], text: str) -> SlotErrors:
        """Compares `text` with the facts in `mr`. Raises `DataError` for an attribute that the lexicon lacks."""
        result = SlotErrors(given=len(mr))
        for unknown in mr.keys() - self.attributes.keys():
            raise DataError(f"the slot lexicon has no attribute {unknown!r}", hint="add it to the lexicon")
        places = self.stated(mr, text)
        for name, attribute in self.attributes.items():
            given, stated = mr.get(name), places[name]
            if given is None:
                result.invented.extend([name] * len(stated))
            elif given not in stated:
                (result.wrong if stated else result.missing).append(name)
                result.invented.extend([name] * (len(stated) - 1))
            else:
                result.invented.extend([name] * (len(stated) - 1))
            if attribute.unique:
                result.repeated.extend([name] * (sum(stated.values()) - len(stated)))
        return result

    def stated(self, mr: Mapping[str, str], text: str) -> dict[str, Counter[str]]:
        """attribute -> value -> number of places in `text` that state it.

        A place inside a longer one does not count ("Indian" in "Raja Indian Cuisine"). A place that fits several
        values of an attribute ("cheap" is also "less than £20") states the prompt's value, or else the first one.
        """
        places: dict[tuple[str, int, int], str] = {}
        for name, attribute in self.attributes.items():
            for value, pattern in attribute.patterns(mr.get(name)).items():
                for match in pattern.finditer(text):
                    places.setdefault((name, *match.span()), value)
        spans = {(start, end) for _, start, end in places}
        stated: dict[str, Counter[str]] = {name: Counter() for name in self.attributes}
        for (name, start, end), value in places.items():
            if not any(s <= start and end <= e and (s, e) != (start, end) for s, e in spans):
                stated[name][value] += 1
        return stated


def _compile(forms: Iterable[str], words: Mapping[str, str] | None = None) -> re.Pattern[str]:
    """One pattern of all forms; `<name>` in a form stands for a group of the lexicon's `words`."""
    filled = [re.sub(r"<(\w+)>", lambda name: f"(?:{(words or {})[name[1]]})", form) for form in forms]
    return re.compile("|".join(rf"(?<!\w)(?:{form})(?!\w)" for form in filled), re.IGNORECASE)
