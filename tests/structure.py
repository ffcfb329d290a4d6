"""Holds the structure of the code: sizes of classes and functions, imports, words, the map.

    python -m tests.structure

Prints what breaks a rule and exits with 1. ``make lint`` runs it.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("mpsearch", "strategies")
#: Classes of these packages have so many attributes and public methods at most.
SMALL_CLASSES, ATTRIBUTES, METHODS = ("mpsearch/search", "mpsearch/evaluation"), 12, 15
LINES_OF_A_FUNCTION = 60
#: The flow that is read first: lines, and names imported from the project.
FLOW, LINES_OF_THE_FLOW, IMPORTS_OF_THE_FLOW = "mpsearch/flows/optimize.py", 150, 15
#: The page that says where things are.
MAP = "docs/development.md"
REFUSED = "tests/structure.py allows no {}: use the field's own term (WORDS there)"
#: Words that once stood in the code for something that has a name in the field.
WORDS = re.compile(
    r"(^|_)(crew|hire|hired|ahead|expect|piece|answerer|room|pose|posed|floor|ends|mend|mended|"
    r"mending|settle|settling|lighter|spelling|spelled|struck|surroundings|keeping|wording|"
    r"elsewhere)(_|$)"
)
#: Names that others give: PyTorch's and MIL's ops, and streams.
THEIRS = {"floor", "floor_div", "floor_mod", "ends"}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node


def attributes(node: ast.ClassDef) -> set[str]:
    """What instances of a class hold."""
    fields = {
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    for function in functions(node):
        for inner in ast.walk(function):
            stored = isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
            if stored and isinstance(inner.value, ast.Name) and inner.value.id == "self":
                fields.add(inner.attr)
    return fields


def methods(node: ast.ClassDef) -> list[str]:
    found = (item.name for item in node.body if isinstance(item, ast.FunctionDef))
    return [name for name in found if not name.startswith("_")]


def statements(node: ast.FunctionDef) -> int:
    """The lines of a function's body, without its docstring."""
    first = node.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    body = node.body[1:] if is_text else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def named(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that the code gives: of functions, classes, arguments and variables."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def broken() -> Iterator[str]:
    for file in sorted(f for package in PACKAGES for f in (ROOT / package).rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if WORDS.search(file.stem):
            yield f"{path}: {REFUSED.format(file.stem)}"
        for function in functions(tree):
            if statements(function) > LINES_OF_A_FUNCTION:
                yield f"{path}:{function.lineno}: {function.name} has {statements(function)} lines"
        for name, line in named(tree):
            if WORDS.search(_snake(name)) and name not in THEIRS:
                yield f"{path}:{line}: {REFUSED.format(name)}"
        if path.startswith(SMALL_CLASSES):
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    held, public = len(attributes(node)), len(methods(node))
                    if held > ATTRIBUTES or public > METHODS:
                        size = f"{held} attributes, {public} methods"
                        yield f"{path}:{node.lineno}: {node.name} has {size}"
    flow = (ROOT / FLOW).read_text(encoding="utf-8")
    tree = ast.parse(flow)
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    ]
    if len(names) > IMPORTS_OF_THE_FLOW or len(flow.splitlines()) > LINES_OF_THE_FLOW:
        yield f"{FLOW}: {len(names)} imports of the project, {len(flow.splitlines())} lines"
    if layers_drawn() != layers():
        yield f"{MAP}: it draws other layers than the import contract in pyproject.toml has"


def layers() -> list[set[str]]:
    """The layers of the import contract that are packages, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    rows = [{name.strip().removeprefix("mpsearch.") for name in row.split(":")} for row in contract]
    packages = [{name for name in row if (ROOT / "mpsearch" / name).is_dir()} for row in rows]
    return [row for row in packages if row]


def layers_drawn() -> list[set[str]]:
    """The layers as the map for contributors has them."""
    drawn = (ROOT / MAP).read_text(encoding="utf-8").partition("## The layers")[2]
    lines = drawn.split("```")[1].splitlines()[1:]
    known = set().union(*layers())
    rows = [{word for word in line.split("  ") if word.strip() in known} for line in lines]
    return [{word.strip() for word in row} for row in rows if row]


if __name__ == "__main__":
    found = list(broken())
    print("\n".join(found) or "the structure holds")
    sys.exit(bool(found))
