"""The order of calls: hooks that come more often, less often, earlier or later than one expects."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import asynchronous, order


@pytest.mark.kvconform_rules("ORDER-01")
def test_allocation_without_a_match_in_its_step_is_taken(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A request whose asynchronous load has ended is allocated without a new match, with 0 external tokens."""
    conformance.demand_capability("async-load")
    conformance.judge(request, asynchronous.loads_at_once())


@pytest.mark.kvconform_rules("ORDER-15")
def test_completion_in_the_step_in_which_a_request_ends_is_taken(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Requests are finished before the workers' reports of the same step are applied."""
    conformance.demand_capability("async-load")
    conformance.judge(request, asynchronous.aborted_as_they_arrive())


@pytest.mark.kvconform_rules("ORDER-02")
def test_metadata_is_returned_for_steps_without_tokens(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """build_connector_meta returns a metadata object in every step, also when nothing is scheduled."""
    conformance.judge(request, order.plain("ORDER-02"))


@pytest.mark.kvconform_rules("ORDER-03")
def test_match_that_is_asked_in_every_step_does_no_harm(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A match can be asked any number of times before the allocation, and also with no allocation ever following."""
    conformance.judge(request, order.asked_again())


@pytest.mark.kvconform_rules("ORDER-05")
def test_allocation_of_no_external_token_is_taken(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """The engine calls update_state_after_alloc for every admission, also of a request that nothing is loaded for."""
    conformance.judge(request, order.plain("ORDER-05"))


@pytest.mark.kvconform_rules("ORDER-07")
def test_connector_works_in_the_order_of_model_runner_v1(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Preemptions, bind, loads, layer hooks, wait_for_save, transfer results, load errors, events, clear."""
    conformance.judge(request, order.model_runner("v1", "ORDER-07"))


@pytest.mark.kvconform_rules("ORDER-08")
def test_layer_hooks_work_before_loads_are_started(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """In a step without synchronous loads, loads are started after the forward."""
    conformance.judge(request, order.loads_after_the_forward())


@pytest.mark.kvconform_rules("ORDER-09")
def test_start_load_kv_returns_when_there_is_nothing_to_load(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """It is called in every step, idle ones included, with or without attention metadata."""
    conformance.judge(request, order.plain("ORDER-09"))


@pytest.mark.kvconform_rules("ORDER-10")
def test_connector_works_in_the_order_of_model_runner_v2(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """finish_forward follows the layer hooks; late loads, wait_for_save, results and clear come after sampling."""
    conformance.judge(request, order.model_runner("v2", "ORDER-10"))


@pytest.mark.kvconform_rules("ORDER-11")
def test_preemptions_are_handled_before_metadata_is_bound(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """handle_preemptions works from its argument alone."""
    conformance.judge(request, order.preemptions_before_binding())


@pytest.mark.kvconform_rules("ORDER-13")
def test_step_without_tokens_passes_through_all_hooks(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """No forward takes place, no layer hook is called, and everything else is."""
    conformance.judge(request, order.plain("ORDER-13"))


@pytest.mark.kvconform_rules("ORDER-17")
def test_abort_between_execution_and_results_is_accepted(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """request_finished comes between a step's metadata and its output, when the workers have run the step."""
    conformance.judge(request, order.aborted_during_a_step())


@pytest.mark.kvconform_rules("ORDER-18")
def test_connector_works_when_the_scheduler_runs_ahead(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """build_connector_meta of later steps may come before update_connector_output of an earlier one."""
    conformance.judge(request, order.scheduled_ahead())


@pytest.mark.kvconform_rules("ORDER-19")
def test_worker_accepts_finished_ids_that_it_has_never_seen(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A request that is aborted before it was scheduled is in finished_req_ids as well."""
    conformance.judge(request, order.never_scheduled())


@pytest.mark.kvconform_rules("ORDER-20")
def test_connector_tells_whether_metadata_is_bound(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """has_connector_metadata is true after bind_connector_metadata and false after clear_connector_metadata."""
    conformance.judge(request, order.plain("ORDER-20"))


@pytest.mark.kvconform_rules("ORDER-21")
def test_step_whose_forward_raised_is_ended(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Model runner V1 runs the closing hooks in a finally block, when some layer hooks were never called."""
    conformance.judge(request, order.forward_that_raises())


@pytest.mark.kvconform_rules("ORDER-26")
def test_load_is_complete_without_attention_metadata(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """With full CUDA graphs start_load_kv finds no attention metadata, and no layer hook follows."""
    conformance.judge(request, order.graphs_without_attention_metadata())


@pytest.mark.kvconform_rules("ORDER-27")
def test_metadata_is_bound_over_that_of_an_earlier_step(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """bind_connector_metadata replaces what is still bound: clear_connector_metadata may have been left out."""
    conformance.judge(request, order.never_cleared())
