"""Which shipped test checks which rule, read from the suites' source: nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

_MARK = "kvconform_rules"


@cache
def rules_by_test(folder: Path) -> Mapping[str, tuple[str, ...]]:
    """Rules of every test: ``"test_transfer.py::test_name"`` -> ids that its markers name.

    Args:
        folder: of the suites.
    """
    found: dict[str, tuple[str, ...]] = {}
    for file in sorted(folder.glob("test_*.py")):
        tree = ast.parse(file.read_bytes(), filename=str(file))
        names = _assigned(tree.body)
        shared = _marked(names.get("pytestmark"), names)
        for path, rules in _tests(tree.body, names):
            found[f"{file.name}::{path}"] = tuple(dict.fromkeys([*rules, *shared]))
    return found


def checked_rules(folder: Path) -> frozenset[str]:
    """The rules that some test of the suites names."""
    return frozenset(rule for rules in rules_by_test(folder).values() for rule in rules)


def _tests(body: Iterable[ast.stmt], names: Mapping[str, ast.expr]) -> Iterator[tuple[str, list[str]]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield node.name, [rule for decorator in node.decorator_list for rule in _marked(decorator, names)]
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            shared = [rule for decorator in node.decorator_list for rule in _marked(decorator, names)]
            shared += _marked(_assigned(node.body).get("pytestmark"), names)
            for name, rules in _tests(node.body, names):
                yield f"{node.name}::{name}", [*rules, *shared]


def _assigned(body: Iterable[ast.stmt]) -> dict[str, ast.expr]:
    """Values that names are given once, at the top level."""
    values: dict[str, ast.expr] = {}
    for node in body:
        if isinstance(node, ast.Assign):
            values.update({target.id: node.value for target in node.targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            values[node.target.id] = node.value
    return values


def _marked(expression: ast.expr | None, names: Mapping[str, ast.expr]) -> list[str]:
    """Arguments of every use of the marker inside an expression, e.g. a decorator or a parametrization."""
    if expression is None:
        return []
    uses = [
        node
        for node in ast.walk(expression)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == _MARK
    ]
    return [rule for use in uses for argument in use.args for rule in _strings(argument, names)]


def _strings(node: ast.expr, names: Mapping[str, ast.expr]) -> list[str]:
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.Starred(value=inner):
            return _strings(inner, names)
        case ast.Name(id=name) if name in names:
            return _strings(names[name], {k: v for k, v in names.items() if k != name})
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return [text for part in parts for text in _strings(part, names)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _strings(left, names) + _strings(right, names)
        case _:
            return []  # only a running test can tell; what it names counts as well
