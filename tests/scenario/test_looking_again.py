"""A slow connector is not a broken one: what an engine that hurried has seen is looked at again, with patience."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvconform.checks import Examination
from kvconform.checks.model import Finding
from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.engine.events import NeverIdle
from kvconform.engine.history import History
from kvconform.examiner import PATIENT_IN_VAIN, Examiner
from kvconform.scenario.exploration import Budget, Explorer, Refused
from kvconform.scenario.family import Family, program
from kvconform.scenario.program import Add, Drain, ForgetLocal, Program, RequestSpec
from kvconform.stage import Manner
from kvconform.target import Target, parse_target

TARGET = Target("x:Y", "module", "x", "Y", "x:Y")


class Waits(Examiner):
    """Programs named "never" never end, those named "slow" end if they are waited for in full, others at once."""

    def __init__(self) -> None:
        super().__init__(TARGET, RunConfig(store_delay=0.0, chunk_size=16, fresh_model_names=False))
        self.played: list[tuple[str, bool]] = []

    def examine_anew(self, program: Program, manner: Manner) -> Examination:
        patient = manner.patient
        self.played.append((program.name, patient))
        if program.name.startswith("refused") and patient:
            raise Refused("no room")
        history = History()
        if program.name.startswith("quick") or (program.name.startswith("slow") and patient):
            return Examination(history)
        history.add(NeverIdle(1, 1, 200, ("r1",), 10.0 if patient else 1.0, hurried=not patient))
        return Examination(history, (Finding("LIVE-02", "an end", "none", history.events[0]),))


def test_what_was_found_in_a_hurry_is_played_again_with_patience_and_kept() -> None:
    waits = Waits()
    assert waits.glance(Program("slow")).hurried
    assert waits.examine(Program("slow")).clean
    assert waits.glance(Program("slow")).clean
    assert waits.played == [("slow", False), ("slow", True)]


def test_what_was_right_or_waited_for_in_full_is_not_played_again() -> None:
    waits = Waits()
    waits.examine(Program("quick"))
    waits.examine(Program("never"))
    assert not waits.examine(Program("never")).hurried
    assert waits.played == [("quick", False), ("never", False), ("never", True)]


def test_after_five_in_vain_the_rest_is_taken_as_it_is() -> None:
    waits = Waits()
    for number in range(PATIENT_IN_VAIN):
        assert not waits.examine(Program(f"never {number}")).hurried
    last = waits.examine(Program("never again"))
    assert last.hurried
    (wait,) = last.history.of(NeverIdle)
    assert wait.waited == "200 steps and 1 s (less than transfer_timeout, which passed in vain before)"


def test_one_that_was_only_slow_renews_the_patience() -> None:
    waits = Waits()
    for name in ("never 1", "never 2", "never 3", "never 4", "slow", "never 5", "never 6", "never 7", "never 8"):
        assert not waits.examine(Program(name)).hurried


def test_a_refusal_of_the_second_look_is_kept() -> None:
    waits = Waits()
    for _ in range(2):
        with pytest.raises(Refused, match="no room"):
            waits.examine(Program("refused"))
    assert len(waits.played) == 2


CONNECTOR = """
import time
from kvconform.reference.async_file_store import AsyncFileStoreConnector


class Sluggish(AsyncFileStoreConnector):
    # Loads of a request "never" are never reported, those of a request "slow" late.
    late = {}

    def get_finished(self, finished_req_ids):
        sent, received = super().get_finished(finished_req_ids)
        for request in received or ():
            seconds = {"never": float("inf"), "slow": 3.0}.get(request, 0.0)
            self.late[request] = time.monotonic() + seconds
        due = {request for request, at in self.late.items() if at <= time.monotonic()}
        for request in due:
            del self.late[request]
        return sent, due or None
"""


def loads(request: str) -> Family:
    store = [Add(RequestSpec("first", ((0, 48),))), Drain(), ForgetLocal()]
    return Family(
        "loads", "LOAD-01", (program("loads", [*store, Add(RequestSpec(request, ((0, 48),))), Drain()]),), None
    )


@pytest.mark.usefixtures("vllm_cpu")
def test_a_slow_load_after_one_that_never_ended_breaks_nothing(tmp_path: Path) -> None:
    (tmp_path / "sluggish_store.py").write_text(CONNECTOR)
    target = parse_target(f"{tmp_path}/sluggish_store.py:Sluggish", tmp_path)
    target.load()
    config = RunConfig(kv_connector_extra_config={"path": "{dir}/store"}, transfer_timeout=6.0)
    conformance = Conformance(target, config)
    never = conformance.examine(loads("never").examples[0])
    assert [finding.rule for finding in never.findings] == ["ASYNC-01"]
    assert conformance.glance(loads("slow").examples[0]).hurried

    family = loads("slow")
    outcome = Explorer(family, frozenset({"LOAD-01"}), conformance.glance, conformance.examine).explore(Budget(0))
    assert (outcome.failed, outcome.elsewhere) == (None, {})
    assert outcome.witness("LOAD-01")["external tokens compared"] == 32
