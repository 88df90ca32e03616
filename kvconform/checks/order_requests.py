"""ORDER: requests that ask, end and complete where a connector may not expect it; of steps in ``order``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvconform.checks.calls import failed_here, finishes, raised
from kvconform.checks.model import Check, Finding, no_finding
from kvconform.engine.events import FINISH_HOOKS, HookCall, ProgramAction
from kvconform.engine.history import History

_RESULTS = ("get_finished", "get_transfer_results")
_ALLOC_EXPECTED = "update_state_after_alloc takes 0 external tokens, for which there is nothing to load"


# -- allocations -------------------------------------------------------------------------------------------------------


def _allocations_of_nothing(history: History) -> Iterator[tuple[HookCall, bool]]:
    """update_state_after_alloc with 0 external tokens, and whether a match was asked in the same step."""
    asked: set[tuple[int, int, str]] = set()
    for call in history.calls("get_num_new_matched_tokens", "update_state_after_alloc"):
        key = (call.engine, call.step, call.args["request"])
        if call.hook == "get_num_new_matched_tokens":
            asked.add(key)
        elif call.args["num_external_tokens"] == 0:
            yield call, key in asked


def _alloc(rule: str, with_match: bool, expected: str, what: str) -> Check:
    def find(history: History) -> Iterator[Finding]:
        for call, asked in _allocations_of_nothing(history):
            if asked == with_match and failed_here(history, call):
                yield Finding(rule, expected, raised(call), call, requests=(call.args["request"],))

    def witness(history: History) -> Mapping[str, int]:
        calls = [call for call, asked in _allocations_of_nothing(history) if asked == with_match]
        return {what: sum(call.error is None for call in calls)}

    return Check(rule, find, witness, f"no {what.replace('allocations', 'allocation', 1)}")


def _asked_again(history: History) -> Mapping[str, int]:
    """Matches that were asked before and led to no allocation since."""
    open_matches: set[tuple[int, str]] = set()
    again = 0
    for call in history.calls("get_num_new_matched_tokens", "update_state_after_alloc"):
        key = (call.engine, call.args["request"])
        if call.hook == "update_state_after_alloc":
            open_matches.discard(key)
        else:
            again += key in open_matches
            open_matches.add(key)
    return {"matches asked again before an allocation": again}


# -- aborts and completions --------------------------------------------------------------------------------------------


def _finished_in(history: History) -> dict[tuple[int, int], set[str]]:
    finished: dict[tuple[int, int], set[str]] = {}
    for call in finishes(history):
        finished.setdefault((call.engine, call.step), set()).add(call.args["request"])
    return finished


def _completions_of_finished(history: History) -> Iterator[tuple[HookCall, set[str]]]:
    finished = _finished_in(history)
    for call in history.calls("update_connector_output"):
        done = {*call.args.get("finished_sending", ()), *call.args.get("finished_recving", ())}
        ended = done & finished.get((call.engine, call.step), set())
        if ended:
            yield call, ended


def _late_completion(history: History) -> Iterator[Finding]:
    for call, ended in _completions_of_finished(history):
        if failed_here(history, call):
            names = ", ".join(sorted(ended))
            expected = "completions of requests that finished in the same step are accepted"
            yield Finding("ORDER-15", expected, f"{raised(call)} for {names}", call, requests=tuple(sorted(ended)))


def _late_completions(history: History) -> Mapping[str, int]:
    calls = [call for call, _ in _completions_of_finished(history) if call.error is None]
    return {"completions of requests that finished in the same step": len(calls)}


def _finishes_during_steps(history: History) -> Iterator[HookCall]:
    """request_finished of requests that were aborted between the execution of a step and its results."""
    aborted: str | None = None
    for event in history.events:
        if isinstance(event, ProgramAction):
            during = event.action == "abort" and event.detail.get("when") == "during step"
            aborted = event.detail["request"] if during else None
        elif isinstance(event, HookCall) and event.hook in FINISH_HOOKS and event.args["request"] == aborted:
            yield event


def _abort_refused(history: History) -> Iterator[Finding]:
    for call in _finishes_during_steps(history):
        if failed_here(history, call):
            expected = f"{call.hook} is accepted for a request that is aborted while its step is under way"
            yield Finding("ORDER-17", expected, raised(call), call, requests=(call.args["request"],))


def _aborts_taken(history: History) -> Mapping[str, int]:
    taken = [call for call in _finishes_during_steps(history) if call.error is None]
    return {"aborts between execution and results": len(taken)}


def _unknown_finished(history: History) -> Iterator[Finding]:
    known = _scheduled_before(history)
    for call in history.calls(*_RESULTS):
        strangers = [r for r in call.args.get("finished_req_ids", ()) if r not in known[id(call)]]
        if failed_here(history, call) and call.role == "worker" and strangers:
            expected = "ids of requests that were never scheduled are accepted in finished_req_ids"
            observed = f"{raised(call)} for {', '.join(strangers)}"
            yield Finding("ORDER-19", expected, observed, call, requests=tuple(strangers))


def _scheduled_before(history: History) -> dict[int, frozenset[str]]:
    """By id of each call that is told finished ids: the requests that were in a step of that engine by then."""
    seen: dict[int, set[str]] = {}
    known: dict[int, frozenset[str]] = {}
    for call in history.calls("build_connector_meta", *_RESULTS):
        if call.hook == "build_connector_meta":
            seen.setdefault(call.engine, set()).update(call.args.get("scheduled", ()))
        else:
            known[id(call)] = frozenset(seen.get(call.engine, ()))
    return known


def _strangers_taken(history: History) -> Mapping[str, int]:
    known = _scheduled_before(history)
    calls = [call for call in history.calls(*_RESULTS) if call.error is None and call.role == "worker"]
    return {
        "finished ids that were never scheduled": sum(
            request not in known[id(call)] for call in calls for request in call.args.get("finished_req_ids", ())
        )
    }


CHECKS = (
    _alloc("ORDER-01", False, _ALLOC_EXPECTED, "allocations of 0 external tokens without a match in the same step"),
    _alloc("ORDER-05", True, _ALLOC_EXPECTED, "allocations of 0 external tokens after a match"),
    Check("ORDER-03", no_finding, _asked_again, "no match was asked a second time before an allocation"),
    Check("ORDER-15", _late_completion, _late_completions, "no transfer was completed in the step its request ended"),
    Check("ORDER-17", _abort_refused, _aborts_taken, "no request was aborted between execution and results"),
    Check("ORDER-19", _unknown_finished, _strangers_taken, "no request ended before it was scheduled"),
)
