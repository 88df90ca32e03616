"""Class shape and construction: how vLLM finds the class, builds it once per role, and what it asks of the class.

The class is imported and built in processes of its own that have seen nothing of it, as vLLM's processes do.
"""

from __future__ import annotations

import pytest

from kvconform.checks import class_object, signature
from kvconform.conformance import Conformance
from kvconform.outcomes import NotApplicable
from kvconform.scenario import roles


def _instances(conformance: Conformance) -> int:
    seen = conformance.observation
    return sum(role is not None and role.built and role.is_connector for role in (seen.worker, seen.scheduler))


def _nothing_built(conformance: Conformance) -> str:
    return f"no instance could be built: {conformance.observation.obstacle}"


@pytest.mark.kvconform_rules("SIG-01")
def test_constructor_takes_config_role_and_kv_cache_config_by_position(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """vLLM's factory calls the class with three positional arguments, for both roles."""
    findings = signature.constructor(conformance.observation)
    witnesses = {"SIG-01": {"roles built by the factory": _instances(conformance)}}
    conformance.conclude(request, findings, witnesses, _nothing_built(conformance))


@pytest.mark.kvconform_rules("SIG-02")
def test_factory_takes_the_class_from_its_module_path(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """The factory refuses an out-of-tree class whose constructor has no parameter of the name kv_cache_config."""
    seen = conformance.observation
    if seen.registered:
        raise NotApplicable(
            "the class is registered in vLLM by name: its constructor's parameter names are not examined"
        )
    taken = int(seen.imported is None and seen.resolved is None and not seen.ended)
    conformance.conclude(
        request,
        signature.keyword(seen),
        {"SIG-02": {"classes taken by the factory": taken}},
        _nothing_built(conformance),
    )


@pytest.mark.kvconform_rules("SIG-04")
def test_base_constructor_gets_what_the_constructor_got(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """super().__init__ is called with the configuration, the role and the KV cache configuration."""
    findings = signature.base_constructor(conformance.observation)
    witnesses = {"SIG-04": {"instances examined": _instances(conformance)}}
    conformance.conclude(request, findings, witnesses, _nothing_built(conformance))


@pytest.mark.kvconform_rules("SIG-05")
def test_instances_are_connectors_to_vllm(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """What the factory returns is an instance of KVConnectorBase_V1: proxies that are none are skipped in silence."""
    findings = signature.subclass(conformance.observation)
    witnesses = {"SIG-05": {"instances examined": _instances(conformance)}}
    conformance.conclude(request, findings, witnesses, _nothing_built(conformance))


@pytest.mark.kvconform_rules("SIG-06")
def test_no_method_is_left_abstract(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """All abstract methods of the base class are implemented."""
    seen = conformance.observation
    implemented = 0 if seen.shape is None else seen.shape.abstract_in_base
    conformance.conclude(
        request,
        class_object.of_class(seen, "SIG-06"),
        {"SIG-06": {"abstract methods implemented": implemented}},
        _nothing_built(conformance),
    )


@pytest.mark.kvconform_rules("SIG-07")
def test_overridden_hooks_can_be_called_as_the_engine_calls_them(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Parameter order and keyword arguments of every overridden hook."""
    seen = conformance.observation
    witnesses = {"SIG-07": {"overridden hooks": class_object.overridden_hooks(seen)}}
    conformance.conclude(request, class_object.of_class(seen, "SIG-07"), witnesses, "no hook is overridden")


@pytest.mark.kvconform_rules("SIG-08")
def test_flags_are_bools(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Flags that the scheduler reads as attributes are not methods."""
    conformance.demand("SIG-08")
    seen = conformance.observation
    witnesses = {"SIG-08": {"bools read": signature.flags_read(seen)}}
    conformance.conclude(request, signature.flags(seen), witnesses, _nothing_built(conformance))


@pytest.mark.kvconform_rules("SIG-09")
def test_class_level_answers_need_no_instance(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """vLLM asks the class in processes in which no connector is ever built."""
    seen = conformance.observation
    findings = [*class_object.of_class(seen, "SIG-09"), *signature.answers(seen)]
    answered = sum(raised is None for raised in seen.answers_before.values())
    lacking = next((f"the class answered with {raised}" for raised in seen.answers_before.values() if raised), "")
    conformance.conclude(
        request, findings, {"SIG-09": {"questions answered": answered}}, lacking or _nothing_built(conformance)
    )


@pytest.mark.kvconform_rules("SIG-10")
def test_fresh_process_finds_the_class_by_module_and_name(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The class is an attribute of the module, whatever was imported before."""
    seen = conformance.observation
    if seen.registered:
        raise NotApplicable("the class is registered in vLLM by name")
    found = int(seen.imported is None and not seen.ended)
    conformance.conclude(
        request, signature.resolution(seen), {"SIG-10": {"classes found": found}}, _nothing_built(conformance)
    )


@pytest.mark.kvconform_rules("SIG-12")
def test_import_is_quick_and_has_no_side_effects(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """The module is imported by processes that never use the connector."""
    seen = conformance.observation
    watched = int(seen.imported is None and not seen.ended)
    conformance.conclude(
        request, signature.import_effects(seen), {"SIG-12": {"imports watched": watched}}, _nothing_built(conformance)
    )


@pytest.mark.kvconform_rules("SIG-13")
def test_each_role_can_be_built_before_the_other(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """The worker role comes first, and the scheduler role's process has no worker in it."""
    seen = conformance.observation
    alone = sum(role is not None and role.built for role in (seen.worker, seen.scheduler_alone))
    conformance.conclude(
        request, signature.independence(seen), {"SIG-13": {"roles built alone": alone}}, _nothing_built(conformance)
    )


@pytest.mark.kvconform_rules("SIG-15")
def test_worker_keeps_its_state_through_dummy_runs(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """The engine takes the connector out of its process-wide slot for dummy runs, and puts it back."""
    conformance.judge(request, roles.dummy_runs())
