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
    rankings: str | None = None
    """Hub data set repository of the rankings; null: they stay here."""
    rankings_license: str | None = field(default=None, metadata=RUNTIME)
    """The Hub's identifier of the rankings' licence, for their card ("cc-by-4.0"); null: none is given."""
    private: bool = field(default=True, metadata=RUNTIME)
