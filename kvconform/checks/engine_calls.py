"""How the engine calls a connector, and whether a signature can be called so."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

#: Read by the scheduler as attributes (vllm/v1/core/sched/scheduler.py, Scheduler.__init__, 0.27.1 and 0.28.0 on).
FLAGS: tuple[str, ...] = ("requires_kv_delivery", "supports_divergent_local_hybrid_hits")

#: Asked of the class, where no instance exists (contract: SIG-09).
CLASS_ANSWERS: tuple[str, ...] = (
    "get_required_kvcache_layout",
    "requires_piecewise_for_cudagraph",
    "build_kv_connector_stats",
    "build_prom_metrics",
    "supports_sleep_mode",
)

#: What KVConnectorBase_V1.__init__ sets (vllm/distributed/kv_transfer/kv_connector/v1/base.py, 0.32.0).
BASE_ATTRIBUTES = frozenset({
    "_connector_metadata", "_vllm_config", "_kv_transfer_config", "_kv_cache_config", "_kv_cache_manager", "_role",
})  # fmt: skip
#: Parameters that take an argument by position.
BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
#: Why a hook that takes no argument at all cannot be called on an instance.
TAKES_NO_SELF = "it takes no argument, and so no instance"
#: A keyword of a release that does not exist yet.
LATER_KEYWORD = "added_by_a_later_release"


@dataclass(frozen=True)
class EngineCall:
    """How the engine calls a hook: arguments by position, then by name."""

    hook: str
    positional: tuple[str, ...]
    named: tuple[str, ...] = ()
    #: Whether names that a later release adds have to be taken too.
    open_ended: bool = False

    def __str__(self) -> str:
        return f"{self.hook}({', '.join([*self.positional, *(f'{name}=...' for name in self.named)])})"


_HANDSHAKE = ("metadata",)
_LOAD_NAMES = ("scheduler_output", "request_state_indices", "request_ids", "num_tokens", "attn_metadata")

#: 0.29.0 to 0.33.0: Scheduler, EngineCore, KVConnectorModelRunnerMixin, ActiveKVConnector, maybe_transfer_kv_layer.
ENGINE_CALLS: tuple[EngineCall, ...] = (
    EngineCall("bind_kv_cache_manager", ("kv_cache_manager",)),
    EngineCall("bind_gpu_block_pool", ("gpu_block_pool",)),
    EngineCall("on_new_request", ("request",)),
    EngineCall("get_num_new_matched_tokens", ("request", "num_computed_tokens")),
    EngineCall("get_loaded_kv_cache_group_ids", ("request",)),
    EngineCall("update_state_after_alloc", ("request", "blocks", "num_external_tokens")),
    EngineCall("get_external_cache_hit_sources", ("request", "num_external_tokens")),
    EngineCall("build_connector_meta", ("scheduler_output",)),
    EngineCall("update_connector_output", ("connector_output",)),
    EngineCall("register_finished_partial_tail", ("request", "block_ids", "partial_tail_offloads")),
    EngineCall("request_finished", ("request", "block_ids")),
    EngineCall("request_finished_all_groups", ("request", "block_ids")),
    EngineCall("take_events", ()),
    EngineCall("get_kv_connector_stats", ()),
    EngineCall("has_pending_block_frees", ()),
    EngineCall("has_pending_push_work", ()),
    EngineCall("get_finished_count", ()),
    EngineCall("set_xfer_handshake_metadata", _HANDSHAKE),
    EngineCall("set_xfer_handshake_metadata_pp_aware", _HANDSHAKE),
    EngineCall("reset_cache", ()),
    EngineCall("shutdown", ()),
    EngineCall("get_mem_pool_context", ()),
    EngineCall("register_kv_caches", ("kv_caches",)),
    EngineCall("set_host_xfer_buffer_ops", ("copy_operation",)),
    EngineCall("get_handshake_metadata", ()),
    EngineCall("handle_preemptions", ("kv_connector_metadata",)),
    EngineCall("bind_connector_metadata", ("connector_metadata",)),
    EngineCall("clear_connector_metadata", ()),
    EngineCall("has_connector_metadata", ()),
    EngineCall("start_load_kv", ("forward_context",), _LOAD_NAMES, open_ended=True),
    EngineCall("wait_for_layer_load", ("layer_name",)),
    EngineCall("save_kv_layer", ("layer_name", "kv_layer", "attn_metadata"), open_ended=True),
    EngineCall("finish_forward", ()),
    EngineCall("wait_for_save", ()),
    EngineCall("get_finished", ("finished_req_ids",)),
    EngineCall("get_transfer_results", ("finished_req_ids",)),
    EngineCall("get_block_ids_with_load_errors", ()),
    EngineCall("get_kv_connector_kv_cache_events", ()),
    EngineCall("build_connector_worker_meta", ()),
    EngineCall("reset_capture_state", ()),
    EngineCall("unregister_kv_caches", ()),
    EngineCall("restore_kv_caches", ()),
)
#: What the class is called with, by position.
CONSTRUCTOR_ARGUMENTS = ("vllm_config", "role", "kv_cache_config")


def call_problem(signature: inspect.Signature, call: EngineCall, of_base: inspect.Signature | None) -> str | None:
    """Why the engine's call does not fit a hook's parameters, in words; both signatures are without self."""
    error = binding_error(signature, call.positional, call.named)
    if error is None and call.open_ended:
        error = binding_error(signature, call.positional, (*call.named, LATER_KEYWORD))
        if error is not None:
            return f"it has to take further keyword arguments (**kwargs), as the base class's does: {error}"
    return error or disorder(signature, call, of_base)


def binding_error(signature: inspect.Signature, positional: tuple[str, ...], named: tuple[str, ...]) -> str | None:
    """Why so many arguments by position and these by name can't be passed, in Python's words."""
    try:
        signature.bind(*positional, **dict.fromkeys(named))
    except TypeError as error:
        return str(error)
    return None


def disorder(signature: inspect.Signature, call: EngineCall, of_base: inspect.Signature | None) -> str | None:
    """A parameter that has the base class's name of another position: its value would be taken for something else."""
    names = [p.name for p in signature.parameters.values() if p.kind in BY_POSITION]
    known = call.positional if of_base is None else tuple(of_base.parameters)[: len(call.positional)]
    for index, name in enumerate(names[: len(call.positional)]):
        if name in known and known.index(name) != index:
            return f"its parameter {index + 1} is {name}, where vLLM passes {known[index]}"
    return None
