"""Checks a recipe against its model: lengths, LoRA targets and export formats.

`foreseen` checks before anything runs, from the recipe and a local folder's config.json. `problems` checks once the
`base` stage has loaded the model and written its `ModelProfile`, before anything is trained.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import hub_models
from pipeline.config import checkpoint
from pipeline.config.base import BaseConfig, PretrainConfig, QATConfig
from pipeline.config.recipe import Recipe
from pipeline.config.rules import Problem
from pipeline.config.run_base import source_of
from pipeline.config.term_rules import terms_of

PROFILE = "profile.json"

REWARD_ARTIFACT = "reward.json"
"""A file that every artifact of the `reward` stage has, and other classifiers do not."""

BLOCKS = {"nf4": 64} | {f"torchao_int{bits}": 32 for bits in (2, 3, 4, 8)}
"""Weights of a row that an export format stores together. Row lengths must be multiples of it. (bitsandbytes'
loader fails on shorter rows on some CPUs.)"""


@dataclass(frozen=True, kw_only=True)
class ModelProfile:
    """What a model supports.

    Attributes:
        context: the most tokens it can read; None if no limit is known.
        linear: names of the linear layers, including the output layer.
        other: name and class of every other module.
        output: name of the output layer.
        tied: whether the output layer shares the embedding's weight.
        unsupported: linear layers, by the last part of their names, that peft cannot adapt.
        formats: export format -> why the model cannot be written in it.
        no_system: the chat template's error for a system turn; empty if it accepts one.
        no_turns: why the assistant's turns of a conversation cannot be located; empty if they can.
    """

    context: int | None = None
    linear: Sequence[str] = ()
    other: Mapping[str, str] = field(default_factory=dict)
    output: str = ""
    tied: bool = False
    unsupported: Sequence[str] = ()
    formats: Mapping[str, str] = field(default_factory=dict)
    no_system: str = ""
    no_turns: str = ""

    def write(self, folder: Path) -> None:
        values = asdict(self)
        if not self.no_turns:  # so that the artifact is the one of versions before this field
            del values["no_turns"]
        (folder / PROFILE).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> ModelProfile | None:
        """The profile in a folder; None if there is none."""
        path = folder / PROFILE
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def foreseen(recipe: Recipe) -> Iterator[Problem]:
    """Problems that can be found before the model is loaded or pretrained. Raises `StageError` when the config of a
    local checkpoint cannot be read."""
    base = recipe.base
    if base.pretrain is not None:
        yield from _blocks(base, base.pretrain)
        yield from problems(recipe, _pretrained(base.pretrain))
    elif (weights := source_of(base)[0]) is not None and (folder := Path(weights)).is_dir():
        if refusal := checkpoint.folder_refusal(folder):
            yield "base.model", f"{folder} cannot be used: {refusal[0]}. To continue, {refusal[1]}"
        elif (folder / checkpoint.CONFIG).exists():
            context = checkpoint.context_length(checkpoint.read_json(folder / checkpoint.CONFIG))
            yield from _lengths(recipe, context)


def scorers(recipe: Recipe) -> Iterator[Problem]:
    """Problems of the classifiers that the recipe names, in local folders or in the Hub's cache. Without this check
    each would be found only after earlier stages have run. Raises `StageError` when a file cannot be read."""
    scoring = {
        "reward.model": recipe.reward.model,
        "ppo.reward_model": recipe.ppo.reward_model,
        "ppo.monitor.judge": recipe.ppo.monitor.judge,
        "eval.reward_model": recipe.eval.reward_model,
        **{f"{path}.model": term.model for path, term in terms_of(recipe).items() if not term.run_model},
    }
    for path, value, folder in hub_models.folders(recipe, scoring):
        if (folder / REWARD_ARTIFACT).exists():
            continue
        if refusal := checkpoint.folder_refusal(folder, causal=False):
            yield path, f"{value} cannot be used: {refusal[0]}. To continue, {refusal[1]}"
        elif (folder / checkpoint.CONFIG).exists():
            config = checkpoint.read_json(folder / checkpoint.CONFIG)
            context, labels = checkpoint.context_length(config), checkpoint.label_count(config)
            if path != "reward.model" and labels != 1:
                yield (
                    path,
                    f"{value} does not give one score: its config.json says {labels} labels. Use a sequence "
                    "classifier that was trained with num_labels=1",
                )
            elif path != "reward.model" and (refusal := checkpoint.score_head_refusal(folder)):
                yield path, f"{value} cannot be used: {refusal[0]}. To continue, {refusal[1]}"
            elif path == "reward.model" and context is not None and recipe.reward.max_length > context:
                length = recipe.reward.max_length
                yield (
                    "reward.max_length",
                    f"{length} is more than the {context} tokens that reward.model can read. Lower it to {context}",
                )


def problems(recipe: Recipe, profile: ModelProfile) -> Iterator[Problem]:
    """What the recipe asks of the model and the model does not support."""
    yield from _lengths(recipe, profile.context)
    if profile.no_system and recipe.data.system is not None and not recipe.base.fold_turns:
        yield (
            "data.system",
            f"the model's chat template refuses a system turn ({profile.no_system}). Remove data.system, or set "
            "base.fold_turns to true, which puts its text before the first user turn",
        )
    if profile.no_turns and recipe.sft is not None and recipe.sft.assistant_only_loss:
        yield (
            "sft.assistant_only_loss",
            "the model's chat template does not show where the assistant's turns of a conversation are: "
            f"{profile.no_turns}. Set it to false, which trains on the last turn, or set base.chat_template to a "
            "template with {% generation %} markers",
        )
    for path, lora in recipe.policy_loras.items():
        if lora is not None:
            yield from _targets(f"{path}.target_modules", lora.target_modules, profile)
    if recipe.reward.lora is not None and recipe.reward.model is None:
        yield from _targets("reward.lora.target_modules", recipe.reward.lora.target_modules, profile)
    yield from _same_targets(recipe, profile)
    for name in recipe.export.formats or ():
        if name in profile.formats:
            yield "export.formats", f"{name} cannot be written: {profile.formats[name]}. Remove it"
        elif name.startswith("torchao") and importlib.util.find_spec("torchao") is None:
            yield "export.formats", f'{name} needs torchao. Remove it, or pip install "tutelage[torchao]"'


def _lengths(recipe: Recipe, context: int | None) -> Iterator[Problem]:
    """Positions beyond the context are an index error with learned positions, and untrained with rotary ones."""
    if context is None:
        return
    whole = {} if recipe.sft is None else {"sft.max_length": recipe.sft.max_length}
    if recipe.reward.model is None:
        whole["reward.max_length"] = recipe.reward.max_length
    if recipe.dpo is not None and recipe.dpo.enabled:
        whole["dpo.max_length"] = recipe.dpo.max_length
    for path, length in whole.items():
        if length > context:
            yield path, f"{length} is more than the {context} tokens that the model can read. Lower it to {context}"
    sampled: dict[str, Any] = {"ppo": recipe.ppo, "eval": recipe.eval}
    if recipe.rank.source != "data":
        sampled["collect"] = recipe.collect
    if recipe.raft is not None and recipe.raft.enabled:
        sampled["raft"] = recipe.raft
    for path, section in sampled.items():
        prompt, response = section.max_prompt_length, section.response_length
        if prompt + response > context:
            yield (
                f"{path}.response_length",
                f"{path}.max_prompt_length + {path}.response_length = {prompt} + {response} is more than the "
                f"{context} tokens that the model can read. Lower one of them by {prompt + response - context}",
            )


def matching(names: Sequence[str], targets: str | Sequence[str]) -> dict[str, list[str]]:
    """The modules that each of peft's `target_modules` matches: by the whole name or its end, or for a string by a
    regular expression for the whole name. Raises `re.error`."""
    if isinstance(targets, str):
        return {targets: [name for name in names if re.fullmatch(targets, name)]}
    return {target: [name for name in names if f".{name}".endswith(f".{target}")] for target in targets}


def _targets(path: str, targets: str | Sequence[str], profile: ModelProfile) -> Iterator[Problem]:
    inner = [name for name in profile.linear if name != profile.output]
    short = list(dict.fromkeys(name.rpartition(".")[2] for name in inner))
    usable = [name for name in short if name not in profile.unsupported]
    linear = f"The model's linear layers are {', '.join(usable)}"
    if targets == "all-linear":
        matches = {targets: inner}
    else:
        try:
            matches = matching([*profile.linear, *profile.other], targets)
        except re.error as error:
            yield path, f"{targets!r} is not a regular expression: {error}"
            return
    if not matches:
        yield path, f"names no module. {linear}"
    for target, names in matches.items():
        refused = [name for name in short if name in profile.unsupported and _ends(names, name)]
        foreign = next((name for name in names if name in profile.other), None)
        if not names:
            near = difflib.get_close_matches(target, usable, n=1)
            hint = f"; did you mean {near[0]}?" if near else f". {linear}"
            pattern = " (a string is a pattern for whole names; use a list to match the ends of names)"
            yield path, f"no module is called {target!r}{pattern if isinstance(targets, str) else ''}{hint}"
        elif foreign is not None:
            kind = profile.other[foreign]
            yield path, f"{target!r} matches {foreign}, which is not a linear layer ({kind}). {linear}"
        elif refused:
            yield path, f"{target!r} matches {', '.join(refused)}, which peft does not adapt here. Use {usable}"
        elif profile.output in names:
            tied = ", and is shared with the embedding" if profile.tied else ""
            yield (
                path,
                f"{target!r} matches {profile.output}, the output layer: training reads its weight "
                f"directly{tied}, so an adapter on it would learn nothing. Remove it",
            )


def _same_targets(recipe: Recipe, profile: ModelProfile) -> Iterator[Problem]:
    """A copy of the SFT adapter needs the same layers. `_targets` reports targets that cannot be read."""
    sft, reward = None if recipe.sft is None else recipe.sft.lora, recipe.reward.lora
    if sft is None or reward is None or recipe.reward.model is not None or recipe.reward.init != "sft":
        return
    with contextlib.suppress(re.error):
        chosen = [_chosen(lora.target_modules, profile) for lora in (sft, reward)]
        if all(chosen) and chosen[0] != chosen[1]:
            yield (
                "reward.lora.target_modules",
                f"adapts other layers than sft.lora (for example {sorted(chosen[0] ^ chosen[1])[0]}), and with "
                "reward.init = sft the reward adapter starts as a copy of the SFT adapter. Make them equal, or set "
                "reward.init to base",
            )


def _chosen(targets: str | Sequence[str], profile: ModelProfile) -> set[str]:
    """Names of the layers that peft adapts."""
    if targets == "all-linear":
        return {name for name in profile.linear if name != profile.output}
    matches = matching(profile.linear, targets)
    return {name for names in matches.values() for name in names}


def _ends(names: Sequence[str], last: str) -> bool:
    return any(name.rpartition(".")[2] == last for name in names)


def _pretrained(pretrain: PretrainConfig) -> ModelProfile:
    """The profile of the Llama model that the `base` stage will pretrain."""
    attention = [f"self_attn.{part}_proj" for part in "qkvo"]
    mlp = [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    layers = [f"model.layers.{i}" for i in range(pretrain.num_hidden_layers)]
    norms = ("input_layernorm", "post_attention_layernorm")
    other = {"model": "LlamaModel", "model.embed_tokens": "Embedding", "model.norm": "LlamaRMSNorm"}
    for layer in layers:
        other |= {f"{layer}.self_attn": "LlamaAttention", f"{layer}.mlp": "LlamaMLP"}
        other |= {f"{layer}.{norm}": "LlamaRMSNorm" for norm in norms}
    return ModelProfile(
        context=pretrain.max_position_embeddings,
        linear=[*(f"{layer}.{part}" for layer in layers for part in attention + mlp), "lm_head"],
        other=other,
        output="lm_head",
        tied=True,
        formats={
            name: f"it stores rows in blocks of {block}, and base.pretrain has rows of {width}"
            for name, block in BLOCKS.items()
            if (width := _uneven(pretrain, block))
        },
    )


def _uneven(pretrain: PretrainConfig, block: int) -> int | None:
    """A width of the model that is not a multiple of the block; None if there is none."""
    return next((width for width in (pretrain.hidden_size, pretrain.intermediate_size) if width % block), None)


def _blocks(base: BaseConfig, pretrain: PretrainConfig) -> Iterator[Problem]:
    """Checks the grid's blocks before the model is pretrained, which takes minutes."""
    name = base.quantization.qat if isinstance(base.quantization, QATConfig) else base.quantization
    block = {"none": 1, "int8": 1, "nf4": 64}.get(name, 32)
    if width := _uneven(pretrain, block):
        yield "base.quantization", f"{name} stores rows in blocks of {block}, and base.pretrain has rows of {width}"
