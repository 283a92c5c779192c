"""The `export` and `publish` sections: what leaves the run."""

from __future__ import annotations

from typing import Literal

from pipeline.config.section import RUNTIME, Count, field, section

Format = Literal[
    "safetensors",
    "adapter",
    "nf4",
    "torchao_int2",
    "torchao_int3",
    "torchao_int4",
    "torchao_int8",
    "gguf_f32",
    "gguf_f16",
    "gguf_q8_0",
    "gguf_q4_0",
]


@section
class ExportConfig:
    formats: list[Format] | None = None
    """What is written, see docs/export.md. null: `adapter` on a base in 4 or 8 bits, else
    `safetensors`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the merged safetensors, and of what an nf4 or torchao checkpoint leaves unquantised."""
    merge_quantized: bool = False
    """Merge an adapter that was trained on a quantised base after all. The file is then another model than the one
    trained: what that costs is measured and recorded."""
    num_prompts: Count = 64
    """Held-out prompts, the first of those that eval saw, on which each written file is measured."""
    batch_size: Count = field(default=256, metadata=RUNTIME)


@section
class PublishConfig:
    model: str | None = None
    """Hub repository of the exported model, `owner/name`."""
    adapter: bool = field(default=False, metadata=RUNTIME)
    """Publish the policy's LoRA adapter instead of the merged model; the base must be a Hub model."""
    license: str | None = field(default=None, metadata=RUNTIME)
    """The Hub's identifier of the model's licence, for its card ("apache-2.0"); null: none is given."""
    license_name: str | None = field(default=None, metadata=RUNTIME)
    """The name of a licence that the Hub's list does not have, with `license: other`."""
    license_link: str | None = field(default=None, metadata=RUNTIME)
    """Where its text is, with `license: other`: an address."""
    rankings: str | None = None
    """Hub data set repository of the rankings; null: they stay here."""
    rankings_license: str | None = field(default=None, metadata=RUNTIME)
    """The Hub's identifier of the rankings' licence, for their card ("cc-by-4.0"); null: none is given."""
    rankings_license_name: str | None = field(default=None, metadata=RUNTIME)
    """As `license_name`, of the rankings."""
    rankings_license_link: str | None = field(default=None, metadata=RUNTIME)
    """As `license_link`, of the rankings."""
    collection: str | None = field(default=None, metadata=RUNTIME)
    """Title of a collection of the model's owner that links model and rankings; made when it is not there. null:
    none."""
    private: bool = field(default=True, metadata=RUNTIME)
    """Whether new repositories and the collection are private; one that is public already is then refused."""
