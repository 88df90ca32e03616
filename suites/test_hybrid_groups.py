"""Several KV cache groups: one block table per group, windows, null blocks, block sizes that differ."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import hybrid


@pytest.mark.kvconform_rules("HMA-02")
def test_models_with_several_groups_get_the_stored_bytes(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A SupportsHMA connector works with several KV cache groups, for whatever groups kv_cache_config lists."""
    conformance.demand_capability("hma")
    conformance.judge(request, hybrid.several_groups())


@pytest.mark.kvconform_rules("HMA-03")
def test_blocks_are_transferred_through_the_layers_of_their_group(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Groups share one id space and the same memory: a block id means its own group's layers."""
    conformance.demand_capability("hma")
    conformance.judge(request, hybrid.several_groups())


@pytest.mark.kvconform_rules("HMA-04")
def test_null_blocks_are_neither_stored_nor_loaded(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Null blocks stand for tokens outside the window, and keep their place in the list."""
    conformance.demand_capability("hma")
    conformance.judge(request, hybrid.several_groups())


@pytest.mark.kvconform_rules("HMA-05")
def test_hit_brings_the_whole_window_before_its_end(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """A match at some boundary needs the window before it in sliding-window groups, from a position inside a block."""
    conformance.demand_capability("hma")
    conformance.judge(request, hybrid.several_groups())


@pytest.mark.kvconform_rules("HMA-08", "HMA-02")
def test_groups_of_different_block_sizes_get_the_stored_bytes(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Tokens are converted to blocks with the block size of each group's own spec."""
    conformance.demand_capability("hma")
    conformance.judge(request, hybrid.two_block_sizes())


@pytest.mark.kvconform_rules("HMA-11")
def test_block_that_a_window_gives_away_is_saved_before_others_have_it(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A save that was put off reads a window block only while it still holds that token range."""
    conformance.demand_capability("hma")
    conformance.judge(request, hybrid.window_blocks_handed_on())


@pytest.mark.kvconform_rules("FAIL-15", "FAIL-05")
def test_failed_load_of_several_groups_is_not_taken_for_a_success(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Where a failed load can't be reported the worker raises; it never names blocks, which mean nothing there."""
    conformance.demand_capability("hma")
    conformance.judge(request, hybrid.broken_store())
