"""ORDER: hooks that are called where a connector may not expect them, and what they raise there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kvconform.checks.model import Check, Finding
from kvconform.engine.history import (
    EngineRaised,
    ForwardFailed,
    History,
    HookCall,
    MetadataBound,
    ProgramAction,
    StoreBroken,
)

_LAYER_HOOKS = ("wait_for_layer_load", "save_kv_layer")
_FINISHES = ("request_finished", "request_finished_all_groups")
_RESULTS = ("get_finished", "get_transfer_results")
# What a step consists of on the worker besides the layer hooks, in either runner's order.
STEP_HOOKS = (
    "bind_connector_metadata",
    "finish_forward",
    "wait_for_save",
    *_RESULTS,
    "get_block_ids_with_load_errors",
    "get_kv_connector_kv_cache_events",
    "build_connector_worker_meta",
    "clear_connector_metadata",
)
# The part of it that comes after the forward.
_CLOSING = frozenset({*STEP_HOOKS, "start_load_kv"}) - {"bind_connector_metadata", "finish_forward"}
Place = tuple[int, int]


def raised(call: HookCall) -> str:
    """The exception that left a hook, in words."""
    return f"{call.hook} raised {call.error} ({call.where})"


def _steps(history: History) -> dict[Place, HookCall]:
    """build_connector_meta by (engine, step): what was scheduled there."""
    return {(call.engine, call.step): call for call in history.calls("build_connector_meta")}


def _empty(steps: Mapping[Place, HookCall], call: HookCall) -> bool:
    built = steps.get((call.engine, call.step))
    return built is not None and not built.args.get("scheduled")


def _store_works(history: History) -> bool:
    """Whether the scenario left the connector's store alone: one that is broken on purpose explains exceptions."""
    return not any(True for _ in history.of(StoreBroken))


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
            if asked == with_match and call.error is not None:
                yield Finding(rule, expected, raised(call), call, requests=(call.args["request"],))

    def witness(history: History) -> Mapping[str, int]:
        calls = [call for call, asked in _allocations_of_nothing(history) if asked == with_match]
        return {what: sum(call.error is None for call in calls)}

    return Check(rule, find, witness, f"no {what.replace('allocations', 'allocation', 1)}")


# -- steps -------------------------------------------------------------------------------------------------------------


def _no_metadata(history: History) -> Iterator[Finding]:
    for call in history.calls("build_connector_meta"):
        if call.error is None and call.result is None:
            tokens = sum(call.args.get("scheduled", {}).values())
            step = f"a step of {tokens} tokens" if tokens else "a step in which nothing was scheduled"
            yield Finding(
                "ORDER-02", "a metadata object from build_connector_meta in every step", f"it returned None for {step}",
                call,
            )  # fmt: skip
            return


def _metadata_of_empty_steps(history: History) -> Mapping[str, int]:
    calls = history.calls("build_connector_meta")
    return {
        "metadata objects of steps without tokens": sum(
            call.result is not None and not call.args.get("scheduled") for call in calls
        )
    }


def _loads_due(history: History) -> dict[int, bool]:
    """By id of each start_load_kv call: whether a load was promised in its step, or one was still under way."""
    under_way: set[tuple[int, str]] = set()
    promised: set[tuple[int, int]] = set()
    due: dict[int, bool] = {}
    asynchronous: dict[tuple[int, str], bool] = {}
    for call in history.of(HookCall):
        if call.hook == "get_num_new_matched_tokens" and isinstance(call.result, (tuple, list)):
            asynchronous[call.engine, call.args["request"]] = bool(call.result[-1])
        elif call.hook == "update_state_after_alloc" and call.args["num_external_tokens"] > 0:
            promised.add((call.engine, call.step))
            if asynchronous.get((call.engine, call.args["request"])):
                under_way.add((call.engine, call.args["request"]))
        elif call.hook == "update_connector_output":
            under_way -= {(call.engine, request) for request in call.args.get("finished_recving", ())}
        elif call.hook == "start_load_kv":
            due[id(call)] = (call.engine, call.step) in promised or any(e == call.engine for e, _ in under_way)
    return due


def _idle_load(history: History) -> Iterator[Finding]:
    if not _store_works(history):
        return
    due = _loads_due(history)
    for call in history.calls("start_load_kv"):
        if call.error is not None and not due[id(call)]:
            bare = (
                "" if call.args.get("attn_metadata") else ", and there is no attention metadata in the forward context"
            )
            expected = "start_load_kv returns when there is nothing to load"
            yield Finding("ORDER-09", expected, f"{raised(call)}; no load is due in this step{bare}", call)


def _idle_loads(history: History) -> Mapping[str, int]:
    due = _loads_due(history)
    calls = [call for call in history.calls("start_load_kv") if call.error is None and not due[id(call)]]
    return {"start_load_kv without attention metadata": sum(not call.args.get("attn_metadata") for call in calls)}


def _early_preemptions(history: History) -> Iterator[Finding]:
    for call in history.calls("handle_preemptions"):
        if call.error is not None and (call.where or "").endswith("in _get_connector_metadata"):
            expected = "handle_preemptions takes what it needs from its argument: no metadata is bound yet"
            yield Finding("ORDER-11", expected, raised(call), call)


def _calls_of(hook: str) -> Callable[[History], Mapping[str, int]]:
    def witness(history: History) -> Mapping[str, int]:
        return {f"{hook} calls": sum(call.error is None for call in history.calls(hook))}

    return witness


def _failed_without_tokens(history: History) -> Iterator[Finding]:
    if not _store_works(history):
        return
    steps = _steps(history)
    for call in history.calls(*STEP_HOOKS):
        if call.error is None or call.role != "worker" or not _empty(steps, call) or _doubly_bound(history, call):
            continue
        if call.hook in _RESULTS and call.args.get("finished_req_ids"):
            continue
        yield Finding("ORDER-13", "a step without tokens passes through all hooks", raised(call), call)


def _steps_without_tokens(history: History) -> Mapping[str, int]:
    steps = _steps(history)
    cleared = history.calls("clear_connector_metadata")
    return {"steps without tokens": sum(call.error is None and _empty(steps, call) for call in cleared)}


def _unknown_finished(history: History) -> Iterator[Finding]:
    known = _scheduled_before(history)
    for call in history.calls(*_RESULTS):
        strangers = [r for r in call.args.get("finished_req_ids", ()) if r not in known[id(call)]]
        if call.error is not None and call.role == "worker" and strangers:
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


# -- aborts and completions --------------------------------------------------------------------------------------------


def _finished_in(history: History) -> dict[Place, set[str]]:
    finished: dict[Place, set[str]] = {}
    for call in history.calls(*_FINISHES):
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
        if call.error is not None:
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
        elif isinstance(event, HookCall) and event.hook in _FINISHES and event.args["request"] == aborted:
            yield event


def _abort_refused(history: History) -> Iterator[Finding]:
    for call in _finishes_during_steps(history):
        if call.error is not None:
            expected = f"{call.hook} is accepted for a request that is aborted while its step is under way"
            yield Finding("ORDER-17", expected, raised(call), call, requests=(call.args["request"],))


def _aborts_taken(history: History) -> Mapping[str, int]:
    taken = [call for call in _finishes_during_steps(history) if call.error is None]
    return {"aborts between execution and results": len(taken)}


# -- binding -----------------------------------------------------------------------------------------------------------


def _wrong_answer(history: History) -> Iterator[Finding]:
    for event in history.of(MetadataBound):
        expected = event.hook == "bind_connector_metadata"
        if event.answer != repr(expected):
            yield Finding(
                "ORDER-20",
                f"has_connector_metadata is {expected} after {event.hook}",
                f"it returned {event.answer}",
                event,
            )
            return


def _answers(history: History) -> Mapping[str, int]:
    return {"answers of has_connector_metadata": sum(1 for _ in history.of(MetadataBound))}


def _still_bound(history: History) -> dict[int, bool]:
    """By id of each bind_connector_metadata call: whether the metadata of an earlier step was not cleared."""
    bound: dict[int, bool] = {}
    state: dict[int, int] = {}
    for call in history.calls("bind_connector_metadata", "clear_connector_metadata"):
        if call.hook == "bind_connector_metadata":
            bound[id(call)] = state.get(call.engine, call.step) != call.step
            state[call.engine] = call.step
        else:
            state.pop(call.engine, None)
    return bound


def _doubly_bound(history: History, call: HookCall) -> bool:
    return call.hook == "bind_connector_metadata" and _still_bound(history)[id(call)]


def _bind_refused(history: History) -> Iterator[Finding]:
    for call in history.calls("bind_connector_metadata"):
        if call.error is not None and _doubly_bound(history, call):
            expected = "bind_connector_metadata replaces metadata that is still bound"
            yield Finding("ORDER-27", expected, raised(call), call)


def _bound_again(history: History) -> Mapping[str, int]:
    bound = _still_bound(history)
    calls = [call for call in history.calls("bind_connector_metadata") if call.error is None]
    return {"metadata bound over that of an earlier step": sum(bound[id(call)] for call in calls)}


def _closing_hooks(history: History) -> Iterator[HookCall]:
    failed = {(event.engine, event.step) for event in history.of(ForwardFailed)}
    for call in history.of(HookCall):
        if call.role == "worker" and call.hook in _CLOSING and (call.engine, call.step) in failed:
            yield call


def _closing_raised(history: History) -> Iterator[Finding]:
    if any(raised.cause_hook in _LAYER_HOOKS for raised in history.of(EngineRaised)):
        return
    for call in _closing_hooks(history):
        if call.error is not None:
            expected = "the hooks that end a step work after a forward that raised in between"
            yield Finding("ORDER-21", expected, raised(call), call)


def _closings(history: History) -> Mapping[str, int]:
    calls = [call for call in _closing_hooks(history) if call.hook == "wait_for_save" and call.error is None]
    return {"steps ended after a forward that raised": len(calls)}


# -- situations, whose symptoms the scenario families judge ------------------------------------------------------------


def nothing(_: History) -> Iterator[Finding]:
    """No finding: the rule is about a situation, and a family that provokes it binds the symptoms to the rule."""
    yield from ()


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


def _early_layers(history: History) -> Mapping[str, int]:
    started: set[Place] = set()
    early: set[Place] = set()
    for call in history.calls("start_load_kv", *_LAYER_HOOKS):
        place = (call.engine, call.step)
        if call.hook == "start_load_kv":
            started.add(place)
        elif place not in started and call.error is None:
            early.add(place)
    return {"steps with layer hooks before start_load_kv": len(early)}


def scheduled_ahead(history: History) -> set[int]:
    """Ids of the build_connector_meta calls that come before update_connector_output of an earlier step with tokens."""
    open_steps: dict[int, int] = {}
    ahead: set[int] = set()
    for call in history.calls("build_connector_meta", "update_connector_output"):
        still_open = open_steps.get(call.engine, 0)
        if call.hook == "update_connector_output":
            open_steps[call.engine] = max(0, still_open - 1)
            continue
        if still_open > 0:
            ahead.add(id(call))
        if call.args.get("scheduled"):
            open_steps[call.engine] = still_open + 1
    return ahead


def _ahead(history: History) -> Mapping[str, int]:
    return {"steps scheduled before the results of the one before": len(scheduled_ahead(history))}


_ALLOC_EXPECTED = "update_state_after_alloc takes 0 external tokens, for which there is nothing to load"

CHECKS = (
    _alloc("ORDER-01", False, _ALLOC_EXPECTED, "allocations of 0 external tokens without a match in the same step"),
    _alloc("ORDER-05", True, _ALLOC_EXPECTED, "allocations of 0 external tokens after a match"),
    Check("ORDER-02", _no_metadata, _metadata_of_empty_steps, "no step without tokens was scheduled"),
    Check("ORDER-03", nothing, _asked_again, "no match was asked a second time before an allocation"),
    Check("ORDER-08", nothing, _early_layers, "no layer hook was called before start_load_kv"),
    Check("ORDER-09", _idle_load, _idle_loads, "start_load_kv was never called with nothing to load"),
    Check("ORDER-11", _early_preemptions, _calls_of("handle_preemptions"), "handle_preemptions was never called"),
    Check("ORDER-13", _failed_without_tokens, _steps_without_tokens, "no step without tokens was run"),
    Check("ORDER-15", _late_completion, _late_completions, "no transfer was completed in the step its request ended"),
    Check("ORDER-17", _abort_refused, _aborts_taken, "no request was aborted between execution and results"),
    Check("ORDER-18", nothing, _ahead, "no step was scheduled before the results of the one before"),
    Check("ORDER-19", _unknown_finished, _strangers_taken, "no request ended before it was scheduled"),
    Check("ORDER-20", _wrong_answer, _answers, "no metadata was bound"),
    Check("ORDER-21", _closing_raised, _closings, "no forward raised, or this model runner ends no such step"),
    Check("ORDER-27", _bind_refused, _bound_again, "no metadata was bound over that of an earlier step"),
)
