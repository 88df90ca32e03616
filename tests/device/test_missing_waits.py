"""The scenarios about order on a device, on the simulated one: each missing wait is found, every time, and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matrix_entries import Entry, read_entries

from kvconform.checks import Examination
from kvconform.scenario import device_order
from kvconform.scenario.exploration import Budget, Explorer, Outcome
from kvconform.scenario.family import Family
from kvconform.scenario.program import Program

#: The fixture on_simulated_device.
Trial = Callable[[str, dict[str, Any], Program], Examination]
FAMILIES = (
    device_order.saves_behind_kernels(),
    device_order.loads_behind_clears(),
    device_order.loads_before_readers(),
    device_order.slow_saves(),
)
ENTRIES = [entry for entry in read_entries() if entry.device == "cuda"]


def settings_of(entry: Entry, folder: Path) -> dict[str, Any]:
    """The entry's settings, with the placeholder filled in."""
    return {name: str(folder) if value == "{dir}" else value for name, value in entry.settings.items()}


def explored(trial: Trial, connector: str, settings: dict[str, Any], family: Family) -> Outcome:
    """The fixed examples of a family."""

    def examined(program: Program) -> Examination:
        return trial(connector, settings, program)

    return Explorer(family, frozenset({family.rule}), examined).explore(Budget(0))


def name_of(entry: Entry) -> str:
    """For the test's id."""
    how = "synchronous" if entry.settings.get("synchronous_loads") else "asynchronous"
    return f"{entry.connector.partition(':')[2]}-{how}"


@pytest.mark.parametrize("entry", ENTRIES, ids=name_of)
def test_a_missing_wait_breaks_its_rule_and_the_reference_none(
    entry: Entry, on_simulated_device: Trial, tmp_path: Path
) -> None:
    broken: set[str] = set()
    for family in FAMILIES:
        outcome = explored(on_simulated_device, entry.connector, settings_of(entry, tmp_path / "store"), family)
        broken |= set(outcome.elsewhere)
        if outcome.failed is not None:
            broken |= {finding.rule for finding in outcome.failed[1].findings}
            assert "is right" in outcome.contrast, "the same on a fast device shows nothing"
    assert broken == entry.breaks


@pytest.mark.parametrize("synchronous", [False, True], ids=["asynchronous", "synchronous"])
def test_the_reference_is_seen_in_each_situation_that_one_group_has(
    synchronous: bool, on_simulated_device: Trial
) -> None:
    connector = "kvconform.reference.pinned_offload:PinnedOffloadConnector"
    settings = {"capacity_blocks": 256, "synchronous_loads": synchronous}
    saves, clears, readers, away = (explored(on_simulated_device, connector, settings, each) for each in FAMILIES)
    assert saves.witness("SAVE-14")["saves begun before their kernels had run"] > 0
    assert saves.witness("SAVE-14")["tokens loaded afterwards"] > 0
    assert not clears.witness("LOAD-12")["tokens loaded into blocks that were cleared late"]
    assert readers.witness("LOAD-12")["tokens loaded by slow copies"] > 0
    assert sum(away.witness("PRE-02").values()) > 0


def test_loads_on_a_side_stream_that_wait_find_their_blocks_cleared(on_simulated_device: Trial, tmp_path: Path) -> None:
    settings = {"path": str(tmp_path / "store")}
    outcome = explored(on_simulated_device, "device_order:LoadsOnASideStream", settings, FAMILIES[1])
    assert outcome.failed is None
    assert outcome.elsewhere == {}
    assert outcome.witness("LOAD-12")["tokens loaded into blocks that were cleared late"] > 0
