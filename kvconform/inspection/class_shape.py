"""A class as its source shows it: where it derives from, and what each of its members is."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from kvconform.inspection.names import Definition, Foreign, FunctionNode, Names, Unknown, candidates, short
from kvconform.inspection.source import Module

Kind = Literal["function", "classmethod", "staticmethod", "property", "constant", "unknown"]

#: Bases that bring nothing that the contract is about.
_EMPTY_BASES = {
    "abc.ABC", "typing.Generic", "typing.Protocol", "typing_extensions.Generic", "typing_extensions.Protocol",
}  # fmt: skip
_METACLASSES = {"abc.ABCMeta", "builtins.type"}
#: Decorators that leave a class as it is, and those that leave a function's parameters and kind as they are.
_PLAIN_CLASS = {
    f"{module}.{name}" for module in ("typing", "typing_extensions") for name in ("final", "runtime_checkable")
}
_PLAIN_FUNCTION = {
    "abc.abstractmethod", "contextlib.contextmanager", "torch.no_grad", "torch.inference_mode", "warnings.deprecated",
    *(f"{module}.{name}" for module in ("typing", "typing_extensions") for name in ("final", "override", "deprecated")),
}  # fmt: skip
_KINDS: dict[str, Kind] = {
    "builtins.classmethod": "classmethod",
    "builtins.staticmethod": "staticmethod",
    "builtins.property": "property",
    "functools.cached_property": "property",
}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _Default:
    """Stands for a default value, which only running the source would give."""

    def __repr__(self) -> str:
        return "..."


_DEFAULT = _Default()


@dataclass(frozen=True, eq=False)
class Member:
    """What a name of a class is bound to.

    ``reason`` says why that can't be told, for the kind ``unknown``; empty where :attr:`StaticClass.unclear` does.
    """

    owner: StaticClass
    name: str
    line: int
    kind: Kind
    arguments: ast.arguments | None = None
    abstract: bool = False
    asynchronous: bool = False
    value: Any = None
    reason: str = ""

    @property
    def signature(self) -> inspect.Signature | None:
        """Parameters without self or cls, defaults without their values; None where there is no list of parameters."""
        return None if self.arguments is None else _signature(self.arguments, self.kind in ("function", "classmethod"))

    @property
    def takes_no_self(self) -> bool:
        """Whether a call on an instance has one argument too many, whatever is passed."""
        arguments = self.arguments
        return (
            self.kind in ("function", "classmethod")
            and arguments is not None
            and not (arguments.posonlyargs or arguments.args or arguments.vararg)
        )


@dataclass(frozen=True, eq=False)
class StaticClass:
    """A class, and the classes that it derives from, as far as their source shows them.

    ``opaque`` says why its own members can't be told, ``open_bases`` why its bases can't; both empty where they can.
    ``metaclass`` is such a reason that holds for derived classes, too.
    ``blank`` is an empty class of the same ancestry, so that Python itself puts the ancestors in order.
    """

    name: str
    module: Module | None = None
    node: ast.ClassDef | None = None
    bases: tuple[StaticClass, ...] = ()
    opaque: str = ""
    metaclass: str = ""
    open_bases: tuple[str, ...] = ()
    patched: frozenset[str] = frozenset()
    blank: type[Any] = object
    by_blank: dict[type[Any], StaticClass] = field(default_factory=dict)

    @property
    def ancestry(self) -> tuple[StaticClass, ...]:
        """The classes that Python asks for a member, in this order."""
        return tuple(self.by_blank[blank] for blank in self.blank.__mro__ if blank in self.by_blank)

    @property
    def unclear(self) -> tuple[str, ...]:
        """Why the ancestry is not known completely; empty if it is."""
        reasons = [
            reason for cls in self.ancestry for reason in (*cls.open_bases, *([cls.opaque] if cls.opaque else []))
        ]
        return tuple(dict.fromkeys(reasons))

    @property
    def sure(self) -> tuple[StaticClass, ...]:
        """The first classes of the ancestry: those that no base whose source is missing can come before."""
        if not any(cls.open_bases for cls in self.ancestry):
            return self.ancestry
        found: list[StaticClass] = [self]
        # What an unknown base derives from may come after it: only a line of single bases is sure.
        while len(found[-1].bases) == 1 and not found[-1].open_bases:
            found.append(found[-1].bases[0])
        return tuple(found)


class Classes:
    """Builds :class:`StaticClass` from class statements, each once."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self._built: dict[ast.ClassDef, StaticClass] = {}
        self._building: set[ast.ClassDef] = set()
        self._foreigners: dict[str, StaticClass] = {}
        self.base = self.build(names.base)

    def build(self, definition: Definition) -> StaticClass:
        """The class of a class statement, with its ancestry."""
        module, node = definition.module, definition.node
        assert isinstance(node, ast.ClassDef)
        if node not in self._built:
            self._building.add(node)
            try:
                self._built[node] = self._build(module, node)
            finally:
                self._building.discard(node)
        return self._built[node]

    def _build(self, module: Module, node: ast.ClassDef) -> StaticClass:
        bases: list[StaticClass] = []
        unknown: list[str] = []
        for expression in node.bases:
            found = self._base(module, expression, node)
            if isinstance(found, str):
                unknown.append(f"{node.name}'s base {short(expression)}: {found}")
            else:
                bases.append(found)
        metaclass = next((base.metaclass for base in bases if base.metaclass), "") or self._metaclass(module, node)
        opaque = metaclass or self._opaque(module, node)
        try:
            blank = type(node.name, tuple(base.blank for base in bases), {})
        except TypeError as error:
            unknown.append(f"{node.name}'s bases: {error}")
            bases, blank = [], type(node.name, (), {})
        by_blank = {blank: cls for base in bases for blank, cls in base.by_blank.items()}
        hooked = [cls.name for cls in by_blank.values() if "__init_subclass__" in _names(cls)]
        if hooked and not opaque:
            opaque = f"{hooked[0]}.__init_subclass__ may change {node.name}"
        patched = _patched(module, node.name)
        cls = StaticClass(
            node.name, module, node, tuple(bases), opaque, metaclass, tuple(unknown), patched, blank, by_blank
        )
        by_blank[blank] = cls
        return cls

    def _base(self, module: Module, expression: ast.expr, node: ast.ClassDef) -> StaticClass | str:
        """A base class, or why it can't be told."""
        if isinstance(expression, ast.Subscript):
            expression = expression.value
        found = self.names.expression(module, expression, node.lineno)
        if isinstance(found, Foreign) and _empty_base(found.dotted):
            return self._foreign(found.dotted)
        found = self.names.definition(found)
        if isinstance(found, Unknown):
            return found.reason
        if isinstance(found, Foreign):
            if _empty_base(found.dotted):
                return self._foreign(found.dotted)
            return f"the source of {found.dotted} was not found"
        if not isinstance(found.node, ast.ClassDef):
            return f"{found.node.name} is a function"
        if found.node in self._building:
            return f"{found.node.name} derives from itself"
        return self.build(found)

    def _foreign(self, dotted: str) -> StaticClass:
        if dotted not in self._foreigners:
            name = dotted.rpartition(".")[2]
            blank = object if dotted == "builtins.object" else type(name, (), {})
            self._foreigners[dotted] = StaticClass(name, blank=blank)
            self._foreigners[dotted].by_blank[blank] = self._foreigners[dotted]
        return self._foreigners[dotted]

    def _opaque(self, module: Module, node: ast.ClassDef) -> str:
        """What may make of the class statement something else than what it says; empty if nothing does."""
        for decorator in node.decorator_list:
            if self.decorator(module, decorator, node.lineno) not in _PLAIN_CLASS:
                return f"the decorator @{short(decorator)} of {node.name} may change the class"
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            for call in ast.walk(statement):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _WRITERS:
                    return f"{short(call)} in the body of {node.name} may define anything"
        return _passed_on(module, node.name)

    def _metaclass(self, module: Module, node: ast.ClassDef) -> str:
        """A metaclass that may make anything of the class; empty if there is none."""
        for keyword in node.keywords:
            found = self.names.expression(module, keyword.value, node.lineno)
            if keyword.arg is None or (
                keyword.arg == "metaclass" and not (isinstance(found, Foreign) and found.dotted in _METACLASSES)
            ):
                return f"the metaclass {short(keyword.value)} of {node.name} may change the class"
        return ""

    def decorator(self, module: Module, node: ast.expr, line: int) -> str:
        """Dotted name of a decorator, called or not; empty if it can't be told, or is one of the module's own."""
        if isinstance(node, ast.Call):
            node = node.func
        found = self.names.expression(module, node, line)
        return found.dotted if isinstance(found, Foreign) else ""

    # -- members ---------------------------------------------------------------------------------------------------

    def member(self, cls: StaticClass, name: str) -> Member | None:
        """What an attribute of the class is; None if no class of the ancestry has it."""
        for owner in cls.sure:
            if owner.opaque:
                return Member(owner, name, owner.node.lineno if owner.node else 0, "unknown", reason=owner.opaque)
            found = self.own(owner, name)
            if found is not None:
                return found
        if len(cls.sure) < len(cls.ancestry) or any(owner.open_bases for owner in cls.sure):
            return Member(cls, name, cls.node.lineno if cls.node else 0, "unknown", reason="")
        return None

    def own(self, owner: StaticClass, name: str) -> Member | None:
        """What the class's own statements bind the name to."""
        if owner.node is None or owner.module is None:
            return None
        found = candidates(owner.node.body, name)
        if name in owner.patched:
            reason = f"{owner.name}.{name} is assigned outside of the class"
            return Member(owner, name, owner.node.lineno, "unknown", reason=reason)
        if not found:
            return None
        if len(found) > 1:
            lines = " and ".join(str(binding.line) for binding in found)
            reason = f"{owner.name}.{name} is defined in more than one way (lines {lines})"
            return Member(owner, name, found[0].line, "unknown", reason=reason)
        binding = found[0]
        if binding.conditional:
            return self._unknown(owner, name, binding.line, "is defined under a condition")
        if isinstance(binding.node, ast.FunctionDef | ast.AsyncFunctionDef):
            return self._function(owner, name, owner.module, binding.node, binding.line)
        if binding.value is not None:
            return self._value(owner, name, binding.value, binding.line)
        return self._unknown(owner, name, binding.line, "is set in a way that only running it shows")

    def _unknown(self, owner: StaticClass, name: str, line: int, what: str) -> Member:
        return Member(owner, name, line, "unknown", reason=f"{owner.name}.{name} {what}")

    def _function(self, owner: StaticClass, name: str, module: Module, node: FunctionNode, line: int) -> Member:
        kind: Kind = "function"
        abstract = False
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Attribute) and decorator.attr in ("setter", "getter", "deleter"):
                kind = "property"
                continue
            dotted = self.decorator(module, decorator, node.lineno)
            if dotted in _KINDS:
                kind = _KINDS[dotted]
            elif dotted not in _PLAIN_FUNCTION:
                return self._unknown(owner, name, line, f"is decorated with @{short(decorator)}")
            abstract |= dotted == "abc.abstractmethod"
        waits = isinstance(node, ast.AsyncFunctionDef)
        return Member(owner, name, line, kind, node.args, abstract, waits)

    def _value(self, owner: StaticClass, name: str, value: ast.expr, line: int) -> Member:
        assert owner.node is not None
        assert owner.module is not None
        if isinstance(value, ast.Lambda):
            return Member(owner, name, line, "function", value.args)
        if isinstance(value, ast.Constant):
            return Member(owner, name, line, "constant", value=value.value)
        if isinstance(value, ast.Name):
            inner = candidates(owner.node.body, value.id, line)
            if len(inner) == 1 and isinstance(inner[0].node, ast.FunctionDef | ast.AsyncFunctionDef):
                return self._function(owner, name, owner.module, inner[0].node, line)
            if inner:
                return self._unknown(owner, name, line, f"is {value.id}")
        found = self.names.definition(self.names.expression(owner.module, value, owner.node.lineno))
        if isinstance(found, Definition) and isinstance(found.node, ast.FunctionDef | ast.AsyncFunctionDef):
            return self._function(owner, name, found.module, found.node, line)
        return self._unknown(owner, name, line, f"is {short(value)}")


_WRITERS = {"locals", "vars", "globals", "exec", "eval"}


def _empty_base(dotted: str) -> bool:
    """Typing's helpers and Python's own classes: none of them has a hook."""
    return dotted in _EMPTY_BASES or (
        dotted.startswith("builtins.") and isinstance(getattr(builtins, dotted.removeprefix("builtins."), None), type)
    )


def _names(cls: StaticClass) -> set[str]:
    return set() if cls.node is None else {n.name for n in cls.node.body if isinstance(n, ast.FunctionDef)}


def _at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements and expressions that run when the module is imported, without those in functions and classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or _main_only(node):
            continue
        pending: list[ast.AST] = [node]
        while pending:
            here = pending.pop()
            yield here
            inner = ast.iter_child_nodes(here)
            skipped = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
            pending += [child for child in inner if not isinstance(child, skipped)]


def _main_only(node: ast.stmt) -> bool:
    """Whether it is ``if __name__ == "__main__"``, which no import runs."""
    return isinstance(node, ast.If) and any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(node.test))


def _patched(module: Module, name: str) -> frozenset[str]:
    """Attributes of the class that its module assigns after the class statement."""
    return frozenset(
        node.attr
        for node in _at_import(module.tree.body)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store | ast.Del)
        and isinstance(node.value, ast.Name)
        and node.value.id == name
    )


def _passed_on(module: Module, name: str) -> str:
    """A call at import time that gets the class and may change it; empty if there is none."""
    for node in _at_import(module.tree.body):
        if isinstance(node, ast.Call):
            passed = [*node.args, *(keyword.value for keyword in node.keywords)]
            if any(isinstance(value, ast.Name) and value.id == name for value in passed):
                return f"{short(node)} in {module.path.name}, line {node.lineno}, may change {name}"
    return ""


def _signature(arguments: ast.arguments, bound: bool) -> inspect.Signature | None:
    positional = [*arguments.posonlyargs, *arguments.args]
    first_default = len(positional) - len(arguments.defaults)
    kinds = inspect.Parameter
    parameters = [
        kinds(
            argument.arg,
            kinds.POSITIONAL_ONLY if index < len(arguments.posonlyargs) else kinds.POSITIONAL_OR_KEYWORD,
            default=kinds.empty if index < first_default else _DEFAULT,
        )
        for index, argument in enumerate(positional)
    ]
    if arguments.vararg is not None:
        parameters.append(kinds(arguments.vararg.arg, kinds.VAR_POSITIONAL))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        value = kinds.empty if default is None else _DEFAULT
        parameters.append(kinds(argument.arg, kinds.KEYWORD_ONLY, default=value))
    if arguments.kwarg is not None:
        parameters.append(kinds(arguments.kwarg.arg, kinds.VAR_KEYWORD))
    if bound and parameters and parameters[0].kind in _POSITIONAL:
        parameters = parameters[1:]
    try:
        return inspect.Signature(parameters)
    except ValueError:
        return None
