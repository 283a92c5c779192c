"""The page's list of contents. Sections enter themselves as they are rendered."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """A link to a section. `target` is an id of the page."""

    target: str
    label: str


@dataclass
class Contents:
    entries: list[Entry] = field(default_factory=list)

    def add(self, section: str, label: str, folded: bool) -> str:
        """Adds a section, and returns nothing to print.

        The link to a folded section goes to the content inside of its `<details>`: browsers then open it.
        """
        self.entries.append(Entry(f"{section}-content" if folded else section, label))
        return ""
