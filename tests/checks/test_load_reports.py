"""Which loads a worker's report of failures meets, on hand-made histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from histories import alloc, failing, history, match

from kvconform.checks.loads import Load, Report, block_sizes, reports
from kvconform.engine.events import EngineStarted, Event, HookCall


def step(number: int, *, rank: int = 0) -> tuple[Event, Event]:
    built = HookCall(1, number, "scheduler", "build_connector_meta", {}, "<Metadata>")
    return built, HookCall(1, number, "worker", "bind_connector_metadata", rank=rank)


def results(*, received: Any = (), failed: Any = (), rank: int = 0, number: int = 1) -> HookCall:
    outcome = {"finished_sending": [], "finished_recving": received, "failed_recving": failed}
    return HookCall(1, number, "worker", "get_transfer_results", {}, outcome, rank=rank)


def errors(*blocks: int, rank: int = 0) -> HookCall:
    return HookCall(1, 1, "worker", "get_block_ids_with_load_errors", {}, {"set": list(blocks)}, rank=rank)


def only(*events: Event) -> Report:
    (report,) = reports(history(*events))
    return report


def load(*events: Event) -> Load:
    """The one load that is known when a failure is reported."""
    (found,) = only(*events, errors(9)).loads
    return found


# -- what a load fills -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("computed", "external", "size", "local", "blocks"),
    [
        (0, 48, 16, (), (1, 2, 3)),
        (0, 32, 16, (), (1, 2)),
        (0, 33, 16, (), (1, 2, 3)),
        (0, 1, 16, (), (1,)),
        (16, 16, 16, (1,), (2,)),
        (32, 1, 16, (1, 2), (3,)),
        (16, 32, 32, (), (1, 2)),
        (40, 24, 32, (1,), (2,)),
    ],
)
def test_load_fills_the_blocks_behind_the_local_hit(
    computed: int, external: int, size: int, local: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    started = EngineStarted(1, 0, (size,), "recompute")
    found = load(started, match((external, False), computed=computed), alloc(external))
    assert (found.local, found.blocks) == (local, blocks)
    assert (found.engine, found.request, found.step, found.asynchronous) == (1, "r1", 1, False)


def test_load_that_nobody_asked_for_is_synchronous_and_fills_from_the_front() -> None:
    found = load(match((16, True), request="r2", computed=16), alloc(32))
    assert (found.local, found.blocks, found.asynchronous) == ((), (1, 2), False)


def test_last_answer_tells_how_a_load_is_done() -> None:
    assert load(match((32, False)), match((32, True)), alloc(32)).asynchronous
    assert not load(match((32, True)), match((32, False)), alloc(32)).asynchronous


@pytest.mark.parametrize("other", [alloc(0), failing(alloc(32)), alloc(32, engine=2)])
def test_allocation_without_a_load_and_one_elsewhere_are_none(other: HookCall) -> None:
    assert only(match((32, False)), other, errors(1)).loads == ()


def test_load_is_of_the_schedule_that_promised_it() -> None:
    assert load(*step(1), *step(2), alloc(32)).step == 3


# -- reports -----------------------------------------------------------------------------------------------------------


def test_each_worker_counts_its_own_steps() -> None:
    twice = (*step(1), *step(2), step(1, rank=1)[1])
    assert (only(*twice, errors(1)).step, only(*twice, errors(1, rank=1)).step) == (2, 1)
    assert only(*step(1), failing(step(2)[1]), errors(1)).step == 1


def test_report_holds_what_was_said_and_by_whom() -> None:
    report = only(*step(1), errors(3, 1, rank=1))
    assert (report.blocks, report.requests, report.rank) == ((3, 1), (), 1)
    report = only(*step(1), results(failed=["r2", "r1"], rank=1))
    assert (report.blocks, report.requests, report.rank, report.step) == ((), ("r2", "r1"), 1, 0)


@pytest.mark.parametrize(
    "nothing",
    [
        errors(),
        results(),
        results(received=None, failed=None),
        replace(results(), result={}),
        replace(results(), result="a pair"),
        failing(results(failed=["r1"])),
        replace(errors(), result=None),
    ],
)
def test_report_of_nothing_is_none(nothing: HookCall) -> None:
    assert reports(history(match((32, True)), alloc(32), nothing)) == ()


def test_vllm_that_asks_for_pairs_learns_of_a_load_from_them() -> None:
    """0.29.0 has no get_transfer_results."""
    pair = HookCall(1, 1, "worker", "get_finished", {}, (None, {"set": ["r1"]}), rank=1)
    assert load(*LOADING, *step(1), *step(1, rank=1), pair).received == ((1, 1),)
    assert load(*LOADING, failing(pair)).received == ()
    for malformed in (None, ({"set": ["r1"]}, None), ({"set": ["r1"]},), "r1", (None, None, {"set": ["r1"]})):
        assert load(*LOADING, replace(pair, result=malformed)).received == ()


def test_pair_that_the_default_of_get_transfer_results_asked_for_counts_once() -> None:
    pair = HookCall(1, 1, "worker", "get_finished", {}, (None, {"set": ["r1"]}), rank=1)
    # Answered to vLLM by the outer call alone, which may say something else.
    assert load(*LOADING, pair, results(received=["r2"], rank=1)).received == ()
    assert load(*LOADING, pair, results(received=["r1"], rank=0)).received == ((0, 0),)


# -- until when a load may be reported ---------------------------------------------------------------------------------

LOADING = (match((32, True)), alloc(32))


def test_end_of_a_load_is_noted_by_worker() -> None:
    ends = (
        *step(1),
        results(received=["r1"]),
        step(1, rank=1)[1],
        step(2, rank=1)[1],
        results(received=["r1"], rank=1),
    )
    assert load(*LOADING, *ends).received == ((0, 1), (1, 2))


@pytest.mark.parametrize(
    ("loading", "report"),
    [
        (LOADING, results(received=["r2"])),
        ((match((32, False)), alloc(32)), results(received=["r1"])),
        (LOADING, replace(results(), result={"finished_recving": None})),
    ],
    ids=["of another request", "synchronous", "no ids"],
)
def test_load_that_was_not_reported_has_not_ended(loading: tuple[Event, ...], report: HookCall) -> None:
    assert load(*loading, report).received == ()


def test_second_report_of_the_end_changes_nothing() -> None:
    assert load(*LOADING, *step(1), results(received=["r1"]), *step(2), results(received=["r1"])).received == ((0, 1),)


def test_end_of_a_second_load_of_a_request_is_not_that_of_the_first() -> None:
    ended = (*LOADING, *step(1), results(received=["r1"]), match((32, True)), alloc(32), *step(2))
    first, second = only(*ended, results(received=["r1"], number=2), errors(9)).loads
    assert (first.received, second.received) == (((0, 1),), ((0, 2),))


@pytest.mark.parametrize(
    ("asynchronous", "received", "open_in"),
    [(False, (), {3}), (True, (), {3, 4, 5, 6}), (True, ((0, 5),), {3, 4, 5}), (True, ((1, 5),), {3, 4, 5, 6})],
    ids=["synchronous", "not ended", "ended", "ended for another worker"],
)
def test_failure_may_be_reported_from_the_loads_step_to_its_end(
    asynchronous: bool, received: tuple[tuple[int, int], ...], open_in: set[int]
) -> None:
    one = Load(1, "r1", (1, 2), (), asynchronous, 3, received)
    assert {number for number in range(1, 7) if one.open_at(number, rank=0)} == open_in


def test_block_sizes_are_those_of_the_engine_and_16_where_it_did_not_come_up() -> None:
    both = history(EngineStarted(2, 0, (32, 64), "fail"), EngineStarted(1, 0, (8,), "fail"))
    assert [block_sizes(both, engine) for engine in (1, 2, 3)] == [(8,), (32, 64), (16,)]
