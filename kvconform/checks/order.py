"""ORDER: steps in which hooks are called where a connector may not expect them; of requests in ``order_requests``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kvconform.checks.calls import failed_here, is_asynchronous, raised
from kvconform.checks.model import Check, Finding, no_finding
from kvconform.engine.events import EngineRaised, ForwardFailed, HookCall, MetadataBound, ProgramAction, StoreBroken
from kvconform.engine.history import History

_LAYER_HOOKS = ("wait_for_layer_load", "save_kv_layer")
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


def _steps(history: History) -> dict[Place, HookCall]:
    """build_connector_meta by (engine, step): what was scheduled there."""
    return {(call.engine, call.step): call for call in history.calls("build_connector_meta")}


def _empty(steps: Mapping[Place, HookCall], call: HookCall) -> bool:
    built = steps.get((call.engine, call.step))
    return built is not None and not built.args.get("scheduled")


def _store_works(history: History) -> bool:
    """Whether the scenario left the connector's store alone: one that is broken on purpose explains exceptions."""
    return not any(True for _ in history.of(StoreBroken))


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
        if call.hook == "get_num_new_matched_tokens":
            asynchronous[call.engine, call.args["request"]] = is_asynchronous(call)
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
    # What a dummy run leaves behind may be the reason for anything that comes after it (SIG-15).
    dummies = {event.engine for event in history.of(ProgramAction) if event.action == "dummy run"}
    for call in history.calls("start_load_kv"):
        if failed_here(history, call) and not due[id(call)] and call.engine not in dummies:
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
        if (
            not failed_here(history, call)
            or call.role != "worker"
            or not _empty(steps, call)
            or _doubly_bound(history, call)
        ):
            continue
        if call.hook in _RESULTS and call.args.get("finished_req_ids"):
            continue
        yield Finding("ORDER-13", "a step without tokens passes through all hooks", raised(call), call)


def _steps_without_tokens(history: History) -> Mapping[str, int]:
    steps = _steps(history)
    cleared = history.calls("clear_connector_metadata")
    return {"steps without tokens": sum(call.error is None and _empty(steps, call) for call in cleared)}


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
    state: dict[tuple[int, int], int] = {}
    for call in history.calls("bind_connector_metadata", "clear_connector_metadata"):
        worker = (call.engine, call.rank)
        if call.hook == "bind_connector_metadata":
            bound[id(call)] = state.get(worker, call.step) != call.step
            state[worker] = call.step
        else:
            state.pop(worker, None)
    return bound


def _doubly_bound(history: History, call: HookCall) -> bool:
    return call.hook == "bind_connector_metadata" and history.derived(_still_bound)[id(call)]


def _bind_refused(history: History) -> Iterator[Finding]:
    for call in history.calls("bind_connector_metadata"):
        if failed_here(history, call) and _doubly_bound(history, call):
            expected = "bind_connector_metadata replaces metadata that is still bound"
            yield Finding("ORDER-27", expected, raised(call), call)


def _bound_again(history: History) -> Mapping[str, int]:
    bound = history.derived(_still_bound)
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
        if failed_here(history, call):
            expected = "the hooks that end a step work after a forward that raised in between"
            yield Finding("ORDER-21", expected, raised(call), call)


def _closings(history: History) -> Mapping[str, int]:
    calls = [call for call in _closing_hooks(history) if call.hook == "wait_for_save" and call.error is None]
    return {"steps ended after a forward that raised": len(calls)}


# -- situations, whose symptoms the scenario families judge ------------------------------------------------------------


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


CHECKS = (
    Check("ORDER-02", _no_metadata, _metadata_of_empty_steps, "no step without tokens was scheduled"),
    Check("ORDER-08", no_finding, _early_layers, "no layer hook was called before start_load_kv"),
    Check("ORDER-09", _idle_load, _idle_loads, "start_load_kv was never called with nothing to load"),
    Check("ORDER-11", _early_preemptions, _calls_of("handle_preemptions"), "handle_preemptions was never called"),
    Check("ORDER-13", _failed_without_tokens, _steps_without_tokens, "no step without tokens was run"),
    Check("ORDER-18", no_finding, _ahead, "no step was scheduled before the results of the one before"),
    Check("ORDER-20", _wrong_answer, _answers, "no metadata was bound"),
    Check("ORDER-21", _closing_raised, _closings, "no forward raised, or this model runner ends no such step"),
    Check("ORDER-27", _bind_refused, _bound_again, "no metadata was bound over that of an earlier step"),
)
