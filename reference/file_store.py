"""FileStoreConnector: KV blocks in files, loaded and stored synchronously.

The simplest connector that keeps the whole contract of a synchronous one. Read it in this order:

- this module: the hooks vLLM calls, by role;
- ``_file_store_scheduler``: what to load and store, and when a stored block becomes visible;
- ``_file_store_worker``: bytes between KV cache and files;
- ``_kv_identity`` and ``_store_namespace``: what a key must contain, and what a reset means;
- ``_block_store`` and ``_kv_pages``: file format and tensors.

Configuration::

    --kv-transfer-config '{
        "kv_connector": "FileStoreConnector",
        "kv_connector_module_path": "kvconform.reference.file_store",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"path": "/var/cache/kv"}
    }'

``path`` is a directory that all ranks of the engine see; engines that agree in everything that matters share what is in
it. Nothing is ever evicted: delete what is old.

What it leaves out, on purpose: hybrid models (it is no SupportsHMA class, so vLLM gives it one KV cache group),
asynchronous transfers, layer-wise transfers, statistics and events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole

from ._block_store import BlockStore
from ._compat import block_granularity, disk_hit_source
from ._file_store_messages import FileStoreMetadata, FileStoreReport
from ._file_store_scheduler import Granularity, SchedulerSide
from ._file_store_worker import WorkerSide
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


class FileStoreConnector(KVConnectorBase_V1):
    """A synchronous, block-granular KV store in a directory.

    vLLM builds one instance per role, in different processes, and the worker's first. They share nothing but the
    configuration and what travels in metadata and reports.
    """

    # How vLLM's metrics label our hits, from 0.32.0 on.
    _cache_hit_source = disk_hit_source()
    _worker_class = WorkerSide

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Raises ValueError for a missing or unusable ``path`` and for a KV cache that this connector can't store."""
        super().__init__(vllm_config, role, kv_cache_config)
        # Always this attribute, never vLLM's current global config: a child of MultiConnector has a config of its own.
        store = BlockStore(store_path(type(self).__name__, self._kv_transfer_config.kv_connector_extra_config))
        self._group = only_group(type(self).__name__, kv_cache_config)
        parallel = vllm_config.parallel_config
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler = SchedulerSide(
                store,
                StoreNamespace(store.root, describe(vllm_config, kv_cache_config)),
                Granularity(*block_granularity(vllm_config, kv_cache_config)),
                parallel.world_size,
                may_load=self._kv_transfer_config.is_kv_consumer,
                may_save=self._kv_transfer_config.is_kv_producer,
            )
        else:
            self._worker = self._worker_class(store, parallel.rank, parallel.world_size)

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

    # ---- Worker role ----

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Raises ValueError for tensors that are not attention pages of this KV cache."""
        pages = KVPages(kv_caches, self._group.layer_names, self._kv_cache_config.num_blocks)
        self._worker_side().register(pages)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Load everything, now.

        vLLM calls this before the forward if the step needs our blocks, and after it otherwise. The forward context is
        not used: its attention metadata is None in steps without a forward and under full CUDA graphs.
        """
        self._worker_side().load(self._step_metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: ``start_load_kv`` has loaded all layers."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        """Nothing to do per layer: ``wait_for_save`` reads all layers from the registered tensors."""

    def wait_for_save(self) -> None:
        """Stage the blocks that this step completed; they have left the KV cache when this returns."""
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
        return self._scheduler_side().build_metadata(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._scheduler_side().step_reported(connector_output)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """The engine may have the blocks back at once: saves never outlive the step that made them."""
        self._scheduler_side().finished(request)
        return False, None

    def reset_cache(self) -> bool:
        return self._scheduler_side().reset()

    # ---- Which role this is ----

    def _worker_side(self) -> WorkerSide:
        assert self._worker is not None, "a worker-role hook was called on the scheduler role"
        return self._worker

    def _scheduler_side(self) -> SchedulerSide:
        assert self._scheduler is not None, "a scheduler-role hook was called on the worker role"
        return self._scheduler

    def _step_metadata(self) -> FileStoreMetadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, FileStoreMetadata)
        return metadata
