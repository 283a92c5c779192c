"""The values of a recipe for these data and this model, each with the reason for it.

Learning rates follow the number of parameters. Those of the shipped recipes are used where one has a model of that
size. Those below 10 M parameters were measured with a model of 0.26 M (docs/log/ppo.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data.held_out import FEW as HELD_OUT
from stages.init.base import Base
from stages.init.measure import Sizes

FRACTIONS = (0.1, 0.15, 0.2, 0.25, 0.3)
"""Shares of prompts that may be held out."""
SHARE = 0.3
"""Share of prompts to hold out where `HELD_OUT` of them would be more than this."""
FEW = (0.2, 0.25, 0.3, 0.35, 0.4)
"""Shares for few prompts, of which the hash of each prompt may select more or fewer than it should."""
LONGEST = 512
"""Tokens of an answer that PPO samples, at most: sampling takes most of its time."""
RANKED = (100, 30)
"""Prompts whose answers people are first asked to rank: for training, and held out."""
UNLIMITED = 8192
"""Tokens that a model is taken to read if its files are not here."""
MONITORED = 60
"""Held-out prompts from which on PPO's evaluation steps get some of them."""


@dataclass(frozen=True)
class Class:
    """Values for models of one order of magnitude.

    Attributes:
        below: parameters, exclusive.
        lora: whether an adapter is trained, or every weight.
        sft, reward, ppo: learning rates.
        init, target: of the KL penalty.
        epochs: of SFT and of the reward model, at most.
        basis, kl_basis: where the learning rates and the KL penalty are from.
    """

    below: float
    lora: bool
    sft: float
    reward: float
    ppo: float
    init: float
    target: float
    epochs: tuple[int, int]
    basis: str
    kl_basis: str


_MEASURED = "measured with 0.26 M parameters"
_OPEN = "not measured for this size"
_TLDR = "recipes/tldr/data.yaml, not run yet"
CLASSES = (
    Class(10e6, False, 1e-3, 1e-3, 2e-4, 0.2, 2.0, (20, 4), _MEASURED, _MEASURED),
    Class(200e6, True, 5e-4, 2e-4, 1e-4, 0.1, 4.0, (4, 2), "recipes/smollm2-135m.yaml", _OPEN),
    Class(1e9, True, 2e-4, 1e-4, 2e-5, 0.05, 6.0, (4, 2), "recipes/tldr/smollm2-360m.yaml, not run yet", _TLDR),
    Class(4e9, True, 1e-4, 5e-5, 1e-5, 0.05, 6.0, (3, 2), "recipes/tldr/qwen3-1.7b.yaml, not run yet", _TLDR),
    Class(
        math.inf, True, 1e-4, 5e-5, 5e-6, 0.05, 6.0, (3, 2), "recipes/tldr/llama-3.1-8b.yaml, not run yet", _TLDR
    ),
)
UNKNOWN = 135_000_000
"""Parameters that are assumed of a model whose files are not here."""


@dataclass(frozen=True)
class Value:
    """A value of the recipe, as YAML, and why."""

    yaml: str
    why: str = ""


Section = dict[str, Value]


@dataclass(frozen=True)
class Values:
    """The sections of a recipe whose values depend on data and model. `notes`: what a person should know. `sft` and
    `sft_trainer` are empty without demonstrations."""

    eval_fraction: Value
    sft: Section
    sft_trainer: Section
    reward: Section
    reward_trainer: Section
    ppo: Section
    kl: Section
    eval: Section
    collect: Section
    notes: Sequence[str]


def class_of(base: Base) -> Class:
    size = base.parameters or UNKNOWN
    return next(kind for kind in CLASSES if size < kind.below)


def values(base: Base, sizes: Sizes) -> Values:
    """The values for a model and tables of these sizes."""
    kind, notes = class_of(base), []
    fraction, held_out = eval_fraction(sizes)
    if held_out.why.startswith("only"):
        notes.append(f"data.eval_fraction: {held_out.why}")
    train = round(len(sizes.prompt) * (1 - sizes.held_out(fraction) / len(sizes.groups)))
    batch, learns = _batch(sizes.demonstrations), sizes.demonstrations > 0
    prompts, answers, lengths = _lengths(base, sizes)
    lora = {} if kind.lora else {"lora": Value("null", f"train every weight of so small a model ({kind.basis})")}
    auto = {"micro_batch_size": Value("auto", "halved when GPU memory runs out")} if kind.lora else {}
    steps = max(1, round(sizes.demonstrations * (1 - fraction) / batch))
    epochs = _between(math.ceil(200 / steps), 1, kind.epochs[0])
    ranked = max(1, round(sizes.ranked_prompts * (1 - fraction)))
    reward_batch = 4 if ranked < 1000 else 8 if ranked < 5000 else 16
    reward_epochs = _between(math.ceil(100 * reward_batch / ranked), 1, kind.epochs[1])
    ppo_batch, updates = (64, 32) if train < 1000 else (128, 64)
    monitor = sizes.held_out(fraction)
    watching = (
        {"eval_updates": Value("0", f"no evaluation steps: all {monitor} held-out prompts are left to eval")}
        if monitor < MONITORED
        else {
            "eval_prompts": Value(
                str(min(64, monitor // 4)), f"of {monitor} held-out prompts; eval uses the others"
            )
        }
    )
    return Values(
        eval_fraction=held_out,
        sft=lora | {"max_length": lengths["sft"], "packing": Value("false", "one demonstration per row")} | auto
        if learns
        else {},
        sft_trainer={
            "per_device_train_batch_size": Value(str(batch), f"{sizes.demonstrations:,} demonstrations"),
            "learning_rate": Value(_rate(kind.sft), kind.basis),
            "num_train_epochs": Value(str(epochs), f"{steps * epochs:,} optimizer steps"),
        }
        if learns
        else {},
        reward=lora | {"max_length": lengths["reward"]} | auto,
        reward_trainer={
            "per_device_train_batch_size": Value(str(reward_batch), f"prompts; about {ranked:,} are trained on"),
            "learning_rate": Value(_rate(kind.reward), kind.basis),
            "num_train_epochs": Value(
                str(reward_epochs), f"{math.ceil(ranked / reward_batch) * reward_epochs:,} optimizer steps"
            ),
        },
        ppo=({} if learns else lora)
        | {
            "max_prompt_length": prompts,
            "response_length": answers,
            "total_episodes": Value(
                str(ppo_batch * updates),
                f"{updates} updates over {train:,} training prompts",
            ),
            "batch_size": Value(str(ppo_batch), "answers per update"),
            "num_ppo_epochs": Value("2", "as in all shipped recipes"),
            **auto,
            "learning_rate": Value(_rate(kind.ppo), kind.basis),
            "warmup_updates": Value("4", "the first updates would be the largest"),
            **watching,
        },
        kl={
            "kind": Value("adaptive", "steers the KL towards the target"),
            "init": Value(f"{kind.init:g}", kind.kl_basis),
            "target": Value(f"{kind.target:.1f}", f"nats per response; {kind.kl_basis}"),
            "horizon": Value(
                str(ppo_batch * updates // 10), "a tenth of the episodes: the coefficient can change 7-fold"
            ),
        },
        eval={"max_prompt_length": prompts, "response_length": answers},
        collect=_collect(train, sizes.held_out(fraction))
        | {"max_prompt_length": prompts, "response_length": answers},
        notes=notes,
    )


def _collect(train: int, held_out: int) -> Section:
    """How many prompts get answers to rank, where people rank: few enough for an afternoon."""
    asked, measured = min(train, RANKED[0]), min(held_out, RANKED[1])
    return {
        "num_prompts": Value(
            str(max(1, asked)), f"of {train:,}; null: all. Each is 4 answers for each annotator to rank"
        ),
        "eval_prompts": Value(
            str(max(1, measured)), f"of {held_out:,} held-out ones, which measure the reward model"
        ),
    }


def eval_fraction(sizes: Sizes) -> tuple[float, Value]:
    """The least share that holds out `HELD_OUT` prompts of those that are compared: the ranked ones, or all of them
    where nothing is ranked yet."""
    ranked = bool(sizes.ranked_groups)
    counts = {fraction: sizes.held_out(fraction, ranked=ranked) for fraction in (*FRACTIONS, *FEW)}
    wanted = SHARE * len(sizes.ranked_groups if ranked else sizes.groups)
    nearest = min(FEW, key=lambda share: abs(counts[share] - wanted))
    fraction = next((share for share in FRACTIONS if counts[share] >= HELD_OUT), nearest)
    total = f"{sizes.held_out(fraction)} of {len(sizes.groups)} prompts"
    if ranked:
        total += f", {counts[fraction]} of {len(sizes.ranked_groups)} ranked ones"
    if sizes.cut:
        total += " in the rows that were counted"
    if counts[fraction] >= HELD_OUT:
        return fraction, Value(f"{fraction:g}", f"holds out {total}")
    return fraction, Value(f"{fraction:g}", f"only {total} are held out; intervals are wide below {HELD_OUT}")


def _rate(rate: float) -> str:
    return f"{rate:.1e}".replace("e-0", "e-")


def _batch(demonstrations: int) -> int:
    return 8 if demonstrations < 1000 else 16 if demonstrations < 10_000 else 32


def _between(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _lengths(base: Base, sizes: Sizes) -> tuple[Value, Value, dict[str, Value]]:
    """Maximum tokens of a prompt and of an answer for PPO, and of both together for SFT and the reward model."""
    context = base.context or UNLIMITED
    answer = _rounded(sizes.answer, min(context // 2, LONGEST))
    prompt = _rounded(sizes.prompt, context - answer)
    whole = {
        name: _length(counts, context, what)
        for name, counts, what in (
            ("sft", sizes.demonstration, "demonstration"),
            ("reward", sizes.ranked or sizes.demonstration, "ranked answer" if sizes.ranked else "demonstration"),
        )
        if counts
    }
    lengths = {"reward": Value(str(min(context, prompt + answer)), "a prompt and an answer"), **whole}
    return (
        Value(str(prompt), _longest(sizes.prompt, prompt, "prompt") + f" ({base.counted})"),
        Value(
            str(answer),
            _longest(sizes.answer, answer, f"{'demonstrated' if sizes.demonstrations else 'ranked'} answer"),
        ),
        lengths,
    )


def _length(counts: Sequence[int], context: int, what: str) -> Value:
    length = _rounded(counts, context)
    return Value(str(length), _longest(counts, length, what))


def _rounded(counts: Sequence[int], most: int) -> int:
    """Room for the longest text and an eighth more, or where few texts are much longer than the others, for 99 of
    100."""
    longest, usual = counts[-1], counts[int(0.99 * (len(counts) - 1))]
    length = longest if longest <= 2 * usual else usual
    return min(most, 16 * math.ceil(length * 9 / 8 / 16))


def _longest(counts: Sequence[int], length: int, what: str) -> str:
    longer = sum(count > length for count in counts)
    cut = f"; {longer} of {len(counts)} are longer than this" if longer else ""
    return f"the longest {what} has about {counts[-1]} tokens{cut}"
