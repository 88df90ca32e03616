"""Two engines: one computes prompts, the other one fetches their KV and decodes."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import hand_offs, producer_consumer
from kvconform.scenario.family import Family

ALWAYS = ("LOAD-01", "LOAD-03", "LIVE-01", "LIVE-02", "LIVE-03")

pytestmark = pytest.mark.kvconform_rules(*ALWAYS)


def judge(conformance: Conformance, request: pytest.FixtureRequest, family: Family) -> None:
    """Judge a connector that hands off."""
    conformance.demand_capability("pd")
    conformance.judge(request, family)


@pytest.mark.kvconform_rules("FIN-12", "MATCH-10", "MATCH-04", "MATCH-05", "ASYNC-01", "ASYNC-05", "ASYNC-07")
def test_prompt_is_handed_off_between_engines_that_know_it_by_different_ids(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Keys that producer and consumer share are not built from the engine-local request id."""
    judge(conformance, request, hand_offs.hand_off())


@pytest.mark.kvconform_rules("ASYNC-04", "ASYNC-06", "ORDER-01")
def test_every_transfer_of_a_hand_off_is_reported_once_by_the_engine_that_waits_for_it(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The consumer is told of loads, the producer of holds; each of its own, and once."""
    judge(conformance, request, hand_offs.hand_off())


@pytest.mark.kvconform_rules("FIN-04", "ROLE-12")
def test_every_request_gets_kv_transfer_params_of_its_own(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The dict returned from request_finished is a new one that the connector does not use afterwards."""
    judge(conformance, request, hand_offs.hand_off())


@pytest.mark.kvconform_rules("LOAD-11", "ALLOC-01", "ALLOC-02")
def test_block_lists_of_different_length_are_paired_by_token_position(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A local hit or a first token makes the lists differ; blocks are paired by token position all the same."""
    judge(conformance, request, producer_consumer.unequal_lists())


@pytest.mark.kvconform_rules("FIN-14")
def test_only_blocks_of_the_prompt_are_handed_off(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """What a producer hands off describes blocks of prompt tokens only, also when its block table goes on."""
    judge(conformance, request, producer_consumer.longer_tables())


@pytest.mark.kvconform_rules("FIN-15", "MATCH-10")
def test_prefill_that_ends_with_a_stop_token_is_handed_off(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A producer hands off every prefill that ended normally, with a stop token just as with the length limit."""
    judge(conformance, request, producer_consumer.stopped())


@pytest.mark.kvconform_rules("PRE-06")
def test_prefill_that_is_preempted_in_its_last_step_is_handed_off(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """requires_kv_delivery is True for a connector that hands blocks of finished requests to a consumer."""
    judge(conformance, request, producer_consumer.preempted_at_the_end())


@pytest.mark.kvconform_rules("ASYNC-08", "ASYNC-07", "ASYNC-12", "FIN-09")
def test_held_blocks_stay_readable_while_the_producer_goes_on(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """While it holds the blocks of a finished request the connector keeps what the hold needs."""
    judge(conformance, request, producer_consumer.producer_goes_on())


@pytest.mark.kvconform_rules("ASYNC-19", "ASYNC-04")
def test_hold_that_nobody_fetches_ends(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """A consumer that never fetches does not keep blocks for ever."""
    judge(conformance, request, producer_consumer.nobody_comes())


@pytest.mark.kvconform_rules("FIN-05")
def test_aborted_prefill_is_held_for_nobody(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """The producer does not rely on returned parameters reaching anyone for aborted requests."""
    judge(conformance, request, producer_consumer.aborted_prefill())


@pytest.mark.kvconform_rules("ASYNC-23", "MATCH-15")
def test_consumer_that_needs_nothing_tells_the_producer(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A consumer that has nothing to transfer in the end still tells the producer to release what it holds."""
    judge(conformance, request, producer_consumer.not_needed())


@pytest.mark.kvconform_rules("ASYNC-09", "ASYNC-01")
def test_load_of_an_aborted_request_is_reported(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """A request that is aborted while it loads from its producer is reported as received, and only so."""
    judge(conformance, request, producer_consumer.aborted_load())


@pytest.mark.kvconform_rules("LIVE-05", "FAIL-01", "FAIL-02", "FAIL-04", "FAIL-06", "FAIL-07", "FAIL-20")
def test_load_from_a_producer_that_is_gone_ends(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """A peer that dies or never answers delays nothing for ever."""
    judge(conformance, request, producer_consumer.producer_gone())


@pytest.mark.kvconform_rules("MATCH-24")
def test_parameters_in_other_words_are_handled(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """kv_transfer_params that are empty, incomplete or carry foreign keys are handled without an exception."""
    conformance.judge(request, producer_consumer.strange_parameters())
