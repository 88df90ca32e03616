"""Several workers: each holds a shard of every block, and they report independently of each other."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.outcomes import NotApplicable
from kvconform.scenario import workers


def _demand_any(conformance: Conformance, *capabilities: str) -> None:
    refusals = []
    for name in capabilities:
        try:
            conformance.demand_capability(name)
        except NotApplicable as refusal:
            refusals.append(refusal)
    if len(refusals) == len(capabilities):
        raise refusals[0]


@pytest.mark.kvconform_rules("SAVE-07")
def test_every_worker_gets_its_own_shard_back(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Every worker stores and loads its own shard: the same tokens have other bytes on another rank."""
    conformance.judge(request, workers.several())


@pytest.mark.kvconform_rules("TP-01")
def test_completions_are_counted_from_as_many_workers_as_report_them(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """get_finished_count returns None, or exactly the number of workers that will report each completion."""
    _demand_any(conformance, "async-load", "async-save")
    conformance.judge(request, workers.several())


@pytest.mark.kvconform_rules("TP-01")
def test_completions_are_counted_when_a_worker_is_late(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Workers finish their transfers in different steps: the last vote completes one."""
    _demand_any(conformance, "async-load", "async-save")
    conformance.judge(request, workers.one_late())


@pytest.mark.kvconform_rules("ASYNC-14")
def test_every_worker_reports_every_completion(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Every worker that is counted reports each completion once for itself."""
    _demand_any(conformance, "async-load", "async-save")
    conformance.judge(request, workers.several("ASYNC-14"))


@pytest.mark.kvconform_rules("TP-04")
def test_statistics_of_all_workers_are_of_one_class(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """The aggregator asserts the class."""
    conformance.demand_capability("stats")
    conformance.judge(request, workers.several())


@pytest.mark.kvconform_rules("TP-05")
def test_worker_metadata_is_aggregated_without_loss(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """aggregate returns one object with everything both operands hold, in whatever order."""
    conformance.demand_capability("worker-meta")
    conformance.judge(request, workers.several())


@pytest.mark.kvconform_rules("TP-10")
def test_reports_that_carry_something_are_true(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Statistics, events and worker metadata that are false are dropped on the way to the scheduler."""
    _demand_any(conformance, "stats", "events", "worker-meta")
    conformance.judge(request, workers.several())


@pytest.mark.kvconform_rules("TP-11")
def test_hit_counts_only_blocks_that_all_workers_have(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """A part that one worker lost is a miss, or a load failure that is reported."""
    conformance.judge(request, workers.shard_lost())
