"""What recorded hook calls and their results say, for the checks of all chapters."""

from __future__ import annotations

from collections.abc import Iterator

from kvconform.engine.events import FINISH_HOOKS, EngineRaised, EngineStarted, ForeignState, HookCall, StoreBroken
from kvconform.engine.history import History

#: Where a worker loads.
LOADING_HOOKS = ("start_load_kv", "wait_for_layer_load")


def raised(call: HookCall) -> str:
    """The exception that left a hook, in words."""
    return f"{call.hook} raised {call.error} ({call.where})"


def failed_here(history: History, call: HookCall) -> bool:
    """Whether a hook raised, for a reason that its situation may be.

    No such reason is the want of the other role's state, which is missing always (ROLE-01, ROLE-02), or an argument
    that the hook doesn't take (SIG-07).
    """
    return call.error is not None and id(call) not in history.derived(_failed_anywhere)


def _failed_anywhere(history: History) -> frozenset[int]:
    foreign = {(event.engine, event.step, event.role, event.hook) for event in history.of(ForeignState)}
    return frozenset(
        id(call)
        for call in history.of(HookCall)
        if call.error is not None
        and (
            (call.engine, call.step, call.role, call.hook) in foreign
            # The exception came from the call itself, in the kit's recorder, not from within the hook.
            or (call.error.startswith("TypeError") and (call.where or "").endswith(" in recorded"))
        )
    )


def refused_to_go_on(history: History, event: EngineRaised) -> bool:
    """Whether a worker raised because a load of a model with several KV cache groups failed.

    There is no other way to tell of a synchronous one: block ids are taken from models with one group only
    (Scheduler._update_requests_with_invalid_blocks, 0.32.0; contract: FAIL-15).
    """
    groups = {start.engine for start in history.of(EngineStarted) if len(start.block_sizes) > 1}
    broken = any(fault.kind in ("data", "silent") and fault.files for fault in history.of(StoreBroken))
    return event.cause_hook in LOADING_HOOKS and event.engine in groups and broken


def is_asynchronous(match: HookCall) -> bool:
    """Whether get_num_new_matched_tokens answered that the load, if there is one, will be asynchronous."""
    return isinstance(match.result, tuple) and bool(match.result) and bool(match.result[-1])


def offered(match: HookCall) -> int:
    """Tokens that get_num_new_matched_tokens offered; 0 for None and for answers of no sense."""
    answer = match.result
    if not isinstance(answer, tuple) or not answer or not isinstance(answer[0], int):
        return 0
    return max(0, answer[0])


def is_answer(match: HookCall) -> bool:
    """Whether get_num_new_matched_tokens answered, and did not raise or put its answer off with None."""
    return match.error is None and isinstance(match.result, tuple) and match.result[0] is not None


def offered_by_request(history: History) -> dict[str, int]:
    """Request id -> the most tokens that get_num_new_matched_tokens offered for it."""
    most: dict[str, int] = {}
    for call in history.calls("get_num_new_matched_tokens"):
        request = call.args["request"]
        most[request] = max(most.get(request, 0), offered(call))
    return most


def finishes(history: History) -> Iterator[HookCall]:
    """The calls that ended a request, of either name."""
    return history.calls(*FINISH_HOOKS)


def is_held(finish: HookCall) -> bool:
    """Whether request_finished answered that the connector frees the blocks later."""
    result = finish.result
    return isinstance(result, tuple) and bool(result) and bool(result[0])


def failed_blocks(call: HookCall) -> tuple[int, ...]:
    """The block ids that get_block_ids_with_load_errors handed out."""
    result = call.result
    return tuple(result["set"]) if isinstance(result, dict) and "set" in result else ()
