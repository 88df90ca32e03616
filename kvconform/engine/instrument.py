"""Recording what the engine asks of a connector, without changing the connector.

Every hook of the instance is shadowed by an attribute of the same name that records the call and passes it on. The
object, its class and its properties stay what they are, so vLLM's isinstance checks and class-level lookups see the
connector itself. (Of the few classes that let no attribute take a hook's place it becomes an instance of a subclass.)
"""

from __future__ import annotations

import dis
import sys
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

from kvconform.engine import compat
from kvconform.engine.events import FINISH_HOOKS, ChildCall, Event, HookCall, Role
from kvconform.engine.shadowing import shadow

# Hooks the engine calls on either role (vllm/distributed/kv_transfer/kv_connector/v1/base.py, 0.29.0 to 0.33.0).
SCHEDULER_HOOKS: tuple[str, ...] = (
    "bind_kv_cache_manager",
    "bind_gpu_block_pool",
    "on_new_request",
    "get_num_new_matched_tokens",
    "get_loaded_kv_cache_group_ids",
    "update_state_after_alloc",
    "get_external_cache_hit_sources",
    "build_connector_meta",
    "update_connector_output",
    "register_finished_partial_tail",
    "request_finished",
    "request_finished_all_groups",
    "take_events",
    "get_kv_connector_stats",
    "has_pending_block_frees",
    "has_pending_push_work",
    "get_finished_count",
    "set_xfer_handshake_metadata",
    "set_xfer_handshake_metadata_pp_aware",
    "reset_cache",
    "shutdown",
)
WORKER_HOOKS: tuple[str, ...] = (
    "get_mem_pool_context",
    "register_kv_caches",
    "set_host_xfer_buffer_ops",
    "get_handshake_metadata",
    "handle_preemptions",
    "bind_connector_metadata",
    "clear_connector_metadata",
    "start_load_kv",
    "wait_for_layer_load",
    "save_kv_layer",
    "finish_forward",
    "wait_for_save",
    "get_transfer_results",
    "get_finished",
    "get_block_ids_with_load_errors",
    "get_kv_connector_stats",
    "get_kv_connector_kv_cache_events",
    "build_connector_worker_meta",
    "reset_capture_state",
    "unregister_kv_caches",
    "restore_kv_caches",
    "shutdown",
)


# What the worker role is asked for beside transfers; nobody looks around its other hooks, called for every layer.
_REPORTS = frozenset({"get_kv_connector_stats", "get_kv_connector_kv_cache_events"})
# From these a watch knows which requests there are.
_LIVES = frozenset({"on_new_request", *FINISH_HOOKS})


class HookRaised:
    """The exception that left a hook last, so that the engine's own failure can name its cause."""

    def __init__(self) -> None:
        self.hook: str | None = None
        self.error: BaseException | None = None


class HookWatch(Protocol):
    """Looks at the world around a hook that is the connector's own and not the base class's, or one of ``_LIVES``."""

    def enter(self, role: Role, hook: str, step: int, args: tuple[Any, ...]) -> None:
        """Before a scheduler-role hook, and a worker-role one of those in ``_REPORTS``."""

    def leave(self, role: Role, hook: str, args: tuple[Any, ...], result: Any) -> None:
        """After such a hook has returned."""

    def raised(self, role: Role, hook: str, error: BaseException) -> None:
        """After the hook has raised."""


class HookTap(Protocol):
    """Wants to see the calls of a connector that an engine has built."""

    def attach(self, connector: Any, role: Role, rank: int = 0) -> None:
        """Shadow every hook that the instance has."""


class Record(Protocol):
    """Where calls are written down."""

    def add(self, event: Event) -> None:
        """Append one event."""


class _BelowMultiConnector:
    """Writes down calls of a child as such."""

    def __init__(self, history: Record) -> None:
        self._history = history

    def add(self, event: Event) -> None:
        assert isinstance(event, HookCall)
        self._history.add(ChildCall(event.engine, event.step, event))


class Recorder:
    """Records hook calls of both roles into one history, those of the n-th ``child`` of a MultiConnector apart.

    ``clock`` tells (engine number, step). ``after`` maps a hook name to a function that the engine wants called once
    the connector's own hook has returned (used to hand out poisoned blocks right after ``handle_preemptions``).
    """

    def __init__(self, history: Record, clock: Callable[[], tuple[int, int]], child: int | None = None) -> None:
        self.history = history
        self._child = None if child is None else (child, Recorder(_BelowMultiConnector(history), clock))
        self.clock = clock
        self.raised = HookRaised()
        self.after: dict[str, Callable[..., None]] = {}
        self.watch: HookWatch | None = None

    def attach(self, connector: Any, role: Role, rank: int = 0) -> None:
        """Shadow every hook that the instance has."""
        for hook in SCHEDULER_HOOKS if role == "scheduler" else WORKER_HOOKS:
            original = getattr(connector, hook, None)
            if callable(original):
                own = not compat.inherits(connector, hook)
                shadow(connector, hook, self._recording(original, hook, role, rank, own=own))
        if self._child is not None:
            index, recorder = self._child
            recorder.attach(connector._connectors[index], role, rank)

    def _recording(
        self, original: Callable[..., Any], hook: str, role: Role, rank: int, *, own: bool
    ) -> Callable[..., Any]:
        describe = _ARGUMENTS.get(hook)
        # What a connector leaves to the base class is vLLM's own, and touches nothing; but lives begin and end there.
        foreign = hook in _LIVES or own
        watched = foreign and (role == "scheduler" or hook in _REPORTS)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            # Essentials are taken before the call: the engine's arguments are live objects.
            essentials = {} if describe is None else describe(*args, **kwargs)
            engine, step = self.clock()
            watch = self.watch if watched else None
            if watch is not None:
                watch.enter(role, hook, step, args)
            try:
                result = original(*args, **kwargs)
            except Exception as error:
                if foreign and self.watch is not None:
                    self.watch.raised(role, hook, error)
                # A hook that the base class calls from another one is the cause, not the one around it.
                if self.raised.error is not error:
                    self.raised.hook, self.raised.error = hook, error
                text, where = describe_error(error)
                self.history.add(HookCall(engine, step, role, hook, essentials, None, text, where, rank))
                raise
            described = None if result is None else describe_result(hook, result)
            self.history.add(HookCall(engine, step, role, hook, essentials, described, None, None, rank))
            if watch is not None:
                watch.leave(role, hook, args, result)
            if hook in self.after:
                self.after[hook](*args, **kwargs)
            return result

        recorded.__name__ = hook
        recorded.__wrapped__ = original  # type: ignore[attr-defined]
        return recorded


def describe_error(error: BaseException) -> tuple[str, str]:
    """("Type: message", "file:line in function") of the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{_short(frames[-1].filename)}:{frames[-1].lineno} in {frames[-1].name}" if frames else "unknown place"
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"[:600], where


def described(error: BaseException) -> str:
    """What :func:`describe_error` says, as one text."""
    return "{} ({})".format(*describe_error(error))


def innermost(error: BaseException) -> TracebackType | None:
    """Where an exception was raised; None for one that never was."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def stumbled(error: BaseException) -> bool:
    """Whether a look-up (``table[key]``, ``items[3]``) failed by itself; a ``raise`` statement, anybody's, is meant."""
    raised = innermost(error)
    if not isinstance(error, LookupError) or raised is None:
        return False
    code = raised.tb_frame.f_code.co_code
    return dis.opname[code[raised.tb_lasti]] not in ("RAISE_VARARGS", "RERAISE")


def _short(filename: str) -> str:
    """A file name from its package on, so that texts are the same on every machine."""
    inside = filename.rpartition("site-packages/")[2]
    if inside != filename:
        return inside
    for folder in sorted(filter(None, sys.path), key=len, reverse=True):
        if filename.startswith(folder.rstrip("/") + "/"):
            return filename[len(folder.rstrip("/")) + 1 :]
    return filename


def _of_request(request: Any, *_: Any, **__: Any) -> dict[str, Any]:
    return {"request": request.request_id}


def _of_match(request: Any, num_computed_tokens: int) -> dict[str, Any]:
    return {
        "request": request.request_id,
        "num_computed_tokens": num_computed_tokens,
        "num_tokens": request.num_tokens,
    }


def _of_allocation(request: Any, blocks: Any, num_external_tokens: int) -> dict[str, Any]:
    return {
        "request": request.request_id,
        "block_ids": _groups(blocks.get_block_ids()),
        "num_external_tokens": num_external_tokens,
    }


def _of_end(request: Any, block_ids: Any, *_: Any, **__: Any) -> dict[str, Any]:
    return {"request": request.request_id, "status": request.status.name, "block_ids": _groups(block_ids)}


def _of_completions(finished_req_ids: Any, *_: Any, **__: Any) -> dict[str, Any]:
    return {"finished_req_ids": sorted(finished_req_ids)}


def _of_layer(layer_name: str, *_: Any, **__: Any) -> dict[str, Any]:
    return {"layer": layer_name}


def _of_load(forward_context: Any, **keywords: Any) -> dict[str, Any]:
    return {"attn_metadata": getattr(forward_context, "attn_metadata", None) is not None, "keywords": sorted(keywords)}


def _of_handshake(metadata: Any, *_: Any, **__: Any) -> dict[str, Any]:
    return {
        "ranks": sorted(map(str, metadata)),
        "classes": sorted({type(each).__name__ for each in metadata.values()}),
    }


def _of_registration(kv_caches: Any, *_: Any, **__: Any) -> dict[str, Any]:
    return {"layers": sorted(kv_caches)}


def _of_reports(connector_output: Any) -> dict[str, Any]:
    return {
        "finished_sending": _ordered(connector_output.finished_sending),
        "finished_recving": _ordered(connector_output.finished_recving),
        "invalid_block_ids": _ordered(connector_output.invalid_block_ids),
    }


def _of_step(scheduler_output: Any) -> dict[str, Any]:
    """Its requests, and those of the running ones that get no new block (``new_block_ids`` None)."""
    cached = scheduler_output.scheduled_cached_reqs
    return {
        "scheduled": dict(scheduler_output.num_scheduled_tokens),
        "new": {new.req_id: new.num_computed_tokens for new in scheduler_output.scheduled_new_reqs},
        "resumed": sorted(cached.resumed_req_ids),
        "no_new_blocks": [r for r, ids in zip(cached.req_ids, cached.new_block_ids, strict=True) if ids is None],
        "preempted": sorted(scheduler_output.preempted_req_ids or ()),
        "finished": sorted(scheduler_output.finished_req_ids),
    }


# The essentials of a call as plain data, by hook; of the others' arguments nothing is kept.
_ARGUMENTS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "on_new_request": _of_request,
    "get_loaded_kv_cache_group_ids": _of_request,
    "get_num_new_matched_tokens": _of_match,
    "update_state_after_alloc": _of_allocation,
    **dict.fromkeys(FINISH_HOOKS, _of_end),
    "get_finished": _of_completions,
    "get_transfer_results": _of_completions,
    "wait_for_layer_load": _of_layer,
    "save_kv_layer": _of_layer,
    "start_load_kv": _of_load,
    "set_xfer_handshake_metadata": _of_handshake,
    "set_xfer_handshake_metadata_pp_aware": _of_handshake,
    "register_kv_caches": _of_registration,
    "build_connector_meta": _of_step,
    "update_connector_output": _of_reports,
}


def _groups(block_ids: Any) -> Any:
    if block_ids and isinstance(block_ids[0], (list, tuple)):
        return [list(group) for group in block_ids]
    return list(block_ids)


def _ordered(ids: Any) -> list[Any]:
    """Ids in order; of an answer that is no collection of ids, what it looks like."""
    try:
        return sorted(ids or ())
    except TypeError:
        return sorted(map(repr, ids)) if isinstance(ids, (list, tuple, set, frozenset)) else [repr(ids)[:80]]


def describe_result(hook: str, result: Any) -> Any:
    """A result as plain data that keeps the type visible where the contract fixes the type."""
    if result is None or isinstance(result, (bool, int, str)):
        return result
    if hook in FINISH_HOOKS and isinstance(result, tuple) and len(result) == 2:
        # Only the truth of the first element counts (Scheduler._free_request, 0.32.0).
        return bool(result[0]), describe_result("", result[1])
    if isinstance(result, tuple):
        return tuple(describe_result(hook, item) for item in result)
    if isinstance(result, (set, frozenset)):
        return {"set": _ordered(result if hook == "get_block_ids_with_load_errors" else map(str, result))}
    if isinstance(result, dict):
        return {str(key): repr(value)[:80] for key, value in result.items()}
    if hook == "get_transfer_results":
        names = ("finished_sending", "finished_recving", "failed_recving")
        return {name: _ordered(getattr(result, name, None)) for name in names}
    return f"<{type(result).__module__}.{type(result).__qualname__}>"
