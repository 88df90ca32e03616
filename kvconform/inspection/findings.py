"""What the source of a class says about the rules on signatures (SIG). The engine's calls decide, as in the suites.

Only what the source shows for certain is a finding. What it leaves open is said, and held against nobody.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from kvconform.checks.engine_calls import (
    CLASS_ANSWERS,
    CONSTRUCTOR_ARGUMENTS,
    ENGINE_CALLS,
    FLAGS,
    TAKES_NO_SELF,
    EngineCall,
    binding_error,
    call_problem,
    disorder,
)
from kvconform.errors import UsageError
from kvconform.inspection.class_shape import Classes, Member, StaticClass
from kvconform.inspection.names import Definition, Names, Unknown, bindings, candidates
from kvconform.inspection.source import Named, read_spec
from kvconform.target import check_name

_CONSTRUCTION = EngineCall("__init__", CONSTRUCTOR_ARGUMENTS)
#: How alike a method's name has to be to a hook's to be worth a hint (difflib's ratio).
_ALIKE = 0.85


@dataclass(frozen=True)
class StaticFinding:
    """A rule that the class breaks whatever it does at run time, and the line that shows it."""

    rule: str
    expected: str
    observed: str
    file: Path
    line: int


@dataclass(frozen=True)
class Hint:
    """Something that is rarely meant; no verdict."""

    sentence: str
    file: Path
    line: int


@dataclass(frozen=True)
class Inspection:
    """What a look at the source gave. ``looked_at`` counts what was judged, by kind."""

    class_name: str
    file: Path
    line: int
    findings: tuple[StaticFinding, ...] = ()
    hints: tuple[Hint, ...] = ()
    not_judged: tuple[str, ...] = ()
    looked_at: tuple[tuple[str, int], ...] = ()


def inspect_source(spec: str, directory: Path) -> Inspection:
    """Look at the class that a SPEC names, without importing anything of it.

    Args:
        spec: ``package.module:Class``, ``path/file.py:Class`` or ``vllm:RegisteredName``.
        directory: folder that a relative path is relative to, and in which modules are looked up last.

    Raises:
        UsageError: the SPEC is malformed, or names no module, file or class, or the source is not valid Python.
    """
    named = read_spec(spec, directory)
    names = Names(named.sources)
    _check_name(spec, named, names)
    found = names.definition(names.attribute(named.module, named.class_name))
    if isinstance(found, Definition):
        if not isinstance(found.node, ast.ClassDef):
            what = f"'{named.class_name}' is a function, but a connector is a class: name the class itself"
            raise UsageError(f"'{spec}': {what}.")
        return _Look(Classes(names), found, named).inspection()
    reason = found.reason if isinstance(found, Unknown) else f"the source of {found.dotted} was not found"
    bound = candidates(named.module.tree.body, named.class_name)
    line = bound[-1].line if bound else 1
    return Inspection(named.class_name, named.module.path, line, not_judged=(f"the class itself: {reason}",))


def _check_name(spec: str, named: Named, names: Names) -> None:
    """SIG-10: the module has the name; silent where only an import can tell."""
    body = named.module.tree.body
    if not names.may_have(named.module, named.class_name):
        # What the star imports bring is known, and the class is not among it.
        body = [node for node in body if not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*")]
    try:
        check_name(spec, named.module.path, ast.Module(body, []), named.class_name)
    except UsageError as error:
        raise UsageError(f"{error} More: kvconform explain SIG-10") from error


class _Look:
    """One class under inspection, and what was found so far."""

    def __init__(self, classes: Classes, definition: Definition, named: Named) -> None:
        self._classes = classes
        self._cls = classes.build(definition)
        self._file = definition.module.path
        self._line = definition.node.lineno
        self._named = named
        self._is_connector = classes.base in self._cls.ancestry
        self._findings: list[StaticFinding] = []
        self._hints: list[Hint] = []
        self._not_judged: list[str] = []
        self._looked_at: Counter[str] = Counter()

    def inspection(self) -> Inspection:
        """Everything that the source says."""
        self._conditions()
        self._constructor()
        self._ancestry()
        self._hooks()
        self._flags()
        self._answers()
        self._near_misses()
        return Inspection(
            self._cls.name,
            self._file,
            self._line,
            tuple(self._findings),
            tuple(self._hints),
            tuple(dict.fromkeys(self._not_judged)),
            tuple(self._looked_at.items()),
        )

    # -- what the rules need ---------------------------------------------------------------------------------------

    def _overridden(self, name: str) -> Member | None:
        """The class's own, or inherited from another class than vLLM's base; what can't be told is noted."""
        member = self._classes.member(self._cls, name)
        if member is None or member.owner is self._classes.base:
            return None
        if member.kind == "unknown":
            if member.reason:
                self._not_judged.append(member.reason)
            return None
        return member

    def _found(self, rule: str, expected: str, observed: str, member: Member | None = None) -> None:
        file, line = self._place(member)
        self._findings.append(StaticFinding(rule, expected, observed, file, line))

    def _hint(self, sentence: str, member: Member) -> None:
        file, line = self._place(member)
        self._hints.append(Hint(sentence, file, line))

    def _place(self, member: Member | None) -> tuple[Path, int]:
        if member is None or member.owner.module is None:
            return self._file, self._line
        return member.owner.module.path, member.line

    # -- the rules -------------------------------------------------------------------------------------------------

    def _conditions(self) -> None:
        found = candidates(self._named.module.tree.body, self._named.class_name)
        bound = [binding for binding in found if binding.alias is None or binding.alias.name != "*"]
        if any(binding.conditional for binding in bound):
            lines = ", ".join(str(binding.line) for binding in bound)
            name, file = self._named.class_name, self._named.module.path.name
            self._not_judged.append(
                f"whether {file} has {name} in every process: it is under a condition (line {lines})"
            )

    def _constructor(self) -> None:
        """SIG-01 and SIG-02: called as cls(vllm_config, role, kv_cache_config), and refused without the keyword."""
        new, init = self._overridden("__new__"), self._overridden("__init__")
        if new is not None:
            self._not_judged.append(f"{new.owner.name}.__new__ may return an object of another class")
        declared = [member for member in (new, init) if member is not None]
        if not declared or any(self._hidden(name) for name in ("__new__", "__init__")):
            return
        self._looked_at["constructors"] = 1
        # Python passes the arguments to __new__ first; whether __init__ gets them depends on what that returns.
        first = declared[0]
        signature = first.signature
        if signature is None:
            return
        problem = TAKES_NO_SELF if first.takes_no_self else binding_error(signature, _CONSTRUCTION.positional, ())
        problem = problem or disorder(signature, _CONSTRUCTION, None)
        if problem is not None:
            expected = "the class can be called as cls(vllm_config, role, kv_cache_config)"
            self._found("SIG-01", expected, f"{_declared(first)}: {problem}", first)
        if not self._named.registered and not any(_takes_keyword(member, "kv_cache_config") for member in declared):
            observed = f"{_declared(first)} has no parameter of that name, and no **kwargs"
            self._found("SIG-02", "an argument of the name kv_cache_config", observed, first)

    def _hidden(self, name: str) -> bool:
        member = self._classes.member(self._cls, name)
        return member is not None and member.kind not in ("function", "staticmethod", "classmethod")

    def _ancestry(self) -> None:
        """SIG-05 and SIG-06: the base class, and its abstract methods; only where all bases are known."""
        unclear = self._cls.unclear
        if unclear:
            self._not_judged.extend(unclear)
            return
        if not self._is_connector:
            bases = " and ".join(base.name for base in self._cls.bases)
            observed = f"{self._cls.name} " + (
                f"derives from {bases}, and so not from KVConnectorBase_V1" if bases else "has no base class"
            )
            self._found("SIG-05", "a subclass of vLLM's KVConnectorBase_V1", observed)
            return
        declared: set[str] = set()
        for owner in self._cls.ancestry:
            body = [] if owner.node is None else owner.node.body
            own = {name: self._classes.own(owner, name) for name, _ in bindings(body)}
            declared.update(name for name, member in own.items() if member is not None and member.abstract)
        members = [self._classes.member(self._cls, name) for name in sorted(declared)]
        self._looked_at["abstract methods"] = len(members)
        missing = [member for member in members if member is not None and member.abstract]
        if missing:
            observed = f"{self._cls.name} leaves {', '.join(member.name for member in missing)} abstract"
            place = missing[0] if missing[0].owner is self._cls else None
            self._found("SIG-06", "no abstract method is left", observed, place)

    def _hooks(self) -> None:
        """SIG-07: overrides that can't be called as the engine calls them."""
        if self._intercepts():
            return
        for call in ENGINE_CALLS:
            member = self._overridden(call.hook)
            if member is None:
                continue
            signature = member.signature
            if member.kind == "constant":
                self._hint(f"{_declared(member)} is {member.value!r}, which vLLM can't call", member)
            elif member.kind == "property" or signature is None:
                self._not_judged.append(f"{_declared(member)} is a property: what it gives is called by vLLM")
            else:
                self._looked_at["hooks"] += 1
                of_base = self._classes.own(self._classes.base, call.hook)
                known = None if of_base is None else of_base.signature
                problem = TAKES_NO_SELF if member.takes_no_self else call_problem(signature, call, known)
                if problem is not None:
                    self._found("SIG-07", f"vLLM calls {call}", f"{_declared(member)}: {problem}", member)
                if member.asynchronous:
                    self._hint(f"{_declared(member)} is a coroutine function: vLLM calls it and awaits nothing", member)

    def _intercepts(self) -> bool:
        """Whether reading an attribute of an instance may give anything."""
        fallback = self._overridden("__getattr__")
        if fallback is not None:
            self._not_judged.append(f"what {fallback.owner.name}.__getattr__ answers")
        member = self._overridden("__getattribute__")
        if member is None or not member.owner.node:
            return False
        self._not_judged.append(f"hooks and flags: {member.owner.name}.__getattribute__ decides what they are")
        return True

    def _flags(self) -> None:
        """SIG-08: read as attributes, never called."""
        if self._intercepts():
            return
        for name in FLAGS:
            member = self._overridden(name)
            if member is None:
                continue
            wrong = member.kind in ("function", "classmethod", "staticmethod", "constant")
            if wrong and not isinstance(member.value, bool) and self._set_on_instances(name):
                self._not_judged.append(f"{self._cls.name}.{name}: instances may get a value of their own")
                continue
            self._looked_at["flags"] += 1
            if member.kind in ("function", "classmethod", "staticmethod"):
                observed = (
                    f"{member.owner.name}.{name} is a method: vLLM reads it without a call, and it is always true"
                )
                self._found("SIG-08", f"{name} is a bool", observed, member)
            elif member.kind == "constant" and not isinstance(member.value, bool):
                observed = f"{member.owner.name}.{name} is {member.value!r}, of type {type(member.value).__name__}"
                self._found("SIG-08", f"{name} is a bool", observed, member)

    def _set_on_instances(self, name: str) -> bool:
        """Whether a method assigns the attribute, or names it in a text, as setattr needs it."""
        return any(
            (isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store))
            or (isinstance(node, ast.Constant) and node.value == name)
            for owner in self._cls.ancestry
            if owner.node is not None
            for node in ast.walk(owner.node)
        )

    def _answers(self) -> None:
        """SIG-09: asked of the class. Static methods work as well."""
        for name in CLASS_ANSWERS:
            member = self._overridden(name)
            if member is None:
                continue
            self._looked_at["class-level answers"] += 1
            if member.kind == "function":
                where = f"{member.owner.name}.{name} is a method of the instance"
                observed = f"{where}: called on the class, its first argument becomes self"
                self._found("SIG-09", f"{name} is a class method", observed, member)

    def _near_misses(self) -> None:
        """Methods whose name is nearly a hook's that the class leaves to the base class."""
        own = _functions(self._classes.base)
        hooks = {*(call.hook for call in ENGINE_CALLS), *CLASS_ANSWERS, *FLAGS}
        ours = [cls for cls in self._cls.sure if cls is not self._classes.base and cls.module is not None]
        defined = {name for cls in ours for name in _functions(cls)}
        for cls in ours:
            if cls.module is None or cls.module.name.startswith("vllm."):
                continue
            for name in _functions(cls):
                if name.startswith("_") or name in hooks or name in own:
                    continue
                close = difflib.get_close_matches(name, hooks - defined, n=1, cutoff=_ALIKE)
                member = self._classes.own(cls, name)
                if close and member is not None:
                    self._hint(
                        f"vLLM knows no {name}; did you mean the hook {close[0]}, which is not overridden?", member
                    )


def _declared(member: Member) -> str:
    signature = member.signature
    return f"{member.owner.name}.{member.name}{'' if signature is None else signature}"


def _takes_keyword(member: Member, name: str) -> bool:
    """As vLLM's supports_kw: by its name, or by **kwargs. True where the parameters are not known."""
    signature = member.signature
    if signature is None:
        return True
    kinds = inspect.Parameter
    return any(
        (p.name == name and p.kind is not kinds.VAR_POSITIONAL) or p.kind is kinds.VAR_KEYWORD
        for p in signature.parameters.values()
    )


def _functions(cls: StaticClass) -> list[str]:
    """Names of the methods that the class's own statements define."""
    if cls.node is None:
        return []
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return list(dict.fromkeys(name for name, bound in bindings(cls.node.body) if isinstance(bound.node, functions)))
