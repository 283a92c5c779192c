"""The `export` and `publish` sections: what leaves the run."""

from __future__ import annotations

from typing import Literal

from pipeline.config.section import RUNTIME, field, section


@section
class ExportConfig:
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the merged model."""


@section
class PublishConfig:
    model: str | None = None
    """Hub repository of the exported model, `owner/name`."""
    adapter: bool = field(default=False, metadata=RUNTIME)
    """Publish the policy's LoRA adapter instead of the merged model; the base must be a Hub model."""
    license: str | None = field(default=None, metadata=RUNTIME)
    """The Hub's identifier of the model's licence, for its card ("apache-2.0"); null: none is given."""
    rankings: str | None = None
    """Hub data set repository of the rankings; null: they stay here."""
    rankings_license: str | None = field(default=None, metadata=RUNTIME)
    """The Hub's identifier of the rankings' licence, for their card ("cc-by-4.0"); null: none is given."""
    collection: str | None = field(default=None, metadata=RUNTIME)
    """Title of a collection of the model's owner that links model and rankings; made when it is not there. null:
    none."""
    private: bool = field(default=True, metadata=RUNTIME)
    """Whether new repositories and the collection are private; one that is public already is then refused."""
