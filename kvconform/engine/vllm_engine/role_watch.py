"""Watching what the two roles do to what is not theirs: the engine's objects, handed-over metadata, the other role."""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from kvconform.engine.events import (
    FINISH_HOOKS,
    BorrowedChanged,
    EndedIdsHeld,
    ForeignState,
    MetadataHeld,
    Role,
    RolesInspected,
    TransferParams,
)
from kvconform.engine.history import History
from kvconform.engine.instrument import innermost
from kvconform.engine.snapshot import ObjectState, differences, plain
from kvconform.kvcache.memory import KVMemory

# Through these a connector may pin and release blocks (vllm/v1/core/block_pool.py, BlockPool, 0.29.0 to 0.33.0).
_POOL_METHODS = ("touch", "free_blocks", "get_new_blocks", "evict_blocks", "reset_prefix_cache", "cache_full_blocks")
# The fields of SchedulerOutput that build_connector_meta may change (contract: META-01), and its own result.
_OUTPUT_EXEMPT = frozenset({"new_block_ids_to_zero", "has_sync_kv_loads", "kv_connector_metadata"})
_BLOCK_STATE = "kv_connector_block_state"
# A request may be adapted before it is scheduled for the first time (contract: ROLE-14, notes).
_ADAPTING = "on_new_request"
_OBJECT_LIMIT = 20_000
_BOUND = "bound connector metadata"
# What belongs to the engine of a request, in the order of _BORROWED; kv_transfer_params belongs to the connector.
_Borrowed = tuple[Any, int, list[Any], list[list[int]]]
_BORROWED = ("status", "num_computed_tokens", "block_hashes", "block_table")


class RoleWatch:
    """Looks at engine objects before and after every scheduler-role hook, and at the roles once the engine is idle.

    Args:
        history: where it says what it saw.
        number: the engine's number in the history.
        scheduler: vLLM's Scheduler.
        connectors: the instance of each role.
        memory: the worker's KV cache.
        separate: whether the roles only exchange pickled objects, so that a shared object is no copy's fault.
    """

    def __init__(
        self,
        history: History,
        number: int,
        scheduler: Any,
        connectors: Mapping[Role, Any],
        memory: KVMemory,
        separate: bool,
    ) -> None:
        self._history = history
        self._number = number
        self._step = 0
        self._scheduler = scheduler
        self._connectors = connectors
        self._memory = memory
        self._separate = separate
        self._pool: Any = scheduler.kv_cache_manager.block_pool
        self._pool_calls = 0
        # A stack: a hook may call another one, as bind_kv_cache_manager does.
        self._before: list[tuple[dict[str, _Borrowed], list[int], int]] = []
        self._output: _OutputBefore | None = None
        self._held: tuple[Any, Any] | None = None
        self._ended: set[str] = set()
        # What request_finished returned, so that the same object can't come again under another id().
        self._returned: list[tuple[str, int, Any]] = []
        for name in _POOL_METHODS:
            original = getattr(self._pool, name, None)
            if original is not None:
                setattr(self._pool, name, self._counted(original))

    def _counted(self, original: Any) -> Any:
        @functools.wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._pool_calls += 1
            return original(*args, **kwargs)

        return counted

    # -- around one hook -------------------------------------------------------------------------------------------

    def enter(self, role: Role, hook: str, step: int, args: tuple[Any, ...]) -> None:
        """Called before a hook."""
        self._step = step
        if hook == _ADAPTING:
            # An id that is used again.
            self._ended.discard(args[0].request_id)
        if role != "scheduler" or hook == _ADAPTING:
            return
        self._before.append((self._requests(), self._references(), self._pool_calls))
        if hook == "build_connector_meta":
            self._output = _OutputBefore(args[0])

    def leave(self, role: Role, hook: str, args: tuple[Any, ...], result: Any) -> None:
        """Called after a hook that returned."""
        if role != "scheduler" or hook == _ADAPTING:
            return
        requests, references, pool_calls = self._before.pop()
        requests_now = self._requests()
        changes: list[str] = []
        if requests_now != requests:
            changes += differences(_named(requests), _named(requests_now), "requests")
        if self._pool_calls == pool_calls and (now := self._references()) != references:
            changes += [
                f"the reference count of block {block}: {old} became {new}"
                for block, (old, new) in enumerate(zip(references, now, strict=True))
                if old != new
            ]
        self._note(hook, "request or block", changes)
        if hook == "build_connector_meta" and self._output is not None:
            self._note(hook, "scheduler output", self._output.differences(args[0]))
            self._compare_held()
            self._held = (result, plain(result))
        if hook in FINISH_HOOKS:
            self._ended.add(args[0].request_id)
            self._note_params(hook, args[0].request_id, result)

    def raised(self, role: Role, hook: str, error: BaseException) -> None:
        """Called after a hook that raised: did it look for something that only the other role has?"""
        if role == "scheduler" and hook != _ADAPTING:
            self._before.pop()
        other = self._connectors["worker" if role == "scheduler" else "scheduler"]
        state = _foreign_state(error, self._connectors[role], other)
        if role == "worker" and state == _BOUND:
            # Of the worker role's own making: it was asked outside the time between bind and clear.
            return
        if state is not None:
            self._history.add(ForeignState(self._number, self._step, role, hook, state))

    def _note(self, hook: str, what: str, changes: list[str]) -> None:
        if changes:
            self._history.add(BorrowedChanged(self._number, self._step, hook, what, tuple(changes)))

    def _requests(self) -> dict[str, _Borrowed]:
        # Taken around every hook: tuples, so that no more is made than is needed where nothing has changed.
        manager = self._scheduler.kv_cache_manager
        return {
            request_id: (
                request.status,
                request.num_computed_tokens,
                list(request.block_hashes),
                [[block.block_id for block in group] for group in manager.get_blocks(request_id).blocks],
            )
            for request_id, request in self._scheduler.requests.items()
        }

    def _references(self) -> list[int]:
        return [block.ref_cnt for block in self._pool.blocks]

    def _note_params(self, hook: str, request: str, result: Any) -> None:
        params = result[1] if isinstance(result, tuple) and len(result) == 2 else None
        if params is not None:
            earlier = [(name, step) for name, step, known in self._returned if known is params]
            if (request, self._step) in earlier:
                # MultiConnector passes on what its child has just returned.
                return
            if earlier:
                self._note(hook, "returned parameters", [f"the dict of {request} is the one that {earlier[-1][0]} got"])
            self._returned.append((request, self._step, params))
            self._history.add(TransferParams(self._number, self._step, request, tuple(not_json(params))))

    # -- metadata that was handed over -----------------------------------------------------------------------------

    def step_ended(self) -> None:
        """The workers are done with this step, and the scheduler has taken their results: a new beginning."""
        if self._held is not None:
            self._held = (self._held[0], plain(self._held[0]))

    def _compare_held(self) -> None:
        """The step was scheduled; had it overlapped the one before, its metadata would still be in use."""
        if self._held is not None:
            metadata, before = self._held
            changes = tuple(differences(before, plain(metadata), "metadata", growth=False))
            self._history.add(MetadataHeld(self._number, self._step, changes))

    # -- what the roles hold ---------------------------------------------------------------------------------------

    def inspect(self) -> None:
        """Which of the other side's objects each role's instance can be seen to hold."""
        engine_objects = {id(self._scheduler): "the Scheduler", id(self._pool): "the BlockPool"}
        engine_objects[id(self._scheduler.kv_cache_manager)] = "the KVCacheManager"
        storage = self._memory.raw.untyped_storage().data_ptr()
        found = [
            f"the scheduler-role instance holds the KV cache tensors: {path}"
            for path, value in _held_by(self._connectors["scheduler"])
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() == storage
        ]
        if self._separate:
            found += [
                f"the worker-role instance holds {engine_objects[id(value)]}: {path}"
                for path, value in _held_by(self._connectors["worker"])
                if id(value) in engine_objects
            ]
        self._history.add(RolesInspected(self._number, self._step, tuple(found)))
        held = {name for each in self._connectors.values() for _, value in _held_by(each) for name in _ids_in(value)}
        ended = tuple(sorted(held & self._ended))
        self._history.add(EndedIdsHeld(self._number, self._step, len(self._ended), ended))


def _named(requests: Mapping[str, _Borrowed]) -> dict[str, Any]:
    return {request_id: dict(zip(_BORROWED, values, strict=True)) for request_id, values in requests.items()}


class _OutputBefore:
    """A SchedulerOutput as it was handed out, to be compared with what it is later.

    Pickled, as vLLM pickles it for the workers: that takes a fraction of the time in which Python copies it, and every
    step is looked at. What the copy says is only asked where the bytes differ.
    """

    def __init__(self, output: Any) -> None:
        fields = _lent(output)
        # Lent for the time of the hook, with a method of the scheduler's in it: no pickler takes that.
        self._state = plain(fields.pop(_BLOCK_STATE, None))
        self._pickled = _pickled(fields)
        self._copy = _copied(fields) if self._pickled is None else {}

    def differences(self, output: Any) -> list[str]:
        """What is different now, in words."""
        fields = _lent(output)
        found = list(differences(self._state, plain(fields.pop(_BLOCK_STATE, None)), f"output.{_BLOCK_STATE}"))
        if self._pickled is None:
            return found + _changes(self._copy, _copied(fields))
        if self._pickled != _pickled(fields):
            return found + _changes(_copied(pickle.loads(self._pickled)), _copied(fields))
        return found


def _lent(output: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(output).items() if name not in _OUTPUT_EXEMPT}


def _pickled(fields: dict[str, Any]) -> bytes | None:
    """None for what cannot be pickled, as a defect of the connector's may be why."""
    try:
        return pickle.dumps(fields, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:
        return None


def _copied(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: plain(value) for name, value in fields.items()}


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return list(differences(ObjectState("", before), ObjectState("", after), "output"))


def _foreign_state(error: BaseException, own: Any, other: Any) -> str | None:
    """The attribute that this instance lacks and the other role's has, or "the bound metadata"; None if neither."""
    if isinstance(error, AttributeError) and error.obj is own and error.name in vars(other):
        return f"its attribute {error.name}, which only the other role's instance has"
    raised = innermost(error)
    # KVConnectorBase_V1._get_connector_metadata asserts that metadata is bound.
    function = raised.tb_frame.f_code.co_name if raised is not None else ""
    if isinstance(error, AssertionError) and function == "_get_connector_metadata":
        return _BOUND
    return None


def _held_by(instance: Any) -> Iterator[tuple[str, Any]]:
    """Everything that can be reached from an instance's attributes, with its path; vLLM's own graph is not entered."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [(f"self.{name}", value) for name, value in vars(instance).items()]
    while waiting and len(seen) < _OBJECT_LIMIT:
        path, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield path, value
        waiting += _inside(path, value)


def _ids_in(value: Any) -> Iterator[str]:
    """Strings that may be request ids: the value itself, keys of a mapping, the id of a request of vLLM's."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (key for key in list(value) if isinstance(key, str))
    elif type(value).__module__ == "vllm.v1.request":
        yield value.request_id


def _inside(path: str, value: Any) -> list[tuple[str, Any]]:
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    if isinstance(value, Mapping):
        # A worker's layers are in the configuration's forward context; a connector may keep that mapping in both roles.
        items = list(value.items())
        layers = any(isinstance(item, AttentionLayerBase) for _, item in items)
        return [] if layers else [(f"{path}[{key!r}]", item) for key, item in items]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(f"{path}[{index}]", item) for index, item in enumerate(list(value))]
    module = type(value).__module__
    if isinstance(value, type) or callable(value) or module.startswith(("vllm.config", "vllm.v1", "torch", "builtins")):
        return []
    return [(f"{path}.{name}", item) for name, item in dict(getattr(value, "__dict__", {})).items()]


def not_json(params: Any) -> Iterator[str]:
    """What in ``kv_transfer_params`` does not survive msgpack and JSON; tuples arrive as lists and count as such.

    vllm/v1/serial_utils.py, MsgpackEncoder; vllm/v1/engine/__init__.py, EngineCoreOutput (0.32.0).
    """
    if isinstance(params, dict):
        yield from _not_json(params, "kv_transfer_params")
    else:
        yield f"kv_transfer_params is of type {_kind(params)}, not a dictionary"


def _not_json(value: Any, path: str) -> Iterator[str]:
    if value is None or type(value) in (bool, str):
        return
    if type(value) is int:
        if not -(1 << 63) <= value < 1 << 64:
            yield f"{path} is an int of more than 64 bits"
    elif type(value) is float:
        if not math.isfinite(value):
            yield f"{path} is {value}, which JSON does not have"
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _not_json(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield f"{path} has the key {key!r} of type {_kind(key)}"
            yield from _not_json(item, f"{path}[{key!r}]")
    else:
        yield f"{path} is of type {_kind(value)}"


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
