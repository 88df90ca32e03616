"""Any traffic: programs make sense whatever is drawn, and a symptom goes to the situation that it needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings

from kvconform.cases.limits import program_problem
from kvconform.checks import Examination, Finding
from kvconform.engine.events import Event
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions
from kvconform.isolation.codec import dump_program, load_program
from kvconform.kvcache.shape import KVCacheShape
from kvconform.scenario import traffic
from kvconform.scenario.exploration import bind_to_situation
from kvconform.scenario.program import (
    Abort,
    AbortDuringStep,
    Add,
    BreakStore,
    Drain,
    DummyRun,
    MendStore,
    Pause,
    PreemptAll,
    Program,
    RefuseWrites,
    RequestSpec,
    ResetConnector,
    Restart,
    Resume,
    Step,
)

ROOMY = EngineOptions(shape=KVCacheShape(num_blocks=traffic.ROOMY))
ARRIVAL = traffic.Arrive(0, 2, 7, 3)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(program=traffic.any_traffic().strategy)
def test_drawn_program_can_be_saved_and_makes_sense(program: Program) -> None:
    assert load_program(dump_program(program)) == program
    assert not program_problem(program)
    added: list[str] = []
    paused = refusing = False
    for action in program.actions:
        if isinstance(action, Add):
            assert action.request.id not in added
            added.append(action.request.id)
        elif isinstance(action, Abort | AbortDuringStep):
            assert action.request in added
        elif isinstance(action, Drain | Restart):
            assert not paused
            assert not refusing
        paused = not isinstance(action, Resume) and (paused or isinstance(action, Pause))
        refusing = not isinstance(action, MendStore) and (refusing or isinstance(action, RefuseWrites))
    assert sum(name.startswith("last") for name in added) == len(set(program_prompts(program)))


def program_prompts(program: Program) -> list[tuple[tuple[int, int], ...]]:
    return [action.request.prompt for action in program.actions if isinstance(action, Add)]


def test_abort_of_somebody_who_has_not_arrived_is_left_out() -> None:
    program = traffic.program_of([traffic.Leave(0, False), ARRIVAL, traffic.Leave(1, False)], ROOMY)
    assert not [action for action in program.actions if isinstance(action, Abort)]


def test_steps_are_not_scheduled_ahead_where_loads_may_fail() -> None:
    ahead = EngineOptions(async_scheduling=True)
    assert traffic.program_of([ARRIVAL], ahead).options.async_scheduling
    assert not traffic.program_of([ARRIVAL, BreakStore()], ahead).options.async_scheduling


def _wrong_with(
    kind: type, options: Callable[[EngineOptions], bool] = lambda _: False
) -> Callable[[Program], Examination]:
    """Plays programs whose bytes are wrong as long as they have an action of a kind, or such options."""
    loaded = {"LOAD-01": {"external tokens compared": 32}}

    def play(program: Program) -> Examination:
        hit = any(isinstance(action, kind) for action in program.actions) or options(program.options)
        found = (Finding("LOAD-01", "right", "wrong", Event(1, 1), symptom=True),) if hit else ()
        return Examination(History(), found, loaded)

    return play


class _Nothing:
    pass


@pytest.mark.parametrize(
    ("needed", "rule"),
    [
        (BreakStore, "FAIL-20"),
        (ResetConnector, "RST-03"),
        (Pause, "RST-05"),
        (DummyRun, "SIG-15"),
        (Abort, "FIN-01"),
        (PreemptAll, "PRE-01"),
        (Add, "LOAD-01"),
    ],
)
def test_symptom_is_given_to_the_situation_that_it_needs(needed: type, rule: str) -> None:
    moves: list[traffic.Move] = [
        ARRIVAL, BreakStore(), ResetConnector(), Pause("new"), Step(1), DummyRun(), traffic.Leave(0, False),
        PreemptAll(),
    ]  # fmt: skip
    program, play = traffic.program_of(moves, ROOMY), _wrong_with(needed)
    bound, _ = bind_to_situation(traffic.any_traffic(), program, play(program), play)
    assert [finding.rule for finding in bound.findings] == [rule]


@pytest.mark.parametrize(
    ("options", "needed", "rule"),
    [
        (EngineOptions(async_scheduling=True), lambda o: o.async_scheduling, "ORDER-18"),
        (EngineOptions(workers=2), lambda o: o.workers > 1, "SAVE-07"),
        (EngineOptions(max_num_batched_tokens=24), lambda o: o.max_num_batched_tokens < 2048, "META-07"),
        (EngineOptions(shape=KVCacheShape(num_blocks=traffic.TIGHT)), lambda o: o.shape.num_blocks < 20, "PRE-01"),
    ],
)
def test_symptom_is_given_to_the_set_up_that_it_needs(
    options: EngineOptions, needed: Callable[[EngineOptions], bool], rule: str
) -> None:
    program, play = traffic.program_of([ARRIVAL], options), _wrong_with(_Nothing, needed)
    bound, contrast = bind_to_situation(traffic.any_traffic(), program, play(program), play)
    assert [finding.rule for finding in bound.findings] == [rule]
    assert contrast.startswith("The same scenario without any ")


def test_requests_that_need_each_other_are_told_from_requests_alone() -> None:
    def play(program: Program) -> Examination:
        pairs = zip(program.actions, program.actions[1:], strict=False)
        hit = any(isinstance(a, Add) and isinstance(b, Add) for a, b in pairs)
        found = (Finding("LOAD-01", "right", "wrong", Event(1, 1), symptom=True),) if hit else ()
        return Examination(History(), found, {"LOAD-01": {"external tokens compared": 32}})

    program = Program("any", ROOMY, (Add(RequestSpec("a", ((1, 40),))), Add(RequestSpec("b", ((1, 40),))), Drain()))
    bound, _ = bind_to_situation(traffic.any_traffic(), program, play(program), play)
    assert [finding.rule for finding in bound.findings] == ["ALLOC-05"]
