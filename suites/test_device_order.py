"""The order of work on the device: copies on other streams wait for the engine's kernels, and the engine for them.

On a GPU the host is ahead: when a hook is called, the kernels of the step are queued and have not run. A connector that
copies on a stream of its own has to order its copies on the device. These tests make the device slow where a missing
wait would go unnoticed on a fast one, so that it shows every time. On the CPU there is one order only, and the rules
are not applicable.
"""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import device_order


@pytest.mark.kvconform_rules("SAVE-14")
def test_saves_wait_for_the_kernels_that_write_their_blocks(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """On the device a save reads its blocks only after the kernels that write them have run."""
    conformance.demand_streams()
    conformance.judge(request, device_order.saves_behind_kernels())


@pytest.mark.kvconform_rules("LOAD-12")
def test_loads_wait_for_the_kernels_that_clear_their_blocks(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """On the device a load writes a block only after all work that still clears that block."""
    conformance.demand_streams()
    conformance.demand_capability("hma")
    conformance.demand_capability("sync-load")
    conformance.judge(request, device_order.loads_behind_clears())


@pytest.mark.kvconform_rules("LOAD-12")
def test_loads_are_in_place_before_the_first_kernel_reads_them(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """On the device a load has written its blocks before the first kernel that reads the loaded tokens."""
    conformance.demand_streams()
    conformance.judge(request, device_order.loads_before_readers())


@pytest.mark.kvconform_rules("PRE-02")
def test_blocks_are_not_given_away_under_a_copy_that_reads_them(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """When handle_preemptions returns, no asynchronous read from blocks that this step takes away is running."""
    conformance.demand_streams()
    conformance.judge(request, device_order.slow_saves())
