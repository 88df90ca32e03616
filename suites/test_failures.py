"""Load failures: what a connector does when its store breaks under it, and what the engine makes of the report.

The kit breaks whatever the connector keeps in the directory that ``{dir}`` stands for, or has it broken by the class
that the configuration names under ``faults``. Without either a connector can't be made to fail; its rules
stay inconclusive.
"""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import failures

ALWAYS = ("LOAD-03", "ALLOC-02", "LIVE-01", "LIVE-02", "LIVE-03")

pytestmark = pytest.mark.kvconform_rules(*ALWAYS)


@pytest.mark.kvconform_rules("FAIL-20", "SAVE-04")
def test_load_from_a_broken_store_is_reported(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """A load that failed or came up short is reported as failed, never as received without an error."""
    conformance.judge(request, failures.failed_loads("recompute"))


@pytest.mark.kvconform_rules("FAIL-01", "FAIL-04", "FAIL-07")
def test_reported_blocks_are_those_that_the_load_was_to_fill(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Each failed block is reported once, and only blocks that the load was to fill, none of a local hit."""
    conformance.demand_capability("failure-report")
    conformance.judge(request, failures.behind_local_hits())


@pytest.mark.kvconform_rules("FAIL-03", "FAIL-11", "FAIL-12", "FAIL-20")
def test_failed_synchronous_load_is_reported_in_its_step_and_recomputed(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The report comes in the step that loads; the request keeps its blocks and computes the range in the next."""
    conformance.demand_capability("failure-report")
    conformance.demand_capability("sync-load")
    conformance.judge(request, failures.failed_loads("recompute"))


@pytest.mark.kvconform_rules("FAIL-02", "FAIL-10", "FAIL-20")
def test_failed_asynchronous_load_is_reported_with_its_end_and_not_promised_for_ever(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The report comes with finished_recving at the latest, and the next query does not promise the same again."""
    conformance.demand_capability("failure-report")
    conformance.demand_capability("async-load")
    conformance.judge(request, failures.failed_loads("recompute"))


@pytest.mark.kvconform_rules("FAIL-06", "FAIL-08", "FAIL-20")
def test_load_from_a_broken_store_fails_its_request_where_that_is_the_policy(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Failure reports are right under both values of kv_load_failure_policy."""
    conformance.demand_capability("failure-report")
    conformance.judge(request, failures.failed_loads("fail"))


@pytest.mark.kvconform_rules("FAIL-09")
def test_request_that_fails_before_its_load_has_ended_is_still_reported_as_received(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """finished_recving comes also for a request that failed before its asynchronous load had ended."""
    conformance.demand_capability("failure-report")
    conformance.demand_capability("async-load")
    conformance.judge(request, failures.failed_loads("fail"))


@pytest.mark.kvconform_rules("LIVE-05", "FAIL-20")
def test_store_that_never_answers_delays_nothing_for_ever(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Each wait for a backend that never answers ends in bounded time: as no match, failed load or dropped save."""
    conformance.demand_faults("keep a store from answering")
    conformance.judge(request, failures.silent_store())


@pytest.mark.kvconform_rules("FAIL-16", "SAVE-16")
def test_save_that_fails_is_dropped_quietly(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """A failed save only makes later matches smaller: it is neither raised nor reported as a load error."""
    conformance.judge(request, failures.refused_saves())
