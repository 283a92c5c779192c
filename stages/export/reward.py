"""Writes a reward model as a sequence classifier with one label, which plain transformers, vLLM and TEI load.

The folder holds the merged weights, the tokenizer with a chat template for scoring, and `reward_model.json`
(stages/scoring/exported.py). It is loaded again and must give the scores of the reward model.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from data.schema import Message
from data.tables.messages import with_system
from pipeline.config.checkpoint import context_length
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError, StageError
from stages.export.scoring_template import joining_template, scoring_template
from stages.models.adapters import ADAPTER, attach_adapter, causal_lm, is_adapter, load_full
from stages.models.heads import ScalarHead
from stages.models.loading import dtype_of, load_backbone
from stages.models.precision import Deviation, exact
from stages.models.quantization import qat
from stages.models.templates import Refused
from stages.models.text import Codec, load_codec
from stages.scoring import exported, reward_model
from stages.scoring.classifier import CLASSIFIER, is_classifier, load_classifier
from stages.scoring.exported import ExportedReward, Fingerprint, Reading
from stages.scoring.reward_model import FINGERPRINTS, HEAD, SPEC, RewardEnsemble, numbered, score_rows
from stages.scoring.text_encoder import TextEncoder

PROBES: list[list[Message]] = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in (
        ("What makes a good answer?", "It is correct, and it says so in few words."),
        ("What makes a good answer?", "who knows"),
        ("Name a color.", "Blue"),
        ("2 + 2?", "4"),
    )
]
"""Conversations of the exported fingerprints. They are not those of the artifact, which are texts that it was
trained on."""
PAD = "<|pad|>"
TOLERANCE = 1e-4
"""Largest deviation of a float32 file's scores, in units of the score."""


@dataclass(frozen=True)
class Difference:
    """How the file's scores differ from the reward model's.

    Attributes:
        other_model: whether the file is another model than the one that was trained: merged with a quantised base.
    """

    deviation: Deviation
    other_model: bool


@dataclass(frozen=True)
class Exported:
    """An exported reward model.

    Attributes:
        template_is_exact: whether the tokenizer's `apply_chat_template` gives the ids of training. If not, prompt
            and answer must be encoded one after the other.
    """

    folder: Path
    spec: ExportedReward
    difference: Difference
    template_is_exact: bool


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        dtype: of the weights.
        member: which member of an ensemble; None: there is only one.
        merge_quantized: merge an adapter with a 4- or 8-bit base, which gives another model.
        system: the system message of training prompts.
        max_length: tokens of prompt and completion in training.
    """

    dtype: str = "float32"
    member: int | None = None
    merge_quantized: bool = False
    system: str | None = None
    max_length: int | None = None


def export_reward(base: Artifact, reward: Artifact, folder: Path, device: str, options: Options) -> Exported:
    """Writes the reward model to a folder. An earlier export there is replaced once the new one is complete.

    Raises:
        DataError: the folder holds something else.
        StageError: the model cannot be a sequence classifier, or the file does not give the reward model's scores.
    """
    if folder.exists() and not (folder / exported.FILE).is_file() and any(folder.iterdir()):
        raise DataError(
            f"{folder} is not empty and does not hold an earlier export",
            hint="name another folder, or empty this one",
        )
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write = _write_encoder if is_classifier(reward) else _write_decoder
        result = write(base, reward, partial, device, options)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return replace(result, folder=folder)


# --- A model on the policy's tokenizer ---


def _write_decoder(base: Artifact, reward: Artifact, folder: Path, device: str, options: Options) -> Exported:
    member = _member(reward, options)
    merges_quantized = is_adapter(reward) and base.json("base.json")["quantization"] in ("nf4", "int8")
    if merges_quantized and not options.merge_quantized:
        raise StageError(
            "the reward model is an adapter on a base in 4 or 8 bits: merged with it, it is another model",
            where=str(reward.path),
            hint="add --merge-quantized (export.merge_quantized for publish) to merge it anyway, and compare the "
            "scores, which are then printed",
        )
    codec = load_codec(base)
    stored: Sequence[list[int]] = [row["ids"] for row in reward.json(SPEC)[FINGERPRINTS]]
    model = reward_model.load_reward(reward, base, device)
    longest = context_length(causal_lm(_lm(model)).config.to_dict())
    conversations = _readable(codec, options.system, longest)
    rows = [codec.prompt(talk[:-1]) + codec.completion(talk[-1]["content"]) for talk in conversations]
    single = RewardEnsemble(model.bank, [model.roles[member]])
    computes_exactly = exact(model.bank)
    expected = score_rows(single.members, [*rows, *stored], len(rows) + len(stored), device)[0]
    head = ScalarHead.load(reward.file(numbered(HEAD, member)))
    del model, single

    lm = _merged(base, reward, device, member)
    tokenizer = _tokenizer(codec, longest, lm)
    classifier = as_classifier(lm, head, int(tokenizer.pad_token_id))
    classifier.to(dtype_of(options.dtype, "cpu")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    spec = ExportedReward(
        offset=float(head.bias.detach()),
        system=options.system,
        max_length=options.max_length,
        member=options.member,
        reading=Reading(
            date=codec.date,
            control_tokens="text" if codec.literal else "tokens",
            fold_turns=codec.template.folds,
            stop_ids=sorted(codec.stop_ids),
        ),
    )
    del lm, classifier
    strict = options.dtype == "float32" and computes_exactly and device == "cpu"
    scores, difference = _compare(folder, [*rows, *stored], expected, device, spec, strict, merges_quantized)
    spec = _with_fingerprints(spec, conversations, rows, scores)
    spec.write(folder)
    return Exported(folder, spec, difference, all(map(_renders(tokenizer), conversations, rows)))


def _member(reward: Artifact, options: Options) -> int:
    """The number of the member that is exported. Raises `StageError` if an ensemble's is not chosen or missing."""
    count = len(reward_model.roles(reward))
    if options.member is None and count > 1:
        raise StageError(
            f"the reward model is an ensemble of {count}, and a sequence classifier holds one model",
            where=str(reward.path),
            hint=f"choose a member, 0 to {count - 1}: --member (publish.reward_member for publish). Its scores are "
            "not the ensemble's",
        )
    if options.member is not None and options.member >= count:
        raise StageError(
            f"there is no member {options.member}: the reward model has {count}",
            where=str(reward.path),
            hint=f"choose one from 0 to {count - 1}",
        )
    return options.member or 0


def _lm(model: RewardEnsemble) -> Any:
    with model.bank.active(model.roles[0]) as actor:
        return actor.lm


def _readable(codec: Codec, system: str | None, longest: int | None) -> list[list[Message]]:
    """The probes that the template accepts and the model can read, with the system message."""
    kept = []
    for probe in PROBES:
        talk = with_system(probe, system)
        try:
            length = len(codec.prompt(talk[:-1])) + len(codec.completion(talk[-1]["content"]))
        except Refused:
            continue
        if longest is None or length <= longest:
            kept.append(talk)
    return kept


def _merged(base: Artifact, reward: Artifact, device: str, member: int) -> Any:
    """The causal LM of a member as one float32 model on the CPU: adapter merged, a quantised base dequantised, and
    weights rounded as quantisation-aware training rounds them."""
    if not is_adapter(reward):
        model: Any = load_full(base, reward, device).to("cpu").float()
    else:
        backbone: Any = load_backbone(base, device)
        if base.json("base.json")["quantization"] in ("nf4", "int8"):
            backbone = backbone.dequantize()
        model = attach_adapter(backbone, reward.file(numbered(ADAPTER, member)))
        qat.adapt(model)
        model = model.to("cpu").float()
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    model.requires_grad_(False)
    qat.settle(model)
    return model.eval()


def _tokenizer(codec: Codec, longest: int | None, lm: Any) -> Any:
    """The policy's tokenizer with the template for scoring, left truncation, and a pad token that no answer ends
    with: classifiers read the score at the last token that is not the pad token."""
    tokenizer = copy.deepcopy(codec.tokenizer)
    template, text = tokenizer.chat_template, scoring_template(codec)
    tokenizer.chat_template = {**template, "default": text} if isinstance(template, dict) else text
    tokenizer.truncation_side, tokenizer.padding_side = "left", "right"
    tokenizer.init_kwargs |= {"truncation_side": "left", "padding_side": "right"}  # what is saved
    if longest is not None:
        tokenizer.model_max_length = longest
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in (tokenizer.eos_token_id, codec.end_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
        if tokenizer.pad_token_id >= lm.get_input_embeddings().weight.shape[0]:
            lm.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
    return tokenizer


def as_classifier(lm: Any, head: ScalarHead, pad_id: int) -> Any:
    """The sequence classifier of a causal LM's trunk and a head's weights. The head's bias is left out: these
    classifiers have none. Raises `StageError` if transformers has no such classifier for the architecture."""
    config = copy.deepcopy(lm.config)
    config.update(label_config())
    for part in (config, config.get_text_config()):
        part.pad_token_id = pad_id
    refusal = StageError(
        f"transformers has no sequence classifier for {type(lm).__name__} that reads the score at the last token",
        hint="score with `tutelage score`, which needs none",
    )
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise refusal
    with torch.device("meta"):
        model: Any = AutoModelForSequenceClassification.from_config(config)
    trunk = lm.base_model
    score = getattr(model, "score", None)
    if type(model.base_model) is not type(trunk) or not isinstance(score, nn.Linear) or score.bias is not None:
        raise refusal
    setattr(model, model.base_model_prefix, trunk)
    model.score = nn.Linear(head.in_features, 1, bias=False)
    with torch.no_grad():
        model.score.weight.copy_(head.weight)
    return model.requires_grad_(False).eval()


def label_config() -> dict[str, Any]:
    """Values of config.json by which transformers' pipelines, vLLM and TEI give the raw score of the only label."""
    return {"id2label": {0: "reward"}, "label2id": {"reward": 0}, "problem_type": "regression"}


# --- An encoder ---


def _write_encoder(base: Artifact, reward: Artifact, folder: Path, device: str, options: Options) -> Exported:
    _member(reward, options)
    source = load_classifier(reward.file(CLASSIFIER), device)
    reward_model.verify(reward, source, device)
    encoder = TextEncoder(source, load_codec(base))
    conversations = [with_system(probe, options.system) for probe in PROBES]
    rows = [encoder.row(talk[:-1], talk[-1]["content"], source.longest) for talk in conversations]
    stored: Sequence[list[int]] = [row["ids"] for row in reward.json(SPEC)[FINGERPRINTS]]
    expected = score_rows(source.members, [*rows, *stored], len(rows) + len(stored), device)[0]
    source.model.config.update(label_config())
    source.model.to(dtype_of(options.dtype, "cpu")).save_pretrained(folder)
    if not source.tokenizer.chat_template:
        source.tokenizer.chat_template = joining_template(source.tokenizer)
    source.tokenizer.init_kwargs["truncation_side"] = "left"
    source.tokenizer.save_pretrained(folder)
    spec = ExportedReward(system=options.system, max_length=options.max_length)
    strict = options.dtype == "float32" and device == "cpu"
    scores, difference = _compare(folder, [*rows, *stored], expected, device, spec, strict, other_model=False)
    spec = _with_fingerprints(spec, conversations, rows, scores)
    spec.write(folder)
    return Exported(folder, spec, difference, all(map(_renders(source.tokenizer), conversations, rows)))


# --- Both ---


def _compare(
    folder: Path,
    rows: Sequence[Sequence[int]],
    expected: Tensor,
    device: str,
    spec: ExportedReward,
    strict: bool,
    other_model: bool,
) -> tuple[list[float], Difference]:
    """The scores (N) of the written folder, and how they differ from `expected`. Raises `StageError` if rounding
    does not explain the difference.

    Args:
        strict: whether both compute in float32, where only the order of summation differs.
        other_model: whether a difference is expected.
    """
    written = load_classifier(folder, device)
    written.offset = spec.offset
    scores = score_rows(written.members, rows, len(rows), device)[0]
    deviation = Deviation.between(scores, expected)
    unit = max(1.0, float(expected.abs().max()))
    same = deviation.largest <= TOLERANCE * unit if strict else deviation.is_rounding(False)
    if not same and not other_model:
        raise StageError(
            f"the exported file does not give the reward model's scores: {deviation}",
            hint="export it in float32; if that does not help, report this with the recipe",
        )
    return scores.tolist(), Difference(deviation, other_model)


def _with_fingerprints(
    spec: ExportedReward,
    conversations: Sequence[list[Message]],
    rows: Sequence[list[int]],
    scores: Sequence[float],
) -> ExportedReward:
    """Scores of the artifact's fingerprints follow those of the conversations, and are not published."""
    return replace(
        spec,
        fingerprints=[
            Fingerprint(messages=talk, ids=ids, score=score)
            for talk, ids, score in zip(conversations, rows, scores, strict=False)
        ],
    )


def _renders(tokenizer: Any) -> Any:
    """A function that says whether the tokenizer's chat template turns a conversation into these ids."""

    def same(talk: list[Message], ids: list[int]) -> bool:
        rendered = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"]
        return list(rendered) == list(ids)

    return same
