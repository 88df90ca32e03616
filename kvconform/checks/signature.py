"""SIG: the shape of a connector class and how it is built; pure functions from a class, or from what was seen of it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import CodeType
from typing import Any

from kvconform.checks.class_model import ClassObservation, ClassShape, Raised, RoleObservation
from kvconform.checks.model import Finding
from kvconform.engine.events import Event

#: Read by the scheduler as attributes (vllm/v1/core/sched/scheduler.py, Scheduler.__init__, 0.27.1 and 0.28.0 on).
FLAGS: tuple[str, ...] = ("requires_kv_delivery", "supports_divergent_local_hybrid_hits")

#: Asked of the class, where no instance exists (contract: SIG-09).
CLASS_ANSWERS: tuple[str, ...] = (
    "get_required_kvcache_layout",
    "requires_piecewise_for_cudagraph",
    "build_kv_connector_stats",
    "build_prom_metrics",
    "supports_sleep_mode",
)

#: What KVConnectorBase_V1.__init__ sets (vllm/distributed/kv_transfer/kv_connector/v1/base.py, 0.32.0).
BASE_ATTRIBUTES = frozenset({
    "_connector_metadata", "_vllm_config", "_kv_transfer_config", "_kv_cache_config", "_kv_cache_manager", "_role",
})  # fmt: skip

#: An import that takes longer than this, with vLLM and torch already imported, is worth a warning.
SLOW_IMPORT_SECONDS = 10.0

# No step of any engine: the class itself.
BEFORE = Event(0, 0)


@dataclass(frozen=True)
class EngineCall:
    """How the engine calls a hook: arguments by position, then by name."""

    hook: str
    positional: tuple[str, ...]
    named: tuple[str, ...] = ()
    #: Whether names that a later release adds have to be taken too.
    open_ended: bool = False

    def __str__(self) -> str:
        return f"{self.hook}({', '.join([*self.positional, *(f'{name}=...' for name in self.named)])})"


_HANDSHAKE = ("metadata",)
_LOAD_NAMES = ("scheduler_output", "request_state_indices", "request_ids", "num_tokens", "attn_metadata")

#: 0.29.0 to 0.33.0: Scheduler, EngineCore, KVConnectorModelRunnerMixin, ActiveKVConnector, maybe_transfer_kv_layer.
ENGINE_CALLS: tuple[EngineCall, ...] = (
    EngineCall("bind_kv_cache_manager", ("kv_cache_manager",)),
    EngineCall("bind_gpu_block_pool", ("gpu_block_pool",)),
    EngineCall("on_new_request", ("request",)),
    EngineCall("get_num_new_matched_tokens", ("request", "num_computed_tokens")),
    EngineCall("get_loaded_kv_cache_group_ids", ("request",)),
    EngineCall("update_state_after_alloc", ("request", "blocks", "num_external_tokens")),
    EngineCall("get_external_cache_hit_sources", ("request", "num_external_tokens")),
    EngineCall("build_connector_meta", ("scheduler_output",)),
    EngineCall("update_connector_output", ("connector_output",)),
    EngineCall("register_finished_partial_tail", ("request", "block_ids", "partial_tail_offloads")),
    EngineCall("request_finished", ("request", "block_ids")),
    EngineCall("request_finished_all_groups", ("request", "block_ids")),
    EngineCall("take_events", ()),
    EngineCall("get_kv_connector_stats", ()),
    EngineCall("has_pending_block_frees", ()),
    EngineCall("has_pending_push_work", ()),
    EngineCall("get_finished_count", ()),
    EngineCall("set_xfer_handshake_metadata", _HANDSHAKE),
    EngineCall("set_xfer_handshake_metadata_pp_aware", _HANDSHAKE),
    EngineCall("reset_cache", ()),
    EngineCall("shutdown", ()),
    EngineCall("get_mem_pool_context", ()),
    EngineCall("register_kv_caches", ("kv_caches",)),
    EngineCall("set_host_xfer_buffer_ops", ("copy_operation",)),
    EngineCall("get_handshake_metadata", ()),
    EngineCall("handle_preemptions", ("kv_connector_metadata",)),
    EngineCall("bind_connector_metadata", ("connector_metadata",)),
    EngineCall("clear_connector_metadata", ()),
    EngineCall("has_connector_metadata", ()),
    EngineCall("start_load_kv", ("forward_context",), _LOAD_NAMES, open_ended=True),
    EngineCall("wait_for_layer_load", ("layer_name",)),
    EngineCall("save_kv_layer", ("layer_name", "kv_layer", "attn_metadata"), open_ended=True),
    EngineCall("finish_forward", ()),
    EngineCall("wait_for_save", ()),
    EngineCall("get_finished", ("finished_req_ids",)),
    EngineCall("get_transfer_results", ("finished_req_ids",)),
    EngineCall("get_block_ids_with_load_errors", ()),
    EngineCall("get_kv_connector_kv_cache_events", ()),
    EngineCall("build_connector_worker_meta", ()),
    EngineCall("reset_capture_state", ()),
    EngineCall("unregister_kv_caches", ()),
    EngineCall("restore_kv_caches", ()),
)
#: What the class is called with, by position.
CONSTRUCTOR_ARGUMENTS = ("vllm_config", "role", "kv_cache_config")
TAKES_NO_SELF = "it takes no argument, and so no instance"
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
#: A keyword of a release that does not exist yet.
LATER_KEYWORD = "added_by_a_later_release"


# -- the class itself --------------------------------------------------------------------------------------------------


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


def call_problem(signature: inspect.Signature, call: EngineCall, of_base: inspect.Signature | None) -> str | None:
    """Why the engine's call does not fit a hook's parameters, in words; both signatures are without self."""
    error = binding_error(signature, call.positional, call.named)
    if error is None and call.open_ended:
        error = binding_error(signature, call.positional, (*call.named, LATER_KEYWORD))
        if error is not None:
            return f"it has to take further keyword arguments (**kwargs), as the base class's does: {error}"
    return error or disorder(signature, call, of_base)


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
    if parameters and parameters[0].kind in _BY_POSITION:
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


def binding_error(signature: inspect.Signature, positional: tuple[str, ...], named: tuple[str, ...]) -> str | None:
    """Why so many arguments by position and these by name can't be passed, in Python's words."""
    try:
        signature.bind(*positional, **dict.fromkeys(named))
    except TypeError as error:
        return str(error)
    return None


def disorder(signature: inspect.Signature, call: EngineCall, of_base: inspect.Signature | None) -> str | None:
    """A parameter that has the base class's name of another position: its value would be taken for something else."""
    names = [p.name for p in signature.parameters.values() if p.kind in _BY_POSITION]
    known = call.positional if of_base is None else tuple(of_base.parameters)[: len(call.positional)]
    for index, name in enumerate(names[: len(call.positional)]):
        if name in known and known.index(name) != index:
            return f"its parameter {index + 1} is {name}, where vLLM passes {known[index]}"
    return None


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


# -- how it is built ---------------------------------------------------------------------------------------------------


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


def _constructor_signature(cls: type[Any]) -> inspect.Signature | None:
    try:
        return _bare(inspect.signature(cls))
    except (TypeError, ValueError):
        return None


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
