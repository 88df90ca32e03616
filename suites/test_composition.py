"""Below MultiConnector: two connectors are asked, one of them loads, both save, and each minds its own business."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.engine.options import Place
from kvconform.scenario import composition

ALWAYS = ("LOAD-01", "LIVE-01", "LIVE-02", "LIVE-03")

pytestmark = pytest.mark.kvconform_rules(*ALWAYS)


@pytest.mark.kvconform_rules("MUL-10", "MUL-07")
def test_child_copes_with_a_sibling_that_is_chosen_before_it(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A child copes with a positive answer that nothing follows."""
    conformance.judge(request, composition.reload("last"))


@pytest.mark.kvconform_rules("MUL-02")
@pytest.mark.parametrize("place", composition.PLACES)
def test_child_reports_its_own_transfers_only(
    conformance: Conformance, request: pytest.FixtureRequest, place: Place
) -> None:
    """A child reports only completions of requests that it loads or saves itself."""
    conformance.demand_capability("async-load" if place == "first" else "async-save")
    conformance.judge(request, composition.reload(place))


@pytest.mark.kvconform_rules("MUL-06")
def test_child_reports_failures_of_its_own_loads_only(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Only the child that loads a request reports failed blocks or failed_recving for it."""
    conformance.demand_capability("failure-report")
    conformance.judge(request, composition.failed_loads("last"))


@pytest.mark.kvconform_rules("STAT-06")
def test_statistics_of_a_child_are_known_to_the_front_end(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """MultiConnector finds its children's classes by their registered names, and metrics of those that count."""
    conformance.demand_capability("stats")
    conformance.judge(request, composition.reload("first"))


@pytest.mark.kvconform_rules("MUL-04")
def test_handshake_metadata_of_another_class_is_ignored(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A child ignores handshake metadata that is not its own."""
    conformance.judge(request, composition.beside_a_stranger())


@pytest.mark.kvconform_rules("MUL-12")
def test_child_copes_with_parameters_that_a_sibling_has_changed(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A child copes with kv_transfer_params that a sibling has changed since it last looked."""
    conformance.judge(request, composition.beside_a_stranger())
