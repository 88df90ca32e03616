"""Saves: at the end of every step, beyond it, repeated, and looked for before they are done."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import finish, saving, transfer

ALWAYS = ("LOAD-01", "LOAD-03", "LIVE-01", "LIVE-02", "LIVE-03")

pytestmark = pytest.mark.kvconform_rules(*ALWAYS)


@pytest.mark.kvconform_rules("SAVE-05")
def test_step_without_a_saved_layer_ends_like_any_other(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """wait_for_save returns normally also when nothing is to be saved and save_kv_layer was not called."""
    conformance.judge(request, transfer.full_graph())


@pytest.mark.kvconform_rules("SAVE-02", "ASYNC-17")
def test_save_that_outlives_its_step_keeps_its_source_blocks(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A save that continues after wait_for_save holds its source blocks until it has read them."""
    conformance.demand_capability("async-save")
    conformance.judge(request, finish.blocks_handed_on())


@pytest.mark.kvconform_rules("SAVE-06")
def test_prefix_stored_again_stays_what_it_was(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Storing the same prefix again, by several requests at once, changes nothing for readers."""
    conformance.judge(request, saving.stored_again())


@pytest.mark.kvconform_rules("SAVE-08")
def test_prefix_is_matched_only_when_it_is_complete(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """A stored prefix is matched only when all its blocks are complete."""
    conformance.judge(request, saving.looked_for_at_once())
