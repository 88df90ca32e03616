"""Preemption: blocks are taken away in the middle, and the request comes back with others."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import asynchronous, saving

ALWAYS = ("LOAD-01", "LOAD-03", "LIVE-01", "LIVE-02", "LIVE-03")

pytestmark = pytest.mark.kvconform_rules(*ALWAYS)


@pytest.mark.kvconform_rules("PRE-02")
def test_saves_from_blocks_that_a_preemption_gives_away_are_over_in_handle_preemptions(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """When handle_preemptions returns, no asynchronous read from blocks that this step takes away is running."""
    conformance.judge(request, saving.preempted_saves())


@pytest.mark.kvconform_rules("PRE-08")
def test_all_running_requests_may_be_preempted_between_two_steps(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The connector copes with all running requests being preempted and resumed in the next step."""
    conformance.judge(request, asynchronous.all_preempted())


@pytest.mark.kvconform_rules("ASYNC-18")
def test_scheduler_short_of_blocks_is_not_put_off_for_ever(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """has_pending_block_frees is True only while transfers are under way that will release blocks."""
    conformance.judge(request, saving.preempted_saves())
