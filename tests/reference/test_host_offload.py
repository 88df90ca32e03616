"""HostOffloadConnector on the kit's engine: small pools, broken loads, resets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvconform.checks import Examination
from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.scenario import composition, failures, observability, reset, transfer
from kvconform.scenario.program import Program
from kvconform.target import parse_target

SPEC = "kvconform.reference.host_offload:HostOffloadConnector"


def played(program: Program, **options: Any) -> Examination:
    target = parse_target(SPEC, Path.cwd())
    # Without the preset, whose settings would win.
    config = RunConfig(connector=(SPEC,), kv_connector_extra_config=options)
    return Conformance(target, config).examine(program)


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("family", ["reload", "preemption", "varied"])
def test_a_pool_of_any_size_keeps_every_rule(family: str, capacity: int) -> None:
    make = {"reload": transfer.reload, "preemption": transfer.preemption, "varied": observability.varied}[family]
    examination = played(make().examples[0], capacity_blocks=capacity)
    assert examination.findings == ()
    if capacity == 64:
        assert examination.witnesses["LOAD-01"]["external tokens compared"] > 0


def test_statistics_and_events_of_multi_connector_are_not_those_of_its_child() -> None:
    """MultiConnector's reduce gives a table per child (STAT-07), and both children announce a block (EVT-07)."""
    assert played(composition.reload("first").examples[0]).findings == ()


def test_failed_loads_are_reported_and_the_next_ones_work(tmp_path: Path) -> None:
    examination = played(failures.failed_loads("recompute").examples[0], health_file="{dir}/health")
    assert examination.findings == ()
    assert examination.witnesses["FAIL-03"]["failed synchronous loads reported"] == 1
    assert examination.witnesses["FAIL-11"]["requests that went on after a failed load"] == 1


def test_events_and_statistics_of_both_roles_come_out() -> None:
    witnesses = played(observability.varied().examples[0], capacity_blocks=4).witnesses
    assert witnesses["EVT-07"]["blocks named by events"] > 4
    assert witnesses["STAT-02"]["statistics of the scheduler role"] > 0
    assert witnesses["STAT-03"]["statistics rebuilt in the front-end"] > 0


def test_a_reset_empties_the_pool_and_it_fills_again() -> None:
    examination = played(reset.between_steps().examples[0], capacity_blocks=64)
    assert examination.findings == ()
    assert examination.witnesses["RST-07"]["prompts found again after a reset"] > 0


def test_a_capacity_in_bytes_is_counted_in_whole_blocks() -> None:
    # 2 layers of 16 tokens x 2 heads x (8 + 8) x 2 bytes are 2048 bytes.
    assert played(transfer.reload().examples[0], capacity_bytes=4 * 2048).findings == ()


@pytest.mark.parametrize("options", [{"capacity_blocks": 0}, {"capacity_bytes": 7}], ids=str)
def test_a_pool_without_room_is_refused(options: dict[str, int]) -> None:
    from kvconform.scenario.exploration import Refused

    with pytest.raises(Refused, match="room for at least one block"):
        played(transfer.reload().examples[0], **options)
