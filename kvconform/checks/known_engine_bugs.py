"""What a scenario shows of known defects of vLLM itself: from there on nothing is held against the connector.

A recogniser is as narrow as it can be: it names the event in which the defect itself is seen, not one that it might be
behind, so that a connector's defect of the same kind stays a finding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kvconform.checks.asynchronous_lives import reported
from kvconform.checks.calls import finishes, is_asynchronous, offered
from kvconform.checks.loads import Load, block_sizes, reports
from kvconform.engine.byte_events import WrongBytes
from kvconform.engine.events import FINISH_HOOKS, ChildCall, EngineRaised, EngineStarted, Event, HookCall, Scheduled
from kvconform.engine.history import History
from kvconform.rules.engine_bugs import EngineBug, load_engine_bugs

#: Engine and block.
_Place = tuple[int, int]


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
        if (event := next(SITUATIONS[bug.situation](history), None)) is not None
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
        at = order[id(event)]
        places = [(event.engine, block) for block in event.blocks]
        if places and all(_still_bad(history, place, bad.get(place, []), at) for place in places):
            yield event


def _still_bad(history: History, place: _Place, ends: list[int], at: int) -> bool:
    """Whether a failed load is the last that a block was given for, at an index of the history."""
    left = max((end for end in ends if end < at), default=None)
    return left is not None and not _given_anew(history, place, history.events[left:at])


def _left_in_the_cache(history: History) -> dict[_Place, list[int]]:
    """The indices of the events that ended the request before a failed block was computed anew."""
    order = {id(event): index for index, event in enumerate(history.events)}
    left: dict[_Place, list[int]] = defaultdict(list)
    for report in reports(history):
        at = order[id(report.call)]
        for load in report.loads:
            if load.asynchronous or not load.open_at(report.step, report.rank):
                continue
            later = [
                (index, event) for index, event in enumerate(history.events[at:], at) if event.engine == load.engine
            ]
            end = next((index for index, event in later if load.request in _ended(event)), None)
            if end is None:
                continue
            computed = _computed_anew(history.events[at:end], load)
            size = block_sizes(history, load.engine)[0]
            for block in set(load.blocks) & set(report.blocks):
                last = (len(load.local) + load.blocks.index(block) + 1) * size
                if computed < last:
                    left[load.engine, block].append(end)
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


def _given_anew(history: History, place: _Place, events: list[Event]) -> bool:
    """Whether the block was given to a request for other tokens than those of its local hit."""
    engine, block = place
    local: dict[str, int] = {}
    size = block_sizes(history, engine)[0]
    for event in events:
        if not isinstance(event, HookCall) or event.engine != engine:
            continue
        if event.hook == "get_num_new_matched_tokens":
            local[event.args["request"]] = event.args["num_computed_tokens"]
        elif event.hook == "update_state_after_alloc":
            fresh = event.args["block_ids"][0][local.get(event.args["request"], 0) // size :]
            if block in fresh:
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
    return {request for call in calls for request in reported(call, what)}


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
