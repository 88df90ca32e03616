"""AsyncFileStoreConnector: KV blocks in files, loaded and stored by threads while the engine goes on.

The asynchronous sister of FileStoreConnector: the same files under the same keys, so either finds what the other has
stored, but no step waits for a disk. Read ``file_store`` first, then in this order:

- this module: which hook starts, hurries, ends or reports a transfer;
- ``_async_scheduler``: who owns a block while it is being moved;
- ``_async_worker``: starting transfers, and reporting each of them once;
- ``_async_transfers``: what runs in the threads, and the order of work on an accelerator.

The life of a load: the match query answers ``(n, True)``; update_state_after_alloc plans it; start_load_kv starts it;
get_finished reports the request once, with everything in place or the failed blocks named; only then does vLLM schedule
it. The life of a save: build_connector_meta plans it for blocks that the step completes; wait_for_save starts it;
build_connector_worker_meta reports it, and the scheduler role publishes the block. What may come in between:

- the request ends: request_finished returns True, and get_finished reports it as sent once its saves are done;
- its blocks get another owner without that, after a preemption: handle_preemptions takes the data out first;
- it is aborted while it loads: the load is stopped, and reported like any other.

Configuration as for FileStoreConnector, with ``"kv_connector": "AsyncFileStoreConnector"`` from the module
``kvconform.reference.async_file_store``, and one more option in ``kv_connector_extra_config``: ``threads``, the number
of transfers at a time (default 4).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole

from ._async_messages import AsyncStoreMetadata, AsyncStoreReport
from ._async_scheduler import AsyncSchedulerSide
from ._async_transfers import TransferPool, thread_pool
from ._async_worker import AsyncWorkerSide
from ._block_store import BlockStore
from ._compat import block_granularity, disk_hit_source
from ._file_store_scheduler import Granularity
from ._kv_identity import describe
from ._kv_pages import KVPages
from ._requirements import only_group, store_path
from ._store_namespace import StoreNamespace

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


class AsyncFileStoreConnector(KVConnectorBase_V1):
    """An asynchronous, block-granular KV store in a directory."""

    # How vLLM's metrics label our hits, from 0.32.0 on.
    _cache_hit_source = disk_hit_source()

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Raises ValueError for unusable options and for a KV cache that this connector can't store."""
        super().__init__(vllm_config, role, kv_cache_config)
        options = dict(self._kv_transfer_config.kv_connector_extra_config)
        threads = _thread_count(options.pop("threads", 4))
        store = BlockStore(store_path(type(self).__name__, options))
        self._group = only_group(type(self).__name__, kv_cache_config)
        parallel = vllm_config.parallel_config
        self._scheduler: AsyncSchedulerSide | None = None
        self._worker: AsyncWorkerSide | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler = AsyncSchedulerSide(
                store,
                StoreNamespace(store.root, describe(vllm_config, kv_cache_config)),
                Granularity(*block_granularity(vllm_config, kv_cache_config)),
                parallel.world_size,
                may_load=self._kv_transfer_config.is_kv_consumer,
                may_save=self._kv_transfer_config.is_kv_producer,
            )
        else:
            make_pool = partial(self._make_pool, threads)
            self._worker = AsyncWorkerSide(store, parallel.rank, parallel.world_size, make_pool)

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

    @staticmethod
    def _make_pool(threads: int) -> TransferPool:
        """Threads are started by the first transfer, not by the constructor."""
        return thread_pool(threads)

    # ---- Worker role ----

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Raises ValueError for tensors that are not attention pages of this KV cache."""
        pages = KVPages(kv_caches, self._group.layer_names, self._kv_cache_config.num_blocks)
        self._worker_side().register(pages, next(iter(kv_caches.values())).device)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Called in every step before anything is written; the only place where a save may have to be waited for."""
        assert isinstance(kv_connector_metadata, AsyncStoreMetadata)
        self._worker_side().fence(kv_connector_metadata)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Start the loads of this step, in steps without a forward as well."""
        self._worker_side().begin(self._step_metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: a request is not scheduled before its load has been reported."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        """Nothing to do per layer: saves read all layers from the registered tensors."""

    def wait_for_save(self) -> None:
        """Start the saves of this step. They go on afterwards, which is why blocks have to be held or fenced."""
        self._worker_side().save(self._step_metadata())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests as (sent, received). Which requests are held is in the metadata, so the argument is not needed."""
        sent, received = self._worker_side().collect()
        return sent or None, received or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker_side().take_load_errors()

    def build_connector_worker_meta(self) -> AsyncStoreReport | None:
        return self._worker_side().take_report()

    # ---- Scheduler role ----

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        tokens = self._scheduler_side().match(request, num_computed_tokens)
        return tokens, tokens > 0

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        (block_ids,) = blocks.get_block_ids()
        self._scheduler_side().allocated(request, block_ids, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self._scheduler_side().build_async_metadata(scheduler_output)

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

    def _worker_side(self) -> AsyncWorkerSide:
        assert self._worker is not None, "a worker-role hook was called on the scheduler role"
        return self._worker

    def _scheduler_side(self) -> AsyncSchedulerSide:
        assert self._scheduler is not None, "a scheduler-role hook was called on the worker role"
        return self._scheduler

    def _step_metadata(self) -> AsyncStoreMetadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, AsyncStoreMetadata)
        return metadata


def _thread_count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"kv_connector_extra_config['threads'] of AsyncFileStoreConnector is {value!r}; it must be 1 or more."
        )
    return value
