"""Registrations that fail: a refusal is legal, a look-up that fails by itself refuses nothing."""

from __future__ import annotations

import pytest
from histories import broken, found, witness

from kvconform.engine.events import EngineRaised, HookCall
from kvconform.engine.instrument import stumbled

ERROR, WHERE = "KeyError: 'model.layers.0'", "vendor.py:7 in register_kv_caches"


def test_failed_lookup_in_a_registration() -> None:
    event = EngineRaised(1, 0, "start-up", ERROR, WHERE, "register_kv_caches", stumbled=True)
    assert broken(event) == ["LAY-01"]


@pytest.mark.parametrize(
    "event",
    [
        EngineRaised(1, 0, "start-up", "ValueError: no MLA", WHERE, "register_kv_caches"),
        EngineRaised(1, 0, "start-up", ERROR, WHERE, None, stumbled=True),
        EngineRaised(1, 4, "sleep", ERROR, WHERE, "register_kv_caches", stumbled=True),
    ],
    ids=["refused in a sentence", "while it is built", "while it is at work"],
)
def test_refusal_of_a_set_up_is_legal_and_what_fails_later_is_none(event: EngineRaised) -> None:
    assert found("LAY-01", event) == []


def test_accepted_layers_are_the_witness() -> None:
    accepted = HookCall(1, 0, "worker", "register_kv_caches", {"layers": ["a", "b"]})
    failed = HookCall(1, 0, "worker", "register_kv_caches", {"layers": ["a"]}, None, ERROR, WHERE)
    assert witness("LAY-01", accepted, failed) == 2


def look_up() -> None:
    {}["layer"]


def look_up_by_index() -> None:
    "abc"[len(WHERE)]


def refuse() -> None:
    raise KeyError("layer: this connector knows attention layers only")


def refuse_after_a_look_up() -> None:
    try:
        look_up()
    except KeyError as error:
        raise KeyError("no MLA") from error


def look_for_a_variable() -> None:
    import os

    os.environ["A_VARIABLE_THAT_NOBODY_SETS"]


def add() -> None:
    len(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("work", "by_itself"),
    [
        (look_up, True),
        (look_up_by_index, True),
        (refuse, False),
        (refuse_after_a_look_up, False),
        (look_for_a_variable, False),
        (add, False),
    ],
)
def test_only_look_ups_that_fail_by_themselves_stumble(work: object, by_itself: bool) -> None:
    assert callable(work)
    with pytest.raises((LookupError, TypeError)) as raised:
        work()
    assert stumbled(raised.value) is by_itself
