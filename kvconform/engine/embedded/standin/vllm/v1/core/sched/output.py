"""What the scheduler tells the workers and the connector about a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class NewRequestData:
    """A request that workers see for the first time, or as if."""

    req_id: str
    prompt_token_ids: list[int] | None
    mm_features: list[Any]
    sampling_params: Any
    pooling_params: Any
    block_ids: tuple[list[int], ...]
    num_computed_tokens: int
    lora_request: Any
    prompt_embeds: Any = None
    prompt_is_token_ids: list[bool] | None = None
    prefill_token_ids: list[int] | None = None
    replay_start: int = 0

    @classmethod
    def from_request(
        cls,
        request: Any,
        block_ids: tuple[list[int], ...],
        prefill_token_ids: list[int] | None = None,
        uses_mrope: bool = False,
    ) -> NewRequestData:
        """Of a request in the scheduler."""
        same = ("prompt_token_ids", "mm_features", "sampling_params", "pooling_params", "num_computed_tokens")
        more = ("lora_request", "prompt_embeds", "prompt_is_token_ids", "replay_start")
        return cls(
            req_id=request.request_id,
            block_ids=block_ids,
            prefill_token_ids=prefill_token_ids,
            **{name: getattr(request, name) for name in (*same, *more)},
        )

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_embeds if self.prompt_token_ids is None else self.prompt_token_ids)


@dataclass
class CachedRequestData:
    """Requests that workers know, as parallel lists."""

    req_ids: list[str]
    resumed_req_ids: set[str]
    new_token_ids: list[list[int]]
    all_token_ids: dict[str, list[int]]
    new_block_ids: list[tuple[list[int], ...] | None]
    num_computed_tokens: list[int]
    num_output_tokens: list[int]

    @property
    def num_reqs(self) -> int:
        """How many."""
        return len(self.req_ids)

    def is_context_phase(self, req_id: str) -> bool:
        """Whether a request has no output yet."""
        return dict(zip(self.req_ids, self.num_output_tokens, strict=True)).get(req_id) == 0

    @classmethod
    def make_empty(cls) -> CachedRequestData:
        """None."""
        return cls([], set(), [], {}, [], [], [])


@dataclass
class KVConnectorBlockState:
    """Lent to the connector while it builds its metadata."""

    req_ids: set[str]
    resolve_block_ids: Callable[[str], tuple[list[int], ...]]
    boundary_state_offloads: dict[str, list[tuple[int, int, int]]]

    def get_block_ids(self, req_id: str) -> tuple[list[int], ...] | None:
        """The block table of a request of this step."""
        return self.resolve_block_ids(req_id) if req_id in self.req_ids else None


@dataclass
class SchedulerOutput:
    """One step."""

    scheduled_new_reqs: list[NewRequestData]
    scheduled_cached_reqs: CachedRequestData
    num_scheduled_tokens: dict[str, int]
    total_num_scheduled_tokens: int
    scheduled_spec_decode_tokens: dict[str, list[int]]
    scheduled_encoder_inputs: dict[str, list[int]]
    finished_req_ids: set[str]
    free_encoder_mm_hashes: list[str]
    scheduled_encoder_input_stats: Any = None
    preempted_req_ids: set[str] | None = None
    has_structured_output_requests: bool = False
    pending_structured_output_tokens: bool = False
    num_invalid_spec_tokens: dict[str, int] | None = None
    kv_connector_metadata: Any = None
    has_sync_kv_loads: bool = False
    aux_output_connector_metadata: Any = None
    ec_connector_metadata: Any = None
    ec_manager_metadata: Any = None
    new_block_ids_to_zero: list[int] | None = None
    kv_cache_block_copies: list[Any] | None = None
    kv_connector_block_state: KVConnectorBlockState | None = None
    num_spec_tokens_to_schedule: int = 0
    num_common_prefix_blocks: list[int] = field(default_factory=list)

    @classmethod
    def make_empty(cls) -> SchedulerOutput:
        """A step in which nothing happens."""
        return cls([], CachedRequestData.make_empty(), {}, 0, {}, {}, set(), [])
