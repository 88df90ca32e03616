"""Metadata: what build_connector_meta reads from the scheduler output, hands out, and must not keep."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import order


@pytest.mark.kvconform_rules("META-02")
def test_planned_work_is_handed_out_once(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """The metadata of later steps does not repeat a load whose blocks belong to others by then."""
    conformance.judge(request, order.blocks_passed_on())


@pytest.mark.kvconform_rules("META-04")
def test_step_in_which_a_request_gets_no_new_block_is_understood(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """new_block_ids is an addition to the known table, and None there means no new block."""
    conformance.judge(request, order.no_new_blocks())


@pytest.mark.kvconform_rules("META-09")
def test_block_state_of_the_scheduler_is_not_kept(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """kv_connector_block_state is read during build_connector_meta only."""
    conformance.judge(request, order.plain("META-09"))


@pytest.mark.kvconform_rules("META-12")
def test_request_id_that_is_used_again_starts_afresh(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """State of a finished request is dropped once nothing of it is outstanding."""
    conformance.judge(request, order.id_used_again())
