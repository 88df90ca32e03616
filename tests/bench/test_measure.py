"""What is measured of connectors whose speed is known, or of which nothing can be known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvconform.bench.figures import Measured
from kvconform.bench.measure import MADE_UP, NO_HIT, NOT_KNOWN, NOTHING_CAME

if TYPE_CHECKING:
    from conftest import Measure

#: 4 layers x 2 heads x (128 + 128) x 2 bytes x 16 tokens.
BLOCK = 4 * 2 * 256 * 2 * 16


def costs(measured: Measured) -> set[tuple[str, str]]:
    return {(cost.what, cost.when) for cost in (*measured.steps, *measured.hooks)}


@pytest.mark.parametrize("layout", ["LBNHC", "LBHNC", "BLHNC"])
def test_saves_and_loads_of_a_synchronous_connector_are_measured_with_the_bytes_that_came_back(
    measure: Measure, layout: str
) -> None:
    found = measure("FileStoreConnector", "kvconform.reference.file_store", layout, 3)
    assert not found.problem
    assert found.bytes_per_block == BLOCK
    for rate in (found.save, found.load):
        assert (rate.rounds, rate.bytes, rate.note) == (3, 3 * BLOCK, "")
        assert 0 < rate.bytes_per_second < 1e12
        assert rate.share_of_memcpy > 0
    assert (found.memcpy.rounds, found.memcpy.bytes) == (6, 3 * BLOCK)
    assert not found.asynchronous_load
    assert not found.held_for_save
    hooks = ("get_num_new_matched_tokens", "update_state_after_alloc", "build_connector_meta", "request_finished")
    assert costs(found) == {
        *(("worker hooks", when) for when in ("store", "load", "decode")),
        *((hook, when) for hook in hooks for when in ("store", "load")),
        ("build_connector_meta", "decode"),
    }
    counts = {cost.when: cost.count for cost in found.steps}
    assert counts == {"store": 3, "load": 3, "decode": 11}


def test_what_another_case_has_stored_is_stored_anew(measure: Measure, tmp_path: Path) -> None:
    stored = []
    for _ in range(2):
        found = measure("FileStoreConnector", "kvconform.reference.file_store", blocks=3, store=tmp_path)
        assert found.load.bytes == 3 * BLOCK
        stored.append(sum(file.is_file() for file in tmp_path.rglob("*")))
    assert stored[1] == 2 * stored[0] > 0


def test_an_asynchronous_load_ends_when_it_is_reported_and_a_held_save_when_its_blocks_are_free(
    measure: Measure,
) -> None:
    found = measure("AsyncFileStoreConnector", "kvconform.reference.async_file_store")
    assert not found.problem
    assert found.asynchronous_load
    assert found.held_for_save
    assert (found.save.bytes, found.load.bytes) == (2 * BLOCK, 2 * BLOCK)
    assert found.load.rounds == 3


def test_of_a_sliding_window_only_the_blocks_that_it_needs_count(measure: Measure) -> None:
    found = measure("HybridFileStoreConnector", "kvconform.reference.hybrid_file_store", "hybrid", 8)
    assert not found.problem
    assert not found.load.note
    # Two of four layers have all 8 blocks, the window of the others is as long as 4 or 5.
    assert 8 * BLOCK // 2 + 4 * BLOCK // 2 <= found.load.bytes <= 8 * BLOCK // 2 + 5 * BLOCK // 2


def test_hybrid_is_not_measured_where_vllm_gives_the_connector_one_group(measure: Measure) -> None:
    found = measure("FileStoreConnector", "kvconform.reference.file_store", "hybrid")
    assert "SupportsHMA" in found.problem
    assert found.load.rounds == 0


def test_a_connector_that_offers_nothing_has_no_bandwidth_and_its_hooks_have_a_cost(measure: Measure) -> None:
    found = measure("InertConnector", "inert_connector")
    assert (found.load.rounds, found.load.note) == (0, NO_HIT)
    assert (found.save.rounds, found.save.note) == (0, NOT_KNOWN)
    assert ("worker hooks", "decode") in costs(found)
    assert ("worker hooks", "load") not in costs(found)


def test_a_promise_without_a_load_is_not_infinitely_fast(measure: Measure) -> None:
    found = measure("Promises", "planted_speeds")
    assert (found.load.rounds, found.load.bytes_per_second, found.load.note) == (0, 0.0, NOTHING_CAME)
    assert (found.save.rounds, found.save.note) == (0, NOT_KNOWN)


@pytest.mark.parametrize(("capabilities", "saved"), [((), 0), (("dummy-fill",), 0), (("lossy",), 3)])
def test_what_is_made_up_is_a_load_and_proves_no_save_unless_declared_lossy(
    measure: Measure, capabilities: tuple[str, ...], saved: int
) -> None:
    found = measure("MakesUp", "planted_speeds", capabilities=capabilities)
    assert (found.load.rounds, found.load.bytes, found.load.note) == (3, 2 * BLOCK, MADE_UP)
    assert found.save.rounds == saved


def test_a_load_is_as_slow_as_it_is(measure: Measure) -> None:
    found = measure("LoadsSlowly", "planted_speeds")
    (load,) = [cost for cost in found.steps if cost.when == "load"]
    assert load.median >= 0.02
    assert found.load.bytes_per_second <= 2 * BLOCK / 0.02


def test_a_hook_that_raises_ends_the_measurement_in_its_own_words(measure: Measure) -> None:
    found = measure("Raises", "planted_speeds")
    assert found.problem.startswith("OSError: the disk is full")
    assert found.steps == ()


def test_a_set_up_that_is_refused_is_said_so(measure: Measure) -> None:
    found = measure("Refuses", "planted_speeds")
    assert found.problem == "the engine does not start: ValueError: not this layout"


def test_a_save_that_never_ends_is_given_up(measure: Measure) -> None:
    found = measure("NeverSaved", "planted_speeds", transfer_timeout=0.2)
    assert found.problem == "the transfers of store1 did not end within 0.2 s"


def test_a_hook_that_takes_longer_than_the_patience_with_transfers_is_measured(measure: Measure) -> None:
    found = measure("SavesSlowly", "planted_speeds", transfer_timeout=0.05)
    assert not found.problem
    assert 0 < found.save.bytes_per_second <= 2 * BLOCK / 0.1
