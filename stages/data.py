"""The `data` stage: demonstrations, prompts and rankings, split by prompt group and checked.

1. Read or generate the demonstrations; read the rankings and the extra prompts.
2. Put the system message in front and give every prompt group its split.
3. Check that no prompt is in both splits.
4. Write demonstrations.jsonl, prompts.jsonl (each prompt of any table once), rankings.jsonl, dropped.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from data import venues
from data.demonstrations import read_demonstrations, read_prompts
from data.messages import with_system
from data.rankings import read_rankings
from data.schema import Demonstration, Prompt, Ranking, prompt_key, write_jsonl
from data.sources import Dropped
from data.splits import check_no_leak, split_of_prompt
from pipeline.config.data import DataConfig, TaskConfig
from pipeline.errors import DataError
from pipeline.stage import Artifact, Metrics, RunContext


def run(config: DataConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    """Writes the artifact; returns counts by split, what was dropped, and what the rankings are made of."""
    held_out, system = config.eval_fraction, config.system
    dropped = {table: Dropped() for table in ("demonstrations", "prompts", "rankings")}

    demonstrations: Iterable[Demonstration]
    if isinstance(config.demonstrations, TaskConfig):
        demonstrations = venues.demonstrations(config.demonstrations, ctx.seed, held_out)
    else:
        table = config.demonstrations
        demonstrations = read_demonstrations(table, held_out, dropped["demonstrations"], ctx.say)
    demonstrations = [replace(d, prompt=with_system(d.prompt, system)) for d in demonstrations]
    extra: list[Prompt] = []
    if config.prompts:
        prompts = read_prompts(config.prompts, held_out, dropped["prompts"], ctx.say)
        extra = [replace(p, prompt=with_system(p.prompt, system)) for p in prompts]
    rankings: list[Ranking] = []
    if config.rankings:
        rankings = [
            replace(
                r,
                prompt=with_system(r.prompt, system),
                split=split_of_prompt(r.prompt, held_out),
                where="",  # the artifact's content must not depend on the folder of its source
            )
            for r in read_rankings(config.rankings, dropped["rankings"], ctx.say)
        ]
    check_no_leak([*demonstrations, *extra, *rankings])
    distinct = _distinct([*demonstrations, *extra, *rankings])
    _check_sizes(demonstrations, distinct, held_out)

    write_jsonl(out_dir / "demonstrations.jsonl", demonstrations)
    write_jsonl(out_dir / "prompts.jsonl", distinct)
    report = {table: noted.rows for table, noted in dropped.items()}
    (out_dir / "dropped.json").write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    metrics: Metrics = {
        **_by_split("demonstrations", demonstrations),
        **_by_split("prompts", distinct),
        **{f"dropped_{table}": sum(noted.counts().values()) for table, noted in dropped.items()},
    }
    if config.rankings:
        write_jsonl(out_dir / "rankings.jsonl", rankings)
        sizes = Counter(len(ranking.completions) for ranking in rankings)
        metrics |= {
            **_by_split("rankings", rankings),
            **{f"rankings_of_{k}": count for k, count in sorted(sizes.items())},
            "annotators": len({ranking.annotator for ranking in rankings}),
            "human": config.rankings.human,
        }
    return metrics


def _distinct(rows: Iterable[Demonstration | Prompt | Ranking]) -> list[Prompt]:
    """Each prompt once, in the order of first appearance."""
    first: dict[str, Prompt] = {}
    for row in rows:
        first.setdefault(prompt_key(row.prompt), Prompt(row.prompt, row.split))
    return list(first.values())


def _check_sizes(demonstrations: list[Demonstration], prompts: list[Prompt], held_out: float) -> None:
    if not any(d.split == "train" for d in demonstrations):
        raise DataError(
            f"none of the {len(demonstrations)} demonstrations is left to train on",
            where="data.demonstrations",
            mend="give more of them, with non-empty prompts and completions, or lower data.eval_fraction",
        )
    if held_out > 0 and not any(p.split == "eval" for p in prompts):
        raise DataError(
            f"none of the {len(prompts)} prompts is held out at data.eval_fraction {held_out:g}",
            where="data.eval_fraction",
            mend="give more prompts, or raise data.eval_fraction",
        )


def _by_split(table: str, rows: Iterable[Demonstration | Prompt | Ranking]) -> dict[str, int]:
    counts = Counter(row.split for row in rows)
    return {f"{table}_{split}": counts[split] for split in ("train", "eval")}
