"""Programs whose requests have ids of their own."""

from __future__ import annotations

from typing import get_args

import pytest

from kvconform.scenario.program import (
    Abort,
    AbortDuringStep,
    AbortOnArrival,
    AbortOnceLoading,
    Action,
    Add,
    Drain,
    HandOff,
    Program,
    RequestSpec,
    Turn,
)
from kvconform.scenario.renaming import renamed

FIRST = RequestSpec("first", ((1, 20),), 3)


@pytest.mark.parametrize("kind", [Abort, AbortDuringStep, AbortOnArrival, AbortOnceLoading])
def test_whoever_is_aborted_is_known_by_the_new_id(kind: type[Abort]) -> None:
    program = Program("p", actions=(Add(FIRST), kind("first"), Drain()))
    assert renamed(program, "-x").actions == (Add(RequestSpec("first-x", ((1, 20),), 3)), kind("first-x"), Drain())


def test_earlier_turns_and_hand_offs_are_known_by_the_new_id() -> None:
    turn = RequestSpec("second", ((2, 5),), continues=FIRST)
    program = Program(
        "p", actions=(Add(FIRST), Turn("consumer"), HandOff(turn, of="first")), pair=("kv_both", "kv_both")
    )
    again = renamed(program, "-x")
    assert again.pair == program.pair
    (_, _, hand_off) = again.actions
    assert isinstance(hand_off, HandOff)
    assert hand_off.of == "first-x"
    assert hand_off.request.id == "second-x"
    assert hand_off.request.continues is not None
    assert hand_off.request.continues.id == "first-x"


def test_no_other_action_names_a_request() -> None:
    named = {Add, HandOff, Abort, AbortDuringStep, AbortOnArrival, AbortOnceLoading}
    fields = {kind: set(getattr(kind, "__dataclass_fields__", ())) for kind in get_args(Action)}
    assert {kind for kind, names in fields.items() if names & {"request", "of"}} == named
