"""Roles: one class, two instances that share nothing but what the engine carries between them.

This is what one process shows of it; pickling stands for the border between processes.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from kvconform.checks import Finding, signature
from kvconform.checks.roles import disturbance
from kvconform.conformance import Conformance
from kvconform.outcomes import NotApplicable
from kvconform.scenario import roles
from kvconform.scenario.exploration import Refused


def _demand_handshake(conformance: Conformance) -> None:
    shape = conformance.observation.shape
    if shape is None or "get_handshake_metadata" not in shape.overrides:
        raise NotApplicable("the connector offers no handshake metadata: it does not override get_handshake_metadata")


def _judge_fresh_hook(conformance: Conformance, request: pytest.FixtureRequest, rule: str, *hooks: str) -> None:
    seen = conformance.observation
    findings = list(signature.fresh_hooks(seen, dict.fromkeys(hooks, rule)))
    witnesses = {rule: {f"{hook} on fresh instances": signature.fresh_calls(seen, hook) for hook in hooks}}
    conformance.conclude(request, findings, witnesses, f"no instance could be built: {seen.obstacle}")


@pytest.mark.kvconform_rules("ROLE-01")
def test_scheduler_role_needs_no_worker_side_hook(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """No scheduler-side hook fails for want of something that only the worker role is given."""
    conformance.judge(request, roles.separate_objects())


@pytest.mark.kvconform_rules("ROLE-02")
def test_worker_role_needs_no_scheduler_side_hook(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """No worker-side hook fails for want of something that only the scheduler role is told."""
    conformance.judge(request, roles.separate_objects())


@pytest.mark.kvconform_rules("ROLE-03")
def test_statistics_and_shutdown_work_on_fresh_instances_of_both_roles(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Both hooks are called on the scheduler role, which has no worker resources."""
    conformance.demand("ROLE-03")
    _judge_fresh_hook(conformance, request, "ROLE-03", "get_kv_connector_stats", "shutdown")


@pytest.mark.kvconform_rules("ROLE-04")
def test_neither_role_holds_objects_of_the_other_side(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """No KV tensor can be reached from the scheduler role, no scheduler object from the worker role."""
    conformance.judge(request, roles.separate_objects())


@pytest.mark.kvconform_rules("ROLE-05")
def test_roles_that_exchange_copies_work_as_roles_that_share_objects(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A worker in its own process gets copies, and what it changes in them is seen by nobody."""
    conformance.judge(request, roles.separate_objects())


@pytest.mark.kvconform_rules("ROLE-05")
def test_roles_that_share_objects_work_as_roles_that_exchange_copies(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The in-process executor hands the very objects over."""
    conformance.judge(request, roles.same_objects())


@pytest.mark.kvconform_rules("ROLE-05")
def test_engines_side_by_side_do_not_disturb_each_other(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Nothing that is kept in a class or a module mixes up two engines whose requests have the same ids."""
    family = roles.side_by_side()
    found: list[Finding] = []
    with contextlib.suppress(Refused):
        for program in map(conformance.fitted, family.examples):
            alone = conformance.examine(replace(program, twin=False))
            found += disturbance(conformance.examine(program), alone)
    if found:
        conformance.conclude(request, found, {}, "")
    conformance.judge(request, family)


@pytest.mark.kvconform_rules("ROLE-06", "ROLE-08")
def test_what_crosses_between_the_roles_can_be_pickled(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Metadata to the workers, results back from them, in every step."""
    conformance.judge(request, roles.separate_objects())


@pytest.mark.kvconform_rules("ROLE-07")
def test_metadata_stays_as_it_was_returned_while_the_next_step_is_scheduled(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """With overlapping steps the workers are still at it."""
    conformance.judge(request, roles.separate_objects())


@pytest.mark.kvconform_rules("ROLE-09")
def test_handshake_metadata_can_be_pickled(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """It is collected from the workers once the KV caches are registered."""
    _demand_handshake(conformance)
    conformance.judge(request, roles.separate_objects())


@pytest.mark.kvconform_rules("ROLE-10")
def test_scheduler_role_takes_an_empty_handshake(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """The engine delivers an empty dictionary when no worker has anything to offer."""
    _judge_fresh_hook(conformance, request, "ROLE-10", "set_xfer_handshake_metadata_pp_aware")


@pytest.mark.kvconform_rules("ROLE-12")
def test_kv_transfer_params_hold_json_values_only(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """They leave the engine as msgpack and the server as JSON."""
    conformance.demand_capability("pd")
    conformance.judge(request, roles.separate_objects())


@pytest.mark.kvconform_rules("ROLE-14", "META-01")
def test_hooks_leave_the_engines_objects_alone(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Requests, block tables, reference counts and the scheduler output are the engine's."""
    conformance.judge(request, roles.separate_objects())


@pytest.mark.kvconform_rules("ROLE-16")
def test_handshake_metadata_can_be_delivered_again(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """After a wake-up the engine repeats the exchange."""
    conformance.demand("ROLE-16")
    _demand_handshake(conformance)
    conformance.judge(request, roles.handshake_again())
