"""What a class object alone shows: how its hooks can be called, and what is asked of the class itself."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

import pytest

from kvconform.checks import class_object as checks
from kvconform.checks.class_model import ClassObservation, ClassShape
from kvconform.checks.engine_calls import EngineCall, disorder
from kvconform.checks.model import Finding


class Hooks:
    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None: ...
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> None: ...
    def wait_for_layer_load(self, layer_name: str) -> None: ...
    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None: ...
    def shutdown(self) -> None: ...
    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None: ...


class Base(Hooks, ABC):
    @abstractmethod
    def wait_for_save(self) -> None: ...


def rules(findings: Any) -> list[str]:
    return [finding.rule for finding in findings]


def with_hook(name: str, hook: Any, base: type = Base, **more: Any) -> type[Any]:
    return type("Vendors", (base,), {name: hook, **more})


def observed(name: str, hook: Any, base: type = Base) -> str:
    """What is wrong with a class that defines one hook; empty if nothing is."""
    findings = list(checks.signatures(with_hook(name, hook), base))
    assert rules(findings) in ([], ["SIG-07"])
    return findings[0].observed if findings else ""


def takes(parameters: str) -> Callable[..., None]:
    """A function with these parameters."""
    found: dict[str, Any] = {}
    exec(f"def hook({parameters}): pass", found)
    function: Callable[..., None] = found["hook"]
    return function


# -- hooks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        "self, request, num_computed_tokens",
        "self, req, done=0, *, hint=''",
        "self, request, /, num_computed_tokens",
        "self, request, num_computed_tokens, /",
        "self, req, done, request=None",
        "self, *args, request=None",
        "*args",
    ],
)
def test_own_names_defaults_and_kinds_of_parameters_are_legal(parameters: str) -> None:
    assert not observed("get_num_new_matched_tokens", takes(parameters))


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="functools.partial is a method there")
@pytest.mark.parametrize(
    "hook", [staticmethod(takes("name")), classmethod(takes("cls, name")), partial(takes("one, name"), 1)]
)
def test_other_kinds_of_hooks_get_no_instance(hook: Any) -> None:
    assert not observed("wait_for_layer_load", hook)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="functools.partial is a method there")
@pytest.mark.parametrize(
    "hook", [staticmethod(takes("self, name")), classmethod(takes("cls")), partial(takes("one"), 1)]
)
def test_other_kinds_of_hooks_are_judged_by_what_they_get(hook: Any) -> None:
    assert observed("wait_for_layer_load", hook)


class CallableObject:
    def __call__(self, name: str) -> None: ...


def test_a_callable_object_gets_no_instance() -> None:
    assert not observed("wait_for_layer_load", CallableObject())
    assert observed("get_num_new_matched_tokens", CallableObject())


@pytest.mark.parametrize(("python", "binds"), [((3, 13, 9), False), ((3, 14, 0), True), ((3, 14), True)])
def test_a_partial_function_gets_an_instance_from_python_3_14_on(
    python: tuple[int, ...], binds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks.sys, "version_info", python)  # type: ignore[attr-defined]
    assert bool(observed("wait_for_layer_load", partial(takes("one, name"), 1))) is binds
    assert bool(observed("wait_for_layer_load", partial(takes("one, self, name"), 1))) is not binds


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("wait_for_layer_load", "self", "Vendors.wait_for_layer_load(): too many positional arguments"),
        ("shutdown", "self, grace", "Vendors.shutdown(grace): missing a required argument: 'grace'"),
        ("get_num_new_matched_tokens", "self, num_computed_tokens, request",
         "its parameter 1 is num_computed_tokens, where vLLM passes request"),
        ("get_num_new_matched_tokens", "self, num_computed_tokens, request, /", "its parameter 1 is num"),
        ("start_load_kv", "self", "Vendors.start_load_kv(): too many positional arguments"),
        ("start_load_kv", "*args", "Vendors.start_load_kv(*args): got an unexpected keyword argument"),
        ("start_load_kv", "self, forward_context", "got an unexpected keyword argument"),
        ("save_kv_layer", "self, layer_name, kv_layer, attn_metadata", "it has to take further keyword arguments"),
    ],
)  # fmt: skip
def test_hook_that_does_not_take_what_the_engine_passes(name: str, parameters: str, words: str) -> None:
    assert words in observed(name, takes(parameters))


@pytest.mark.parametrize("parameters", ["", "*, grace=1", "**options"])
@pytest.mark.parametrize("kind", [lambda function: function, classmethod])
def test_hook_that_takes_no_self(kind: Any, parameters: str) -> None:
    assert observed("shutdown", kind(takes(parameters))).endswith(": it takes no argument, and so no instance")
    assert not observed("shutdown", staticmethod(takes(parameters)))


def test_annotations_are_left_out_for_the_reader() -> None:
    def shutdown(self: Any, grace: float) -> None: ...

    assert observed("shutdown", shutdown).startswith("Vendors.shutdown(grace): ")


def test_hook_whose_parameters_python_cannot_tell_is_not_judged() -> None:
    assert not observed("shutdown", property(lambda self: print))


def test_names_are_the_engines_where_the_base_class_has_no_such_hook() -> None:
    swapped = takes("self, copy_operation, kv_caches")
    call = EngineCall("copy", ("kv_caches", "copy_operation"))
    bound = signature(swapped)
    bound = bound.replace(parameters=list(bound.parameters.values())[1:])
    assert checks.call_problem(bound, call, None) == "its parameter 1 is copy_operation, where vLLM passes kv_caches"
    assert checks.call_problem(bound, call, signature(takes("a, b"))) is None


def test_name_of_what_vllm_does_not_pass_is_the_overrides_own_affair() -> None:
    assert disorder(signature(takes("hint")), EngineCall("h", ("request",)), signature(takes("request, hint"))) is None


def test_only_what_differs_from_the_base_class_is_judged() -> None:
    cls = with_hook("shutdown", takes("self"), wait_for_layer_load=Base.wait_for_layer_load, no_hook=takes(""))
    names = [call.hook for call in checks.ENGINE_CALLS if checks.overridden(cls, Base, call.hook)]
    assert names == ["shutdown"]
    assert not checks.overridden(cls, Base, "take_events")


# -- the class itself --------------------------------------------------------------------------------------------------


def test_abstract_methods_are_told_with_what_python_says() -> None:
    (finding,) = checks.abstract_methods(Base)
    assert finding.rule == "SIG-06"
    assert finding.observed.startswith("Base leaves wait_for_save abstract; building it is a TypeError: ")
    assert list(checks.abstract_methods(with_hook("wait_for_save", takes("self")))) == []
    assert list(checks.abstract_methods(object)) == []


class Answering(type):
    def get_required_kvcache_layout(cls, vllm_config: Any) -> None: ...


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (classmethod(takes("cls, config")), ""),
        (staticmethod(takes("config")), ""),
        (partial(takes("cls, config"), None), ""),
        (takes("self, config"), "a method of the instance"),
        (property(takes("self")), "a property"),
        ("NHD", "a str"),
    ],
    ids=["class method", "static method", "callable", "method", "property", "value"],
)
@pytest.mark.parametrize("metaclass", [type, Answering])
def test_answer_of_the_class_needs_no_instance(metaclass: type, answer: Any, what: str) -> None:
    cls: type[Any] = metaclass("Vendors", (), {"get_required_kvcache_layout": answer})
    findings = list(checks.unbound_answers(cls))
    assert rules(findings) == (["SIG-09"] if what else [])
    assert all(f"Vendors.get_required_kvcache_layout is {what}: " in finding.observed for finding in findings)


def test_answer_may_be_the_metaclass_own() -> None:
    assert list(checks.unbound_answers(Answering("Vendors", (), {}))) == []
    assert list(checks.unbound_answers(object)) == []


def test_shape_is_all_that_the_class_shows() -> None:
    cls = with_hook("shutdown", takes("self, grace"), get_required_kvcache_layout=takes("self"))
    findings = [*checks.abstract_methods(cls), *checks.signatures(cls, Base), *checks.unbound_answers(cls)]
    assert rules(findings) == ["SIG-06", "SIG-07", "SIG-09"]
    assert checks.shape_of(cls, Base, hma=True) == ClassShape(
        name="Vendors",
        overrides=("shutdown", "get_required_kvcache_layout"),
        abstract_in_base=1,
        hma=True,
        constructor="Vendors(vllm_config, role, kv_cache_config)",
        findings=tuple((finding.rule, finding.expected, finding.observed) for finding in findings),
    )


def test_shape_says_why_a_constructor_does_not_take_three_arguments() -> None:
    shape = checks.shape_of(with_hook("__init__", takes("self, config, *, role: int")), Base, hma=False)
    assert (shape.constructor, shape.hma) == ("Vendors(config, *, role)", False)
    assert shape.constructor_problem == "too many positional arguments"


def test_constructor_whose_parameters_python_cannot_tell_is_not_judged() -> None:
    shape = checks.shape_of(with_hook("__init__", takes("self"), __signature__="none"), Base, hma=False)
    assert (shape.constructor, shape.constructor_problem) == ("", "")


def test_findings_of_the_class_are_told_apart_by_their_rule() -> None:
    shape = ClassShape("Vendors", ("shutdown", "take_events", "build_prom_metrics"), findings=(("SIG-06", "a", "b"),))
    seen = ClassObservation(shape=shape)
    assert list(checks.of_class(seen, "SIG-06")) == [Finding("SIG-06", "a", "b", checks.BEFORE)]
    assert list(checks.of_class(seen, "SIG-07")) == []
    assert list(checks.of_class(replace(seen, shape=None), "SIG-06")) == []
    assert checks.overridden_hooks(seen) == 2
    assert checks.overridden_hooks(replace(seen, shape=None)) == 0
