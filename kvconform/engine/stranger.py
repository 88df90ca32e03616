"""A child of MultiConnector that stores nothing and loads nothing, and has ways of its own in everything they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    SupportsHMA,
)

if TYPE_CHECKING:
    import torch
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

PARAM = "kvconform.stranger"


@dataclass(frozen=True)
class StrangersHandshake(KVConnectorHandshakeMetadata):
    """Where nobody but a stranger would look for something."""

    street: str = "unknown"


@dataclass(frozen=True)
class StrangersMetadata(KVConnectorMetadata):
    """Nothing to do."""


class StrangerConnector(KVConnectorBase_V1, SupportsHMA):
    """Offers handshake metadata, and writes its own entry into the transfer parameters of every request.

    Both are legal: MultiConnector gives all children the first child's metadata, and kv_transfer_params belong to the
    connectors (vllm/distributed/kv_transfer/kv_connector/v1/multi_connector.py, 0.32.0).
    """

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata:
        """Its own kind."""
        return StrangersHandshake()

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Nothing is kept."""

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Nothing to load."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing to save."""

    def wait_for_save(self) -> None:
        """Nothing to wait for."""

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """Nothing is ever found."""
        _mark(request, "matched")
        return 0, False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Whatever is loaded, somebody else loads it."""
        _mark(request, "allocated")

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """Nothing to do."""
        return StrangersMetadata()

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """The blocks are free."""
        _mark(request, "finished")
        return False, None

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """The blocks are free."""
        return self.request_finished_all_groups(request, (block_ids,))


def _mark(request: Request, what: str) -> None:
    """Another dict each time, as of a connector that consumes what it finds in it."""
    request.kv_transfer_params = {**(request.kv_transfer_params or {}), PARAM: what}
