"""The end of an engine: shut down early, twice, or killed, and what the next one finds."""

from __future__ import annotations

import pytest

from kvconform.checks import signature
from kvconform.conformance import Conformance
from kvconform.scenario import shutdown


@pytest.mark.kvconform_rules("SHUT-02", "SHUT-04", "SHUT-05")
def test_engine_can_be_shut_down_amid_transfers(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """shutdown returns in any state, and what was being saved is completed or discarded as a whole."""
    conformance.judge(request, shutdown.in_flight())


@pytest.mark.kvconform_rules("SHUT-02")
def test_fresh_instance_can_be_shut_down(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """shutdown works before register_kv_caches and without bound metadata, as after a failed start."""
    seen = conformance.observation
    witnesses = {"SHUT-02": {"fresh instances shut down": signature.fresh_calls(seen, "shutdown")}}
    findings = signature.fresh_hooks(seen, {"shutdown": "SHUT-02"})
    conformance.conclude(request, findings, witnesses, f"no instance could be built: {seen.obstacle}")


@pytest.mark.kvconform_rules("SHUT-06", "SHUT-05")
def test_second_shutdown_does_nothing(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Finalisers and error paths may call shutdown again."""
    conformance.judge(request, shutdown.twice())


@pytest.mark.kvconform_rules("SHUT-03", "SHUT-08")
def test_new_engine_works_on_what_a_killed_one_has_left(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The store is consistent without a shutdown, and nothing that was left behind prevents a new start."""
    conformance.demand_capability("persistence")
    conformance.judge(request, shutdown.killed())
