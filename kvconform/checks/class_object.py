"""SIG: what a connector class alone shows, built or not; pure functions from the class to findings or plain data."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from functools import partial
from types import CodeType
from typing import Any

from kvconform.checks.class_model import ClassObservation, ClassShape
from kvconform.checks.engine_calls import (
    BY_POSITION,
    CLASS_ANSWERS,
    CONSTRUCTOR_ARGUMENTS,
    ENGINE_CALLS,
    TAKES_NO_SELF,
    binding_error,
    call_problem,
)
from kvconform.checks.model import BEFORE, Finding


def shape_of(cls: type[Any], base: type[Any], hma: bool) -> ClassShape:
    """Everything that the class alone shows, as plain data: the class stays in the process that imported it."""
    signature = _constructor_signature(cls)
    problem = None if signature is None else binding_error(signature, CONSTRUCTOR_ARGUMENTS, ())
    findings = (*abstract_methods(cls), *signatures(cls, base), *unbound_answers(cls))
    names = dict.fromkeys([*(call.hook for call in ENGINE_CALLS), *CLASS_ANSWERS])
    return ClassShape(
        name=cls.__name__,
        overrides=tuple(name for name in names if overridden(cls, base, name)),
        abstract_in_base=len(base.__abstractmethods__),
        hma=hma,
        constructor="" if signature is None else f"{cls.__name__}{signature}",
        constructor_problem=problem or "",
        findings=tuple((finding.rule, finding.expected, finding.observed) for finding in findings),
    )


def of_class(seen: ClassObservation, rule: str) -> Iterator[Finding]:
    """What the class alone shows about one rule."""
    for found, expected, observed in () if seen.shape is None else seen.shape.findings:
        if found == rule:
            yield Finding(rule, expected, observed, BEFORE)


def overridden_hooks(seen: ClassObservation) -> int:
    """How many hooks that the engine calls the class defines itself or inherits from another class than the base."""
    hooks = {call.hook for call in ENGINE_CALLS}
    return 0 if seen.shape is None else len(hooks.intersection(seen.shape.overrides))


def abstract_methods(cls: type[Any]) -> Iterator[Finding]:
    """SIG-06: methods of the base class that are still abstract."""
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        try:
            cls(None, None, None)
            python = ""
        except TypeError as error:
            python = f"; building it is a TypeError: {error}"
        observed = f"{cls.__name__} leaves {', '.join(missing)} abstract{python}"
        yield Finding("SIG-06", "no abstract method is left", observed, BEFORE)


def signatures(cls: type[Any], base: type[Any]) -> Iterator[Finding]:
    """SIG-07: overrides that can't be called as the engine calls them."""
    for call in ENGINE_CALLS:
        if overridden(cls, base, call.hook):
            signature = _signature(cls, call.hook)
            problem = TAKES_NO_SELF if _takes_no_self(cls, call.hook) else None
            if signature is not None and problem is None:
                problem = call_problem(signature, call, _signature(base, call.hook))
            if problem is not None:
                yield Finding("SIG-07", f"vLLM calls {call}", f"{_declared(cls, call.hook)}: {problem}", BEFORE)


def overridden(cls: type[Any], base: type[Any], name: str) -> bool:
    """Whether ``name`` of ``cls`` is another object than that of ``base``."""
    return hasattr(cls, name) and inspect.getattr_static(cls, name) is not inspect.getattr_static(base, name, None)


def _takes_no_self(cls: type[Any], name: str) -> bool:
    """Whether a call on an instance has one argument too many, whatever is passed."""
    found = inspect.getattr_static(cls, name)
    function = found.__func__ if isinstance(found, classmethod) else found
    return inspect.isfunction(function) and not _takes_arguments(function.__code__)


def _takes_arguments(code: CodeType) -> bool:
    return code.co_argcount > 0 or code.co_flags & inspect.CO_VARARGS != 0


def _signature(cls: type[Any], name: str) -> inspect.Signature | None:
    """The parameters of an instance's hook, without self; None where Python can't tell."""
    try:
        found = inspect.getattr_static(cls, name)
        bound = getattr(cls, name)
        signature = inspect.signature(bound)
    except (AttributeError, TypeError, ValueError):
        return None
    if not _binds(found):
        return signature
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].kind in BY_POSITION:
        return signature.replace(parameters=parameters[1:])
    return signature


def _binds(found: Any) -> bool:
    """Whether an instance is put before the arguments."""
    if isinstance(found, partial):
        # In 3.13 it has a __get__ already, which binds nothing and warns (functools, "What's new" of 3.13 and 3.14).
        return sys.version_info >= (3, 14)
    return not isinstance(found, (staticmethod, classmethod)) and hasattr(type(found), "__get__")


def _bare(signature: inspect.Signature) -> inspect.Signature:
    """Without annotations, for a reader."""
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=signature.empty)


def _declared(cls: type[Any], name: str) -> str:
    signature = _signature(cls, name)
    return f"{cls.__name__}.{name}{'(...)' if signature is None else _bare(signature)}"


def unbound_answers(cls: type[Any]) -> Iterator[Finding]:
    """SIG-09: class-level answers that are no class methods. Static methods and callables work as well."""
    for name in CLASS_ANSWERS:
        if not _works_on_class(cls, name):
            kind = type(inspect.getattr_static(cls, name)).__name__
            what = "a method of the instance" if kind == "function" else f"a {kind}"
            yield Finding(
                "SIG-09",
                f"{name} is a class method",
                f"{cls.__name__}.{name} is {what}: called on the class, its first argument becomes self",
                BEFORE,
            )


def _works_on_class(cls: type[Any], name: str) -> bool:
    """Whether an answer, if the class has it, needs no instance."""
    if not any(name in base.__dict__ for base in cls.__mro__):
        return True  # The metaclass has it, or nobody.
    found = inspect.getattr_static(cls, name)
    return not inspect.isfunction(found) and callable(getattr(cls, name))


def _constructor_signature(cls: type[Any]) -> inspect.Signature | None:
    try:
        return _bare(inspect.signature(cls))
    except (TypeError, ValueError):
        return None
