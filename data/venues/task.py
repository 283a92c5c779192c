"""The built-in task: describe a venue in a sentence or two from its attributes.

Everything is generated: prompts such as `name[Blue Fox], food[Thai], area[harbour]`, descriptions of **mixed
quality on purpose** (facts left out, invented or repeated), and simulated annotators with their own bias and noise.
A model fine-tuned on these demonstrations learns their mistakes, and rankings can correct it. The rubric that
judges the result is `data/venues/lexicons/venues.yaml`, in Chinese venues-zh.yaml; neither the reward model nor PPO
ever sees it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import cache

from data.schema import Demonstration, Message
from data.splits import split_of_prompt
from data.venues.phrases import CHINESE, ENGLISH, Phrases
from data.venues.slots import MeaningRepresentation, SlotLexicon, format_mr, parse_mr
from data.words import words
from pipeline.config.data import TaskConfig
from pipeline.config.rank import AnnotatorConfig

LANGUAGES = {"en": ENGLISH, "zh": CHINESE}


@cache
def rubric(phrases: Phrases = ENGLISH) -> SlotLexicon:
    """The lexicon that judges the task."""
    return SlotLexicon.load(phrases.rubric)


@cache
def _values(phrases: Phrases) -> dict[str, list[str]]:
    return {name: list(attribute.values) for name, attribute in rubric(phrases).attributes.items()}


def sample_mr(rng: random.Random, phrases: Phrases = ENGLISH) -> MeaningRepresentation:
    """A venue: name and kind always, and two to four of the other attributes."""
    values = _values(phrases)
    optional = [name for name in values if name not in phrases.always]
    chosen = {*phrases.always, *rng.sample(optional, rng.randint(2, 4))}
    return {name: rng.choice(of_name) for name, of_name in values.items() if name in chosen}


def demonstrations(config: TaskConfig, seed: int, eval_fraction: float) -> list[Demonstration]:
    """`config.size` descriptions of random venues, with errors at the rates of `config`."""
    return list(_demonstrations(config, random.Random(f"demonstrations {seed}"), eval_fraction))


def corpus(config: TaskConfig, seed: int, eval_fraction: float) -> list[Demonstration]:
    """Texts to pretrain the base model on: as `demonstrations`, but other texts, and training prompts only."""
    rng = random.Random(f"corpus {seed}")
    return [d for d in _demonstrations(config, rng, eval_fraction) if d.split == "train"]


def _demonstrations(config: TaskConfig, rng: random.Random, eval_fraction: float) -> Iterator[Demonstration]:
    phrases = LANGUAGES[config.language]
    for _ in range(config.size):
        mr = sample_mr(rng, phrases)
        prompt = [{"role": "user", "content": format_mr(mr)}]
        yield Demonstration(
            prompt=prompt,
            completion=_render(_spoil(mr, config, rng), phrases, rng),
            split=split_of_prompt(prompt, eval_fraction),
        )


def _spoil(mr: MeaningRepresentation, config: TaskConfig, rng: random.Random) -> list[tuple[str, str]]:
    phrases = LANGUAGES[config.language]
    values = _values(phrases)
    facts = list(mr.items())
    spoilable = [fact for fact in facts if fact[0] != phrases.name]
    if rng.random() < config.missing:
        for fact in rng.sample(spoilable, rng.randint(1, 2)):
            facts.remove(fact)
    if rng.random() < config.invented:
        name = rng.choice([name for name in values if name not in phrases.always])
        others = [value for value in values[name] if value != mr.get(name)]
        facts = [fact for fact in facts if fact[0] != name] + [(name, rng.choice(others))]
    if rng.random() < config.repeated:
        facts.append(rng.choice([fact for fact in facts if fact[0] not in phrases.always] or [facts[-1]]))
    return facts


def _render(facts: list[tuple[str, str]], phrases: Phrases, rng: random.Random) -> str:
    values = {phrases.kind: phrases.place, **dict(facts)}
    text = rng.choice(phrases.openings)
    for name in phrases.always:
        text = text.replace("{" + name + "}", values[name])
    rest = [fact for fact in facts if fact[0] not in phrases.always]
    rng.shuffle(rest)
    head = [fact for fact in rest if fact[0] in phrases.first][: rng.randint(1, 3)]
    for fact in head:
        rest.remove(fact)
    text = phrases.before_first.join([text, *(_phrase(phrases.first, fact, phrases, rng) for fact in head)])
    text += phrases.stop
    if rest:
        *most, last = [_phrase(phrases.second, fact, phrases, rng) for fact in rest]
        ending = f"{phrases.between.join(most)}{phrases.last}{last}" if most else last
        text += phrases.subject + ending + phrases.stop
    return text


def _phrase(
    forms: Mapping[str, tuple[str, ...]], fact: tuple[str, str], phrases: Phrases, rng: random.Random
) -> str:
    name, value = fact
    return rng.choice(forms[name]).replace("{" + name + "}", phrases.words.get(name, {}).get(value, value))


def annotate(
    annotator: AnnotatorConfig, prompt: list[Message], completions: list[str], rng: random.Random
) -> list[float]:
    """Utilities (higher is better) of the answers to one prompt for a simulated annotator.

    `AnnotatorConfig` gives the formula. Misreadings are independent for each fact of each answer: with chance
    `oversight`, a wrong fact is overlooked, or a right one taken for missing. The prompt's attributes tell its
    language.
    """
    mr = parse_mr(prompt[-1]["content"])
    return [_utility(annotator, mr, text, rng) for text in completions]


def _phrases(mr: MeaningRepresentation) -> Phrases:
    return next((phrases for phrases in LANGUAGES.values() if phrases.name in mr), ENGLISH)


def _utility(a: AnnotatorConfig, mr: MeaningRepresentation, text: str, rng: random.Random) -> float:
    seen = rubric(_phrases(mr)).check(mr, text)

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
        + a.verbosity * len(words(text)) / 10
        + rng.gauss(0.0, a.noise)
    )
