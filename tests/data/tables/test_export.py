import stat
from collections import Counter

import pytest
import yaml

from data.schema import Ranking, write_jsonl
from data.tables import export
from data.tables.export import export_rankings, key_file, pseudonym
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from pipeline.errors import DataError

KEY = b"k" * 64


def rankings(count=40, human=True):
    """Rankings that use every field: ties, empty answers, ratings, models, metadata, both splits."""
    rows = []
    for i in range(count):
        prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"question {i // 2} ü\n"}]
        rows.append(
            Ranking(
                prompt=prompt,
                completions=[f"x {i // 2}", "", "longer answer"],
                ranks=[1, 3, 3] if i % 3 else [2, 1, 3],
                annotator=f"worker {i % 4}@example.org",
                human=human,
                ratings=[0.1 * i, 1e-9, -2.0] if i % 2 else None,
                models=["m", "", "n"] if i % 5 else None,
                split="eval" if i % 10 < 2 else "train",
                metadata={"seconds": 1.5, "shown": [2, 0, 1], "labels": {"a": ["b"]}} if i % 4 else {},
            )
        )
    return rows


def source(tmp_path, originals, name="rankings.jsonl"):
    write_jsonl(tmp_path / name, originals)
    return tmp_path / name


def pseudonymised(originals):
    return [Ranking(**{**vars(r), "annotator": pseudonym(r.annotator, KEY)}) for r in originals]


def by_split(originals):
    return {split: [r for r in originals if r.split == split] for split in ("train", "eval")}


def load(folder):
    config = RankingTableConfig(path=str(folder), format="native")
    return list(read_rankings(config, Dropped()))


def test_our_reader_reads_the_export_unchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "BATCH", 4)
    monkeypatch.setattr(export, "SHARD", 8)
    originals = rankings()
    out = export_rankings([source(tmp_path, originals)], tmp_path / "out", name="Test", key=KEY)
    assert out.splits == {"train": 32, "eval": 8}
    assert out.files == [
        "README.md",
        "data/eval-00000-of-00001.parquet",
        *(f"data/train-{i:05d}-of-00004.parquet" for i in range(4)),
    ]
    assert by_split(load(tmp_path / "out")) == by_split(pseudonymised(originals))
    [*shards] = sorted((tmp_path / "out" / "data").glob("train-*"))
    assert load(shards[0]) == by_split(pseudonymised(originals))["train"][:8]


def test_the_datasets_library_reads_the_export_unchanged(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    originals = rankings()
    export_rankings([source(tmp_path, originals)], tmp_path / "out", name="Test", key=KEY)
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(table) for split, table in loaded.items()} == {"train": 32, "eval": 8}
    for split, table in loaded.items():
        rows = write_jsonl(tmp_path / f"{split}.jsonl", table)
        assert rows == len(table)
        assert load(tmp_path / f"{split}.jsonl") == by_split(pseudonymised(originals))[split]
    features = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])["dataset_info"][
        "features"
    ]
    assert loaded["train"].features == datasets.Features._from_yaml_list(features)


def test_annotator_names_are_not_exported(tmp_path):
    originals = rankings()
    export_rankings([source(tmp_path, originals)], tmp_path / "out", name="Test", key=KEY)
    annotators = Counter(r.annotator for r in load(tmp_path / "out"))
    assert sorted(annotators.values()) == sorted(Counter(r.annotator for r in originals).values())
    for path in (tmp_path / "out").rglob("*.*"):
        assert b"example.org" not in path.read_bytes()
        assert KEY not in path.read_bytes()
    assert pseudonym("a", KEY) == pseudonym("a", KEY) != pseudonym("a", b"other")
    assert pseudonym("unknown", KEY) == "unknown"


def test_the_key_is_created_once_and_private(tmp_path):
    key = key_file(tmp_path / "run" / "annotators.key")
    assert key_file(tmp_path / "run" / "annotators.key") == key != key_file(tmp_path / "other.key")
    assert stat.S_IMODE((tmp_path / "run" / "annotators.key").stat().st_mode) == 0o600
    (tmp_path / "other.key").write_text("abc")
    with pytest.raises(DataError, match="too short"):
        key_file(tmp_path / "other.key")


def test_the_card_states_the_annotators_and_their_agreement(tmp_path):
    human, simulated = rankings(), rankings(human=False)
    files = [source(tmp_path, human), source(tmp_path, simulated, "simulated.jsonl")]
    export_rankings(files[:1], tmp_path / "a", name="Test", key=KEY, license="cc-by-4.0")
    text = (tmp_path / "a" / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert (header["license"], header["size_categories"]) == ("cc-by-4.0", ["n<1K"])
    assert [c["path"] for c in header["configs"][0]["data_files"]] == [
        "data/train-*.parquet",
        "data/eval-*.parquet",
    ]
    assert header["dataset_info"]["splits"][0]["num_examples"] == 32
    assert "People made the rankings" in text
    assert "two annotators agree" in text
    assert "| m |" in text
    both = export_rankings(files, tmp_path / "b", name="Test", key=KEY)
    text = (tmp_path / "b" / "README.md").read_text()
    assert sum(both.splits.values()) == 80
    assert "simulated annotators, not by people" in text
    assert yaml.safe_load(text.split("---")[1])["license"] == "unknown"
    only = export_rankings(files, tmp_path / "c", name="Test", key=KEY, only="simulated")
    assert sum(only.splits.values()) == 40
    assert {r.annotator for r in load(tmp_path / "c")} == {r.annotator for r in simulated}


def test_the_card_links_another_licence(tmp_path):
    files = [source(tmp_path, rankings())]
    link = "https://example.org/mine"
    export_rankings(
        files, tmp_path / "a", name="Test", key=KEY, license="other", license_name="mine", license_link=link
    )
    text = (tmp_path / "a" / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert [header[key] for key in ("license", "license_name", "license_link")] == ["other", "mine", link]
    assert f"License: [mine]({link})." in text


def test_only_a_complete_new_export_replaces_an_old_one(tmp_path):
    path = source(tmp_path, rankings())
    export_rankings([path], tmp_path / "out", name="Old", key=KEY)
    simulated = source(tmp_path, rankings(human=False), "s.jsonl")
    with pytest.raises(DataError, match="no human rankings"):
        export_rankings([simulated], tmp_path / "out", name="New", key=KEY, only="human")
    assert "# Old" in (tmp_path / "out" / "README.md").read_text()
    export_rankings([path], tmp_path / "out", name="New", key=KEY)
    assert "# New" in (tmp_path / "out" / "README.md").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(DataError, match="is not empty"):
        export_rankings([path], other, name="New", key=KEY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "out", "rankings.jsonl", "s.jsonl"]
