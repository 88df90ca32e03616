"""Resets: stored KV goes at once and for good, and nobody who is under way suffers."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.outcomes import NotApplicable
from kvconform.scenario import reset

ALWAYS = ("LOAD-03", "ALLOC-02", "LIVE-01", "LIVE-02", "LIVE-03")

pytestmark = pytest.mark.kvconform_rules(*ALWAYS)


def _demand_reset(conformance: Conformance) -> None:
    shape = conformance.observation.shape
    if shape is None or "reset_cache" not in shape.overrides:
        raise NotApplicable("the connector inherits reset_cache, which does nothing: its store can't be reset")


@pytest.mark.kvconform_rules("RST-02", "RST-01", "RST-07")
def test_reset_store_offers_nothing_from_before_and_everything_from_after(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """After a successful reset nothing stored before is matched, and what is computed again is found again."""
    _demand_reset(conformance)
    conformance.judge(request, reset.between_steps())


@pytest.mark.kvconform_rules("RST-03")
def test_reset_amid_traffic_loses_no_completion(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Transfers in flight still end and are reported once each."""
    _demand_reset(conformance)
    conformance.judge(request, reset.amid_traffic())


@pytest.mark.kvconform_rules("RST-05")
def test_all_hooks_work_while_the_engine_is_paused(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Steps that schedule nothing come with requests that are still loading, running or waiting."""
    conformance.judge(request, reset.paused())


@pytest.mark.kvconform_rules("RST-06")
def test_blocks_pinned_by_the_connector_do_not_stop_a_local_reset(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Blocks that the connector pins in the block pool are released within a bounded number of steps."""
    conformance.demand_capability("async-save")
    conformance.judge(request, reset.paused())
