"""HybridFileStoreConnector: the file store for models with several KV cache groups.

Full attention beside sliding windows, whatever their block sizes, and beside recurrent layers. It shows what a
SupportsHMA class has to do beyond one for a single group:

- one block table per group: a block id means something in the layers of its own group only (HMA-03);
- null blocks: positions that fell out of a window keep their place in the table and are neither stored nor loaded;
- a hit needs the whole prefix in full-attention groups, and the window before its end in the others (HMA-05);
- block sizes differ, so every group counts blocks by itself, and hits end where all have whole blocks (HMA-08);
- groups that take no part in KV transfer are left alone (HMA-07);
- a recurrent group has one state in each block that is kept, which the scheduler offers by block id in the step that
  computes it (META-10), and a hit needs the one at its end (HMA-06).

For a model with groups of another kind it stores nothing and offers nothing, which is always right. Read ``file_store``
first; ``_hybrid_groups`` has the scheduler role.

A synchronous load of a model with several groups that fails can't be reported: vLLM takes failed blocks of models with
a single group only (Scheduler._update_requests_with_invalid_blocks, 0.32.0). So such a failure raises and ends the
engine, which is better than an answer computed from garbage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole, SupportsHMA
from vllm.logger import init_logger
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec, UniformTypeKVCacheSpecs

from ._block_store import BlockStore
from ._compat import block_granularity, disk_hit_source
from ._file_store_worker import WorkerSide
from ._hybrid_groups import HybridMetadata, HybridReport, HybridSchedulerSide, TransferredGroup
from ._kv_identity import describe
from ._kv_pages import KVPages
from ._requirements import store_path
from ._store_namespace import StoreNamespace

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger(__name__)


class HybridFileStoreConnector(KVConnectorBase_V1, SupportsHMA):
    """A synchronous, block-granular KV store in a directory, group by group."""

    # How vLLM's metrics label our hits, from 0.32.0 on.
    _cache_hit_source = disk_hit_source()

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Raises ValueError for a missing or unusable ``path``."""
        super().__init__(vllm_config, role, kv_cache_config)
        store = BlockStore(store_path(type(self).__name__, self._kv_transfer_config.kv_connector_extra_config))
        self._groups = transferred_groups(kv_cache_config)
        parallel = vllm_config.parallel_config
        self._scheduler: HybridSchedulerSide | None = None
        self._workers: list[WorkerSide] | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler = HybridSchedulerSide(
                store,
                StoreNamespace(store.root, describe(vllm_config, kv_cache_config)),
                self._groups,
                block_granularity(vllm_config, kv_cache_config)[1],
                parallel.world_size,
                may_load=bool(self._groups) and self._kv_transfer_config.is_kv_consumer,
                may_save=bool(self._groups) and self._kv_transfer_config.is_kv_producer,
            )
        else:
            self._workers = [WorkerSide(store, parallel.rank, parallel.world_size) for _ in self._groups]

    @property
    def requires_kv_delivery(self) -> bool:
        """Nobody waits for our blocks: a save that is lost is a later miss."""
        return False

    @property
    def supports_divergent_local_hybrid_hits(self) -> bool:
        """Every load of a model with recurrent layers brings their states at its end."""
        return any(group.recurrent for group in self._groups)

    def shutdown(self) -> None:
        """Called on both roles, possibly twice, possibly before anything was registered."""
        for worker in self._workers or ():
            worker.close()
        if self._scheduler is not None:
            self._scheduler.close()

    # ---- Worker role ----

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Raises ValueError for tensors that are not pages of this KV cache."""
        for group, worker in zip(self._groups, self._worker_sides(), strict=True):
            worker.register(KVPages(kv_caches, group.layer_names, self._kv_cache_config.num_blocks))

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Load everything, now; group by group, each through its own layers."""
        failed: set[int] = set()
        for worker, work in zip(self._worker_sides(), self._step_metadata().groups, strict=True):
            worker.load(work)
            if len(self._kv_cache_config.kv_cache_groups) > 1:
                failed |= worker.take_load_errors()
        if failed:
            raise RuntimeError(
                f"KV blocks {sorted(failed)} could not be loaded, and vLLM offers no way to report that for a model "
                "with several KV cache groups."
            )

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: ``start_load_kv`` has loaded all layers."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        """Nothing to do per layer: ``wait_for_save`` reads all layers from the registered tensors."""

    def wait_for_save(self) -> None:
        """Stage the blocks that this step completed, before a window can give them away."""
        for worker, work in zip(self._worker_sides(), self._step_metadata().groups, strict=True):
            worker.save(work)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Empty for several groups, see the module; the id space is one for all groups."""
        errors: set[int] = set()
        for worker in self._worker_sides():
            errors |= worker.take_load_errors()
        return errors

    def build_connector_worker_meta(self) -> HybridReport | None:
        sides = zip(self._groups, self._worker_sides(), strict=True)
        reports = {group.index: worker.take_report() for group, worker in sides}
        found = {index: report for index, report in reports.items() if report is not None}
        return HybridReport(found) if found else None

    # ---- Scheduler role ----

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        return self._scheduler_side().match(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        self._scheduler_side().allocated(request, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self._scheduler_side().build_metadata(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._scheduler_side().step_reported(connector_output)

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """The engine may have the blocks back at once: saves never outlive the step that made them."""
        self._scheduler_side().finished(request)
        return False, None

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """What a MultiConnector calls when a sibling supports a single group only."""
        return self.request_finished_all_groups(request, (block_ids,))

    def reset_cache(self) -> bool:
        return self._scheduler_side().reset()

    # ---- Which role this is ----

    def _worker_sides(self) -> list[WorkerSide]:
        assert self._workers is not None, "a worker-role hook was called on the scheduler role"
        return self._workers

    def _scheduler_side(self) -> HybridSchedulerSide:
        assert self._scheduler is not None, "a scheduler-role hook was called on the worker role"
        return self._scheduler

    def _step_metadata(self) -> HybridMetadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, HybridMetadata)
        return metadata


def transferred_groups(kv_cache_config: KVCacheConfig) -> list[TransferredGroup]:
    """The groups to store; none if one of those that matter is of a kind that this connector doesn't know."""
    groups = []
    for index, group in enumerate(kv_cache_config.kv_cache_groups):
        if not getattr(group, "enable_kv_transfer", True):
            continue
        spec: KVCacheSpec = group.kv_cache_spec
        if isinstance(spec, UniformTypeKVCacheSpecs):
            spec = next(iter(spec.kv_cache_specs.values()))
        # Without prefix caching a state has one block for the whole request, and block hashes say nothing about it.
        recurrent = isinstance(spec, MambaSpec) and getattr(spec, "mamba_cache_mode", "") == "align"
        known = recurrent or (
            isinstance(spec, (FullAttentionSpec, SlidingWindowSpec)) and not getattr(spec, "non_causal", False)
        )
        if not known or getattr(spec, "attention_chunk_size", None):
            logger.warning("HybridFileStoreConnector stores nothing: it does not know KV cache groups like %s.", spec)
            return []
        # Of what lies before it, a forward reads the state at the last token.
        window = 2 if recurrent else getattr(spec, "sliding_window", None)
        layers, block_tokens = tuple(group.layer_names), group.kv_cache_spec.block_size
        groups.append(TransferredGroup(index, layers, block_tokens, window, recurrent))
    return groups
