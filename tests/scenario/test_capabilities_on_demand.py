"""Whether a connector has a capability: decided by the scenarios that call for it, whatever was played before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from kvconform.api.runtime import EMBEDDED_WORDS
from kvconform.checks import Examination
from kvconform.checks.class_model import ClassObservation
from kvconform.config import RunConfig
from kvconform.conformance import ALONE, Conformance
from kvconform.engine.history import History
from kvconform.isolation.room import CrashedError, HungError
from kvconform.outcomes import Inconclusive, NotApplicable
from kvconform.rules.model import CAPABILITIES
from kvconform.scenario import asynchronous, finish, saving, transfer
from kvconform.scenario.capabilities import DEMONSTRATIONS, LOSSES
from kvconform.scenario.exploration import Refused
from kvconform.scenario.program import Program
from kvconform.target import parse_target

ROOT = Path(__file__).resolve().parents[2]
PLAIN = transfer.reload().examples[0]
#: No scenario of any capability.
ELSEWHERE = saving.preempted_saves().examples[0]

#: What a program shows, or how it ends.
Answer = Mapping[str, int] | Exception


class Simulated(Conformance):
    """A connector that is known by what its programs show."""

    def answer(self, answers: Callable[[Program], Answer]) -> Simulated:
        self.played: list[Program] = []
        self._answers = answers
        self._observation = ClassObservation()
        return self

    def glance(self, program: Program) -> Examination:
        self.played.append(program)
        answer = self._answers(program)
        if isinstance(answer, Exception):
            raise answer
        self._shown.count(answer)
        return Examination(History(), capabilities=answer)


def simulated(answers: Callable[[Program], Answer], **config: tuple[str, ...]) -> Simulated:
    target = parse_target("kvconform.reference.file_store:FileStoreConnector", ROOT)
    return Simulated(target, RunConfig(connector=(target.spec,), **config)).answer(answers)


def test_what_the_engine_has_not_got_is_not_held_against_the_connector() -> None:
    refusal = Refused(f"recurrent layers are not simulated by the {EMBEDDED_WORDS}")
    with pytest.raises(NotApplicable, match="this engine lacks what the set-up needs: recurrent layers"):
        simulated(lambda _: refusal).demand_capability("mamba")


def test_capability_that_only_another_scenario_showed_is_not_asked_for() -> None:
    connector = simulated(lambda program: {"async-save": 1} if program == ELSEWHERE else {})
    connector.examine(ELSEWHERE)
    assert connector.seen.exercised["async-save"] == 1
    with pytest.raises(NotApplicable, match="does not declare async-save, and request_finished never kept"):
        connector.demand_capability("async-save")


@pytest.mark.parametrize("name", ["sync-load", "async-load", "delayed-free", "async-save", "pd", "persistence"])
def test_any_scenario_of_a_capability_can_show_it(name: str) -> None:
    programs = list(DEMONSTRATIONS[name].programs())
    for shows in programs:
        connector = simulated(lambda program, shows=shows: {name: 3} if program == shows else {})
        connector.demand_capability(name)
        assert connector.capability(name).exercised == 3
        assert connector.played == 2 * programs[: programs.index(shows) + 1], "no more than it takes"


def test_declared_capability_is_asked_for_and_nothing_is_played() -> None:
    connector = simulated(lambda program: {}, capabilities=("async-load",))
    connector.demand_capability("async-load")
    assert connector.played == []
    assert connector.capability("async-load").state == "declared, not seen"


def test_what_the_engine_decides_is_asked_of_every_connector_and_what_the_class_decides_is_not_tried() -> None:
    connector = simulated(lambda program: {"hma": 1})
    connector.demand_capability("multi-worker")
    with pytest.raises(NotApplicable, match="the class does not derive from SupportsHMA"):
        connector.demand_capability("hma")
    assert connector.played == []


def test_refused_scenarios_show_nothing() -> None:
    connector = simulated(lambda program: Refused("no") if program == PLAIN else {"async-load": 1})
    connector.demand_capability("async-load")
    assert len(connector.played) == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (HungError(3.0, ""), '"reload" hung: no answer within 3 s'),
        (CrashedError("signal 11", ""), "process: signal 11"),
    ],
)
def test_scenario_without_an_end_leaves_it_open_and_is_not_tried_again(error: Exception, words: str) -> None:
    connector = simulated(lambda program: error if program == PLAIN else {})
    for name in ("async-load", "async-save"):
        with pytest.raises(Inconclusive, match=f"whether the connector has {name} could not be seen: .*{words}"):
            connector.demand_capability(name)
    assert connector.played.count(PLAIN) == 1
    shown = simulated(lambda program: error if program == PLAIN else {"async-load": 1})
    shown.demand_capability("async-load")


def test_connector_that_always_hangs_is_not_waited_for_over_and_over() -> None:
    connector = simulated(lambda program: HungError(3.0, ""))
    for _ in range(3):
        with pytest.raises(Inconclusive):
            connector.demand_capability("delayed-free")
    assert len(connector.played) == LOSSES


def test_only_a_connector_that_hands_kv_over_may_need_another_engine() -> None:
    assert simulated(lambda program: {"pd": 1} if program.pair else {}).alone == ALONE
    assert simulated(lambda program: {"sync-load": 1}).alone == ""


def test_scenarios_are_of_capabilities_that_there_are() -> None:
    assert set(DEMONSTRATIONS) <= set(CAPABILITIES)
    for name, demonstration in DEMONSTRATIONS.items():
        programs = [repr(program) for program in demonstration.programs()]
        assert len(set(programs)) == len(programs) > 0, name
        assert repr(ELSEWHERE) not in programs


REFERENCES = {
    "async_file_store": "AsyncFileStoreConnector",
    "host_offload": "HostOffloadConnector",
    "threshold_connector": "ThresholdConnector",
    "producer_consumer": "ProducerConsumerConnector",
}
BEFORE = (ELSEWHERE, asynchronous.ids_used_again().examples[0], finish.saves_in_chunks().examples[0])


@pytest.mark.usefixtures("vllm_cpu")
@pytest.mark.parametrize("name", REFERENCES)
def test_reference_has_the_same_capabilities_first_of_all_and_after_other_scenarios(name: str) -> None:
    target = parse_target(f"kvconform.reference.{name}:{REFERENCES[name]}", ROOT)
    config = RunConfig(connector=(target.spec,)).for_target(target)
    first, later = Conformance(target, config), Conformance(target, config)
    for program in BEFORE:
        later.examine(program)
    asked = ("sync-load", "async-load", "async-save", "pd")
    answers = [
        {capability: bool(conformance.capability(capability).exercised) for capability in order}
        for conformance, order in ((first, asked), (later, asked[::-1]))
    ]
    assert answers[0] == answers[1]
    assert any(answers[0].values())
