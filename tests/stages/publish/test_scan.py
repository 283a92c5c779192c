"""What must not leave this machine, planted in texts and files. No secret here is a real one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from pipeline.errors import StageError
from stages.publish import scan

DIGITS = "0123456789"
SECRETS = {
    "a Hugging Face token": "hf_" + "aB3" * 11,
    "an API key": "sk-proj-" + "aB3" * 12,
    "an AWS access key": "AKIA" + "A1B2" * 4,
    "an AWS secret key": "aws_secret_access_key = " + "aB3+" * 10,
    "a GitHub token": "ghp_" + "aB3" * 12,
    "a GitLab token": "glpat-" + "aB3-" * 5,
    "a Google API key": "AIza" + "aB3_x" * 7,
    "a Slack token": "xoxb-" + DIGITS,
    "a private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "a bearer token": "Authorization: Bearer " + "abc123" * 5,
    "a JSON web token": "eyJ" + "a" * 12 + ".eyJ" + "b" * 12 + ".c",
    "a password in an address": "postgres://jane:hunter2@db.example.org",
}


@pytest.mark.parametrize(("what", "text"), SECRETS.items(), ids=lambda value: None)
def test_every_kind_of_secret_is_named(what: str, text: str) -> None:
    assert scan.problem(f'{{"key": "{text}"}}') == what
    assert scan.problem(text, quoted=True) == what


def test_every_form_has_its_test() -> None:
    assert SECRETS.keys() == scan.SECRETS.keys()


@pytest.mark.parametrize(
    "text",
    [
        "The sk-learn-compatible-estimator-with-a-long-name is here",
        '"eos_token": "<|endoftext|>"',
        "a bearer of good news, responsible as ever since then",
        "https://example.org:8080/path@home",
        "hf_hub_download(repo_id)",
        "the folder /home is full, and /tmp/ too",
        "/usr/bin/python",
        "https://example.org/tmp/some-name/x",
    ],
)
def test_ordinary_text_passes(text: str) -> None:
    assert scan.problem(text) is None


def test_paths_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [f"{tmp_path}/x", "/home/jane/models/x", "/Users/jane/x", r"C:\\Users\\jane", f"{Path.home()}/models"]
    if sys.prefix != sys.base_prefix:
        paths.append(f"{sys.prefix}/lib")
    for path in paths:
        assert scan.problem(f'"_name_or_path": "{path}"') == "a path of this machine", path


def test_what_people_write_about_paths_is_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "machine_folders", lambda: ["/home/jane/", "/root/", "/tmp/", "/srv/work/"])
    for text in ("cd /home/user/project", "ls /tmp/output.txt", "/root/.ssh"):
        assert scan.problem(text, quoted=True) is None, text
        assert scan.problem(text) == "a path of this machine", text
    assert scan.problem("cd /home/jane/project", quoted=True) == "a path of this machine"
    assert scan.problem("cd /srv/work/project", quoted=True) == "a path of this machine"


def test_findings_have_file_and_line_and_not_the_secret(tmp_path: Path) -> None:
    secret = SECRETS["a Hugging Face token"]
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"a": 1, "token": secret}, indent=1))
    found = list(scan.in_file("config.json", file))
    assert found == [scan.Finding("a Hugging Face token", "config.json:3")]
    with pytest.raises(StageError, match=re.escape("config.json holds a Hugging Face token")) as caught:
        scan.refuse(found)
    assert caught.value.where == "config.json:3 (a Hugging Face token)"
    assert secret not in str(caught.value)


def test_the_metadata_of_a_binary_file_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF\0\0" + f"general.source /home/jane/base{chr(0)}".encode() + bytes(1000))
    [found] = scan.in_file("model.gguf", file)
    assert found.where == "model.gguf, in its first 1,037 bytes"


def test_many_findings_are_counted() -> None:
    found = [scan.Finding("an API key", f"x.txt:{line}") for line in range(1, 14)]
    with pytest.raises(StageError) as caught:
        scan.refuse(found)
    assert "x.txt:10 (an API key), and 3 more" in caught.value.where
