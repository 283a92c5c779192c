"""The built-in task: describe a venue in a sentence or two from its attributes.

Everything is generated: prompts such as `name[Blue Fox], food[Thai], area[harbour]`, descriptions of **mixed
quality on purpose** (facts left out, invented or repeated), and simulated annotators with their own bias and noise.
A model fine-tuned on these demonstrations learns their mistakes, and rankings can correct it. The rubric that
judges the result is `data/venues/lexicons/venues.yaml`; neither the reward model nor PPO ever sees it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from data.schema import Demonstration, Message
from data.splits import split_of_prompt
from data.venues.slots import MeaningRepresentation, SlotLexicon, format_mr, parse_mr
from pipeline.config.data import TaskConfig
from pipeline.config.rank import AnnotatorConfig

ALWAYS = ("name", "kind")
"""Attributes that every prompt gives."""

# Ways to state a fact: in a first sentence after the venue's name, and in a second one that begins with "It".
_OPENINGS = ("{name} is a {kind}", "There is a {kind} called {name}", "The {name} is a {kind}")
_FIRST = {
    "food": ("serving {food} food", "with {food} food"),
    "price": ("with {price} prices",),
    "area": ("in the {area}",),
    "rating": ("rated {rating}",),
    "near": ("near {near}", "close to {near}"),
}
_SECOND = {
    "food": ("serves {food} food", "offers {food} food"),
    "price": ("has {price} prices",),
    "area": ("is in the {area}",),
    "rating": ("is rated {rating}", "has {rating}"),
    "family friendly": ("{family friendly}",),
    "near": ("is near {near}", "is close to {near}"),
}
_WORDS = {
    "price": {"cheap": "low", "moderate": "average", "expensive": "high"},
    "rating": {"1 star": "one star", "3 stars": "three stars", "5 stars": "five stars"},
    "family friendly": {"yes": "welcomes children", "no": "is adults only"},
}


@cache
def rubric() -> SlotLexicon:
    """The lexicon that judges the task."""
    return SlotLexicon.load("venues")


@cache
def _values() -> dict[str, list[str]]:
    return {name: list(attribute.values) for name, attribute in rubric().attributes.items()}


def sample_mr(rng: random.Random) -> MeaningRepresentation:
    """A venue: name and kind always, and two to four of the other attributes."""
    optional = [name for name in _values() if name not in ALWAYS]
    chosen = {*ALWAYS, *rng.sample(optional, rng.randint(2, 4))}
    return {name: rng.choice(values) for name, values in _values().items() if name in chosen}


def demonstrations(config: TaskConfig, seed: int, eval_fraction: float) -> list[Demonstration]:
    """`config.size` descriptions of random venues, with errors at the rates of `config`."""
    return list(_demonstrations(config, random.Random(f"demonstrations {seed}"), eval_fraction))


def corpus(config: TaskConfig, seed: int, eval_fraction: float) -> list[Demonstration]:
    """Texts to pretrain the base model on: as `demonstrations`, but other texts, and training prompts only."""
    rng = random.Random(f"corpus {seed}")
    return [d for d in _demonstrations(config, rng, eval_fraction) if d.split == "train"]


def _demonstrations(config: TaskConfig, rng: random.Random, eval_fraction: float) -> Iterator[Demonstration]:
    for _ in range(config.size):
        mr = sample_mr(rng)
        prompt = [{"role": "user", "content": format_mr(mr)}]
        yield Demonstration(
            prompt=prompt,
            completion=_render(_spoil(mr, config, rng), rng),
            split=split_of_prompt(prompt, eval_fraction),
        )


def _spoil(mr: MeaningRepresentation, config: TaskConfig, rng: random.Random) -> list[tuple[str, str]]:
    facts = list(mr.items())
    spoilable = [fact for fact in facts if fact[0] != "name"]
    if rng.random() < config.missing:
        for fact in rng.sample(spoilable, rng.randint(1, 2)):
            facts.remove(fact)
    if rng.random() < config.invented:
        name = rng.choice([name for name in _values() if name not in ALWAYS])
        others = [value for value in _values()[name] if value != mr.get(name)]
        facts = [fact for fact in facts if fact[0] != name] + [(name, rng.choice(others))]
    if rng.random() < config.repeated:
        facts.append(rng.choice([fact for fact in facts if fact[0] not in ALWAYS] or [facts[-1]]))
    return facts


def _render(facts: list[tuple[str, str]], rng: random.Random) -> str:
    values = dict(facts)
    text = rng.choice(_OPENINGS).replace("{name}", values["name"]).replace("{kind}", values.get("kind", "place"))
    rest = [fact for fact in facts if fact[0] not in ALWAYS]
    rng.shuffle(rest)
    head = [fact for fact in rest if fact[0] in _FIRST][: rng.randint(1, 3)]
    for fact in head:
        rest.remove(fact)
    text = " ".join([text, *(_phrase(_FIRST, fact, rng) for fact in head)]) + "."
    if rest:
        *most, last = [_phrase(_SECOND, fact, rng) for fact in rest]
        text += " It " + (f"{', '.join(most)} and {last}" if most else last) + "."
    return text


def _phrase(forms: dict[str, tuple[str, ...]], fact: tuple[str, str], rng: random.Random) -> str:
    name, value = fact
    return rng.choice(forms[name]).replace("{" + name + "}", _WORDS.get(name, {}).get(value, value))


def annotate(
    annotator: AnnotatorConfig, prompt: list[Message], completions: list[str], rng: random.Random
) -> list[float]:
    """Utilities (higher is better) of the answers to one prompt for a simulated annotator.

    `AnnotatorConfig` gives the formula. Misreadings are independent for each fact of each answer: with chance
    `oversight`, a wrong fact is overlooked, or a right one taken for missing.
    """
    mr = parse_mr(prompt[-1]["content"])
    return [_utility(annotator, mr, text, rng) for text in completions]


def _utility(a: AnnotatorConfig, mr: MeaningRepresentation, text: str, rng: random.Random) -> float:
    seen = rubric().check(mr, text)

    def believed(errors: int) -> int:
        return sum(rng.random() >= a.oversight for _ in range(errors))

    right = seen.given - len(seen.missing) - len(seen.wrong)
    doubted = sum(rng.random() < a.oversight for _ in range(right))
    wrong = believed(len(seen.wrong))  # a wrong value omits one fact and invents another
    missing = believed(len(seen.missing)) + wrong + doubted
    invented = believed(len(seen.invented)) + wrong
    repeated = believed(len(seen.repeated))
    return (
        -a.missing * missing
        - a.invented * invented
        - a.repeated * repeated
        + a.verbosity * len(text.split()) / 10
        + rng.gauss(0.0, a.noise)
    )
