"""Python functions that a recipe names, `file.py:function` or `package.module:function`: where they are, and
whether they can be called, without running any of their code."""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

PASSED = ("prompts", "completions", "completion_ids")
"""The arguments that every reward function is called with, by TRL's names."""


@dataclass(frozen=True)
class FunctionName:
    """A function's name in a recipe, taken apart.

    Attributes:
        source: a path that ends in `.py`, or the dotted name of a module.
        name: of the function, at the top level of `source`.
    """

    source: str
    name: str

    @classmethod
    def parse(cls, text: str) -> FunctionName | None:
        """None if the text is neither `file.py:function` nor `package.module:function`."""
        source, colon, name = text.rpartition(":")
        is_module = all(part.isidentifier() for part in source.split("."))
        if not colon or not name.isidentifier() or not (source.endswith(".py") or is_module):
            return None
        return cls(source, name)

    @property
    def is_file(self) -> bool:
        return self.source.endswith(".py")

    def file(self) -> Path | None:
        """The function's file, which need not exist; None for a module that is not installed or has no file."""
        return Path(self.source) if self.is_file else _module_file(self.source)


def problem(text: str, columns: Collection[str] = ()) -> str | None:
    """Why a function that a recipe names cannot be used, as far as its file shows; None if nothing speaks against
    it.

    Args:
        columns: the metadata of prompts that is passed besides `PASSED`.
    """
    function = FunctionName.parse(text)
    if function is None:
        return f"must be file.py:function or package.module:function, got {text!r}"
    file = function.file()
    if file is None:
        return f"no module {function.source} is installed. Install it, or name a file: {function.source}.py"
    if not file.is_file() or file.suffix != ".py":
        return None  # the planner reports missing files; compiled modules cannot be read
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        return f"{file}{line} is not valid Python: {error}"
    definitions = _definitions(tree)
    if function.name not in definitions:
        near = difflib.get_close_matches(function.name, definitions, n=1)
        return f"{file} has no {function.name}" + (f"; did you mean {near[0]}?" if near else "")
    definition = definitions[function.name]
    if isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        return _missing_arguments(definition, columns)
    return None


def _missing_arguments(definition: ast.FunctionDef | ast.AsyncFunctionDef, columns: Collection[str]) -> str | None:
    arguments = definition.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = [argument.arg for argument in positional[: len(positional) - len(arguments.defaults)]]
    required += [
        argument.arg
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is None
    ]
    unknown = [name for name in required if name not in PASSED and name not in columns]
    if not unknown:
        return None
    names = ", ".join(unknown)
    return (
        f"{definition.name} needs the argument{'s' * (len(unknown) > 1)} {names}, and is called with "
        f"{', '.join([*PASSED, *columns])}. Add {names} to data.prompts.metadata, or give a default"
    )


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """Names at the top level of a module, also inside `if` and `try`."""
    names: dict[str, ast.stmt] = {}

    def add(body: Sequence[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update({target.id: node for target in targets if isinstance(target, ast.Name)})
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names.update({(alias.asname or alias.name).partition(".")[0]: node for alias in node.names})
            elif isinstance(node, ast.If | ast.Try | ast.With):
                add(node.body)
                add(getattr(node, "orelse", []))
                for handler in getattr(node, "handlers", []):
                    add(handler.body)

    add(tree.body)
    return names


def _module_file(module: str) -> Path | None:
    """The file of an installed module. `importlib.util.find_spec` would import its parent packages."""
    places: Sequence[str] | None = sys.path
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), places)
        if spec is None:
            return None
        places = spec.submodule_search_locations
        if places is None and end < len(parts):
            return None
    assert spec is not None
    return Path(spec.origin) if spec.origin and re.search(r"\.(py|so|pyd)$", spec.origin) else None
