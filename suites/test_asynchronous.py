"""Asynchronous transfers: every load and every hold ends with one report, in time, from every worker.

How long a transfer takes is up to the connector and its storage. Rules about what is under way at a certain moment
stay inconclusive where everything is done within its step.
"""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import asynchronous, failures, finish

ALWAYS = ("LOAD-01", "LOAD-03", "LIVE-01", "LIVE-02", "LIVE-03")

pytestmark = pytest.mark.kvconform_rules(*ALWAYS)


@pytest.mark.kvconform_rules("ASYNC-01", "ASYNC-02", "ASYNC-04", "ASYNC-05", "ASYNC-13")
def test_loads_under_way_at_once_are_each_reported_once_and_with_their_data(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Every request admitted for an asynchronous load appears exactly once in finished_recving, with its data."""
    conformance.demand_capability("async-load")
    conformance.judge(request, asynchronous.loads_at_once())


@pytest.mark.kvconform_rules("ASYNC-03", "ASYNC-15")
def test_worker_reports_sets_of_requests_that_wait_for_it(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """get_finished returns a pair of sets, and finished_recving never names a running or waiting request."""
    conformance.judge(request, asynchronous.loads_at_once())


@pytest.mark.kvconform_rules("ASYNC-09", "ASYNC-01")
def test_request_aborted_while_it_loads_is_reported_as_received_only(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The connector reports finished_recving once the load has really stopped, and never finished_sending."""
    conformance.demand_capability("async-load")
    conformance.judge(request, asynchronous.aborted_loads())


@pytest.mark.kvconform_rules("ASYNC-22", "ASYNC-05")
def test_id_used_again_owes_nothing_to_its_earlier_life(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A completion that belongs to an earlier life of a request is not credited to the current one."""
    conformance.demand_capability("async-load")
    conformance.judge(request, asynchronous.ids_used_again())


@pytest.mark.kvconform_rules("ASYNC-16")
def test_request_reported_as_failed_is_reported_as_received_too(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """An id in failed_recving is also reported in finished_recving."""
    conformance.demand_capability("async-load")
    conformance.demand_capability("failure-report")
    conformance.judge(request, failures.failed_loads("recompute"))


@pytest.mark.kvconform_rules("ASYNC-07", "ASYNC-06", "ASYNC-12")
def test_held_request_is_reported_as_sent_once_and_only_read(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """After request_finished returned True the id is reported in finished_sending exactly once."""
    conformance.demand_capability("delayed-free")
    conformance.judge(request, finish.blocks_handed_on())


@pytest.mark.kvconform_rules("ASYNC-20")
def test_request_with_several_saves_is_reported_after_the_last_of_them(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A request is reported as sent only when all its jobs have ended: every chunk."""
    conformance.demand_capability("delayed-free")
    conformance.judge(request, finish.saves_in_chunks())
