"""Pairs in situations of transfers under way: what is played, and what the control leaves out."""

from __future__ import annotations

from collections import Counter

import pytest

from kvconform.isolation.codec import dump_program, load_program
from kvconform.scenario import hand_off_transfers as transfers
from kvconform.scenario.family import Family
from kvconform.scenario.program import Abort, AbortOnArrival, Add, Drain, ForgetLocal, HandOff, Leave, Program
from kvconform.scenario.wording import program_lines

FAMILIES = (
    transfers.loads_at_once(),
    transfers.aborted_as_they_arrive(),
    transfers.ids_used_again(),
    transfers.failed_loads("recompute"),
    transfers.failed_loads("fail"),
    transfers.beside_a_store("first"),
    transfers.beside_a_store("last"),
)


def controls(family: Family) -> list[Program]:
    assert family.control is not None
    return [family.control(program) for program in family.examples]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{family.rule} {family.examples[0].name}")
def test_families_are_pairs_on_both_runners_and_bound_to_the_plain_hand_off_last(family: Family) -> None:
    assert all(program.pair is not None for program in family.examples)
    assert {program.options.runner for program in family.examples} == {"v1", "v2"}
    last = family
    while last.general is not None:
        last = last.general
    assert last.rule == "FIN-12"
    assert [load_program(dump_program(program)) for program in family.examples] == list(family.examples)
    assert all(control != program for control, program in zip(controls(family), family.examples, strict=True))


def test_one_prompt_is_handed_off_several_times_at_once_or_one_by_one() -> None:
    family = transfers.loads_at_once()
    for program, control in zip(family.examples, controls(family), strict=True):
        prompts = Counter(action.request.prompt for action in program.actions if isinstance(action, HandOff))
        assert max(prompts.values()) > 1
        assert len(prompts) > 1
        first = next(i for i, action in enumerate(control.actions) if isinstance(action, HandOff))
        assert control.actions[first + 1 : first + 3] == (Drain(), ForgetLocal())
        assert sum(isinstance(action, Drain) for action in control.actions) == prompts.total() + 1


def test_an_id_of_either_side_has_two_lives_and_in_the_control_one() -> None:
    family = transfers.ids_used_again()
    for program, control in zip(family.examples, controls(family), strict=True):
        for of, lives in ((program, 2), (control, 1)):
            given = Counter(action.request.id for action in of.actions if isinstance(action, Add | HandOff))
            assert set(given.values()) == {lives}
            # Nobody fetches what was not computed, and nobody aborts what is not there.
            assert all(action.of in given for action in of.actions if isinstance(action, HandOff))
            assert all(action.request in given for action in of.actions if isinstance(action, Abort))
    assert [sum(isinstance(a, Abort) for a in program.actions) for program in family.examples] == [1, 0]


def test_all_but_the_last_are_aborted_as_they_arrive() -> None:
    family = transfers.aborted_as_they_arrive()
    for program, control in zip(family.examples, controls(family), strict=True):
        handed = [action.request.id for action in program.actions if isinstance(action, HandOff)]
        assert [action.request for action in program.actions if isinstance(action, AbortOnArrival)] == handed[:-1]
        assert not any(isinstance(action, AbortOnArrival) for action in control.actions)
    text = "\n".join(program_lines(family.examples[0]))
    assert "in the step that reports the end of decode0's load, abort it between execution and results" in text


@pytest.mark.parametrize(("policy", "other"), [("recompute", "fail"), ("fail", "recompute")])
def test_failed_loads_are_told_from_those_under_the_other_policy_and_from_those_that_work(
    policy: transfers.Policy, other: str
) -> None:
    family = transfers.failed_loads(policy)
    assert {program.options.load_failure_policy for program in family.examples} == {policy}
    assert {control.options.load_failure_policy for control in controls(family)} == {other}
    assert all(Leave() in control.actions for control in controls(family))
    assert family.general is not None
    assert all(Leave() not in control.actions for control in controls(family.general))


def test_the_sibling_that_stores_is_named() -> None:
    (line, *_) = program_lines(transfers.beside_a_store("last").examples[0])
    assert "the last child of a MultiConnector with a store of another class beside it" in line
