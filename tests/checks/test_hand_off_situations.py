"""What shows that a hand-off took place in a situation, on hand-made histories of a producer and a consumer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from histories import compared, history, wrong
from test_producer_consumer_findings import FETCHED, GIVEN, PREFILL, arrived, asked, ended, handed, load

from kvconform.checks import ALL_CHECKS, examine
from kvconform.checks.hand_off_situations import (
    BEHIND_LOCAL,
    CHUNKS,
    DUMMY_RUNS,
    PAGES,
    PREEMPTIONS,
    SITUATIONS,
    V1,
    V2,
)
from kvconform.checks.hand_offs import kept_rule
from kvconform.checks.model import Finding, Situation
from kvconform.engine.events import EngineStarted, Event, HookCall, ProgramAction, Scheduled, Tokens


def seen(situation: Situation, *events: Event) -> int:
    """As the examination of a whole run says it."""
    return sum(examine(history(*events)).witnesses[situation.name].values())


def started(engine: int, cache: str) -> EngineStarted:
    return EngineStarted(engine, 0, (16,), "recompute", cache=cache)


def called(engine: int, *hooks: str) -> tuple[HookCall, ...]:
    return tuple(HookCall(engine, 1, "worker", hook) for hook in hooks)


def test_each_situation_has_a_name_of_its_own_and_says_what_was_missing() -> None:
    names = {situation.name for situation in SITUATIONS}
    assert len(names) == len(SITUATIONS)
    assert names.isdisjoint(check.rule for check in ALL_CHECKS)
    assert all(situation.missing and not situation.missing.endswith(".") for situation in SITUATIONS)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_a_plain_hand_off_is_in_none_of_them(situation: Situation) -> None:
    assert seen(situation, *FETCHED) == 0


@pytest.mark.parametrize(
    ("caches", "count"),
    [(("BLHNC", "BLHNC"), 1), (("BLHNC", "LBNHC"), 0), (("", ""), 0), (("BLHNC",), 0)],
)
def test_pages_are_handed_off_between_two_caches_of_one_kind(caches: Sequence[str], count: int) -> None:
    engines = [started(number + 1, cache) for number, cache in enumerate(caches)]
    assert seen(PAGES, *engines, *FETCHED) == count
    # Nothing that arrived, nothing that was compared.
    assert seen(PAGES, *engines, *PREFILL, handed(), asked("d", 2), load(), arrived(failed=True), compared(32)) == 0
    assert seen(PAGES, *engines, *(event for event in FETCHED if event != FETCHED[-1])) == 0


@pytest.mark.parametrize(
    ("producer", "consumer", "v1", "v2"),
    [
        (("save_kv_layer",), ("save_kv_layer",), 1, 0),
        (("save_kv_layer", "finish_forward"), ("save_kv_layer", "finish_forward"), 0, 1),
        (("save_kv_layer", "finish_forward"), ("save_kv_layer",), 0, 0),
        (("finish_forward",), ("save_kv_layer", "finish_forward"), 0, 0),
        (("save_kv_layer",), (), 0, 0),
    ],
    ids=["V1", "V2", "one of each", "without layers", "no consumer"],
)
def test_a_runner_is_known_by_the_hooks_that_both_engines_called(
    producer: Sequence[str], consumer: Sequence[str], v1: int, v2: int
) -> None:
    events = (*called(1, *producer), *called(2, *consumer), *FETCHED)
    assert (seen(V1, *events), seen(V2, *events)) == (v1, v2)


def test_a_prompt_is_in_chunks_where_its_producer_needed_several_steps() -> None:
    whole = Scheduled(1, 1, {"p": 0}, {"p": 32})
    first, second = Scheduled(1, 1, {"p": 0}, {"p": 20}), Scheduled(1, 2, {"p": 20}, {"p": 12})
    decoding = {engine: Scheduled(engine, 2, {"p": 32}, {"p": 1}) for engine in (1, 2)}
    one = Tokens(1, 2, "p", (5,), "length")
    prefill = PREFILL[:2]
    rest = FETCHED[2:]
    assert seen(CHUNKS, *prefill, first, second, one, *rest) == 1
    assert seen(CHUNKS, *prefill, whole, one, *rest) == 0
    # The consumer's steps are not the producer's, and a second token takes a step of its own.
    assert seen(CHUNKS, *prefill, whole, decoding[2], one, *rest) == 0
    assert seen(CHUNKS, *prefill, whole, decoding[1], one, one, *rest) == 0


def test_a_hand_off_is_behind_a_local_hit_where_the_consumer_had_some_of_it() -> None:
    rest = (load(), arrived(), compared(16, request="d", engine=2))
    assert seen(BEHIND_LOCAL, *PREFILL, handed(), asked("d", 2, computed=16), *rest) == 1
    assert seen(BEHIND_LOCAL, *PREFILL, handed(), asked("d", 2, computed=1), *rest) == 1
    assert seen(BEHIND_LOCAL, *PREFILL, handed(), asked("d", 2), *rest) == 0


@pytest.mark.parametrize(("engine", "request_id", "count"), [(1, "p", 1), (2, "d", 1), (2, "p", 0), (1, "other", 0)])
def test_a_preemption_counts_on_the_side_that_has_the_request(engine: int, request_id: str, count: int) -> None:
    assert seen(PREEMPTIONS, Scheduled(engine, 1, {}, {}, preempted=(request_id,)), *FETCHED) == count


@pytest.mark.parametrize(("engines", "count"), [((1, 2), 1), ((1,), 0), ((2,), 0)])
def test_dummy_runs_have_to_be_both_engines(engines: Sequence[int], count: int) -> None:
    runs = [ProgramAction(engine, 1, "dummy run", {}) for engine in engines]
    assert seen(DUMMY_RUNS, *runs, *FETCHED) == count


def test_whoever_never_asked_for_the_blocks_reads_what_is_not_its_own() -> None:
    at = wrong(0, 15, request="d", engine=2)
    finding = Finding("LOAD-01", "right", "wrong", at, symptom=True)
    without = (*FETCHED[:2], ended(answer=(False, GIVEN)), *FETCHED[3:])
    assert kept_rule(history(*without), finding) == "FIN-09"
    assert kept_rule(history(*FETCHED), finding) == "ASYNC-08"
    # Nobody has fetched anything: nothing says that it was let go.
    assert kept_rule(history(*FETCHED[:2], ended(answer=(False, GIVEN))), finding) == "ASYNC-08"
