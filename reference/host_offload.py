"""HostOffloadConnector: KV blocks in a bounded pool of host memory.

What a store with limited room needs beyond ``file_store``: eviction, promises that hold, statistics, and events that
tell a router what the pool holds. Read ``file_store`` first, then in this order:

- this module: the hooks vLLM calls, by role;
- ``_host_pool``: slots, least recently used first, pins, events;
- ``_host_scheduler``: when a promise begins and ends, when a save gets a slot;
- ``_host_worker``: copies between the KV cache and the slots;
- ``_host_stats``: counters that can be merged in any order.

The scheduler role has the index and never sees a byte; each worker has the bytes and never sees a key. What crosses is
a list of (block, slot) per step, and a report per step.

**Keys.** The pool lives and dies with one engine, so everything that is the same for all its requests (model, dtype,
layout, ranks) needs no place in a key; what differs between requests (tokens, LoRA adapter, salt, images) is in vLLM's
block hash. A pool shared between engines would need ``_kv_identity`` in every key.

**Options** in ``kv_connector_extra_config``: ``capacity_blocks`` or ``capacity_bytes``, the size of the pool per rank
(default 1024 blocks); ``health_file``, for tests: loads fail while this file is missing or damaged, and the failure
writes it anew (``_host_worker.HealthFile``).

What it leaves out, on purpose: hybrid models, asynchronous transfers, a second tier. Its events come from the scheduler
role, which knows what can be found; a connector whose workers decide that sends them as KVConnectorKVEvents.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.logger import init_logger

from ._compat import block_granularity, host_hit_source
from ._file_store_messages import FileStoreReport
from ._file_store_scheduler import Granularity
from ._host_pool import HostPool, pool_capacity
from ._host_scheduler import HostSchedulerSide
from ._host_stats import HostOffloadMetrics, HostOffloadStats
from ._host_worker import HealthFile, HostMetadata, HostWorkerSide
from ._kv_pages import KVPages
from ._requirements import only_group

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger(__name__)

_OPTIONS = frozenset({"capacity_blocks", "capacity_bytes", "health_file"})


class HostOffloadConnector(KVConnectorBase_V1):
    """A synchronous, block-granular KV pool in host memory."""

    # How vLLM's metrics label our hits, from 0.32.0 on.
    _cache_hit_source = host_hit_source()

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Raises ValueError for unusable options and for a KV cache that this connector can't store."""
        super().__init__(vllm_config, role, kv_cache_config)
        options = self._kv_transfer_config.kv_connector_extra_config
        unknown = sorted(set(options) - _OPTIONS)
        if unknown:
            logger.warning("HostOffloadConnector ignores the unknown options %s; it knows %s.", unknown, _OPTIONS)
        self._group = only_group(type(self).__name__, kv_cache_config)
        capacity = pool_capacity(type(self).__name__, options, kv_cache_config)
        self._scheduler: HostSchedulerSide | None = None
        self._worker: HostWorkerSide | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._pool = HostPool(capacity)
            self._scheduler = HostSchedulerSide(
                self._pool,
                Granularity(*block_granularity(vllm_config, kv_cache_config)),
                vllm_config.parallel_config.world_size,
                may_load=self._kv_transfer_config.is_kv_consumer,
                may_save=self._kv_transfer_config.is_kv_producer,
            )
        else:
            health = options.get("health_file")
            self._worker = HostWorkerSide(capacity, HealthFile(None if health is None else Path(health)))

    @property
    def requires_kv_delivery(self) -> bool:
        """Nobody waits for our blocks: a save that is lost is a later miss. (The default is True for producers.)"""
        return False

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[type[Any], type[Any]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> HostOffloadMetrics:
        """Called in the front-end, where no connector is ever built."""
        return HostOffloadMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        """Called on both roles, possibly twice, possibly before anything was registered."""
        if self._worker is not None:
            self._worker.close()
        if self._scheduler is not None:
            self._scheduler.close()

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """Called on both roles in every step: each hands out what it has counted since."""
        if self._worker is not None:
            return self._worker.stats.take()
        return self._scheduler_side().take_stats()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        """Called in the front-end, where no instance is, with what ``to_dict`` gave."""
        return HostOffloadStats(data=dict(data or {}))

    # ---- Worker role ----

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Raises ValueError for tensors that are not attention pages of this KV cache."""
        pages = KVPages(kv_caches, self._group.layer_names, self._kv_cache_config.num_blocks)
        self._worker_side().register(pages)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Load everything, now."""
        self._worker_side().load(self._step_metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: ``start_load_kv`` has loaded all layers."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        """Nothing to do per layer: ``wait_for_save`` reads all layers from the registered tensors."""

    def wait_for_save(self) -> None:
        """Copy the blocks that this step completed; they have left the KV cache when this returns."""
        self._worker_side().save(self._step_metadata())

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker_side().take_load_errors()

    def build_connector_worker_meta(self) -> FileStoreReport | None:
        return self._worker_side().take_report()

    # ---- Scheduler role ----

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        return self._scheduler_side().match(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        (block_ids,) = blocks.get_block_ids()
        self._scheduler_side().allocated(request, block_ids, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self._scheduler_side().build_host_metadata(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._scheduler_side().step_reported(connector_output)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """The engine may have the blocks back at once: saves never outlive the step that made them."""
        self._scheduler_side().finished(request)
        return False, None

    def take_events(self) -> Iterable[KVCacheEvent]:
        """What the pool holds since the last call, and what it does not hold any more."""
        return () if self._scheduler is None else self._pool.take_events()

    def reset_cache(self) -> bool:
        return self._scheduler_side().reset()

    # ---- Which role this is ----

    def _worker_side(self) -> HostWorkerSide:
        assert self._worker is not None, "a worker-role hook was called on the scheduler role"
        return self._worker

    def _scheduler_side(self) -> HostSchedulerSide:
        assert self._scheduler is not None, "a scheduler-role hook was called on the worker role"
        return self._scheduler

    def _step_metadata(self) -> HostMetadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, HostMetadata)
        return metadata


# Below MultiConnector the front-end looks for the class of our statistics under this name. A project that serves with
# this connector registers it in an entry point of the group vllm.general_plugins, which every process of vLLM loads.
if "HostOffloadConnector" not in KVConnectorFactory._registry:
    KVConnectorFactory.register_connector("HostOffloadConnector", __name__, "HostOffloadConnector")
