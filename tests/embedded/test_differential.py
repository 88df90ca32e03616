"""The differential test finds what differs, tells it from what differs every time, and holds its list both ways."""

from __future__ import annotations

import json
import re
from typing import Any

import differential
import pytest
from comparing import differences, events
from differential import Absent, Compared, Difference, Listed, Said, compare, complaints, read_absent, read_listed
from matrix_entries import Entry

from kvconform.isolation.codec import dump_program
from kvconform.scenario import transfer
from kvconform.verdicts import RuleResult, Verdict

ENTRY = Entry("mutant", "saving:Some", frozenset({"SAVE-05"}))
PROGRAM = json.dumps(dump_program(transfer.reload().examples[0]), sort_keys=True)
RAN = {"error": "", "findings": [], "history": "1"}


def said(verdict: str = "pass", came: dict[str, Any] | None = None) -> Said:
    """What one engine says of the one connector, test and program."""
    return Said({"saving:Some": {("test_x", "SAVE-05"): verdict}}, {"saving:Some": {PROGRAM: came or RAN}}, "")


def compared(monkeypatch: pytest.MonkeyPatch, real: Said, own: Said, played: dict[str, list[Any]]) -> Compared:
    """With what the engines say, and what they do when the program is played again."""
    monkeypatch.setattr(differential, "ask", lambda engine, *_: real if engine == "vllm" else own)
    monkeypatch.setattr(differential, "play", lambda engine, jobs, timeout: played[engine])
    (found,) = compare([ENTRY], narrow=True)
    return found


def result(what: str) -> dict[str, Any]:
    """A played program with one event."""
    return {"findings": [], "history": [{"event": "HookCall", "hook": what}]}


def test_equal_engines_differ_in_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compared(monkeypatch, said(), said(), {})
    assert (found.verdicts, found.programs, found.found) == (1, 1, [])


def test_another_verdict_and_another_end_are_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compared(monkeypatch, said("fail"), said("pass", {"error": "HungError"}), {}).found
    assert [(difference.rule, difference.text) for difference in found] == [
        ("SAVE-05", "fail on vllm, pass on embedded"),
        ("", "ran on vllm, HungError on embedded"),
    ]


def test_a_verdict_that_comes_and_goes_on_one_engine_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"vllm": [said("pass"), said("inconclusive")], "embedded": [said("inconclusive"), said("inconclusive")]}
    monkeypatch.setattr(differential, "ask", lambda engine, *_: answers[engine].pop(0))
    (found,) = compare([ENTRY], narrow=True)
    assert found.found == []
    answers = {"vllm": [said("pass"), said("fail")], "embedded": [said("inconclusive"), said("timeout")]}
    (found,) = compare([ENTRY], narrow=True)
    assert [difference.text for difference in found.found] == ["pass on vllm, inconclusive on embedded"]


def test_errors_of_the_kit_are_differences_on_both_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compared(monkeypatch, said("kit error"), said("kit error"), {}).found
    assert [difference.text for difference in found] == [
        "SAVE-05: the kit itself failed on vllm",
        "SAVE-05: the kit itself failed on embedded",
    ]


def test_words_of_vllm_and_of_the_stand_in_are_no_difference() -> None:
    def history(words: str, where: str | None) -> list[dict[str, Any]]:
        return [
            {"event": "HookCall", "engine": 1, "step": 1, "error": f"AssertionError: {words}", "where": where},
            {"event": "Crossing", "engine": 1, "step": 1, "error": "PicklingError: a lock"},
            {
                "event": "StatisticsRead",
                "problems": [["STAT-03", "a payload", f"encoding x raised TypeError: {words}"]],
            },
        ]

    theirs, mine = "vllm/forward_context.py:1 in f", "standin/vllm/forward_context.py:2 in f"
    assert list(events(history("a", theirs))) == list(events(history("b", mine)))
    assert list(events(history("a", "vendor.py:1 in f"))) != list(events(history("b", "vendor.py:1 in f")))


def test_another_history_is_a_difference_if_vllm_repeats_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    other = said(came={**RAN, "history": "2"})
    same = {"vllm": [result("a"), result("a")], "embedded": [result("b"), result("b")]}
    assert "event 0" in compared(monkeypatch, said(), other, same).found[0].text
    timed = {"vllm": [result("a"), result("c")], "embedded": [result("b"), result("b")]}
    found = compared(monkeypatch, said(), other, timed)
    assert (found.timed, found.found) == (1, [])


def test_what_seems_to_differ_is_played_a_few_times_more(monkeypatch: pytest.MonkeyPatch) -> None:
    other = said(came={**RAN, "history": "2"})
    rounds = [[result("a"), result("a")], [result("a"), result("a")], [result("a"), result("c")]]
    played = {"vllm": [*rounds], "embedded": [[result("b"), result("b")] for _ in rounds]}
    monkeypatch.setattr(differential, "ask", lambda engine, *_: said() if engine == "vllm" else other)
    monkeypatch.setattr(differential, "play", lambda engine, jobs, timeout: played[engine].pop(0))
    (found,) = compare([ENTRY], narrow=True)
    assert (found.timed, found.found, played["vllm"]) == (1, [], [])


def waited(steps: int, seconds: float = 3.0, unfinished: str = "r") -> list[dict[str, Any]]:
    """One step with tokens, as many without, and what comes after giving up."""
    hooks = [
        {"event": "HookCall", "engine": 1, "step": step, "hook": "build_connector_meta"} for step in range(1, steps + 2)
    ]
    end = {"event": "NeverIdle", "engine": 1, "step": steps + 1, "limit": steps, "seconds": seconds}
    return [
        *hooks,
        {"event": "HookCall", "engine": 2, "step": 999, "hook": "shutdown"},
        {**end, "unfinished": [unfinished]},
        {"event": "HookCall", "engine": 1, "step": steps + 1, "hook": "shutdown"},
    ]


def test_steps_that_only_wait_until_the_engine_gives_up_are_a_matter_of_time() -> None:
    assert list(events(waited(200))) == list(events(waited(231)))
    assert len(list(events(waited(231)))) == len(waited(200))
    one, other = ({"findings": [], "history": waited(steps)} for steps in (200, 231))
    assert differences(one, other) == []
    assert differences(one, {**other, "history": waited(231)[:-1]}) == ["204 and 203 events"]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(waited(231, unfinished="s"), id="another request"),
        pytest.param(waited(231, seconds=0.0), id="steps with tokens"),
        pytest.param(waited(231)[1:], id="a step less before the waiting"),
    ],
)
def test_what_else_differs_where_an_engine_gives_up_is_seen(other: list[dict[str, Any]]) -> None:
    assert list(events(waited(200))) != list(events(other))


def test_what_the_engine_has_not_got_is_no_difference_where_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = (Absent("drafts", "SpeculativeConfig is not covered"),)

    def found(verdict: Verdict, message: str, error: str) -> list[tuple[str, str]]:
        told = RuleResult("SAVE-05", "saving:Some", verdict, nodeid="test_x", message=message)
        own = Said(
            {"saving:Some": {("test_x", "SAVE-05"): verdict.value}},
            {"saving:Some": {PROGRAM: {"error": error}}},
            "",
            (told,),
        )
        # vLLM tells of a rule besides that the test does not name: there is nothing of it where the test was not tried.
        real = Said(
            {"saving:Some": {("test_x", "SAVE-05"): "fail", ("test_x", "ORDER-01"): "fail"}}, said().programs, ""
        )
        monkeypatch.setattr(differential, "ask", lambda engine, *_: real if engine == "vllm" else own)
        (one,) = compare([ENTRY], narrow=True, absent=absent)
        return [(difference.rule, difference.text) for difference in one.found]

    words = "vllm.config.SpeculativeConfig is not covered by the stand-in"
    assert found(Verdict.NOT_APPLICABLE, words, f"refused: {words}") == []
    both = ["ORDER-01", "SAVE-05"]
    assert [rule for rule, _ in found(Verdict.NOT_APPLICABLE, "not declared", f"refused: {words}")] == both
    assert [rule for rule, _ in found(Verdict.PASS, "", f"refused: {words}")] == both
    assert [rule for rule, _ in found(Verdict.NOT_APPLICABLE, words, "refused: no such layout")] == [""]


def test_the_list_is_held_both_ways() -> None:
    one = Compared(ENTRY, {"SAVE-05"}, found=[Difference("saving:Some", "SAVE-05", "test_x", "fail on vllm")])
    listed = Listed("saving:Some", ("SAVE-05",), "why")
    assert len(complaints([one], [])) == 1
    assert complaints([one], [listed]) == []
    assert "there is none" in complaints([Compared(ENTRY, {"SAVE-05"})], [listed])[0]
    # Nothing is said of connectors and rules that were not tried.
    assert complaints([], [listed]) == complaints([Compared(ENTRY, {"SAVE-06"})], [listed]) == []


def test_every_listed_difference_is_of_a_connector_of_the_matrix_and_has_a_reason() -> None:
    known = {entry.connector for entry in differential.read_entries()}
    assert all(entry.connector in known and entry.reason for entry in read_listed())


def test_what_is_missing_is_said_in_words_that_name_it() -> None:
    assert read_absent()
    words = re.compile(r"vllm\.[\w.]+ is not covered|[\w ]+ are not simulated")
    assert all(entry.what and words.fullmatch(entry.words) for entry in read_absent())
