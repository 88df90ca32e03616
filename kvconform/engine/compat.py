"""What differs between vLLM releases, in one place.

Every function here hides one difference and names the releases it bridges; the rest of the kit imports nothing from
vLLM whose place or shape changed between the supported releases (0.29.0 to 0.33.0, all of which `make releases` tries).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from packaging.version import Version

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec


@cache
def release() -> Version:
    """The release of the imported vLLM."""
    import vllm

    return Version(Version(vllm.__version__).base_version)


@cache
def at_least(oldest: str) -> bool:
    """Whether the imported vLLM is that release or a later one."""
    return release() >= Version(oldest)


def get_kv_cache_configs(
    vllm_config: VllmConfig, specs: list[dict[str, KVCacheSpec]], available_bytes: list[int]
) -> list[KVCacheConfig]:
    """vLLM's own planning of groups and tensors, one config per worker.

    Moved from vllm/v1/core/kv_cache_utils.py to kv_cache_planning.py in 0.33.0, where the groups are planned first and
    handed in (EngineCore._initialize_kv_caches).
    """
    if at_least("0.33.0"):
        planning = importlib.import_module("vllm.v1.core.kv_cache_planning")
        groups = planning.get_global_kv_cache_groups(vllm_config, specs)
        vllm_config.adjust_dcp_kv_cache_interleave_size(groups)
        configs: list[KVCacheConfig] = planning.get_kv_cache_configs(vllm_config, specs, available_bytes, groups)
        return configs
    utils = importlib.import_module("vllm.v1.core.kv_cache_utils")
    configs = utils.get_kv_cache_configs(vllm_config, specs, available_bytes)
    return configs


def get_kv_cache_config_from_groups(vllm_config: VllmConfig, groups: list[Any], available_bytes: int) -> KVCacheConfig:
    """A config for groups that the caller chose (same move in 0.33.0)."""
    module = "kv_cache_planning" if at_least("0.33.0") else "kv_cache_utils"
    planning = importlib.import_module(f"vllm.v1.core.{module}")
    config: KVCacheConfig = planning.get_kv_cache_config_from_groups(vllm_config, groups, available_bytes)
    return config


def fill_resolved_granularity(
    vllm_config: VllmConfig, configs: list[KVCacheConfig], scheduler_config: KVCacheConfig
) -> None:
    """Write the hash block size and the hit alignment into every config, as the engine core does from 0.32.0 on."""
    utils = importlib.import_module("vllm.v1.core.kv_cache_utils")
    if not hasattr(utils, "resolve_cache_hit_alignment_tokens"):
        return
    block_size, hash_block_size = utils.resolve_kv_cache_block_sizes(scheduler_config, vllm_config)
    alignment = utils.resolve_cache_hit_alignment_tokens(scheduler_config, vllm_config, block_size, hash_block_size)
    for config in (*configs, scheduler_config):
        config.hash_block_size = hash_block_size
        config.cache_hit_alignment_tokens = alignment
    for name, value in (("hash_block_size", hash_block_size), ("cache_hit_alignment_tokens", alignment)):
        if hasattr(vllm_config.cache_config, name):
            setattr(vllm_config.cache_config, name, value)


def request_block_hasher(vllm_config: VllmConfig, hash_block_size: int, hash_fn: Callable[[Any], bytes]) -> Any:
    """The hasher the engine core gives every request; 0.33.0 added look-ahead tokens (always 0 with a connector)."""
    utils = importlib.import_module("vllm.v1.core.kv_cache_utils")
    lookahead = getattr(vllm_config, "num_hash_lookahead_tokens", None)
    if lookahead is None:
        return utils.get_request_block_hasher(hash_block_size, hash_fn)
    return utils.get_request_block_hasher(hash_block_size, hash_fn, lookahead)


def deliver_handshake(scheduler_connector: Any, per_worker: list[dict[tuple[int, int], Any] | None]) -> None:
    """Give the workers' handshake metadata to the scheduler role, an empty dict included (EngineCore.__init__)."""
    content: dict[tuple[int, int], Any] = {}
    for worker in per_worker:
        content.update(worker or {})
    scheduler_connector.set_xfer_handshake_metadata_pp_aware(content)


def inherits(connector: Any, hook: str) -> bool:
    """Whether the instance leaves ``hook`` to vLLM's base class, recorded or not."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    method = getattr(connector, hook, None)
    function = getattr(getattr(method, "__wrapped__", method), "__func__", None)
    return function is not None and function is getattr(KVConnectorBase_V1, hook, None)


def v2_pre_forward(
    active: Any, output: SchedulerOutput, input_batch: Any, attn_metadata: Mapping[str, Any] | None
) -> None:
    """``ActiveKVConnector.pre_forward``: the batch and its metadata from 0.32.0 on.

    In 0.30.0 and 0.31.0 ``execute_model`` hands out as keywords what start_load_kv is to get, and 0.29.0 has nothing to
    hand out (vllm/v1/worker/gpu/model_runner.py).
    """
    if at_least("0.32.0"):
        active.pre_forward(output, input_batch, attn_metadata)
    elif at_least("0.30.0"):
        active.pre_forward(
            output,
            request_state_indices=input_batch.idx_mapping,
            request_ids=input_batch.req_ids,
            num_tokens=input_batch.num_tokens,
            **({} if attn_metadata is None else {"attn_metadata": attn_metadata}),
        )
    else:
        active.pre_forward(output)


def v2_finish_forward(active: Any) -> None:
    """``ActiveKVConnector.finish_forward``, which 0.30.0 brought, as it did the hook."""
    if at_least("0.30.0"):
        active.finish_forward()


def v2_post_forward(active: Any, finished_req_ids: set[str], drafts: bool) -> Any:
    """``ActiveKVConnector.post_forward``: the step's ``KVConnectorOutput``, or None where the connector is disabled.

    From 0.33.0 on, as long as before under the V1 runner, a step with a draft model ends (``wait_for_save``,
    ``clear_connector_metadata``) once that model has run as well (vllm/v1/worker/gpu/model_runner.py, sample_tokens).
    """
    if not drafts or not at_least("0.33.0"):
        return active.post_forward(finished_req_ids)
    output = active.post_forward(finished_req_ids, defer_finalize=True)
    active.finalize_step()
    return output


def has_sync_kv_loads(output: SchedulerOutput) -> bool:
    """Whether this step's loads feed its own forward; the field exists since 0.29.0."""
    return bool(getattr(output, "has_sync_kv_loads", True))


def tracked_request_ids(scheduler: Any) -> dict[str, tuple[str, ...]]:
    """Per container of the scheduler, the request ids it still holds; all empty once an engine is idle.

    ``skipped_waiting`` until 0.30.0 became ``kv_holding_waiting`` and the set ``deferred_waiting`` in 0.31.0;
    ``_inflight_prefills`` exists since 0.23.0.
    """
    names = (
        "requests",
        "waiting",
        "skipped_waiting",
        "kv_holding_waiting",
        "deferred_waiting",
        "running",
        "finished_req_ids",
        "finished_recving_kv_req_ids",
        "failed_recving_kv_req_ids",
        "_inflight_prefills",
        "deferred_loads",
    )
    held: dict[str, tuple[str, ...]] = {}
    for name in names:
        container = getattr(scheduler, name, None)
        if container is None:
            continue
        ids = tuple(sorted(str(getattr(entry, "request_id", entry)) for entry in container))
        if ids:
            held[name] = ids
    return held


def admit_items(scheduler: Any) -> None:
    """Room for the encoder outputs of multimodal items, of which vLLM gives none to the text model on paper.

    ``Scheduler.max_num_encoder_input_tokens`` and ``EncoderCacheManager`` (vllm/v1/core/encoder_cache_manager.py) have
    these names from 0.29.0 to 0.33.0.
    """
    if scheduler.max_num_encoder_input_tokens == 0:
        cache = scheduler.encoder_cache_manager
        cache.cache_size = cache.num_free_slots = cache.num_freeable_slots = 1 << 20
        scheduler.max_num_encoder_input_tokens = cache.cache_size
