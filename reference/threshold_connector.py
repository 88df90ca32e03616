"""ThresholdConnector: any connector, with hits below a threshold left to be computed.

To fetch a few tokens costs a round trip and saves little work. This wrapper asks another connector, and declines what
is shorter than ``min_hit_tokens``. The wrapped connector saves as ever, and nothing of it needs to be changed.

It shows what a connector that wraps another one has to do (MUL-11):

- **Every hook is forwarded**, those too that few connectors have. A hook that is not forwarded falls back to what the
  base class does, without a word: completions are lost, resets report nothing, layouts are not asked for.
  ``__getattr__`` is no help: it is asked only for names that the base class lacks.
- **Properties and class methods too.** vLLM asks the class before any instance exists, so the wrapped class is found in
  the configuration, in the way that the factory finds it.
- **A configuration of its own** for the wrapped connector: it reads its options in ``kv_transfer_config``, and the
  outer one holds the wrapper's. The outer object is left as it is: other parts of vLLM read it.
- **What the base class keeps is kept twice.** ``bind_connector_metadata`` goes to both, because vLLM asks the outer
  object whether metadata is bound, and the wrapped one reads it.
- **Its own name in the factory**, as it has statistics: MultiConnector rebuilds those of its children by class name.
- **To decline is to answer 0.** The wrapped connector is still told of the allocation, with no external tokens, as a
  child of MultiConnector that was not chosen is; so it gives back what it held for the hit (MUL-10).

SupportsHMA is a matter of the class: vLLM turns the hybrid KV cache manager on or off by ``issubclass`` alone
(KVConnectorFactory.supports_hma_config, 0.32.0), and only MultiConnector, by its name, is asked about its children.
So there are two classes: ``ThresholdConnector`` wraps any connector and gets one KV cache group, and
``HybridThresholdConnector`` wraps a SupportsHMA connector.

Configuration::

    --kv-transfer-config '{
        "kv_connector": "ThresholdConnector",
        "kv_connector_module_path": "kvconform.reference.threshold_connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "min_hit_tokens": 256,
            "connector": {
                "kv_connector": "FileStoreConnector",
                "kv_connector_module_path": "kvconform.reference.file_store",
                "kv_connector_extra_config": {"path": "/var/cache/kv"}
            }
        }
    }'

The wrapped connector inherits the engine id, the role and the load failure policy unless it is given others.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole, SupportsHMA

from ._wrapped_stats import WRAPPED, ThresholdPromMetrics, ThresholdStats

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent, KVConnectorKVEvents
    from vllm.distributed.kv_transfer.kv_connector.v1.base import (
        CopyBlocksOp,
        KVConnectorHandshakeMetadata,
        KVConnectorMetadata,
        KVConnectorTransferResults,
        KVConnectorWorkerMetadata,
    )
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

#: Counted by the scheduler role.
DECLINED_HITS, DECLINED_TOKENS = "declined_hits", "declined_tokens"
_INHERITED = ("engine_id", "kv_role", "kv_load_failure_policy")


def wrapped_config(outer: KVTransferConfig) -> KVTransferConfig:
    """The wrapped connector's configuration. Raises ValueError if there is none."""
    options = outer.kv_connector_extra_config.get("connector")
    if not isinstance(options, dict):
        raise ValueError(
            "ThresholdConnector needs the configuration of the connector that it wraps in "
            f"kv_connector_extra_config['connector'], as a table like kv_transfer_config itself, not {options!r}."
        )
    inherited = {name: getattr(outer, name) for name in _INHERITED if hasattr(outer, name)}
    return KVTransferConfig(**{**inherited, **options})


def wrapped_class_and_config(vllm_config: VllmConfig) -> tuple[type[KVConnectorBase_V1], VllmConfig]:
    """The class of the wrapped connector, and the engine's configuration as that class must see it."""
    inner = copy.copy(vllm_config)
    inner.kv_transfer_config = wrapped_config(vllm_config.kv_transfer_config)
    return KVConnectorFactory.get_connector_class(inner.kv_transfer_config), inner


class ThresholdConnector(KVConnectorBase_V1):
    """Wraps a connector of any class, for models with one KV cache group."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Raises ValueError for unusable options, and what the wrapped constructor raises."""
        super().__init__(vllm_config, role, kv_cache_config)
        self._threshold = self._kv_transfer_config.kv_connector_extra_config.get("min_hit_tokens", 0)
        if not isinstance(self._threshold, int) or self._threshold < 0:
            raise ValueError(f"min_hit_tokens is a number of tokens, not {self._threshold!r}.")
        connector_class, inner_config = wrapped_class_and_config(vllm_config)
        if isinstance(self, SupportsHMA) and not issubclass(connector_class, SupportsHMA):
            raise ValueError(f"{connector_class.__name__} supports no hybrid KV cache: wrap it in ThresholdConnector.")
        self._wrapped = connector_class(inner_config, role, kv_cache_config)
        self._wrapped_config = inner_config.kv_transfer_config
        self._declined: dict[str, int] = {}

    # ---- Asked of the class, before there is an instance ----

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: VllmConfig) -> str | None:
        connector_class, inner_config = wrapped_class_and_config(vllm_config)
        return connector_class.get_required_kvcache_layout(inner_config)

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        # Only the options are given. vLLM takes no configuration without a role, which makes no difference here.
        inner = wrapped_config(KVTransferConfig(kv_role="kv_both", kv_connector_extra_config=extra_config))
        connector_class = KVConnectorFactory.get_connector_class(inner)
        return connector_class.requires_piecewise_for_cudagraph(inner.kv_connector_extra_config)

    @classmethod
    def supports_sleep_mode(cls, kv_transfer_config: KVTransferConfig) -> bool:
        """Asked since 0.33.0."""
        inner = wrapped_config(kv_transfer_config)
        return KVConnectorFactory.get_connector_class(inner).supports_sleep_mode(inner)

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        return ThresholdStats(data=dict(data or {}))

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: VllmConfig, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any
    ) -> KVConnectorPromMetrics:
        connector_class, inner_config = wrapped_class_and_config(vllm_config)
        arguments = (metric_types, labelnames, per_engine_labelvalues)
        metrics = connector_class.build_prom_metrics(inner_config, *arguments)
        return ThresholdPromMetrics(metrics, vllm_config, *arguments)

    # ---- Both roles ----

    @property
    def requires_kv_delivery(self) -> bool:
        return self._wrapped.requires_kv_delivery

    @property
    def supports_divergent_local_hybrid_hits(self) -> bool:
        """Asked since 0.32.0."""
        return self._wrapped.supports_divergent_local_hybrid_hits

    def get_finished_count(self) -> int | None:
        return self._wrapped.get_finished_count()

    def shutdown(self) -> None:
        self._wrapped.shutdown()

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """Own counters, which the scheduler role alone has, beside those of the wrapped connector."""
        declined, self._declined = self._declined, {}
        wrapped = self._wrapped.get_kv_connector_stats()
        if wrapped is None and not declined:
            return None
        return ThresholdStats.of(declined, wrapped, self._wrapped_config)

    # ---- Worker role ----

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._wrapped.register_kv_caches(kv_caches)

    def unregister_kv_caches(self) -> None:
        """Called since 0.33.0."""
        self._wrapped.unregister_kv_caches()

    def restore_kv_caches(self) -> None:
        """Called since 0.33.0."""
        self._wrapped.restore_kv_caches()

    def get_mem_pool_context(self) -> AbstractContextManager[Any] | None:
        return self._wrapped.get_mem_pool_context()

    def set_host_xfer_buffer_ops(self, copy_operation: CopyBlocksOp) -> None:
        self._wrapped.set_host_xfer_buffer_ops(copy_operation)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        self._wrapped.bind_connector_metadata(connector_metadata)
        super().bind_connector_metadata(connector_metadata)

    def clear_connector_metadata(self) -> None:
        self._wrapped.clear_connector_metadata()
        super().clear_connector_metadata()

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        self._wrapped.handle_preemptions(kv_connector_metadata)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        self._wrapped.start_load_kv(forward_context, **kwargs)

    def wait_for_layer_load(self, layer_name: str) -> None:
        self._wrapped.wait_for_layer_load(layer_name)

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        self._wrapped.save_kv_layer(layer_name, kv_layer, attn_metadata, **kwargs)

    def wait_for_save(self) -> None:
        self._wrapped.wait_for_save()

    def finish_forward(self) -> None:
        self._wrapped.finish_forward()

    def reset_capture_state(self) -> None:
        self._wrapped.reset_capture_state()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return self._wrapped.get_finished(finished_req_ids)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Not left to the base class, which would ask ``get_finished`` and lose failed loads."""
        return self._wrapped.get_transfer_results(finished_req_ids)

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._wrapped.get_block_ids_with_load_errors()

    def get_kv_connector_kv_cache_events(self) -> KVConnectorKVEvents | None:
        return self._wrapped.get_kv_connector_kv_cache_events()

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return self._wrapped.get_handshake_metadata()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return self._wrapped.build_connector_worker_meta()

    # ---- Scheduler role ----

    def bind_kv_cache_manager(self, kv_cache_manager: KVCacheManager) -> None:
        """Not to the base class as well: it would bind the block pool of the wrapped connector a second time."""
        self._wrapped.bind_kv_cache_manager(kv_cache_manager)

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        self._wrapped.bind_gpu_block_pool(gpu_block_pool)

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        self._wrapped.set_xfer_handshake_metadata(metadata)

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Not left to the base class, which refuses pipeline stages whatever the wrapped connector can do."""
        self._wrapped.set_xfer_handshake_metadata_pp_aware(metadata)

    def on_new_request(self, request: Request) -> None:
        self._wrapped.on_new_request(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """None and 0 are passed on; a hit below the threshold is answered with 0, which must not be asynchronous."""
        found, asynchronous = self._wrapped.get_num_new_matched_tokens(request, num_computed_tokens)
        if found and found < self._threshold:
            self._declined[DECLINED_HITS] = self._declined.get(DECLINED_HITS, 0) + 1
            self._declined[DECLINED_TOKENS] = self._declined.get(DECLINED_TOKENS, 0) + found
            return 0, False
        return found, asynchronous

    def get_loaded_kv_cache_group_ids(self, request: Request) -> tuple[int, ...]:
        return self._wrapped.get_loaded_kv_cache_group_ids(request)

    def get_external_cache_hit_sources(self, request: Request, num_external_tokens: int) -> dict[CacheHitSource, int]:
        return self._wrapped.get_external_cache_hit_sources(request, num_external_tokens)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        self._wrapped.update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self._wrapped.build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._wrapped.update_connector_output(connector_output)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self._wrapped.request_finished(request, block_ids)

    def register_finished_partial_tail(
        self,
        request: Request,
        block_ids: tuple[list[int], ...],
        partial_tail_offloads: list[tuple[int, int, int]],
    ) -> bool:
        return self._wrapped.register_finished_partial_tail(request, block_ids, partial_tail_offloads)

    def take_events(self) -> Iterable[KVCacheEvent]:
        return self._wrapped.take_events()

    def has_pending_block_frees(self) -> bool:
        return self._wrapped.has_pending_block_frees()

    def has_pending_push_work(self) -> bool:
        return self._wrapped.has_pending_push_work()

    def reset_cache(self) -> bool | None:
        return self._wrapped.reset_cache()


class HybridThresholdConnector(ThresholdConnector, SupportsHMA):
    """Wraps a SupportsHMA connector, for models with any number of KV cache groups."""

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self._wrapped.request_finished_all_groups(request, block_ids)


# MultiConnector looks up the class that takes its statistics by name, also where the configuration names its module
# (STAT-06).
for _name in ("ThresholdConnector", "HybridThresholdConnector"):
    if _name not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(_name, __name__, _name)

__all__ = ["DECLINED_HITS", "DECLINED_TOKENS", "WRAPPED", "HybridThresholdConnector", "ThresholdConnector"]
