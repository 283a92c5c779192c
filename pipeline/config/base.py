"""The `base` stage: where the language model comes from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.data import TextSource
from pipeline.config.section import ADDED, RUNTIME, Count, LocalPath, Natural, field, section, trainer_values

PRETRAIN_TRAINER = {
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "num_train_epochs": 1,
}
"""Defaults of `base.pretrain.trainer`."""

TEMPLATE_INPUTS = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
"""Variables of chat templates that are part of each conversation."""


@section
class PretrainConfig:
    """Pretrain a small language model of the Llama architecture from a corpus, with a tokenizer of its own."""

    corpus: TextSource
    """The corpus: the built-in task's, or a table with a `text` column or with `prompt` and `completion` columns.
    The loss covers all of a text, and only the completion of a prompt."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of prompt groups kept out of a corpus of prompts with completions. Must be at least
    `data.eval_fraction`, or held-out prompts would leak into it. Of running text, documents are left out in which a
    held-out prompt of the recipe's data, or the completion of a held-out demonstration, occurs in full.
    `data.contamination` says what is done with other occurrences."""
    vocab_size: Annotated[int, Field(ge=260)] = 1024
    """Entries of the byte-level BPE tokenizer, special tokens included. Of scripts without spaces between words, a
    token holds at most one character."""
    hidden_size: Count = 128
    """Width of the residual stream. Must be a multiple of twice `num_attention_heads`."""
    num_hidden_layers: Count = 4
    """Transformer blocks."""
    num_attention_heads: Count = 4
    """Attention heads of each block; each has its own keys and values."""
    intermediate_size: Count = 384
    """Width of the gated MLP."""
    max_position_embeddings: Count = 256
    """Context length in tokens. Every document is a row of its own, ended by the stop token and padded, not packed
    with others. Longer documents are cut into several rows, which do not attend to each other."""
    trainer: dict[str, Any] = trainer_values("transformers.TrainingArguments", PRETRAIN_TRAINER)
    """Values of `transformers.TrainingArguments`, by their own names."""


@section
class QATConfig:
    """Quantisation-aware training to the export format: every later stage computes with weights rounded to the grid
    that will be exported, and gradients pass straight through the rounding (docs/quantization.md)."""

    qat: Literal["q8_0", "q4_0", "nf4", "int4-g32", "int3-g32", "int2-g32"]
    """The grid: GGUF's (q8_0, q4_0), bitsandbytes' with double quantisation (nf4), or torchao's symmetric integers
    in groups of 32 (int4-g32, int3-g32, int2-g32)."""
    activations: Literal["none", "int8"] = "none"
    """int8: round the inputs of quantised layers as well, with one scale per token, as torchao does at
    inference."""


@section
class ArchitectureConfig:
    """The values of a model's config.json that the memory plan needs, by the same names. With them the plan needs
    neither a file nor the network. The base stage compares them with the model that it loads."""

    model_type: str = "llama"
    """transformers' name of the architecture."""
    vocab_size: Count
    """Rows of the embedding."""
    hidden_size: Count
    """Width of the residual stream."""
    intermediate_size: Count
    """Width of the gated MLP."""
    num_hidden_layers: Count
    """Transformer blocks."""
    num_attention_heads: Count
    """Query heads of each block."""
    num_key_value_heads: Count
    """Key and value heads of each block."""
    head_dim: Count | None = None
    """Width of a head; null: hidden_size / num_attention_heads."""
    tie_word_embeddings: bool = False
    """Whether the output layer shares the embedding's weight."""


@section
class BaseConfig:
    """The model that every other stage starts from. Exactly one of `model` and `pretrain` is required."""

    model: LocalPath | None = None
    """The model to load: a Hub id, a local folder, or a `.gguf` file (which is dequantised). It must be a
    decoder-only language model of an architecture that transformers supports, and neither quantised nor an
    adapter. Or the base of a finished run, `runs/<recipe>/base` or `runs/<recipe>/base/<key>`, which is used as it
    is, with its precision, quantisation and chat template (docs/faq.md)."""
    revision: str | None = None
    """For a Hub id: the commit to load. Required, because branches move."""
    architecture: ArchitectureConfig | None = field(default=None, metadata=RUNTIME)
    """Dimensions of `model` for the memory plan; null: they are read from its config.json."""
    pretrain: PretrainConfig | None = None
    """Pretrain a small model instead of loading one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the frozen weights and of computation; trained parameters are always float32. auto: bfloat16 on
    a GPU that supports it in hardware (NVIDIA Ampere and later), float32 elsewhere. On older GPUs bfloat16 is
    emulated and gives a warning. float16 trains LoRA adapters only, with a loss scale. With `lora: null` the
    weights are float32 and `bfloat16` is the precision of their matrix products (autocast)."""
    quantization: Literal["none", "nf4", "int8"] | QATConfig = "none"
    """nf4, int8: the backbone is held quantised in every later stage, which then trains LoRA adapters only. Or a
    section such as `{qat: q4_0}`: the backbone is held in full precision and trained for the grid that it will be
    exported to."""
    chat_template: LocalPath = "auto"
    """auto: the tokenizer's own template (the one called `default` if it has several), or `plain` if it has none.
    Or the name of a template of the tokenizer, or of a built-in one (`plain`, `chatml`). Or a .jinja file."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict, metadata=ADDED)
    """Values of the chat template's variables, such as `{enable_thinking: false}` for Qwen3. Every stage, the chat
    and the exported tokenizer use them. A variable that the template does not have is refused."""
    template_date: str = "2024-07-26"
    """The date (YYYY-MM-DD) that chat templates print as today's. It is fixed so that prompts do not change from
    day to day."""
    fold_turns: bool = False
    """For chat templates that refuse some conversations. true: join consecutive turns of one role with a blank
    line, and if the template has no system turn, put system text before the first user turn. false: stop before
    training when the template refuses a conversation."""
    control_tokens: Literal["text", "tokens"] = "text"
    """How text in the data that spells a control token (such as `</s>`) is encoded: as ordinary text, or as the
    token. A stop token spelled at the end of an answer is removed in both cases."""
    check_tokens: Natural = field(default=64, metadata=RUNTIME)
    """Tokens to generate as a smoke test after the model is loaded."""
