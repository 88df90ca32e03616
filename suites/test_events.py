"""KV cache events: what a connector tells routers about its store."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import observability


@pytest.mark.kvconform_rules("EVT-01", "EVT-02")
def test_events_are_handed_out_once_and_can_be_published(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """take_events gives the events since the last call, as vLLM's own classes, and forgets them."""
    conformance.demand_capability("events")
    conformance.judge(request, observability.varied())


@pytest.mark.kvconform_rules("EVT-07", "EVT-08")
def test_events_mirror_the_store_and_tell_the_truth_about_blocks(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """One stored event per key, one removal; tokens, parent, LoRA and medium are those of the block."""
    conformance.demand_capability("events")
    conformance.judge(request, observability.varied())


@pytest.mark.kvconform_rules("EVT-03", "EVT-04")
def test_events_of_workers_come_out_of_the_scheduler_role(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Workers hand out KVConnectorKVEvents, and take_events of the scheduler role passes them on."""
    conformance.demand_capability("events")
    conformance.judge(request, observability.varied())
