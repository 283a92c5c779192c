"""Rankings as a data set for the Hub: Parquet shards in the native schema, and a card.

`datasets.load_dataset`, and a recipe with `format: native`, read the same rankings back: prompts, completions,
ranks with ties, ratings, models, splits and metadata. Only people's names are replaced, by pseudonyms.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import yaml

from data.annotators.measures import measure_annotators
from data.annotators.sample import RankingSample
from data.schema import Ranking, read_rankings_file
from data.tables.columns import ANONYMOUS
from pipeline.errors import DataError

SHARD = 100_000  # rankings per file
BATCH = 1000  # rankings in memory at a time
CARD = "README.md"
FEATURES: list[dict[str, Any]] = [
    {
        "name": "prompt",
        "list": [{"name": "role", "dtype": "string"}, {"name": "content", "dtype": "string"}],
    },
    {"name": "completions", "list": "string"},
    {"name": "ranks", "list": "int64"},
    {"name": "annotator", "dtype": "string"},
    {"name": "human", "dtype": "bool"},
    {"name": "ratings", "list": "float64"},
    {"name": "models", "list": "string"},
    {"name": "split", "dtype": "string"},
    {"name": "metadata", "dtype": "string"},
]
"""The schema in the notation of cards. `metadata` is JSON, since its keys depend on the annotation tool."""


@dataclass(frozen=True)
class Exported:
    """A finished export: the folder, its files in order (relative to it), and the number of rankings by split."""

    folder: Path
    files: list[str]
    splits: dict[str, int]


def pseudonym(annotator: str, key: bytes) -> str:
    """A keyed hash of the name: the same for the same annotator and key, and meaningless without the key."""
    if annotator == ANONYMOUS:
        return annotator
    return f"annotator-{hmac.digest(key, annotator.encode(), 'sha256').hex()[:12]}"


def key_file(path: Path) -> bytes:
    """The secret of the pseudonyms, 32 random bytes, created where the file does not exist. It is never exported:
    with it and a list of names, people can be identified."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
    key = path.read_text(encoding="ascii", errors="replace").strip()
    if len(key) < 32:
        raise DataError(
            "the key of the pseudonyms is too short",
            where=str(path),
            hint="remove the file: the next export makes a key",
        )
    return key.encode()


def export_rankings(
    sources: Sequence[Path],
    folder: Path,
    *,
    name: str,
    key: bytes,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    only: Literal["human", "simulated"] | None = None,
    seed: int = 0,
) -> Exported:
    """Writes the union of `sources` (`rankings.jsonl` of artifacts) to `folder`.

    An earlier export in the folder is replaced once the new one is complete.

    Args:
        name: of the data set, for the card.
        key: of the pseudonyms, see `key_file`. Simulated annotators keep their names.
        license: the Hub's identifier; None: the card says that there is none.
        license_name, license_link: of a licence that is not in the Hub's list, with the identifier `other`.
        only: rankings by people, or simulated ones; None: all.

    Raises:
        DataError: there is nothing to export, or the folder holds something else.
    """
    if folder.exists() and not (folder / CARD).is_file() and any(folder.iterdir()):
        raise DataError(
            f"{folder} is not empty and does not hold an earlier export",
            hint="name another folder, or empty this one",
        )
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        sample = RankingSample()
        splits = _write(_selected(sources, only, key, sample), partial / "data")
        if not splits:
            raise DataError(
                f"there are no {only or ''} rankings to export".replace("  ", " "),
                where=", ".join(map(str, sources)),
                hint="export without --only, or run the rank stage",
            )
        sizes = {split: sum(f.stat().st_size for f in (partial / "data").glob(f"{split}-*")) for split in splits}
        terms = {"license": license or "unknown", "license_name": license_name, "license_link": license_link}
        text = card(name, splits, sizes, sample, measure_annotators(sample, seed=seed), terms)
        (partial / CARD).write_text(text, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Exported(folder, files, splits)


def _selected(
    sources: Iterable[Path], only: Literal["human", "simulated"] | None, key: bytes, sample: RankingSample
) -> Iterator[Ranking]:
    for source in sources:
        for ranking in read_rankings_file(source):
            if only is None or ranking.human == (only == "human"):
                if ranking.human:
                    ranking = replace(ranking, annotator=pseudonym(ranking.annotator, key))
                sample.add(ranking)
                yield ranking


def _write(rankings: Iterator[Ranking], folder: Path) -> dict[str, int]:
    """Parquet shards by split, `train-00000-of-00002.parquet`; returns rankings by split."""
    import pyarrow
    import pyarrow.parquet

    text, number = pyarrow.string(), pyarrow.int64()
    message = pyarrow.struct([("role", text), ("content", text)])
    schema = pyarrow.schema(
        [
            ("prompt", pyarrow.list_(message)),
            ("completions", pyarrow.list_(text)),
            ("ranks", pyarrow.list_(number)),
            ("annotator", text),
            ("human", pyarrow.bool_()),
            ("ratings", pyarrow.list_(pyarrow.float64())),
            ("models", pyarrow.list_(text)),
            ("split", text),
            ("metadata", text),
        ]
    )
    folder.mkdir(parents=True)
    counts: Counter[str] = Counter()
    with ExitStack() as opened:
        writers: dict[str, Any] = {}
        while batch := list(islice(rankings, BATCH)):
            for split in sorted({str(ranking.split) for ranking in batch}):
                rows = [_cells(ranking) for ranking in batch if ranking.split == split]
                path = folder / f"{split}-{counts[split] // SHARD:05d}"
                if str(path) not in writers:
                    writers[str(path)] = opened.enter_context(pyarrow.parquet.ParquetWriter(path, schema))
                writers[str(path)].write_table(pyarrow.Table.from_pylist(rows, schema))
                counts[split] += len(rows)
    for split in list(counts):
        shards = sorted(folder.glob(f"{split}-*"))
        for path in shards:
            path.rename(path.with_name(f"{path.name}-of-{len(shards):05d}.parquet"))
    return {split: counts[split] for split in ("train", "eval") if counts[split]}


def _cells(ranking: Ranking) -> dict[str, Any]:
    names = [feature["name"] for feature in FEATURES]
    cells = {name: getattr(ranking, name) for name in names}
    return cells | {"metadata": json.dumps(ranking.metadata, ensure_ascii=False, sort_keys=True)}


def card(
    name: str,
    splits: dict[str, int],
    sizes: dict[str, int],
    sample: RankingSample,
    measured: dict[str, Any],
    terms: Mapping[str, str | None],
) -> str:
    """The data set's README.md: the Hub's header in YAML, then the text. `terms` are the header's keys of the
    licence; those that are None are left out."""
    total = sum(splits.values())
    steps = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
    header = {
        "pretty_name": name,
        **{key: value for key, value in terms.items() if value is not None},
        "tags": [
            "tutelage",
            "rankings",
            "preferences",
            "human-feedback" if sample.human else "simulated-annotators",
        ],
        "size_categories": [next((label for size, label in steps if total < size), "n>10M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits],
            }
        ],
        "dataset_info": {
            "features": FEATURES,
            "splits": [
                {"name": split, "num_bytes": sizes[split], "num_examples": count} for split, count in splits.items()
            ],
        },
    }
    provenance = {
        True: "People made the rankings. Their names are pseudonyms: keyed hashes, whose key is not published.",
        False: "**Some or all of the rankings were made by simulated annotators, not by people** (`human`).",
    }[sample.human]
    rows = "\n".join(_figures(measured))
    on = measured["sample"]
    basis = "all rankings" if on["share"] == 1 else f"{on['rankings']:,} of them, from a sample of the prompts"
    models = "\n".join(
        f"| {row['model']} | {row['strength']:+.2f} | {row['low']:+.2f} to {row['high']:+.2f} | {row['pairs']:,} |"
        for row in measured["models"]
    )
    sections = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        f"{total:,} rankings of K answers to a prompt by {len(sample.annotators):,} annotators. {provenance}",
        f"License: {_license(terms)}.",
        "## Columns\n\n`prompt`: messages that end with the user's turn. `completions`: the K answers. "
        "`ranks`: one per answer, 1 is best, equal ranks are ties. `annotator`, `human`. `ratings`: the scores "
        "behind the ranks, if any. `models`: which system wrote each answer, if known. `split`. `metadata`: "
        "JSON, other facts about the ranking.",
        f"## Agreement\n\nMeasured on {basis}; intervals are 95 % bootstrap over prompts.\n\n"
        f"| measure | value | interval | pairs |\n|---|---|---|---|\n{rows}",
        *(
            [
                "## Models\n\nBradley-Terry strengths, in log odds around a mean of 0.\n\n"
                f"| model | strength | interval | comparisons |\n|---|---|---|---|\n{models}"
            ]
            if models
            else []
        ),
        "## Use\n\nWith `datasets`:\n\n```python\nfrom datasets import load_dataset\n\n"
        'rankings = load_dataset("owner/name")\n```\n\nIn a recipe of tutelage:\n\n```yaml\ndata:\n  rankings:\n'
        f"    path: hub://owner/name@commit\n    format: native\n    split: {'+'.join(splits)}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _license(terms: Mapping[str, str | None]) -> str:
    if terms["license"] == "unknown":
        return "none; ask the publisher before you use this data set"
    title = terms["license_name"] or terms["license"]
    return f"[{title}]({terms['license_link']})" if terms["license_link"] else str(title)


def _figures(measured: dict[str, Any]) -> Iterator[str]:
    labels = {
        "pairwise": "two annotators agree on a strict pair",
        "by_others": "the others predict an annotator",
        "tau": "Kendall's tau-b of two annotators",
        "self_consistency": "an annotator agrees with themselves",
        "first_shown": "the answer shown first wins",
        "longer": "the longer answer wins",
    }
    for key, label in labels.items():
        row = measured[key]
        if row["value"] is not None:
            yield f"| {label} | {row['value']:.3f} | {row['low']:.3f} to {row['high']:.3f} | {row['pairs']:,} |"
    if measured["alpha"] is not None:
        yield f"| Krippendorff's alpha, ordinal | {measured['alpha']:.3f} | | |"
