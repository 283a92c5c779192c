"""The `base` stage: loads and checks a pretrained language model, or pretrains a small one from a corpus.

Writes `base.json` (location, precision and quantisation of the weights, text encoding, stop tokens), `tokenizer/`
(with the chat template) and, unless the weights stay in place (a Hub id, a local folder), `model/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from data.tables import corpus
from data.tables.mapping import located
from data.words import UNSPACED
from pipeline.config.base import PRETRAIN_TRAINER, ArchitectureConfig, BaseConfig, PretrainConfig
from pipeline.config.checkpoint import context_length
from pipeline.config.run_base import SPEC, is_artifact
from pipeline.engine import manifest, reuse
from pipeline.engine.fingerprint import combine, file_sha256, files_below
from pipeline.engine.stage import Artifact, Metrics, RunContext
from pipeline.errors import DataError, StageError
from stages.base.profile import check_causal, check_quantized, check_usable, profile
from stages.contamination import check_corpus
from stages.models import templates
from stages.models.loading import (
    check_trainable,
    describe_dtype,
    load_backbone,
    load_gguf,
    read_tokenizer,
)
from stages.models.quantization import qat
from stages.models.template_values import with_values
from stages.models.templates import DEFAULT, chat_template
from stages.models.text import IGNORED, Codec, load_codec
from stages.models.weights import check_finite
from stages.training.batches import GlobalBatchTrainer
from stages.training.trainer import StageCallback, training_arguments
from stages.training.trainer import train as train_to_end

EOS, PAD = "<|endoftext|>", "<|pad|>"
TEXT = "Explain in two sentences why the sky is blue, and name three fruits that grow in cold places."
"""Ordinary text on which forward passes are compared."""


def run(config: BaseConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    if config.model is not None and is_artifact(config.model):
        return _take(Path(config.model).parent, out_dir, ctx)
    spec: dict[str, Any] = {
        "model": None,
        "revision": None,
        "dtype": config.dtype,
        "quantization": asdict(config.quantization) if is_dataclass(config.quantization) else config.quantization,
        "template_date": config.template_date,
        "fold_turns": config.fold_turns,
        "control_tokens": config.control_tokens,
        **({"chat_template_kwargs": config.chat_template_kwargs} if config.chat_template_kwargs else {}),
    }
    metrics: Metrics = {}
    if config.pretrain is not None:
        metrics |= _pretrain(config, config.pretrain, inputs, out_dir, ctx)
    else:
        assert config.model is not None
        if config.model.endswith(".gguf"):
            tokenizer = _dequantise(Path(config.model), out_dir)
        else:
            local = Path(config.model)
            spec |= {"model": config.model, "revision": config.revision}
            if local.exists():
                # The weights stay in place; the hash makes later stages notice a change.
                hashes = {name: file_sha256(file) for name, file in files_below(local).items()}
                spec |= {"model": str(local.resolve()), "content": combine(hashes)}
            check_trainable(config.model, config.revision)
            tokenizer = read_tokenizer(config.model, config.revision)
        _save_tokenizer(tokenizer, config, out_dir, ctx)
    (out_dir / "base.json").write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
    base = Artifact("base", out_dir, "")
    return metrics | _check(base, config.check_tokens, ctx, config.architecture)


def _take(run: Path, out_dir: Path, ctx: RunContext) -> Metrics:
    """The base of a finished run, byte by byte, so that what was trained on it fits. Returns its metrics."""
    record = manifest.read(run)
    assert record is not None
    reuse.take(run, record, out_dir, hint="run its recipe again with --fresh, or name another base.model")
    spec = json.loads((out_dir / SPEC).read_text(encoding="utf-8"))
    content, place = spec.get("content"), spec["model"]
    if content is not None:
        weights = Path(place)
        now = combine({name: file_sha256(file) for name, file in files_below(weights).items()})
        if now != content:
            raise StageError(
                f"the weights that this base was made from have changed: their fingerprint is {now[:12]}, not "
                f"{content[:12]}",
                where=place,
                hint=f"restore them, or name the folder itself as base.model instead of {run}",
            )
    ctx.say(f"base: taken from {run}")
    return dict(record.metrics)


def _compare(architecture: ArchitectureConfig, config: Any) -> None:
    """Raises `StageError` if the recipe's architecture, which memory was estimated for, is not the model's."""
    expected = {name: value for name, value in vars(architecture).items() if value is not None}
    different = {
        name: getattr(config, name) for name, value in expected.items() if getattr(config, name, value) != value
    }
    if different:
        raise StageError(
            f"base.architecture differs from the model, which has {different}",
            where="base.architecture",
            hint="correct it, or remove it: the model's config.json is then used",
        )


def _check(base: Artifact, tokens: int, ctx: RunContext, architecture: ArchitectureConfig | None) -> Metrics:
    """Loads the model as later stages do, checks it, samples from it and writes its profile. Returns metrics."""
    ctx.say(describe_dtype(base.json("base.json")["dtype"], ctx.device))
    model: Any = load_backbone(base, ctx.device)
    if architecture is not None:
        _compare(architecture, model.config.get_text_config())
    codec = _record_text(base, model, ctx)
    if len(codec.tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise StageError(
            f"the tokenizer has {len(codec.tokenizer)} entries, but the model's embedding has only "
            f"{model.get_input_embeddings().weight.shape[0]} rows",
            hint="use the tokenizer of the model",
        )
    check_finite(model, "base.model")
    ids, prompt_ids = (codec.prompt([{"role": "user", "content": text}]) for text in (TEXT, "Hello"))
    ids = ids[: context_length(model.config.to_dict())]
    check_causal(model, ids)
    passes = check_usable(model, ids)
    ctx.say(f"pass: {passes.name}")
    prompt = torch.tensor([prompt_ids], device=ctx.device)
    with torch.inference_mode(), qat.kept(qat.quantised(model)):
        logits = model(prompt).logits
        generated = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False,
            pad_token_id=codec.pad_id,
        )  # fmt: skip
    if not torch.isfinite(logits).all():
        raise StageError("the model's logits are not finite", hint="try base.dtype: float32")
    quantized: Metrics = {}
    quantization = base.json("base.json")["quantization"]
    if quantization != "none":
        quantized["quantized_share"] = share = check_quantized(model, quantization)
        ctx.say(f"base.quantization covers {share:.1%} of the weights in the model's blocks")
    profile(model, codec, passes).write(base.path)
    ctx.say(f"sample: {codec.decode(generated[0, prompt.shape[1] :].tolist())[:100]!r}")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "resident_bytes": model.get_memory_footprint(),
        "vocabulary": len(codec.tokenizer),
        "stop_tokens": " ".join(map(str, codec.tokenizer.convert_ids_to_tokens(sorted(codec.stop_ids)))),
        "pass": passes.name,
        **quantized,
    }


def _save_tokenizer(tokenizer: Any, config: BaseConfig, out_dir: Path, ctx: RunContext) -> None:
    template = chat_template(
        config.chat_template, tokenizer, f"base.chat_template ({ctx.describe('base.chat_template')})"
    )
    set_values = partial(
        with_values,
        values=config.chat_template_kwargs,
        special=tokenizer.special_tokens_map,
        where=ctx.describe("base.chat_template_kwargs"),
    )
    if isinstance(template, dict):
        template = {**template, DEFAULT: set_values(template[DEFAULT])}
    else:
        template = set_values(template)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(out_dir / "tokenizer")


def _record_text(base: Artifact, model: Any, ctx: RunContext) -> Codec:
    """Adds the stop tokens, including those of the model's generation config, to base.json. Prints notes on the
    chat template. Raises `StageError` if the template cannot be used for training."""
    spec = base.json("base.json")
    ends = getattr(model.generation_config, "eos_token_id", None)
    end_ids = ends if isinstance(ends, list) else [ends]
    spec["stop_ids"] = sorted({int(i) for i in end_ids if i is not None} | load_codec(base).stop_ids)
    base.file("base.json").write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
    codec = load_codec(base)
    template, bos = codec.template, codec.tokenizer.bos_token
    for line in templates.check(template):
        ctx.say(line)
    if template.prints_date():
        ctx.say(f"the chat template includes the date, fixed to {codec.date} in every stage (base.template_date)")
    if not template.takes_system and template.folds:
        ctx.say("the chat template has no system turn: system text is moved into the first user turn")
    if codec.adds_bos:
        ctx.say(f"the chat template omits {bos}, with which the tokenizer starts texts: it is added to prompts")
    return codec


def _dequantise(path: Path, out_dir: Path) -> Any:
    """Loads a GGUF file as full-precision weights into `out_dir/model`; returns its tokenizer."""
    tokenizer = read_tokenizer(path.parent, gguf_file=path.name)
    load_gguf(path).save_pretrained(out_dir / "model")
    return tokenizer


def _pretrain(
    config: BaseConfig, pretrain: PretrainConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext
) -> Metrics:
    """Trains a BPE tokenizer and a Llama of the recipe's shape, with one document per row. Returns metrics."""
    metrics: Metrics = {}
    with located("base.pretrain.corpus", pretrain.corpus, ctx.describe):
        documents = list(corpus.documents(pretrain.corpus, ctx.seed, pretrain.held_out))
        if "data" in inputs:
            documents, metrics = check_corpus(documents, inputs["data"], ctx)
    tokenizer = _train_tokenizer([text for turn in documents for text in turn], pretrain)
    tokenizer.chat_template = chat_template(config.chat_template, tokenizer)
    codec = Codec(
        tokenizer,
        date=config.template_date,
        control_tokens=config.control_tokens,
        fold_turns=config.fold_turns,
    )
    width = pretrain.max_position_embeddings
    rows = [row for turn in documents for row in _rows(codec, turn, width)]
    model = _new_model(codec, len(tokenizer), pretrain, ctx)
    values = PRETRAIN_TRAINER | pretrain.trainer
    arguments = training_arguments(TrainingArguments, values, ctx, remove_unused_columns=False)
    trainer = GlobalBatchTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[StageCallback(ctx, "base")],
    )
    train_to_end(trainer, ctx, values)
    model.save_pretrained(out_dir / "model")
    _save_tokenizer(tokenizer, config, out_dir, ctx)
    return metrics | {
        "pretrain/documents": len(documents),
        "pretrain/tokens": sum(len(row["input_ids"]) for row in rows),
        "pretrain/loss": trainer.state.log_history[-1]["train_loss"],
    }


def _rows(codec: Codec, document: tuple[str, ...], width: int) -> list[dict[str, list[int]]]:
    """A document as rows of at most `width` tokens. The loss covers plain text, and only the completion of a
    document with a prompt, because the prompt cannot be predicted."""
    *prompt, text = document
    prompt_ids = codec.prompt([{"role": "user", "content": prompt[0]}]) if prompt else []
    completion = codec.completion(text)
    ids, labels = prompt_ids + completion, [IGNORED] * len(prompt_ids) + completion
    cuts = range(0, len(ids), width)
    return [{"input_ids": ids[i : i + width], "labels": labels[i : i + width]} for i in cuts]


def _train_tokenizer(texts: list[str], pretrain: PretrainConfig) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    # Of scripts without spaces between words, no token may hold more than one character. Otherwise whole phrases
    # become tokens, and a value is another token in the prompt than in the answer that should repeat it.
    parts = (part for text in texts for part in re.split(f"([{UNSPACED}])", text) if part)
    bpe.train_from_iterator(parts, vocab_size=pretrain.vocab_size, special_tokens=[EOS, PAD], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=pretrain.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )


def _new_model(codec: Codec, vocabulary: int, pretrain: PretrainConfig, ctx: RunContext) -> LlamaForCausalLM:
    if vocabulary > pretrain.vocab_size:
        raise DataError(
            f"the corpus needs {vocabulary} tokens, but base.pretrain.vocab_size is {pretrain.vocab_size}",
            hint="raise base.pretrain.vocab_size to at least 258",
        )
    torch.manual_seed(ctx.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=pretrain.hidden_size,
            num_hidden_layers=pretrain.num_hidden_layers,
            num_attention_heads=pretrain.num_attention_heads,
            num_key_value_heads=pretrain.num_attention_heads,
            intermediate_size=pretrain.intermediate_size,
            max_position_embeddings=pretrain.max_position_embeddings,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=codec.end_id,
            pad_token_id=codec.pad_id,
        )
    )
