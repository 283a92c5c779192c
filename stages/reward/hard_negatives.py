"""Hard negatives: copies of ranked answers with one value swapped, ranked below the original.

Ranked answers to a prompt differ in wording, length and several facts at once, and few pairs hinge on a value that
is wrong. A reward model learns little from these about whether a value is right, and PPO may then make more wrong
values. In a pair of an answer and its copy with another value, only the value can decide.

The pairs are made from prompts that are meaning representations (`attribute[value], ...`) and need no lexicon, so
that the rubric which judges the policy stays independent of its training. Values come from training prompts alone.
The pairs count as rankings of weight 1 by nobody: they are added to the training examples, and never to the
rankings of people in `rank`, their agreement or their number.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from data.schema import Prompt
from data.venues.slots import MeaningRepresentation, parse_mr
from pipeline.config.reward import RewardConfig
from pipeline.engine.stage import Metrics, RunContext
from pipeline.errors import DataError
from pipeline.wording import counted
from stages.reward.groups import Encoder, Group, Order

KEY = "reward.hard_negatives"
TRUTH_VALUES = frozenset({"yes", "no", "true", "false"})
"""Values that text does not state by their own name: its "no" is about something else."""


@dataclass(frozen=True)
class Swap:
    """An answer, and its copy in which the value of one attribute is another one."""

    attribute: str
    original: str
    text: str


def add_hard_negatives(
    groups: Mapping[str, Group],
    prompts: Mapping[str, Prompt],
    encoder: Encoder,
    config: RewardConfig,
    ctx: RunContext,
) -> Metrics:
    """Adds up to `config.hard_negatives` swapped answers to each training group, each ranked below its original,
    and prints how many. Which ones depends on `ctx.seed` and the prompt alone, given the values of all prompts.

    Args:
        prompts: those of the training rankings, by key.

    Returns hard_negatives (their number), hard_negatives_prompts, and hard_negatives/<attribute>.

    Raises `DataError` if no prompt is a meaning representation, and if no value can be swapped.
    """
    facts = {key: mr for key, prompt in prompts.items() if (mr := facts_of(prompt))}
    if not facts:
        raise DataError(
            f"no training prompt is a meaning representation, and {KEY} swaps the values of its attributes",
            where=ctx.describe(KEY),
            hint=f"write prompts as attribute[value], attribute[value], or set {KEY} to 0",
        )
    if unknown := sum(key not in facts for key in groups):
        ctx.say(
            f"reward: {unknown:,} of {counted(len(groups), 'training prompt')} get no hard negatives, because they "
            "are not meaning representations"
        )
    values = values_of(facts.values())
    by_attribute: Counter[str] = Counter()
    used = 0
    with ctx.progress("reward: hard negatives", total=len(groups)) as bar:
        for key, group in groups.items():
            if key in facts:
                rng = random.Random(f"hard negatives {ctx.seed} {key}")
                attributes = _add(group, prompts[key], facts[key], values, rng, encoder, config)
                by_attribute.update(attributes)
                used += bool(attributes)
            bar.advance()
    if not by_attribute:
        raise DataError(
            f"{KEY} found no value to swap: an answer must state a value of its training prompt word for word and "
            "once, and another training prompt must have another value of that attribute",
            where=ctx.describe(KEY),
            hint=f"set {KEY} to 0",
        )
    kinds = ", ".join(f"wrong {attribute} {count:,}" for attribute, count in by_attribute.most_common())
    number = by_attribute.total()
    ctx.say(f"reward: {counted(number, 'hard negative')} from {counted(used, 'prompt')} ({kinds})")
    return {
        "hard_negatives": number,
        "hard_negatives_prompts": used,
        **{f"hard_negatives/{attribute}": count for attribute, count in sorted(by_attribute.items())},
    }


def _add(
    group: Group,
    prompt: Prompt,
    facts: MeaningRepresentation,
    values: Mapping[str, Sequence[str]],
    rng: random.Random,
    encoder: Encoder,
    config: RewardConfig,
) -> list[str]:
    """Adds swapped answers that are new and not too long to one group. Returns their attributes."""
    encoded = encoder.prompt(prompt.prompt)

    def usable(text: str) -> bool:
        return text not in group.completions and len(encoder.row(encoded, text)) <= config.max_length

    attributes = []
    for swap in islice(swaps(facts, list(group.completions), values, rng, usable), config.hard_negatives):
        group.orders.append(Order([group.completions[swap.original], len(group.rows)], [1, 2]))
        group.completions[swap.text] = len(group.rows)
        group.rows.append(encoder.row(encoded, swap.text))
        attributes.append(swap.attribute)
    return attributes


def facts_of(prompt: Prompt) -> MeaningRepresentation:
    """The facts of a prompt; empty if it is not a meaning representation."""
    try:
        return parse_mr(prompt.prompt[-1]["content"])
    except DataError:
        return {}


def values_of(facts: Iterable[MeaningRepresentation]) -> dict[str, list[str]]:
    """The values of each attribute, sorted. Of values that differ in case the first counts."""
    values: dict[str, dict[str, str]] = {}
    for mr in facts:
        for attribute, value in mr.items():
            if value:
                values.setdefault(attribute, {}).setdefault(value.casefold(), value)
    return {attribute: sorted(spelled.values()) for attribute, spelled in values.items()}


def swaps(
    facts: MeaningRepresentation,
    answers: Sequence[str],
    values: Mapping[str, Sequence[str]],
    rng: random.Random,
    usable: Callable[[str], bool] = lambda text: True,
) -> Iterator[Swap]:
    """Every (answer, attribute) whose value can be swapped, in random order, each with a random other value.

    Args:
        usable: whether a swapped answer can be used.
    """
    places = [
        (answer, name, place) for answer in answers for name in facts if (place := _place(facts, name, answer))
    ]
    rng.shuffle(places)
    for answer, attribute, (start, end) in places:
        value, stated = facts[attribute], answer[start:end]
        for other in rng.sample(values[attribute], len(values[attribute])):
            text = answer[:start] + _in_case_of(stated, value, other) + answer[end:]
            if _fits(other, value, answer, start) and usable(text):
                yield Swap(attribute, answer, text)
                break


def _place(facts: MeaningRepresentation, attribute: str, answer: str) -> tuple[int, int] | None:
    """Where an answer states the prompt's value of an attribute: verbatim, once, and not within the value of
    another attribute ("Indian" in "Raja Indian Cuisine"). None if it does not."""
    value = facts[attribute]
    places = _places(value, answer)
    if len(places) != 1 or value.casefold() in TRUTH_VALUES:
        return None
    start, end = places[0]
    others = (place for name, other in facts.items() if name != attribute for place in _places(other, answer))
    return None if any(s <= start and end <= e for s, e in others) else (start, end)


def _fits(other: str, value: str, answer: str, start: int) -> bool:
    """Whether replacing `value` at `start` by `other` makes the answer wrong, and shows in nothing else."""
    if other.casefold() in TRUTH_VALUES or _places(other, answer):
        return False
    if _places(value, other) or _places(other, value):  # the same value, or one that is more or less precise
        return False
    article = re.search(r"\ban?\s+$", answer[:start], re.IGNORECASE)
    return article is None or _starts_with_vowel(other) == _starts_with_vowel(value)


def _places(value: str, text: str) -> list[tuple[int, int]]:
    """Where a value stands in a text, without regard to case and not inside a word."""
    return [match.span() for match in _pattern(value).finditer(text)] if value else []


@lru_cache(maxsize=1 << 14)
def _pattern(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(value)}(?!\w)", re.IGNORECASE)


def _starts_with_vowel(value: str) -> bool:
    return value[:1].casefold() in set("aeiou")


def _in_case_of(stated: str, value: str, other: str) -> str:
    """`other` in the letter case that the answer gives to `value`, so that case does not mark swapped values."""
    if stated == value:
        return other
    if stated.isupper() and len(stated) > 1:
        return other.upper()
    if stated.islower():
        return other.lower()
    return other[:1].upper() + other[1:] if stated[:1].isupper() else other
