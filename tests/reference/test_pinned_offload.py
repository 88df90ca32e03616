"""PinnedOffloadConnector on the CPU, where every copy is done when it is queued: pools of any size, resets, aborts.

What its events are for is tested on a simulated device, in tests/device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvconform.checks import Examination
from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.scenario import asynchronous, reset, saving, transfer
from kvconform.scenario.exploration import Refused
from kvconform.scenario.program import Program
from kvconform.target import parse_target

SPEC = "kvconform.reference.pinned_offload:PinnedOffloadConnector"
WAYS = pytest.mark.parametrize("synchronous", [False, True], ids=["asynchronous", "synchronous"])


def played(program: Program, **options: Any) -> Examination:
    target = parse_target(SPEC, Path.cwd())
    # Without the preset, whose settings would win.
    config = RunConfig(connector=(SPEC,), kv_connector_extra_config=options)
    return Conformance(target, config).examine(program)


@WAYS
@pytest.mark.parametrize("capacity", [1, 3, 64])
def test_a_pool_of_any_size_keeps_every_rule(capacity: int, synchronous: bool) -> None:
    for family in (transfer.reload(), transfer.preemption(), saving.preempted_saves(), asynchronous.aborted_loads()):
        examination = played(family.examples[0], capacity_blocks=capacity, synchronous_loads=synchronous)
        assert examination.findings == ()
        if capacity == 64:
            assert examination.witnesses["LOAD-01"]["external tokens compared"] > 0


@WAYS
def test_loads_are_asynchronous_unless_the_option_says_otherwise(synchronous: bool) -> None:
    program = asynchronous.loads_at_once().examples[0]
    seen = played(program, capacity_blocks=64, synchronous_loads=synchronous).capabilities
    assert (seen["sync-load"] > 0, seen["async-load"] > 0) == (synchronous, not synchronous)


@WAYS
def test_a_reset_empties_the_pool_and_it_fills_again(synchronous: bool) -> None:
    examination = played(reset.between_steps().examples[0], capacity_blocks=64, synchronous_loads=synchronous)
    assert examination.findings == ()
    assert examination.witnesses["RST-07"]["prompts found again after a reset"] > 0


def test_several_workers_publish_what_all_of_them_have() -> None:
    from kvconform.scenario import workers

    examination = played(workers.several().examples[0], capacity_blocks=64)
    assert examination.findings == ()
    assert examination.witnesses["LOAD-01"]["external tokens compared"] > 0


def test_a_pool_without_room_is_refused() -> None:
    with pytest.raises(Refused, match="PinnedOffloadConnector needs room for at least one block"):
        played(transfer.reload().examples[0], capacity_blocks=0)
