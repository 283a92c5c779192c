"""`tutelage annotate`: people rank the answers in a file, without a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pipeline.config.rank import AppConfig
from pipeline.errors import StageError
from pipeline.files import write_atomic
from ranking.campaign import Campaign
from ranking.export import rankings
from ranking.items import read_sources
from ranking.serve import collect_rankings


def rank_file(
    file: Path,
    out: Path,
    config: AppConfig,
    *,
    say: Callable[[str], None],
) -> int:
    """Serves the answers of `file`, writes the rankings to `out` and returns how many there are.

    The database is stored beside `out`, under its name with `.sqlite`. Raises `StageError` without any ranking.
    """
    campaign = Campaign.of("rank", read_sources(str(file)), config, file.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    database = out.with_name(f"{out.name}.sqlite")
    store = collect_rankings(database, campaign, config, say=say)
    try:
        lines = [json.dumps(asdict(ranking), ensure_ascii=False) + "\n" for ranking in rankings(store, campaign)]
    finally:
        store.close()
    if not lines:
        raise StageError(
            "nobody ranked anything: all items were skipped",
            where=str(database),
            hint="run the command again and rank at least one item",
        )
    write_atomic(out, "".join(lines))
    return len(lines)
