"""Which columns of a table are probably meant by our names for them."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

SYNONYMS: dict[str, tuple[str, ...]] = {
    "prompt": (
        "instruction", "question", "input", "query", "user_prompt", "request", "post", "context",
        "frage", "anweisung", "aufgabe", "eingabe", "anfrage", "pregunta",
    ),
    "completion": (
        "output", "answer", "response", "reply", "text", "demonstration", "summary", "target", "generation",
        "hypothesis", "translation",
        "antwort", "ausgabe", "réponse", "respuesta",
    ),
    "text": ("content", "document", "passage", "body", "story", "inhalt", "dokument"),
    "messages": ("conversation", "conversations", "dialogue", "dialog", "chat", "gespräch", "unterhaltung"),
    "chosen": (
        "preferred", "better", "winner", "accepted", "response_chosen", "chosen_response", "answer_chosen",
        "chosen_answer", "bevorzugt", "besser", "gewählt",
    ),
    "rejected": (
        "dispreferred", "worse", "loser", "response_rejected", "rejected_response", "answer_rejected",
        "rejected_answer", "abgelehnt", "schlechter",
    ),
    "annotator": (
        "rater", "worker", "labeler", "labeller", "judge", "reviewer", "user", "evaluator", "ranker", "assessor",
        "ranked_by", "rated_by", "annotated_by", "labeled_by", "labelled_by", "person", "participant", "who", "by",
        "bewerter", "bewerterin", "gutachter", "prüfer", "nutzer", "annotierer", "teilnehmer", "wer",
        "évaluateur", "evaluador",
    ),
    "rank": ("place", "position", "pos", "ranking", "order", "rang", "platz", "platzierung", "reihenfolge"),
    "rating": (
        "score", "stars", "grade", "points", "quality", "bewertung", "note", "punkte", "punktzahl", "wertung",
    ),
    "model": ("model_name", "system", "generator", "policy", "source", "modell"),
    "group": ("prompt_id", "item", "item_id", "example_id", "task_id"),
    "chosen_rating": ("score_chosen", "chosen_score", "rating_chosen"),
    "rejected_rating": ("score_rejected", "rejected_score", "rating_rejected"),
    "margin": ("strength", "preference_strength", "score_difference"),
}  # fmt: skip
"""Our name for a column -> other names that people give it, the likeliest first. None of them is ours."""

FILLERS = {
    "annotator": frozenset({"id", "ids", "name", "no", "nr", "number", "code", "key", "email", "the", "of"}),
    "model": frozenset({"id", "name"}),
    "rating": frozenset({"overall", "total", "average", "mean", "final", "fine", "grained", "value"}),
}
"""Words that a name may have beside the one that matters, by our name: `rater_id`, `Worker name`."""
TEXT_FILLERS = frozenset({"text", "texts", "content", "the", "of", "value", "cell"})

CUTOFF = 0.8
"""Similarity of two spellings from which one is taken for a slip of the other (1: equal)."""


def probable(wanted: str, columns: Iterable[str]) -> str | None:
    """The column that is probably meant by our name `wanted`, or None: the same but for case and punctuation, a
    known synonym, or a close spelling."""
    columns = list(columns)
    by_plain = {plain(column): column for column in reversed(columns)}
    by_core = {_core(wanted, column): column for column in reversed(columns)}
    for names in (by_plain, by_core):
        for name in (wanted, *SYNONYMS.get(wanted, ())):
            if plain(name) in names:
                return names[plain(name)]
    # "ranking" is spelled like "rating", but is another thing
    return close(wanted, [c for c in columns if wanted not in SYNONYMS or role_of(c) in (None, wanted)])


def before_the_prompt(column: str, texts: Iterable[str], *, nested: bool) -> str | None:
    """Our name for a column that probably holds what comes before a prompt: `system`, `history` or None.

    Args:
        texts: its short cells, and the starts of long ones. A column `system` often names the model that answered,
            in one word.
        nested: whether it holds lists or objects.
    """
    words = words_of(column)
    if "system" in words and not nested and any(" " in text.strip() for text in texts):
        return "system"
    return "history" if "history" in words and nested else None


def role_of(column: str) -> str | None:
    """Our name that a column's name stands for, the same but for case and punctuation, or by a synonym."""
    for role, synonyms in SYNONYMS.items():
        if plain(column) in {plain(name) for name in (role, *synonyms)}:
            return role
    return next((role for role in SYNONYMS if is_called(role, column)), None)


def is_called(role: str, column: str) -> bool:
    """Whether a column's name says that it is `role`, our name."""
    names = {plain(name) for name in (role, *SYNONYMS.get(role, ()))}
    return plain(column) in names or _core(role, column) in names


def close(wanted: str, names: Iterable[str]) -> str | None:
    """The name whose spelling is close to `wanted`; None if there is none."""
    by_plain = {plain(name): name for name in names}
    near = difflib.get_close_matches(plain(wanted), by_plain, n=1, cutoff=CUTOFF)
    return by_plain[near[0]] if near else None


def series(columns: Iterable[str]) -> dict[str, list[str]]:
    """Columns whose names differ in a number or a letter only, `reply_1` and `reply_2`, `Antwort A` and `Antwort
    B`: what they share -> their names, in order. Single columns are left out."""
    by_stem: dict[str, list[str]] = {}
    for column in columns:
        by_stem.setdefault(stem(column), []).append(column)
    return {name: members for name, members in by_stem.items() if name and len(members) > 1}


def stem(column: str) -> str:
    """The name without a number, or without a single letter that stands apart: what the columns of a series
    share."""
    words = words_of(column)
    without = [word for word in words if not word.isdigit()]
    if len(without) == len(words):
        without = [word for word in words if len(word) > 1]
    return " ".join(without)


def words_of(name: str) -> list[str]:
    """The words of a name, in lower case: "Rater ID", "rater_id" and "raterId" have the same ones, and so have
    "sys1rank" and "sys 1 rank"."""
    bounds = r"(?<=[a-zß-ÿ])(?=[A-Z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_]{3})"
    text = re.sub(bounds, " ", unicodedata.normalize("NFC", name))
    return re.findall(r"[^\W_]+", text.casefold())


def plain(name: str) -> str:
    """The name without case and punctuation: "Annotator ID" and "annotator_id" are the same."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFC", name).casefold())


def _core(role: str, column: str) -> str:
    """The column's name without words that say nothing about its role."""
    fillers = FILLERS.get(role, TEXT_FILLERS)
    return "".join(word for word in words_of(column) if word not in fillers)


def count_of(count: int, things: str) -> str:
    """A number with its noun, given in the plural: "1 row", "2 rows"."""
    return f"{count:,} {things.removesuffix('s') if count == 1 else things}"


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for a message, with a count of those that are too many."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def quoted(names: Iterable[str]) -> Iterator[str]:
    """Names as YAML writes them inside `{...}` and `[...]`."""
    for name in names:
        yield (
            name
            if re.fullmatch(r"[^\W\d][\w .-]*(?<! )", name) and name not in ("null", "true", "false")
            else json.dumps(name, ensure_ascii=False)
        )
