"""Reads recipes as YAML and merges them: `extends`, then the file itself, then `--set`.

Every value is a `Node` that records which line or flag set it, so that errors, manifests and `tutelage show` can
name the place.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import shipped
from pipeline.errors import RecipeError

Rivals = Mapping[str, frozenset[str]]
"""Dotted path -> dotted paths that conflict with it and are dropped from earlier layers."""


@dataclass(frozen=True)
class Node:
    """A value and where it was set. `value` is a scalar, a dict of nodes or a list of nodes."""

    value: Any
    where: str


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars: `5e-5` is a float, `no`, `12:30` and `2024-01-01` are strings."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not supported; use extends", mark)
        return super().compose_node(parent, index)


_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _SCALARS.items():
    _firsts = ["" if letter == "\0" else letter for letter in _first]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _firsts)


def parse(text: str, where: Callable[[int], str]) -> Node:
    """One YAML document as nodes; `where` names a line (counted from 1)."""

    def convert(node: yaml.Node, place: str) -> Node:
        if isinstance(node, yaml.MappingNode):
            return Node(mapping(node), place)
        if isinstance(node, yaml.SequenceNode):
            return Node([convert(item, where(item.start_mark.line + 1)) for item in node.value], place)
        return Node(loader.construct_object(node), place)

    def mapping(node: yaml.MappingNode) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        for key, value in node.value:
            place = where(key.start_mark.line + 1)
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError("a key must be a plain word", where=place)
            if key.value in nodes:
                raise RecipeError(
                    f"the key {key.value} appears twice",
                    where=f"{nodes[key.value].where} and {place}",
                    hint="keep only one",
                )
            nodes[key.value] = convert(value, place)
        return nodes

    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        return Node(None, where(1)) if root is None else convert(root, where(root.start_mark.line + 1))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"not valid YAML: {error.problem}", where=where(line)) from None
    except yaml.YAMLError as error:
        raise RecipeError(f"not valid YAML: {error}", where=where(1)) from None


def shown(path: Path) -> str:
    """A path for messages: relative if it is below the working directory; a recipe installed with the program goes
    by its name."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else shipped.name_of(path) or str(path)


def read(path: Path, rivals: Rivals, chain: tuple[Path, ...] = ()) -> Node:
    """A recipe file merged over what it extends."""
    resolved = path.resolve()
    if resolved in chain:
        loop = " -> ".join(shown(p) for p in (*chain, resolved))
        raise RecipeError(f"recipes extend each other in a circle: {loop}")
    root = parse(_text(path, chain), lambda line: f"{shown(path)}:{line}")
    if root.value is None:
        raise RecipeError(
            f"the recipe {shown(path)} is empty",
            hint="write name: and extends: into it, for example `name: mine` and `extends: quickstart`",
        )
    if not isinstance(root.value, dict):
        kind = "a list" if isinstance(root.value, list) else "a single value"
        raise RecipeError(
            f"a recipe consists of lines such as `name: mine`, and this file is {kind}",
            where=root.where,
            hint="write each value under its section: docs/recipes.md lists them",
        )
    parents = root.value.pop("extends", None)
    merged = Node({}, root.where)
    for parent in _names(parents):
        file = shipped.locate(Path(parent).expanduser(), path.parent)
        merged = overlay(merged, read(file, rivals, (*chain, resolved)), rivals)
    return overlay(merged, root, rivals)


def _text(path: Path, chain: Sequence[Path]) -> str:
    by = f"named in extends of {shown(chain[-1])}" if chain else ""
    try:
        content = path.read_bytes()
    except OSError as error:
        reason, hint = error.strerror or str(error), ""
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            reason, hint = "there is no such file", shipped.suggestion(path)
        elif isinstance(error, IsADirectoryError):
            inside = sorted(path.glob("*.y*ml"))
            reason = "it is a folder"
            hint = f"name a file in it, such as {shown(inside[0])}" if inside else shipped.suggestion(path)
        raise RecipeError(f"cannot read the recipe {shown(path)}: {reason}", where=by, hint=hint) from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"the recipe {shown(path)} holds byte {content[error.start]:#x}, which is not UTF-8",
            where=f"{shown(path)}:{line}",
            hint="save the file with the encoding UTF-8",
        ) from None


def _names(extends: Node | None) -> list[str]:
    if extends is None:
        return []
    names = plain(extends)
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError("extends must be a file name or a list of them", where=extends.where)
    return names


def overlay(old: Node, new: Node, rivals: Rivals, path: str = "") -> Node:
    """`new` over `old`: mappings merge key by key, everything else (including lists) is replaced."""
    if not (isinstance(old.value, dict) and isinstance(new.value, dict)):
        return new
    at = f"{path}." if path else ""
    assigned = {f"{at}{key}" for key, node in new.value.items() if node.value is not None}
    dropped = {rival for key in assigned for rival in rivals.get(key, ())}
    merged = {key: node for key, node in old.value.items() if f"{at}{key}" not in dropped}
    for key, node in new.value.items():
        merged[key] = overlay(merged[key], node, rivals, f"{at}{key}") if key in merged else node
    return Node(merged, new.where)


_ASSIGNMENT = re.compile(r"(?P<path>\w[\w-]*(?:\.\w[\w-]*)*)=(?P<value>.*)", re.DOTALL)


def assignments(sets: Sequence[str]) -> Iterator[Node]:
    """`--set` values as layers. One value may hold several assignments: "a.b=c d.e=f"."""
    pairs: list[tuple[str, str]] = []
    for text in sets:
        try:
            words = shlex.split(text)
        except ValueError as error:
            reason, hint = str(error), ""
            if "quotation" in reason:
                reason, hint = "a quotation mark is not closed", 'close it, or write \\" for a mark in a value'
            raise RecipeError(f"cannot read --set {text!r}: {reason}", hint=hint) from None
        for position, word in enumerate(words):
            match = _ASSIGNMENT.fullmatch(word)
            if match:
                pairs.append((match["path"], match["value"]))
            elif position:
                # The rest of a value with spaces in it, as in `columns=[a, b]`.
                pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]} {word}")
            else:
                raise _unreadable(text)
    for number, (path, value) in enumerate(pairs, start=1):
        place = f"--set #{number}"
        node = parse(value, lambda _, place=place: place)  # type: ignore[misc]
        for key in reversed(path.split(".")):
            node = Node({key: node}, place)
        yield node


def _unreadable(text: str) -> RecipeError:
    """The error for a `--set` that assigns nothing; the hint is the assignment that was probably meant."""
    meant = re.fullmatch(r"\s*(\w[\w-]*(?:\.\w[\w-]*)*)\s*(?:=|:|\s)\s*(\S+)\s*", text)
    hint = "write section.name=value, as in ppo.kl.target=4"
    return RecipeError(
        f"--set {text!r} assigns no value", hint=f"write {meant[1]}={meant[2]}, without spaces" if meant else hint
    )


def plain(node: Node) -> Any:
    """The value without its provenance."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def join(path: str, key: str | int) -> str:
    """Dotted paths, with list positions in brackets: `rank.annotators[0].noise`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def provenance(node: Node, path: str = "") -> dict[str, str]:
    """Dotted path -> where it was set, for every value and section that is set."""
    places = {path: node.where} if path else {}
    if isinstance(node.value, dict | list):
        items = node.value.items() if isinstance(node.value, dict) else enumerate(node.value)
        for key, child in items:
            places |= provenance(child, join(path, key))
    return places
