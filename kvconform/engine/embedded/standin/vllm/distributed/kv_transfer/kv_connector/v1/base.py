"""What every connector derives from: the hooks, and what happens where a class leaves one out.

The scheduler role decides what to move, the worker role moves it.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch

from vllm.logger import init_logger
from vllm.v1.metrics.cache_hit_source import CacheHitSource

logger = init_logger(__name__)

CopyBlocksOp: TypeAlias = Callable[
    [dict[str, torch.Tensor], dict[str, torch.Tensor], list[int], list[int], Literal["h2d", "d2h"]], None
]


@dataclass
class KVConnectorTransferResults:
    """Transfers of a worker that are complete; loads that failed are in both of the last two."""

    finished_sending: set[str] = field(default_factory=set)
    finished_recving: set[str] = field(default_factory=set)
    failed_recving: set[str] = field(default_factory=set)


class KVConnectorRole(enum.Enum):
    """Which half an instance is."""

    SCHEDULER = 0
    WORKER = 1


class SupportsHMA(ABC):
    """Marks a class that deals with several KV cache groups."""

    @abstractmethod
    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """As request_finished, with the blocks of every group."""


def supports_hma(connector: Any) -> bool:
    """Whether a class or an instance is marked."""
    return issubclass(connector if isinstance(connector, type) else type(connector), SupportsHMA)


class KVConnectorHandshakeMetadata(ABC):  # noqa: B024
    """What workers of different engines have to know of each other; has to be picklable."""


class KVConnectorMetadata(ABC):  # noqa: B024
    """A step's orders from the scheduler role to the worker role."""


class KVConnectorWorkerMetadata(ABC):
    """A worker's answer."""

    @abstractmethod
    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """Take in another worker's."""


class KVConnectorBase_V1(ABC):  # noqa: N801
    """One role of a connector."""

    _cache_hit_source = CacheHitSource.EXTERNAL_UNSPECIFIED

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        if vllm_config.kv_transfer_config is None:
            raise ValueError("kv_transfer_config must be set for KVConnectorBase_V1")
        self._connector_metadata: KVConnectorMetadata | None = None
        self._vllm_config = vllm_config
        self._kv_transfer_config = vllm_config.kv_transfer_config
        self._kv_cache_config = kv_cache_config
        self._kv_cache_manager: Any = None
        self._role = role

    @property
    def role(self) -> KVConnectorRole:
        """Which half this is."""
        return self._role

    @property
    def supports_divergent_local_hybrid_hits(self) -> bool:
        """Whether a load brings recurrent state for a longer local hit."""
        return False

    @property
    def requires_kv_delivery(self) -> bool:
        """Whether somebody waits for what is saved; so for producers, unless a class says otherwise."""
        return bool(self._kv_transfer_config.is_kv_producer)

    # -- both roles ------------------------------------------------------------------------------------------------

    def shutdown(self) -> Any:
        """The end."""
        return None

    def get_kv_connector_stats(self) -> Any:
        """What was counted since the last call."""
        return None

    # -- the worker role -------------------------------------------------------------------------------------------

    def get_mem_pool_context(self) -> AbstractContextManager[Any] | None:
        """Where the KV cache is to be allocated."""
        return None

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """A step begins."""
        self._connector_metadata = connector_metadata

    def clear_connector_metadata(self) -> None:
        """It is over."""
        self._connector_metadata = None

    def _get_connector_metadata(self) -> KVConnectorMetadata:
        metadata = self._connector_metadata
        assert metadata is not None
        return metadata

    def has_connector_metadata(self) -> bool:
        """Whether a step is under way."""
        return self._connector_metadata is not None

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> Any:
        """The tensors, by layer."""
        return None

    def set_host_xfer_buffer_ops(self, copy_operation: CopyBlocksOp) -> Any:
        """How to copy blocks between host and device."""
        return None

    def finish_forward(self) -> None:
        """The model has read what it needed."""

    def reset_capture_state(self) -> None:
        """CUDA graphs have been captured."""

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> Any:
        """Blocks are about to be used for something else."""
        return None

    @abstractmethod
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Load what this step was told to."""

    @abstractmethod
    def wait_for_layer_load(self, layer_name: str) -> None:
        """A layer's attention is about to read."""

    @abstractmethod
    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """A layer's attention has written."""

    @abstractmethod
    def wait_for_save(self) -> Any:
        """The step's saves have to be safe when this returns, or their blocks kept."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Saves and loads that are complete."""
        return None, None

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """The same, with failed loads."""
        sent, received = self.get_finished(finished_req_ids)
        return KVConnectorTransferResults(set(sent or ()), set(received or ()))

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that were not loaded."""
        return set()

    def get_kv_connector_kv_cache_events(self) -> Any:
        """Events for the scheduler role."""
        return None

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """What other engines' workers have to know."""
        return None

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """An answer to the scheduler role."""
        return None

    # -- the scheduler role ----------------------------------------------------------------------------------------

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        """The scheduler's cache manager."""
        self._kv_cache_manager = kv_cache_manager
        self.bind_gpu_block_pool(kv_cache_manager.block_pool)

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> Any:
        """Its block pool."""
        return None

    def get_loaded_kv_cache_group_ids(self, request: Any) -> tuple[int, ...]:
        """Groups that a load of this request fills."""
        groups: tuple[int, ...] = self._kv_cache_config.prefix_cacheable_group_ids
        return groups

    @abstractmethod
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens that can be loaded beyond the local ones (None: ask again), and whether between steps."""

    def get_external_cache_hit_sources(self, request: Any, num_external_tokens: int) -> dict[CacheHitSource, int]:
        """Where they come from."""
        return {self._cache_hit_source: num_external_tokens} if num_external_tokens else {}

    @abstractmethod
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> Any:
        """The request has got blocks, and so many tokens are to be loaded."""

    @abstractmethod
    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """The step's orders."""

    def on_new_request(self, request: Any) -> None:
        """A request has come."""

    def update_connector_output(self, connector_output: Any) -> Any:
        """The workers have answered."""
        return None

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """A request has ended: whether its blocks are kept until a save is complete, and what its client is told."""
        return False, None

    def register_finished_partial_tail(
        self,
        request: Any,
        block_ids: tuple[list[int], ...],
        partial_tail_offloads: list[tuple[int, int, int]],
    ) -> bool:
        """For recurrent state."""
        return False

    def take_events(self) -> Iterable[Any]:
        """Events since the last call."""
        return ()

    def has_pending_block_frees(self) -> bool:
        """Whether blocks will be given back soon, so that nobody has to be preempted."""
        return False

    def has_pending_push_work(self) -> bool:
        """Whether the engine has to go on stepping although it has no request."""
        return False

    def get_finished_count(self) -> int | None:
        """How many workers have to report a transfer; None for all."""
        return None

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> Any:
        """What the workers have to tell others, by rank."""
        return None

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """The same by pipeline stage and rank."""
        if any(stage for stage, _ in metadata):
            raise ValueError(f"{type(self).__name__} does not know of pipeline stages, but got metadata of several.")
        self.set_xfer_handshake_metadata({rank: own for (_, rank), own in metadata.items()})

    def reset_cache(self) -> bool | None:
        """Forget everything; False if that did not work, None if there is nothing to forget."""
        return None

    # -- the class -------------------------------------------------------------------------------------------------

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        """The layout that the connector needs."""
        if cls is KVConnectorBase_V1:
            raise TypeError("get_required_kvcache_layout should not be called on the abstract base class")
        return None

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Whether layers have to call back, which full CUDA graphs don't."""
        return False

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Any:
        """Statistics from what was sent to the front-end."""
        return None

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> Any:
        """Metrics for Prometheus."""
        return None
