"""The `base` stage: where the language model comes from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.data import TextSource
from pipeline.config.section import RUNTIME, Count, LocalPath, Natural, field, section


@section
class PretrainConfig:
    """Pretrain a small Llama-architecture LM, tokenizer included, from a corpus."""

    corpus: TextSource
    """The built-in task's corpus, or a table with a `text` column or `prompt` and `completion` columns."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of prompt groups kept out of the corpus; at least `data.eval_fraction`, or prompts leak."""
    vocab_size: Annotated[int, Field(ge=260)] = 1024
    """Byte-level BPE entries, special tokens included."""
    hidden_size: Count = 128
    num_hidden_layers: Count = 4
    num_attention_heads: Count = 4
    intermediate_size: Count = 384
    max_position_embeddings: Count = 256
    """Longest sequence in tokens; documents are packed to it."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Values of `transformers.TrainingArguments`, by their own names."""


@section
class QATConfig:
    """Quantisation-aware training: every later stage computes with weights on the grid that will be exported, and
    its gradients pass the rounding as if it were not there (docs/quantization.md)."""

    qat: Literal["q8_0", "q4_0", "nf4", "int4-g32", "int3-g32", "int2-g32"]
    """The grid: of GGUF (q8_0, q4_0), of bitsandbytes with double quantisation (nf4), or of torchao (symmetric
    integers in groups of 32)."""
    activations: Literal["none", "int8"] = "none"
    """int8: the inputs of quantised layers too, each token's on a grid of its own, as torchao deploys them."""


@section
class ArchitectureConfig:
    """The numbers of a model's config.json that the memory plan needs, so that it needs no file and no network. The
    base stage compares them with the model that it loads."""

    model_type: str = "llama"
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count | None = None
    """null: hidden_size / num_attention_heads."""
    tie_word_embeddings: bool = False


@section
class BaseConfig:
    """Exactly one of `model` and `pretrain` is given."""

    model: LocalPath | None = None
    """A Hub id, a local folder, or a `.gguf` file (dequantised on load): a decoder-only language model that is
    neither quantised nor an adapter, of an architecture that transformers has."""
    revision: str | None = None
    """For a Hub id: the commit to pin."""
    architecture: ArchitectureConfig | None = field(default=None, metadata=RUNTIME)
    """Of `model`, for the memory plan; null: its config.json says."""
    pretrain: PretrainConfig | None = None
    """Make the LM here instead of loading one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the frozen weights, and of what is computed with them; what learns is float32. `auto`: bfloat16 on a GPU
    that computes in it (NVIDIA's Ampere and later), float32 elsewhere. An older GPU takes bfloat16 with a warning,
    because it only emulates it. float16 trains LoRA adapters only, with a loss scale. With `lora: null` the weights
    are float32 and bfloat16 is what their products are computed in."""
    quantization: Literal["none", "nf4", "int8"] | QATConfig = "none"
    """nf4, int8: how the backbone is held in memory in every later stage, which then trains LoRA adapters only. Or
    `{qat: q4_0}`: held in full, and trained for the grid that it will be deployed on."""
    chat_template: LocalPath = "auto"
    """`auto`: the tokenizer's own (`default` where it has several by name), or `plain` when it has none. Or a name:
    first the tokenizer's own templates are searched, then the built-in `plain` and `chatml`. Or a .jinja file."""
    template_date: str = "2024-07-26"
    """YYYY-MM-DD. The date that chat templates print as today's, in every stage and on every day."""
    fold_turns: bool = False
    """For chat templates that refuse some conversations. True: consecutive turns of one role are joined by a blank
    line, and if the template has no system turn, system text goes before the first user turn. False: the run stops
    before training when the template refuses a conversation."""
    control_tokens: Literal["text", "tokens"] = "text"
    """How text in the data that spells a control token (such as `</s>`) is encoded: as ordinary text, or as the
    token. A stop token spelled at the end of an answer is removed in both cases."""
    check_tokens: Natural = field(default=64, metadata=RUNTIME)
    """Tokens generated as a sign of life when the model is loaded."""
