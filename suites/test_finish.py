"""The end of requests: in whatever phase it comes, and whoever gets the blocks next."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import finish

ALWAYS = ("LOAD-01", "LOAD-03", "LIVE-01", "LIVE-02", "LIVE-03")

pytestmark = pytest.mark.kvconform_rules(*ALWAYS)


@pytest.mark.kvconform_rules("FIN-01", "FIN-03")
def test_request_may_end_in_any_phase(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """request_finished works for each way in which a request can end, even before its first step."""
    conformance.judge(request, finish.aborts())


@pytest.mark.kvconform_rules("FIN-11", "ORDER-25")
def test_requests_that_leave_early_are_forgotten(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """When a request ends all state kept for it is released, also if it was never asked about."""
    conformance.judge(request, finish.requests_that_leave())


@pytest.mark.kvconform_rules("FIN-09")
def test_blocks_let_go_at_the_end_are_read_no_more_once_they_have_a_new_owner(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Having returned False, the connector reads only pinned blocks, or ends in handle_preemptions."""
    conformance.judge(request, finish.blocks_handed_on())
