"""The list of mutations matches the code: every text to replace occurs exactly once, and every named test file
exists. (`make mutations` runs a sample of the mutations.)"""

from __future__ import annotations

import pytest
from mutations import MUTATIONS, Mutation
from repository import ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_finds_its_text_and_its_tests(mutation: Mutation) -> None:
    for file, old, new in mutation.edits:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file} contains {text.count(old)} times: {old}"
        assert new != old
    for test in mutation.tests:
        assert (ROOT / test.partition("::")[0]).exists(), test


def test_names_are_unique() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
