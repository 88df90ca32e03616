"""A connector for several KV cache groups, small enough to be wrong in only the ways a test asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

BLOCK = 16


@dataclass(frozen=True)
class Move:
    """One block of one group, under the hash of its prefix."""

    key: bytes
    group: int
    block: int


@dataclass
class Moves(KVConnectorMetadata):
    """The loads and saves of a step."""

    loads: list[Move] = field(default_factory=list)
    saves: list[Move] = field(default_factory=list)


class HybridMemory(KVConnectorBase_V1, SupportsHMA):
    """Keeps whole blocks in a dictionary of the process; offers a prefix whose windows are complete too.

    ``wrong_group`` loads the window group's blocks with the other group's content.
    """

    store: ClassVar[dict[tuple[bytes, str], torch.Tensor]] = {}

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.options = self._kv_transfer_config.kv_connector_extra_config
        self.groups = [list(group.layer_names) for group in kv_cache_config.kv_cache_groups]
        self.local: dict[str, int] = {}
        self.planned: list[Move] = []
        self.requests: dict[str, Any] = {}
        self.views: dict[str, torch.Tensor] = {}

    # Scheduler role.

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        self.requests[request.request_id] = request
        self.local[request.request_id] = num_computed_tokens
        if num_computed_tokens % BLOCK:
            return 0, False
        first, end = num_computed_tokens // BLOCK, num_computed_tokens // BLOCK
        names = [name for group in self.groups for name in group]
        while end < (request.num_tokens - 1) // BLOCK and all(
            (request.block_hashes[end], name) in self.store for name in names
        ):
            end += 1
        return (end - first) * BLOCK, False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        first = self.local[request.request_id] // BLOCK
        for group, table in enumerate(blocks.get_block_ids()):
            for index in range(first, first + num_external_tokens // BLOCK):
                if table[index]:
                    self.planned.append(Move(request.block_hashes[index], group, table[index]))

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        moves, self.planned = Moves(self.planned), []
        for new in scheduler_output.scheduled_new_reqs:
            request = self.requests[new.req_id]
            end = (new.num_computed_tokens + scheduler_output.num_scheduled_tokens[new.req_id]) // BLOCK
            for group, table in enumerate(new.block_ids):
                for index in range(new.num_computed_tokens // BLOCK, end):
                    if table[index]:
                        moves.saves.append(Move(request.block_hashes[index], group, table[index]))
        return moves

    def request_finished_all_groups(self, request: Request, block_ids: Any) -> tuple[bool, None]:
        return False, None

    # Worker role.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self.views = {name: view.view(torch.uint8) for name, view in kv_caches.items()}

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Moves)
        for move in metadata.loads:
            source = 0 if self.options.get("wrong_group") else move.group
            for name, other in zip(self.groups[move.group], self.groups[source], strict=True):
                self.views[name][move.block] = self.store[move.key, other]

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Moves)
        for move in metadata.saves:
            for name in self.groups[move.group]:
                self.store[move.key, name] = self.views[name][move.block].clone()
