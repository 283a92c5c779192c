"""The `report` section: how a run is reported. It changes no result."""

from __future__ import annotations

from typing import Literal

from pipeline.config.section import section


@section
class ReportConfig:
    """The page that `tutelage report` writes."""

    language: Literal["en", "zh"] = "en"
    """Language of the report, of the verdict that is printed, and of the texts in report.json: English or Chinese.
    Prompts, answers, names and recipe keys stay as they are. The model card is in English."""
