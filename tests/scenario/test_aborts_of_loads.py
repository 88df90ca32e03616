"""Requests that are aborted while they load, however long a connector takes to promise the load."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.engine.events import HookCall, ProgramAction
from kvconform.engine.history import History
from kvconform.scenario.asynchronous import aborted_as_they_arrive, aborted_loads
from kvconform.scenario.program import AbortOnArrival, AbortOnceLoading, Program
from kvconform.target import parse_target

ODD = Path(__file__).parent.parent / "odd"
pytestmark = pytest.mark.usefixtures("vllm_cpu")


def conformance(connector: str) -> Conformance:
    target = parse_target(f"{ODD / 'transfers.py'}:{connector}", ODD)
    target.load()
    return Conformance(target, RunConfig(kv_connector_extra_config={"path": "{dir}/store"}, store_delay=0.0))


def with_action(programs: tuple[Program, ...], kind: type) -> list[Program]:
    return [program for program in programs if any(isinstance(action, kind) for action in program.actions)]


def promised(history: History, request: str) -> list[HookCall]:
    calls = history.calls("update_state_after_alloc")
    return [call for call in calls if call.args["request"] == request and call.args["num_external_tokens"]]


def aborts(history: History, request: str) -> list[ProgramAction]:
    return [e for e in history.of(ProgramAction) if e.action == "abort" and e.detail["request"] == request]


@pytest.mark.parametrize("connector", ["CoarseChunks", "AnswersLater"])
def test_a_request_is_aborted_in_the_step_that_promises_its_load(connector: str) -> None:
    programs = with_action(aborted_loads().examples, AbortOnceLoading)
    assert len(programs) == 2
    for program in programs:
        history = conformance(connector).play(program)
        (abort,) = aborts(history, "reload")
        (call,) = promised(history, "reload")
        assert (abort.step, abort.detail["when"]) == (call.step, "during step")
        asked = [call for call in history.calls("get_num_new_matched_tokens") if call.args["request"] == "reload"]
        assert len(asked) == (1 if connector == "CoarseChunks" else 4)


def test_a_request_to_which_no_load_is_promised_ends_by_itself() -> None:
    (program, _) = with_action(aborted_loads().examples, AbortOnceLoading)
    history = conformance("OnlySaves").play(program)
    assert not aborts(history, "reload")
    (end,) = [call for call in history.calls("request_finished") if call.args["request"] == "reload"]
    assert end.args["status"] == "FINISHED_LENGTH_CAPPED"


@pytest.mark.parametrize("connector", ["CoarseChunks", "AnswersLater"])
def test_a_request_is_aborted_in_the_step_that_reports_its_load(connector: str) -> None:
    (program, _) = with_action(aborted_as_they_arrive().examples, AbortOnArrival)
    history = conformance(connector).play(program)
    (abort,) = aborts(history, "reload0")
    outputs = [call for call in history.calls("update_connector_output") if call.step == abort.step]
    assert [call.args["finished_recving"] for call in outputs] == [["reload0"]]
