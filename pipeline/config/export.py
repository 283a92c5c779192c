"""The `export` and `publish` sections: which files are written, and what is uploaded."""

from __future__ import annotations

from typing import Literal

from pipeline.config.section import ADDED, RUNTIME, Count, Natural, field, section

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
    """The files that the trained policy is written to."""

    formats: list[Format] | None = None
    """Formats to write (docs/export.md). null: `adapter` if the base is in 4 or 8 bits, otherwise `safetensors`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the merged safetensors, and of the weights that an nf4 or torchao checkpoint does not
    quantise."""
    merge_quantized: bool = False
    """Merge an adapter that was trained on a quantised base anyway. The file is then a different model from the one
    that was trained; the difference is measured and recorded."""
    num_prompts: Count = 64
    """Held-out prompts on which each written file is measured: the first of those that `eval` used."""
    batch_size: Count = field(default=256, metadata=RUNTIME)
    """Answers sampled at the same time when the files are measured."""


@section
class PublishConfig:
    """What `tutelage publish` uploads to the Hugging Face Hub, and where."""

    model: str | None = None
    """Hub repository of the exported model, `owner/name`; null: the model is not published."""
    adapter: bool = field(default=False, metadata=RUNTIME)
    """Publish the policy's LoRA adapter instead of the merged model. The base must be a Hub model."""
    reward: str | None = field(default=None, metadata=ADDED)
    """Hub repository of the reward model, `owner/name`, as a sequence classifier with one label (docs/scoring.md);
    null: it is not published. It needs no finished PPO."""
    reward_member: Natural | None = field(default=None, metadata=ADDED)
    """Which member of an ensemble is published, counted from 0; null: the reward model is a single one."""
    reward_criterion: str | None = field(default=None, metadata=ADDED)
    """Only for `data.rankings.criteria`: the criterion whose reward model is published."""
    license: str | None = field(default=None, metadata=RUNTIME)
    """The Hub's identifier of the model's licence, for its card ("apache-2.0"); null: the card names none."""
    license_name: str | None = field(default=None, metadata=RUNTIME)
    """With `license: other`: the name of the licence, which is not on the Hub's list."""
    license_link: str | None = field(default=None, metadata=RUNTIME)
    """With `license: other`: the web address of its text."""
    rankings: str | None = None
    """Hub data set repository of the rankings, `owner/name`; null: the rankings are not published."""
    rankings_license: str | None = field(default=None, metadata=RUNTIME)
    """The Hub's identifier of the rankings' licence, for their card ("cc-by-4.0"); null: the card names none."""
    rankings_license_name: str | None = field(default=None, metadata=RUNTIME)
    """As `license_name`, for the rankings."""
    rankings_license_link: str | None = field(default=None, metadata=RUNTIME)
    """As `license_link`, for the rankings."""
    collection: str | None = field(default=None, metadata=RUNTIME)
    """Title of a Hub collection that lists model and rankings, under the model's owner. It is created if it does
    not exist. null: none."""
    private: bool = field(default=True, metadata=RUNTIME)
    """Whether new repositories and the collection are private. A repository that is already public is then
    refused."""
