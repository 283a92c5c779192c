"""docs/recipes.md: every value of a recipe, from the config dataclasses and the docstrings of their fields.

`make docs` writes it: python -P -m stages.reference > docs/recipes.md. A field without a docstring is an
error.
"""

from __future__ import annotations

import ast
import inspect
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from pipeline.config.formats import known_formats
from pipeline.config.recipe import Recipe
from pipeline.config.trainer import FIELDS

HEAD = """# Recipes: every value

`make docs` writes this page from the dataclasses in `pipeline/config/`, and a test checks that it is current. A
recipe is checked before anything runs: unknown keys, wrong types (`true` for 1, "3" for 3) and values that conflict
(`pipeline/config/rules.py`) are refused with file, line and the nearest valid name. `extends:` builds on other
recipes, `SET="a.b=c"` on the command line overrides all of them, and `make show` prints every value and where it
was set.

"required" means that there is no default. A value marked **r** changes how a stage runs but not its result, so
changing it reruns nothing. A value marked **l** is read only by rounds after the first.
"""

NAMES = {
    "Count": "integer, at least 1",
    "Natural": "integer, at least 0",
    "Positive": "number above 0",
    "NonNegative": "number, at least 0",
    "Chance": "number from 0 to 1",
    "BelowOne": "number from 0 to below 1",
    "LocalPath": "text",
    "TablePath": "text, or list of: text",
    "TextSource": "a built-in task or a table",
    "RankingSource": "a table, or a table for each criterion",
    "bool": "true or false",
    "float": "number",
    "int": "integer",
    "str": "text",
    "None": "null",
}


@dataclass(frozen=True)
class Value:
    """A field as the reference shows it."""

    name: str
    kind: str
    default: str
    marks: str
    text: str


def reference() -> str:
    """The page as Markdown."""
    parts = [HEAD, *_section("", Recipe)]
    return "\n".join(parts).rstrip() + "\n"


def _section(path: str, section: type[Any]) -> Iterator[str]:
    """A section's own values, then the sections in it."""
    hints = typing.get_type_hints(section, include_extras=True)
    # Sections by a name that the user chooses are described where one of them stands alone.
    nested = {
        name: list(dict.fromkeys(_dataclasses(hint)))
        for name, hint in hints.items()
        if typing.get_origin(hint) is not dict
    }
    title = f"`{path}`" if path else "The recipe"
    yield f"## {title}\n"
    about = inspect.getdoc(section) or ""
    if about and not about.startswith(f"{section.__name__}("):
        yield f"{_flat(about)}\n"
    if known := FIELDS.get(f"{path}.trainer"):
        defaults = ", ".join(f"`{name}` {value:g}" for name, value in known.metadata["trainer_defaults"].items())
        yield (
            f"`{path}.trainer` holds values of `{known.metadata['trainer']}`, by its names; those that the runner "
            f"sets itself are refused. Defaults here: {defaults}.\n"
        )
    yield "| value | type | default | |\n|---|---|---|---|"
    for value in _values(section):
        text = " ".join(part for part in (value.marks, value.text) if part)
        yield f"| `{value.name}` | {value.kind} | {value.default} | {text} |"
    yield ""
    for name, sections in nested.items():
        for inside in sections:
            inner = f"{path}.{name}" if path else name
            label = f"{inner}[]" if typing.get_origin(hints[name]) is list else inner
            if len(sections) > 1:
                label = f"{inner} ({inside.__name__.removesuffix('Config').lower()})"
            yield from _section(label, inside)


def _dataclasses(hint: Any) -> Iterator[type[Any]]:
    if is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for argument in typing.get_args(hint):
        yield from _dataclasses(argument)


def _values(section: type[Any]) -> Iterator[Value]:
    known = {field.name: field for field in fields(section)}
    sources: dict[str, tuple[ast.expr, ast.expr | None, str]] = {}
    for owner in reversed(section.__mro__[:-1]):
        sources |= _sources(owner)
    for name, (annotation, default, text) in sources.items():
        if not text:
            raise ValueError(f"{section.__name__}.{name} has no docstring")
        if any(known[name].metadata.get(mark) for mark in ("runtime", "later")):
            marks = "**r**" if known[name].metadata.get("runtime") else "**l**"
        else:
            marks = ""
        if isinstance(annotation, ast.Name) and annotation.id == "FormatName":
            summaries = (f"{format.name}: {format.summary}" for format in known_formats().values())
            text = f"{text} {'; '.join(summaries)}."
        yield Value(name, _kind(annotation), _default(default), marks, _flat(text))


@cache
def _sources(section: type[Any]) -> dict[str, tuple[ast.expr, ast.expr | None, str]]:
    """Name -> annotation, default and docstring, from the source."""
    if not is_dataclass(section):
        return {}
    tree = ast.parse(inspect.getsource(sys.modules[section.__module__]))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == section.__name__)
    aliases = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    sources = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            text = str(following.value.value) if documented else ""  # type: ignore[union-attr]
            sources[node.target.id] = (_Named(aliases).visit(node.annotation), node.value, text)
    return sources


class _Named(ast.NodeTransformer):
    """Replaces the names that a module gives to annotations (`Format = Literal[...]`) by these annotations."""

    def __init__(self, aliases: dict[str, ast.expr]) -> None:
        self._aliases = {name: value for name, value in aliases.items() if name not in NAMES}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._aliases.get(node.id, node)


def _kind(annotation: ast.expr) -> str:
    match annotation:
        case ast.BinOp(left=left, right=right):
            return f"{_kind(left)}, or {_kind(right)}"
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            items = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return ", ".join(f"`{item.value!s}`" for item in items if isinstance(item, ast.Constant))
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, *rest])):
            limits = [
                f"{key.arg} {ast.unparse(key.value)}"
                for call in rest
                if isinstance(call, ast.Call)
                for key in call.keywords
                if key.arg != "pattern"
            ]
            return f"{_kind(kind)}{f' ({_limits(limits)})' if limits else ''}"
        case ast.Subscript(value=ast.Name(id="list"), slice=kind):
            return f"list of: {_kind(kind)}"
        case ast.Subscript(value=ast.Name(id="dict")):
            return "a mapping"
        case ast.Constant(value=None):
            return "null"
        case ast.Name(id=name) if name.endswith("Config"):
            return "a section, below"
        case ast.Name(id="FormatName"):
            return ", ".join(f"`{name}`" for name in known_formats())
        case ast.Name(id=name):
            return NAMES.get(name, name)
    return ast.unparse(annotation)


def _limits(limits: list[str]) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "max_length": "at most, in letters,"}
    return ", ".join(f"{words[name]} {value}" for name, _, value in (limit.partition(" ") for limit in limits))


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Call):  # field(default=..., default_factory=..., metadata=...)
        arguments = {keyword.arg: keyword.value for keyword in value.keywords}
        if "default" in arguments:
            return _default(arguments["default"])
        factory = arguments.get("default_factory")
        if isinstance(factory, ast.Lambda):
            return _default(factory.body)
        return "its defaults" if isinstance(factory, ast.Name) and factory.id.endswith("Config") else "empty"
    if value is None:
        return "required"
    shown = ast.literal_eval(value)
    return "null" if shown is None else f"`{str(shown).lower() if isinstance(shown, bool) else shown}`"


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
