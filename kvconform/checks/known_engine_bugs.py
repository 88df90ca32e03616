"""What a scenario shows of known defects of vLLM itself: from there on nothing is held against the connector.

A recogniser is as narrow as it can be: it names the event in which the defect itself is seen, not one that it might be
behind, so that a connector's defect of the same kind stays a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from kvconform.checks.asynchronous_lives import REPORT_HOOKS, reported
from kvconform.checks.calls import finishes, is_asynchronous, offered
from kvconform.checks.loads import Load, block_sizes, reports
from kvconform.engine.history import (
    FINISH_HOOKS,
    ChildCall,
    EngineRaised,
    EngineStarted,
    Event,
    History,
    HookCall,
    Scheduled,
    WrongBytes,
)
from kvconform.rules.engine_bugs import EngineBug, load_engine_bugs


@dataclass(frozen=True)
class Met:
    """A known defect of the engine, and the event in which it was seen first."""

    bug: EngineBug
    at: Event


def first_met(history: History, release: str) -> Met | None:
    """The first known defect of ``release`` that a history shows; None for an empty release."""
    met = [
        Met(bug, event)
        for bug in load_engine_bugs()
        if release and bug.affects(release)
        for event in islice(SITUATIONS[bug.situation](history), 1)
    ]
    order = {id(event): index for index, event in enumerate(history.events)}
    return min(met, key=lambda each: order[id(each.at)], default=None)


# -- a block whose load failed stays in the local prefix cache ---------------------------------------------------------


def _cached_failed_load(history: History) -> Iterator[WrongBytes]:
    """Slots of local hits that are wrong because they lie in such blocks, all of them."""
    recomputing = {event.engine for event in history.of(EngineStarted) if event.load_failure_policy == "recompute"}
    wrong = [event for event in history.of(WrongBytes) if event.engine in recomputing and not event.external]
    bad = _left_in_the_cache(history) if wrong else {}
    order = {id(event): index for index, event in enumerate(history.events)}
    for event in wrong:
        since = [bad.get((event.engine, block)) for block in event.blocks]
        known = [index for index in since if index is not None and index < order[id(event)]]
        if known and len(known) == len(since) and not _given_anew(history, event, min(known)):
            yield event


def _left_in_the_cache(history: History) -> dict[tuple[int, int], int]:
    """(engine, block) -> index of the event that ended the request before the failed block was computed anew."""
    ends = [(index, requests) for index, event in enumerate(history.events) if (requests := _ended(event))]
    order = {id(event): index for index, event in enumerate(history.events)}
    left: dict[tuple[int, int], int] = {}
    for report in reports(history):
        at = order[id(report.call)]
        for load in report.loads:
            failed = set(load.blocks) & set(report.blocks)
            if load.asynchronous or not failed or not load.open_at(report.step, report.rank):
                continue
            end = next((index for index, requests in ends if index > at and load.request in requests), None)
            if end is None or load.engine != history.events[end].engine:
                continue
            computed = _computed_anew(history.events[at:end], load)
            size = block_sizes(history, load.engine)[0]
            for block in failed:
                last = (len(load.local) + load.blocks.index(block) + 1) * size
                if computed < last:
                    left[load.engine, block] = end
    return left


def _ended(event: Event) -> tuple[str, ...]:
    """The requests that a finish or a preemption takes their blocks from."""
    if isinstance(event, HookCall) and event.hook in FINISH_HOOKS:
        return (event.args["request"],)
    return event.preempted if isinstance(event, Scheduled) else ()


def _computed_anew(events: list[Event], load: Load) -> int:
    """Up to which token the request was computed after the failure was reported."""
    return max(
        (
            event.computed.get(load.request, 0) + event.scheduled[load.request]
            for event in events
            if isinstance(event, Scheduled) and event.engine == load.engine and load.request in event.scheduled
        ),
        default=0,
    )


def _given_anew(history: History, wrong: WrongBytes, since: int) -> bool:
    """Whether one of the blocks was given to a request for other tokens than those of its local hit since then."""
    local: dict[str, int] = {}
    size = block_sizes(history, wrong.engine)[0]
    for event in history.events[since:]:
        if event is wrong:
            return False
        if not isinstance(event, HookCall) or event.engine != wrong.engine:
            continue
        if event.hook == "get_num_new_matched_tokens":
            local[event.args["request"]] = event.args["num_computed_tokens"]
        elif event.hook == "update_state_after_alloc":
            fresh = event.args["block_ids"][0][local.get(event.args["request"], 0) // size :]
            if set(fresh) & set(wrong.blocks):
                return True
    return False


# -- two completions of an aborted request -----------------------------------------------------------------------------


def _two_completions(history: History) -> Iterator[EngineRaised]:
    """vLLM's assertion about a request for which the connector under test has reported no more than one of the two."""
    for event in history.of(EngineRaised):
        if not (event.error.startswith("AssertionError") and event.where.endswith(" in _update_from_kv_xfer_finished")):
            continue
        calls = [call for call in history.calls("update_connector_output") if call.engine == event.engine]
        both = _named(calls, "finished_sending") & _named(calls, "finished_recving")
        own = [each.call for each in history.of(ChildCall) if each.engine == event.engine]
        reported = _reported(own, "finished_sending") & _reported(own, "finished_recving")
        aborted = {
            call.args["request"]
            for call in finishes(history)
            if call.engine == event.engine and call.args.get("status") == "FINISHED_ABORTED"
        }
        if own and (both - reported) & aborted:
            yield event


def _named(calls: list[HookCall], what: str) -> set[str]:
    return {request for call in calls for request in call.args.get(what, ())}


def _reported(calls: list[HookCall], what: str) -> set[str]:
    return {request for call in calls if call.hook in REPORT_HOOKS for request in reported(call, what)}


# -- too few blocks for the state of an external hit -------------------------------------------------------------------


def _uncounted_state(history: History) -> Iterator[EngineRaised]:
    """The pool is asked for more than it has, for a request that was just offered tokens to load in the same step."""
    recurrent = {event.engine for event in history.of(EngineStarted) if event.recurrent}
    for event in history.of(EngineRaised):
        asked = event.error.startswith("ValueError: Cannot get ") and event.where.endswith(" in get_new_blocks")
        if not asked or event.during != "schedule" or event.engine not in recurrent:
            continue
        answers = [
            call
            for call in history.calls("get_num_new_matched_tokens")
            if (call.engine, call.step) == (event.engine, event.step)
        ]
        if answers and offered(answers[-1]) and not is_asynchronous(answers[-1]):
            yield event


#: The recogniser of each ``situation`` of the data: the events in which the defect is seen.
SITUATIONS: Mapping[str, Callable[[History], Iterator[Event]]] = {
    "local hit on a block whose failed load was never recomputed": _cached_failed_load,
    "too few blocks for the recurrent state of an external hit": _uncounted_state,
    "two children of MultiConnector each completed an aborted request": _two_completions,
}
