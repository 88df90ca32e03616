"""Scenario families with several tensor-parallel workers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from kvconform.checks.model import Finding
from kvconform.engine.byte_events import WrongBytes
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions
from kvconform.scenario.family import BLOCK, RUNNERS, Family, store_then_reload
from kvconform.scenario.program import BreakStore, Drain, ForgetLocal, Program

_PROMPTS = [((1, 3 * BLOCK + 1),), ((2, 2 * BLOCK + 5),)]


def _alone(program: Program) -> Program:
    return replace(program, options=replace(program.options, workers=1, late_steps=0))


def _programs(late_steps: int = 0) -> tuple[Program, ...]:
    actions = tuple(store_then_reload(_PROMPTS, 3))
    options = [EngineOptions(runner=runner, workers=2, late_steps=late_steps) for runner in RUNNERS]
    return tuple(Program("workers", each, actions) for each in options)


def _by_bytes(rule: str, _: History, finding: Finding) -> str:
    """Wrong bytes are the situation's; what raises or hangs stays what it is."""
    return rule if isinstance(finding.at, WrongBytes) else finding.rule


def several(rule: str = "SAVE-07") -> Family:
    """Two workers, each with a shard of its own; the control has one."""
    programs = _programs()
    return Family(
        "workers",
        rule,
        programs,
        st.sampled_from(programs),
        "a second worker",
        _alone,
        sort=lambda history, finding: _by_bytes(rule, history, finding),
    )


def one_late() -> Family:
    """Two workers, the second of which completes its transfers some steps later."""
    programs = _programs(late_steps=3)

    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, late_steps=0))

    situation = "a worker that is some steps late"
    return Family(
        "workers, one late", "TP-01", programs, st.sampled_from(programs), situation, control, general=several()
    )


def shard_lost() -> Family:
    """Every second file is gone when the load is asked for: with a file for each rank's part, one rank's."""
    first, second = _PROMPTS
    actions = (
        *store_then_reload([first]), Drain(), *store_then_reload([second], first=1)[:2],
        ForgetLocal(), BreakStore("removed", 2), *store_then_reload([second], first=1)[3:], Drain(),
    )  # fmt: skip
    programs = tuple(
        Program("a shard lost", EngineOptions(runner=runner, workers=2, load_failure_policy="fail"), actions)
        for runner in RUNNERS
    )

    def control(program: Program) -> Program:
        return replace(program, actions=tuple(a for a in program.actions if not isinstance(a, BreakStore)))

    return Family(
        "a shard lost",
        "TP-11",
        programs,
        st.sampled_from(programs),
        "a worker whose part is gone",
        control,
        sort=lambda history, finding: _by_bytes("TP-11", history, finding),
        general=several(),
    )
