"""What a name in a source means: the statements that bind it, followed through assignments and imports."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kvconform.inspection.source import STANDIN, Module, Sources

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

#: Whatever vLLM module they are imported from, these are vLLM's; their source is read in the kit's stand-in.
CONTRACT = "vllm.distributed.kv_transfer.kv_connector.v1.base"
CONTRACT_CLASSES = ("KVConnectorBase_V1", "SupportsHMA")


@dataclass(frozen=True, eq=False)
class Binding:
    """One statement that binds a name; ``value`` is what an assignment binds it to, where that is one expression."""

    node: ast.AST
    line: int
    value: ast.expr | None = None
    alias: ast.alias | None = None
    conditional: bool = False
    #: In the handler of an exception: what else to do where a try failed.
    handler: bool = False


@dataclass(frozen=True, eq=False)
class Definition:
    """A class or function statement, and the module that it is in."""

    module: Module
    node: ast.ClassDef | FunctionNode


@dataclass(frozen=True)
class Foreign:
    """A name of another module, whose source was not looked into."""

    dotted: str


@dataclass(frozen=True)
class Unknown:
    """What can't be told from the source, and why."""

    reason: str


Found = Definition | Foreign | Unknown


def bindings(body: Iterable[ast.stmt], conditional: bool = False) -> Iterator[tuple[str, Binding]]:
    """Names that statements bind, in their order. ``*`` stands for the names of a star import."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, Binding(node, node.lineno, conditional=conditional)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                name = alias.asname or (alias.name if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0])
                yield name, Binding(node, node.lineno, alias=alias, conditional=conditional)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from _assigned(node, conditional)
        elif isinstance(node, ast.If) and _type_checking(node.test):
            yield from bindings(node.orelse, conditional)
        elif isinstance(node, ast.With | ast.AsyncWith):
            yield from _stored(node, [item.optional_vars for item in node.items], conditional)
            yield from bindings(node.body, conditional)
        else:
            heads = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)]
            branches = [head for head in heads if isinstance(head, ast.ExceptHandler | ast.match_case)]
            yield from _stored(node, [head for head in heads if head not in branches], conditional)
            yield from bindings([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)], True)
            for branch in branches:
                handles = isinstance(branch, ast.ExceptHandler)
                for name, binding in bindings(branch.body, True):
                    yield name, replace(binding, handler=binding.handler or handles)


def _assigned(node: ast.Assign | ast.AnnAssign, conditional: bool) -> Iterator[tuple[str, Binding]]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    for target in targets:
        if isinstance(target, ast.Name):
            if node.value is not None:
                yield target.id, Binding(node, node.lineno, value=node.value, conditional=conditional)
        else:
            yield from _stored(node, [target], conditional)


def _stored(node: ast.stmt, parts: Iterable[ast.AST | None], conditional: bool) -> Iterator[tuple[str, Binding]]:
    for part in parts:
        for child in () if part is None else ast.walk(part):
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store | ast.Del):
                yield child.id, Binding(node, node.lineno, conditional=conditional)


def _type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def candidates(body: Iterable[ast.stmt], name: str, before: int | None = None) -> list[Binding]:
    """The bindings that ``name`` may have at a line, or at the end: the last sure one and possible ones after it."""
    found: list[Binding] = []
    for bound, binding in bindings(body):
        if bound in (name, "*") and (before is None or binding.line < before):
            star = bound == "*"
            found = [*found, binding] if binding.conditional or star else [binding]
    return found


class Names:
    """Follows names through modules; each question ends, also where imports go in circles."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._open: set[tuple[str, str, int]] = set()
        base = Sources(STANDIN, STANDIN).module(CONTRACT)
        assert base is not None, f"the kit has no {CONTRACT}"
        self._contract = {
            node.name: Definition(base, node) for node in base.tree.body if isinstance(node, ast.ClassDef)
        }

    @property
    def base(self) -> Definition:
        """vLLM's KVConnectorBase_V1."""
        return self._contract["KVConnectorBase_V1"]

    def may_have(self, module: Module, name: str) -> bool:
        """Whether a star import at the module's top level may bring the name."""
        stars = [binding for bound, binding in bindings(module.tree.body) if bound == "*"]
        return any(self._may_bind(module, star, name) for star in stars)

    def attribute(self, module: Module, name: str) -> Found:
        """A name of a module, as seen after its import."""
        return self._in_module(module, name, None)

    def expression(self, module: Module, node: ast.expr, before: int | None) -> Found:
        """What an expression at module level means at a line, one import deep."""
        if isinstance(node, ast.Name):
            return self._in_module(module, node.id, before)
        if isinstance(node, ast.Attribute):
            inner = self.expression(module, node.value, before)
            if isinstance(inner, Foreign):
                return Foreign(f"{inner.dotted}.{node.attr}")
            if isinstance(inner, Definition) and isinstance(inner.node, ast.ClassDef):
                found = candidates(inner.node.body, node.attr)
                if not found:
                    return Unknown(f"{ast.unparse(node)} is inherited by {inner.node.name}")
                return self._one(inner.module, found, node.attr)
            return (
                inner if isinstance(inner, Unknown) else Unknown(f"{ast.unparse(node)} is an attribute of a function")
            )
        return Unknown(f"{short(node)} is computed")

    def definition(self, found: Found) -> Found:
        """The class or function that a name of another module stands for; Foreign where its source can't be read."""
        seen: set[str] = set()
        while isinstance(found, Foreign) and found.dotted not in seen:
            seen.add(found.dotted)
            following = self._follow(found)
            if following is None:
                break
            found = following
        return found

    def _follow(self, found: Foreign) -> Found | None:
        last = found.dotted.rpartition(".")[2]
        if found.dotted.startswith("vllm.") and last in CONTRACT_CLASSES:
            return self._contract[last]
        parts = found.dotted.split(".")
        for count in range(len(parts) - 1, 0, -1):
            module = self.sources.module(".".join(parts[:count]))
            if module is not None:
                value: ast.expr = ast.Name(parts[count])
                for part in parts[count + 1 :]:
                    value = ast.Attribute(value, part)
                return self.expression(module, value, None)
        return None

    def _in_module(self, module: Module, name: str, before: int | None) -> Found:
        key = (module.name, name, before or 0)
        if key in self._open:
            return Unknown(f"{name} leads back to itself")
        self._open.add(key)
        try:
            return self._one(module, candidates(module.tree.body, name, before), name)
        finally:
            self._open.discard(key)

    def _one(self, module: Module, found: list[Binding], name: str) -> Found:
        found = [binding for binding in found if self._may_bind(module, binding, name)]
        if not found:
            if hasattr(builtins, name):
                return Foreign(f"builtins.{name}")
            return Unknown(f"nothing in {module.path.name} binds {name}")
        meanings = [self._meaning(module, binding, name) for binding in found]
        tried = [meaning for meaning, binding in zip(meanings, found, strict=True) if not binding.handler]
        if len(tried) == 1 and self.definition(tried[0]) in self._contract.values():
            # Where an engine runs the connector, vLLM can be imported: what a failed import would give is not used.
            return tried[0]
        if any(meaning != meanings[0] for meaning in meanings):
            lines = " and ".join(str(binding.line) for binding in found)
            return Unknown(f"{name} is bound in more than one way ({module.path.name}, lines {lines})")
        return meanings[0]

    def _may_bind(self, module: Module, binding: Binding, name: str) -> bool:
        """False for a star import of a module that is known not to have the name."""
        if binding.alias is None or binding.alias.name != "*":
            return True
        source = self.sources.module(_imported_from(module, binding.node))
        return source is None or (not name.startswith("_") and bool(candidates(source.tree.body, name)))

    def _meaning(self, module: Module, binding: Binding, name: str) -> Found:
        node, alias = binding.node, binding.alias
        if isinstance(node, ast.ClassDef) and node.name in CONTRACT_CLASSES and module.name.startswith("vllm."):
            return self._contract[node.name]
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            return Definition(module, node)
        if isinstance(node, ast.ImportFrom) and alias is not None:
            origin = _imported_from(module, node)
            return Foreign(f"{origin}.{name if alias.name == '*' else alias.name}")
        if isinstance(node, ast.Import) and alias is not None:
            return Foreign(alias.name if alias.asname else alias.name.split(".")[0])
        if binding.value is not None:
            return self.expression(module, binding.value, binding.line)
        return Unknown(f"{name} is set in {module.path.name}, line {binding.line}, in a way that only running it shows")


def _imported_from(module: Module, node: ast.AST) -> str:
    """Dotted name of the module that a from-import names, relative ones resolved."""
    assert isinstance(node, ast.ImportFrom)
    if not node.level:
        return node.module or ""
    package = module.package.split(".")
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def short(node: ast.expr) -> str:
    """The expression as written, on one line and cut where it is long."""
    text = ast.unparse(node).splitlines()[0]
    return text if len(text) <= 60 else f"{text[:57]}..."
