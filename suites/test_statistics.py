"""Statistics: what a connector counts goes through merging, msgpack and the front-end's log."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import observability


@pytest.mark.kvconform_rules("STAT-01", "STAT-08", "STAT-07", "STAT-10")
def test_statistics_hold_what_happened_since_and_can_be_merged_in_any_order(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A role hands out None or a KVConnectorStats with what happened since the last call; totals need no order."""
    conformance.demand_capability("stats")
    conformance.judge(request, observability.varied())


@pytest.mark.kvconform_rules("STAT-02")
def test_statistics_of_the_worker_take_those_of_the_scheduler_role(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Both roles' objects are merged in every step."""
    conformance.demand_capability("stats")
    conformance.judge(request, observability.varied())


@pytest.mark.kvconform_rules("STAT-05")
def test_prometheus_metrics_are_built_by_the_class_and_take_any_payload(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The front-end builds them without an instance, with metric classes of its own, and keys may be missing."""
    conformance.demand_capability("prom")
    conformance.judge(request, observability.varied())


@pytest.mark.kvconform_rules("STAT-03", "STAT-04")
def test_statistics_are_the_same_in_the_front_end(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """The payload survives msgpack, and build_kv_connector_stats makes an object of it with the same numbers."""
    conformance.demand_capability("stats")
    conformance.judge(request, observability.varied())
