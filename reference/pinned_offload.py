"""PinnedOffloadConnector: KV blocks in pinned host memory, copied on streams of its own while the engine computes.

What a connector for a GPU has to get right beyond ``host_offload``: the order of work on the device. The host is ahead
of the GPU: when a hook is called, the kernels that the engine has queued have not run. Read ``host_offload`` and
``async_file_store`` first, then in this order:

- this module: the hooks vLLM calls, by role;
- ``_pinned_worker``: the copies, and the four orders that have to be kept between streams;
- ``_device_streams``: streams and events; on the CPU there are none, and every copy is done when it is queued;
- ``_pinned_scheduler``: pins and slots, for transfers that outlive their step;
- ``_host_pool`` and ``_async_scheduler``: the index of the pool, and who owns a block meanwhile, as in the other two.

The life of a load: the match query answers ``(n, True)``; start_load_kv queues the copy; get_finished reports the
request once the copy's event has come to pass. With ``synchronous_loads`` it answers ``(n, False)``, and the engine's
stream is made to wait for the copy instead: the host waits for nothing. The life of a save: wait_for_save queues the
copy behind the step's kernels; once its event has come to pass, every rank votes, and the scheduler role publishes.

**Options** in ``kv_connector_extra_config``: ``capacity_blocks`` or ``capacity_bytes``, the size of the pool per rank
(default 1024 blocks); ``synchronous_loads`` (default false).

What it leaves out, on purpose: hybrid models, events, statistics, a limit to the copies under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.logger import init_logger

from ._compat import block_granularity, host_hit_source
from ._device_streams import Streams, streams_of
from ._file_store_scheduler import Granularity
from ._host_pool import HostPool, pool_capacity
from ._kv_pages import KVPages
from ._pinned_messages import PinnedMetadata, PinnedReport
from ._pinned_scheduler import PinnedSchedulerSide
from ._pinned_worker import PinnedWorkerSide
from ._requirements import only_group

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger(__name__)

_OPTIONS = frozenset({"capacity_blocks", "capacity_bytes", "synchronous_loads"})


class PinnedOffloadConnector(KVConnectorBase_V1):
    """An asynchronous, block-granular KV pool in pinned host memory."""

    # How vLLM's metrics label our hits, from 0.32.0 on.
    _cache_hit_source = host_hit_source()

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Raises ValueError for unusable options and for a KV cache that this connector can't store."""
        super().__init__(vllm_config, role, kv_cache_config)
        options = self._kv_transfer_config.kv_connector_extra_config
        unknown = sorted(set(options) - _OPTIONS)
        if unknown:
            logger.warning("PinnedOffloadConnector ignores the unknown options %s; it knows %s.", unknown, _OPTIONS)
        self._group = only_group(type(self).__name__, kv_cache_config)
        self._now = bool(options.get("synchronous_loads", False))
        capacity = pool_capacity(type(self).__name__, options, kv_cache_config)
        self._scheduler: PinnedSchedulerSide | None = None
        self._worker: PinnedWorkerSide | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler = PinnedSchedulerSide(
                HostPool(capacity),
                Granularity(*block_granularity(vllm_config, kv_cache_config)),
                vllm_config.parallel_config.world_size,
                may_load=self._kv_transfer_config.is_kv_consumer,
                may_save=self._kv_transfer_config.is_kv_producer,
                now=self._now,
            )
        else:
            self._worker = self._make_worker(capacity)

    @property
    def requires_kv_delivery(self) -> bool:
        """Nobody waits for our blocks: a save that is lost is a later miss. (The default is True for producers.)"""
        return False

    def shutdown(self) -> None:
        """Called on both roles, possibly twice, possibly before anything was registered."""
        if self._worker is not None:
            self._worker.close()
        if self._scheduler is not None:
            self._scheduler.close()

    def _make_worker(self, capacity: int) -> PinnedWorkerSide:
        return PinnedWorkerSide(capacity, self._make_streams)

    @staticmethod
    def _make_streams(device: torch.device) -> Streams:
        """Streams are made when the KV cache is registered: by then the device is there."""
        return streams_of(device)

    # ---- Worker role ----

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Raises ValueError for tensors that are not attention pages of this KV cache."""
        pages = KVPages(kv_caches, self._group.layer_names, self._kv_cache_config.num_blocks)
        self._worker_side().register(pages, next(iter(kv_caches.values())).device)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Called in every step before anything is written; the only place where the host may have to wait."""
        assert isinstance(kv_connector_metadata, PinnedMetadata)
        self._worker_side().fence(kv_connector_metadata)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Queue the loads of this step, in steps without a forward as well."""
        self._worker_side().begin(self._step_metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for on the host: the engine's stream waits, or the request is not scheduled yet."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        """Nothing to do per layer: saves read all layers from the registered tensors."""

    def wait_for_save(self) -> None:
        """Queue the saves of this step. They go on afterwards, which is why blocks have to be held or fenced."""
        self._worker_side().save(self._step_metadata())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests as (sent, received). Which requests are held is in the metadata, so the argument is not needed."""
        sent, received = self._worker_side().collect()
        return sent or None, received or None

    def build_connector_worker_meta(self) -> PinnedReport | None:
        return self._worker_side().take_report()

    # ---- Scheduler role ----

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        tokens = self._scheduler_side().match(request, num_computed_tokens)
        return tokens, tokens > 0 and not self._now

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        (block_ids,) = blocks.get_block_ids()
        self._scheduler_side().allocated(request, block_ids, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self._scheduler_side().build_pinned_metadata(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._scheduler_side().step_reported(connector_output)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """True while saves still read the blocks; vLLM then keeps them, and the id, until get_finished says "sent"."""
        return self._scheduler_side().finished(request, block_ids), None

    def has_pending_push_work(self) -> bool:
        """Keep the engine stepping until the last save is published, even if no request is left."""
        return self._scheduler_side().has_open_saves()

    def reset_cache(self) -> bool:
        return self._scheduler_side().reset()

    # ---- Which role this is ----

    def _worker_side(self) -> PinnedWorkerSide:
        assert self._worker is not None, "a worker-role hook was called on the scheduler role"
        return self._worker

    def _scheduler_side(self) -> PinnedSchedulerSide:
        assert self._scheduler is not None, "a scheduler-role hook was called on the worker role"
        return self._scheduler

    def _step_metadata(self) -> PinnedMetadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, PinnedMetadata)
        return metadata
