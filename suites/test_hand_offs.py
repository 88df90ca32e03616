"""What other chapters ask of a store, asked of a connector that hands off: two engines are in the situation instead."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.engine.options import Place, Runner
from kvconform.scenario import hand_off_situations as situations
from kvconform.scenario import hand_off_transfers as transfers
from kvconform.scenario import layouts
from kvconform.scenario.failures import Policy
from kvconform.scenario.family import Family

ALWAYS = ("LOAD-01", "LOAD-03", "LIVE-01", "LIVE-02", "LIVE-03")

pytestmark = pytest.mark.kvconform_rules(*ALWAYS)


def judge(conformance: Conformance, request: pytest.FixtureRequest, family: Family) -> None:
    """Judge a connector that hands off."""
    conformance.demand_capability("pd")
    conformance.judge(request, family)


# -- pages -------------------------------------------------------------------------------------------------------------


@pytest.mark.kvconform_rules("LAY-03")
@pytest.mark.parametrize("layout", ["BLHNC", "LHBNC"])
def test_pages_of_another_layout_are_handed_off(
    conformance: Conformance, request: pytest.FixtureRequest, layout: str
) -> None:
    """What arrives is right whatever the physical order of the pages."""
    judge(conformance, request, situations.pages(layouts.layout(layout)))


@pytest.mark.kvconform_rules("LAY-13")
@pytest.mark.parametrize("dtype", ["bfloat16", "uint8"])
def test_pages_of_another_dtype_are_handed_off(
    conformance: Conformance, request: pytest.FixtureRequest, dtype: str
) -> None:
    """KV is handed off as bytes, whatever the dtype, and never converted."""
    judge(conformance, request, situations.pages(layouts.dtype(dtype)))


@pytest.mark.kvconform_rules("LAY-15")
def test_pages_with_k_and_v_of_different_widths_are_handed_off(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """K and V may differ in width, on either side."""
    judge(conformance, request, situations.pages(layouts.head_widths()))


@pytest.mark.kvconform_rules("LAY-14")
def test_latents_of_an_mla_cache_are_handed_off(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """An MLA cache has one latent per token, with no separate K and V."""
    judge(conformance, request, situations.pages(layouts.mla()))


@pytest.mark.kvconform_rules("LAY-12")
def test_padded_pages_are_handed_off(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Padding between pages belongs to no token."""
    judge(conformance, request, situations.pages(layouts.padded_pages()))


@pytest.mark.kvconform_rules("LAY-10")
def test_pages_of_several_kernel_blocks_are_handed_off(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Both sides translate the scheduler's block ids where the registered tensors count smaller blocks."""
    judge(conformance, request, situations.pages(layouts.kernel_blocks()))


# -- engines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "runner",
    [
        pytest.param("v1", marks=pytest.mark.kvconform_rules("ORDER-07")),
        pytest.param("v2", marks=pytest.mark.kvconform_rules("ORDER-10")),
    ],
)
def test_hand_off_works_in_the_order_of_hooks_of_either_model_runner(
    conformance: Conformance, request: pytest.FixtureRequest, runner: Runner
) -> None:
    """Producer and consumer keep to their model runner's order of calls, whichever it is."""
    rule = "ORDER-07" if runner == "v1" else "ORDER-10"
    judge(conformance, request, situations.model_runner(runner, rule))


@pytest.mark.kvconform_rules("ROLE-05")
def test_hand_off_works_between_roles_that_exchange_copies(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """What a worker changes in the objects that it is given is seen by nobody."""
    judge(conformance, request, situations.separate_objects())


@pytest.mark.kvconform_rules("ROLE-05")
def test_hand_off_works_between_roles_that_share_objects(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The in-process executor hands the very objects over."""
    judge(conformance, request, situations.same_objects())


@pytest.mark.kvconform_rules("SAVE-07", "TP-01", "ASYNC-14")
def test_every_worker_hands_off_its_own_shard(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """The same tokens have other bytes on another rank; each rank loads, and reports, its own."""
    judge(conformance, request, situations.several_workers())


@pytest.mark.kvconform_rules("TP-01", "ASYNC-14")
def test_hand_off_is_complete_when_the_last_worker_says_so(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Workers finish their transfers in different steps: the last vote completes one."""
    judge(conformance, request, situations.one_worker_late())


@pytest.mark.kvconform_rules("MUL-12", "MUL-04", "MUL-07")
def test_hand_off_works_beside_a_sibling_that_changes_the_parameters(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A child copes with kv_transfer_params that a sibling has changed since it last looked."""
    judge(conformance, request, situations.beside_a_stranger())


@pytest.mark.kvconform_rules("MATCH-20")
def test_hand_off_does_not_depend_on_local_prefix_caching(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Block hashes are there with prefix caching switched off, and nothing is ever found locally."""
    judge(conformance, request, situations.without_local_cache())


# -- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.kvconform_rules("META-07")
def test_prompt_computed_in_prefill_chunks_is_handed_off_whole(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A step of the producer may hold only a part of the prompt."""
    judge(conformance, request, situations.chunked_prefill())


@pytest.mark.kvconform_rules("MATCH-17")
def test_hand_offs_of_the_same_tokens_that_differ_otherwise_are_told_apart(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Adapters, salts and the tokens before a block make other KV of the same tokens."""
    judge(conformance, request, situations.look_alikes())


@pytest.mark.kvconform_rules("META-02")
def test_load_from_a_producer_is_handed_out_once(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Whoever gets the blocks of a load after it finds nothing written into them."""
    judge(conformance, request, situations.blocks_passed_on())


@pytest.mark.kvconform_rules("PRE-01")
def test_request_that_was_preempted_on_either_side_is_handed_off_right(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """State kept for a preempted request starts over: other block ids on the producer, a new query on the consumer."""
    judge(conformance, request, situations.preemption())


@pytest.mark.kvconform_rules("PRE-08")
def test_all_requests_of_a_producer_may_be_preempted_at_once(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The connector copes with all running requests being preempted and resumed in the next step."""
    judge(conformance, request, situations.all_preempted())


@pytest.mark.kvconform_rules("SIG-15")
def test_dummy_runs_of_both_engines_do_not_disturb_a_hand_off(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The worker role keeps its state while the connector is out of the process-wide slot."""
    judge(conformance, request, situations.dummy_runs())


# -- transfers under way -----------------------------------------------------------------------------------------------


@pytest.mark.kvconform_rules("ASYNC-13", "ASYNC-02")
def test_hand_offs_under_way_at_once_are_each_loaded_and_reported(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Several requests with the same prefix may be loading at once, and only ids that the engine knows are reported."""
    judge(conformance, request, transfers.loads_at_once())


@pytest.mark.kvconform_rules("ORDER-15")
def test_hand_off_that_arrives_in_the_step_in_which_its_request_ends_is_taken(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Requests are finished before the workers' reports of the same step are applied."""
    judge(conformance, request, transfers.aborted_as_they_arrive())


@pytest.mark.kvconform_rules("ASYNC-22")
def test_id_used_again_owes_nothing_to_an_earlier_hand_off(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A completion that belongs to an earlier life of a request is not credited to the current one, on either side."""
    judge(conformance, request, transfers.ids_used_again())


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param("recompute", marks=pytest.mark.kvconform_rules("FAIL-10", "ASYNC-16")),
        pytest.param("fail", marks=pytest.mark.kvconform_rules("FAIL-09")),
    ],
)
def test_hand_off_that_fails_is_reported_with_its_end_and_not_promised_for_ever(
    conformance: Conformance, request: pytest.FixtureRequest, policy: Policy
) -> None:
    """A failed load ends with its report, whether its request goes on or fails, and is not tried for ever."""
    judge(conformance, request, transfers.failed_loads(policy))


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("first", marks=pytest.mark.kvconform_rules("MUL-02")),
        pytest.param("last", marks=pytest.mark.kvconform_rules("MUL-02", "MUL-10")),
    ],
)
def test_child_that_hands_off_reports_its_own_transfers_only(
    conformance: Conformance, request: pytest.FixtureRequest, place: Place
) -> None:
    """A child reports only completions of its own loads and holds, also where a sibling loads in its stead."""
    judge(conformance, request, transfers.beside_a_store(place))
