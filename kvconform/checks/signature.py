"""SIG: how a connector class is imported and built; pure functions from what was seen of it to findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvconform.checks.class_model import ClassObservation, Raised, RoleObservation
from kvconform.checks.engine_calls import BASE_ATTRIBUTES
from kvconform.checks.model import BEFORE, Finding

#: An import that takes longer than this, with vLLM and torch already imported, is worth a warning.
SLOW_IMPORT_SECONDS = 10.0


def constructor(seen: ClassObservation) -> Iterator[Finding]:
    """SIG-01: three positional arguments, in this order."""
    shape = seen.shape
    if shape is None:
        return
    expected = "the class can be called as cls(vllm_config, role, kv_cache_config)"
    if shape.constructor_problem:
        vllm = seen.resolved or _first_failure(seen)
        observed = f"{shape.constructor}: {shape.constructor_problem}"
        details = (f"vLLM's factory raises {vllm}",) if vllm is not None else ()
        yield Finding("SIG-01", expected, observed, BEFORE, details)
        return
    for role in _roles(seen):
        if role.raised is not None and role.by_keyword:
            observed = (
                f"called by position for the {role.role} role it raises {role.raised}; "
                f"with its arguments given by name it can be built: {shape.constructor}"
            )
            yield Finding("SIG-01", expected, observed, BEFORE)
            return


def _first_failure(seen: ClassObservation) -> Raised | None:
    return next((role.raised for role in _roles(seen) if role.raised is not None), None)


def _roles(seen: ClassObservation) -> list[RoleObservation]:
    return [role for role in (seen.worker, seen.scheduler) if role is not None]


def keyword(seen: ClassObservation) -> Iterator[Finding]:
    """SIG-02: the factory's own refusal of a class from a module path."""
    if seen.resolved is not None and seen.resolved.kind == "ValueError":
        yield Finding("SIG-02", "an argument of the name kv_cache_config", f"vLLM raises {seen.resolved}", BEFORE)


def base_constructor(seen: ClassObservation) -> Iterator[Finding]:
    """SIG-04: super().__init__ was called with what the constructor got."""
    for role in _roles(seen):
        expected = f"the {role.role}-role instance knows its role, its configuration and its KV cache"
        lacking = role.base_missing
        if role.raised is not None and role.raised.missing in BASE_ATTRIBUTES:
            lacking = role.raised
        if lacking is not None:
            observed = f"the base class's constructor has not run: {lacking}"
        elif not role.built or not role.is_connector:
            continue
        elif not role.role_kept:
            observed = "its role is another one than the constructor was given"
        elif role.kv_cache_config != "kept":
            what = "None" if role.kv_cache_config == "None" else "another object"
            observed = f"its _kv_cache_config is {what}, not the one that the constructor was given"
        elif role.metadata_bound:
            observed = "has_connector_metadata() is true before any metadata was bound"
        else:
            continue
        yield Finding("SIG-04", expected, observed, BEFORE)
        return


def subclass(seen: ClassObservation) -> Iterator[Finding]:
    """SIG-05: what the factory returns is a KVConnectorBase_V1."""
    for role in _roles(seen):
        if role.built and not role.is_connector:
            observed = f"building the {role.role} role gives an object of type {role.kind}, which is not one"
            yield Finding("SIG-05", "an instance of vLLM's KVConnectorBase_V1", observed, BEFORE)
            return


def flags(seen: ClassObservation) -> Iterator[Finding]:
    """SIG-08: attributes that are bools, however they are defined."""
    reported: set[str] = set()
    for role in _roles(seen):
        for name, flag in role.flags.items():
            base_is_to_blame = flag.raised is not None and flag.raised.missing in BASE_ATTRIBUTES
            if flag.kind == "bool" or base_is_to_blame or name in reported:
                continue
            reported.add(name)
            got = f"raises {flag.raised}" if flag.raised is not None else f"is of type {flag.kind}, always true"
            yield Finding("SIG-08", f"{name} is a bool", f"{name} of the {role.role}-role instance {got}", BEFORE)


def flags_read(seen: ClassObservation) -> int:
    """How many bools were read from instances."""
    return sum(flag.kind == "bool" for role in _roles(seen) for flag in role.flags.values())


def answers(seen: ClassObservation) -> Iterator[Finding]:
    """SIG-09: answers that need a constructor to have run, in this process, before."""
    for name, raised in seen.answers_before.items():
        if raised is not None and name in seen.answers_after and seen.answers_after[name] is None:
            observed = f"called on the class it raises {raised}; after instances were built in the process it works"
            yield Finding("SIG-09", f"{name} works without an instance", observed, BEFORE)


def resolution(seen: ClassObservation) -> Iterator[Finding]:
    """SIG-10: the name is found in the module by a process that has imported nothing else of the vendor's."""
    if seen.resolved is not None and seen.resolved.kind == "AttributeError":
        yield Finding("SIG-10", "the class is found in a fresh process", f"vLLM raises {seen.resolved}", BEFORE)


def import_effects(seen: ClassObservation, slow: float = SLOW_IMPORT_SECONDS) -> Iterator[Finding]:
    """SIG-12: what importing the module did beside defining things, and how long it took."""
    if seen.effects:
        observed = f"importing it {seen.effects[0]}"
        yield Finding("SIG-12", "importing changes nothing", observed, BEFORE, seen.effects[1:])
    if seen.seconds > slow:
        observed = f"importing it took {seen.seconds:.0f} s, with vLLM and torch already imported"
        yield Finding("SIG-12", f"importing takes less than {slow:.0f} s", observed, BEFORE)


def independence(seen: ClassObservation) -> Iterator[Finding]:
    """SIG-13: a role that can be built only after the other one."""
    worker, again, scheduler = seen.worker, seen.worker_again, seen.scheduler
    if worker is not None and again is not None and not worker.built and again.built:
        trouble = "did not return" if worker.hung else f"raised {worker.raised}"
        observed = f"the worker role's constructor {trouble}; once the scheduler role was built it succeeded"
        yield Finding("SIG-13", "the worker role is built first", observed, BEFORE)
    alone = seen.scheduler_alone
    if alone is not None and scheduler is not None and scheduler.built and not alone.built:
        trouble = "did not return" if alone.hung else f"raised {alone.raised}"
        observed = f"alone in its process the scheduler role's constructor {trouble}; after a worker role it succeeded"
        yield Finding("SIG-13", "the scheduler role is built in a process without workers", observed, BEFORE)


def fresh_hooks(seen: ClassObservation, hooks: Mapping[str, str]) -> Iterator[Finding]:
    """ROLE: hooks that raise on an instance on which nothing else was called. ``hooks`` maps a hook to its rule."""
    for role in _roles(seen):
        for name, raised in role.hooks.items():
            if name in hooks and raised is not None and raised.missing not in BASE_ATTRIBUTES:
                what = f"{name}({{}})" if "handshake" in name else f"{name}()"
                expected = f"{what} works on a freshly built {role.role}-role instance"
                yield Finding(hooks[name], expected, f"{what} raised {raised}", BEFORE)


def fresh_calls(seen: ClassObservation, hook: str) -> int:
    """How many fresh instances the hook was called on without an exception."""
    return sum(hook in role.hooks and role.hooks[hook] is None for role in _roles(seen))
