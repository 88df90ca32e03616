"""What is broken in the kit, one thing at a time: small changes of a syntax tree, the same ones every time.

Only what decides is changed: comparisons, conditions, numbers, names of things (strings without a space), what is
returned, passed on or added. Texts for readers are not: a test of every word would only repeat them.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_CALLS = {"any": "all", "all": "any", "min": "max", "max": "min"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


_Path = tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Mutation:
    """One change. ``key`` is function, text before and text after: no line numbers, which move with other code.

    ``lines`` are those of the statement that is changed, or in whose head the change is.
    """

    key: tuple[str, str, str]
    lines: range
    _path: _Path
    _change: ast.AST

    def __str__(self) -> str:
        where, before, after = self.key
        return f"{where}: {before}  ->  {after}"

    def applied(self, source: ast.Module, *, beside: bool = False) -> ast.Module:
        """A copy of the file's syntax tree with the change, its line numbers as in the file.

        With ``beside`` the original stays in a branch that is never taken, so that the function goes on using the same
        names from around it, and goes on being a generator if it is one.
        """
        tree = copy.deepcopy(source)
        original = _at(source, self._path)
        changed = copy.deepcopy(self._change)
        if beside and isinstance(original, ast.stmt):
            changed = ast.If(ast.Constant(True), [changed], [copy.deepcopy(original)])
        elif beside and isinstance(original, ast.expr):
            changed = ast.IfExp(ast.Constant(True), changed, copy.deepcopy(original))
        _put(tree, self._path, ast.copy_location(changed, original))
        return ast.fix_missing_locations(tree)


def mutations(file: Path, module: str) -> Iterator[Mutation]:
    """All changes inside the functions of one file. What runs while a module is imported is left alone."""
    source = ast.parse(file.read_text(encoding="utf-8"))
    seen: dict[tuple[str, str, str], int] = {}
    for path, names, lines, node in _walk(source, (), (), None):
        for change in map(ast.fix_missing_locations, _changes(node)):
            key = (f"{module}.{names}", _short(ast.unparse(node)), _short(ast.unparse(change)))
            seen[key] = seen.get(key, 0) + 1
            if seen[key] > 1:
                key = (key[0], f"{key[1]} (no. {seen[key]})", key[2])
            yield Mutation(key, lines, path, change)


# -- walking -----------------------------------------------------------------------------------------------------------

_UNTOUCHED = ("annotation", "returns", "decorator_list", "args", "type_params")
_Found = tuple[_Path, str, range, ast.AST]


def _walk(node: ast.AST, path: _Path, names: tuple[str, ...], lines: range | None) -> Iterator[_Found]:
    """Nodes inside functions; ``lines`` is None outside, and inside those of the innermost statement's head."""
    if lines is not None and hasattr(node, "lineno"):
        yield path, ".".join(names), lines, node
    if isinstance(node, ast.JoinedStr):
        return  # a text
    for name, value in ast.iter_fields(node):
        if name in _UNTOUCHED and not isinstance(node, ast.Call):
            continue
        children = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, child in children:
            if not isinstance(child, ast.AST) or _is_docstring(name, index, child):
                continue
            below = names
            if isinstance(child, ast.Lambda):
                below = (*names, "<lambda>")
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                below = (*names, child.name)
            inside = lines is not None or (isinstance(node, _FUNCTIONS) and name == "body")
            yield from _walk(child, (*path, (name, index)), below, _lines(node, child, lines) if inside else None)


def _lines(parent: ast.AST, child: ast.AST, lines: range | None) -> range | None:
    if isinstance(child, ast.stmt):
        body = getattr(child, "body", None) or getattr(child, "cases", None)
        last = child.end_lineno if not body else max(child.lineno, _first_line(body[0]) - 1)
        return range(child.lineno, (last or child.lineno) + 1)
    if isinstance(parent, ast.Lambda) and isinstance(child, ast.expr):
        return range(child.lineno, (child.end_lineno or child.lineno) + 1)
    return lines


def _first_line(node: ast.AST) -> int:
    line: int = node.pattern.lineno if isinstance(node, ast.match_case) else getattr(node, "lineno", 1)
    return line


def _is_docstring(field: str, index: int | None, child: ast.AST) -> bool:
    return field == "body" and index == 0 and isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)


def _at(tree: ast.AST, path: _Path) -> ast.AST:
    for name, index in path:
        value = getattr(tree, name)
        tree = value if index is None else value[index]
    return tree


def _put(tree: ast.AST, path: _Path, new: ast.AST) -> None:
    parent = _at(tree, path[:-1])
    name, index = path[-1]
    if index is None:
        setattr(parent, name, new)
    else:
        getattr(parent, name)[index] = new


def _short(text: str) -> str:
    return " ".join(text.split())


# -- changing ----------------------------------------------------------------------------------------------------------


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for index, operator in enumerate(ops):
                for other in _COMPARISONS[type(operator)]:
                    yield ast.Compare(left, [*ops[:index], other(), *ops[index + 1 :]], comparators)
        case ast.BoolOp(op=operator, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
            for index in range(len(values)):
                rest = values[:index] + values[index + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(operator, rest)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _ARITHMETIC and not _is_text(node):
            yield ast.BinOp(left, _ARITHMETIC[type(operator)](), right)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(value=str() as value) if value and " " not in value:
            yield ast.Constant(f"not_{value}")
        case ast.Slice(lower=lower, upper=upper, step=step) if lower or upper:
            yield ast.Slice(None, None, step)
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
            yield from _without_filters(node)
        case ast.Call():
            yield from _calls(node)
        case ast.stmt():
            yield from _statements(node)
        case _:
            pass


def _without_filters(node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Iterator[ast.AST]:
    for number, generator in enumerate(node.generators):
        for index in range(len(generator.ifs)):
            other = copy.deepcopy(node)
            del other.generators[number].ifs[index]
            yield other


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    if isinstance(node.func, ast.Name) and node.func.id in _CALLS:
        yield ast.Call(ast.Name(_CALLS[node.func.id], ast.Load()), node.args, node.keywords)
    for index, keyword in enumerate(node.keywords):
        if keyword.arg is not None and not _is_text(keyword.value):
            yield ast.Call(node.func, node.args, node.keywords[:index] + node.keywords[index + 1 :])


def _statements(node: ast.stmt) -> Iterator[ast.AST]:
    match node:
        case ast.If(test=test, body=body, orelse=orelse):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.While(test=test, body=body, orelse=orelse):
            yield ast.While(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Expr(value=ast.Yield() | ast.YieldFrom()):
            # Not left out: the function stays a generator.
            yield ast.Expr(ast.YieldFrom(ast.Tuple([], ast.Load())))
        case ast.AugAssign(target=target, value=value):
            yield ast.Pass()
            yield ast.Assign([target], value)
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()
        case ast.Delete():
            yield ast.Pass()
        case _:
            pass


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _is_text(node: ast.AST) -> bool:
    """Text for readers: a formatted string, or one with a space."""
    match node:
        case ast.JoinedStr():
            return True
        case ast.Constant(value=str() as value):
            return " " in value or not value
        case ast.BinOp(left=left, right=right):
            return _is_text(left) or _is_text(right)
        case ast.IfExp(body=body, orelse=orelse):
            return _is_text(body) and _is_text(orelse)
        case _:
            return False
