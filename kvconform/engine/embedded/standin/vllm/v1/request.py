"""A request on its way through the scheduler."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from typing import Any

from kvconform.engine.protocol import NotSimulated
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import FinishReason
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.utils import ConstantList


class RequestStatus(enum.IntEnum):
    """Where a request is; from FINISHED_STOPPED on it has ended."""

    WAITING = enum.auto()
    WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR = enum.auto()
    WAITING_FOR_REMOTE_KVS = enum.auto()
    WAITING_FOR_STREAMING_REQ = enum.auto()
    RUNNING = enum.auto()
    PREEMPTED = enum.auto()
    FINISHED_STOPPED = enum.auto()
    FINISHED_LENGTH_CAPPED = enum.auto()
    FINISHED_ABORTED = enum.auto()
    FINISHED_IGNORED = enum.auto()
    FINISHED_ERROR = enum.auto()
    FINISHED_REPETITION = enum.auto()

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def is_finished(status: RequestStatus) -> bool:
        """Whether a request with this status has ended."""
        return status > RequestStatus.PREEMPTED

    @staticmethod
    def get_finished_reason(status: RequestStatus) -> FinishReason | None:
        """What the client is told."""
        return _REASONS.get(status)


_REASONS = {
    RequestStatus.FINISHED_STOPPED: FinishReason.STOP,
    RequestStatus.FINISHED_LENGTH_CAPPED: FinishReason.LENGTH,
    RequestStatus.FINISHED_ABORTED: FinishReason.ABORT,
    RequestStatus.FINISHED_IGNORED: FinishReason.LENGTH,
    RequestStatus.FINISHED_ERROR: FinishReason.ERROR,
    RequestStatus.WAITING_FOR_STREAMING_REQ: FinishReason.STOP,
    RequestStatus.FINISHED_REPETITION: FinishReason.REPETITION,
}


class Request:
    """Prompt, output, and how far the engine has got with them."""

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int] | None,
        sampling_params: SamplingParams | None,
        pooling_params: Any,
        client_index: int = 0,
        arrival_time: float | None = None,
        prompt_embeds: Any = None,
        prompt_is_token_ids: list[bool] | None = None,
        mm_features: list[Any] | None = None,
        lora_request: Any = None,
        cache_salt: str | None = None,
        priority: int = 0,
        trace_headers: Mapping[str, str] | None = None,
        block_hasher: Callable[[Request], list[bytes]] | None = None,
        resumable: bool = False,
        session_id: str | None = None,
        reasoning_ended: bool | None = None,
        reasoning_parser_kwargs: dict[str, Any] | None = None,
        abort_immediately: bool = False,
        kv_hints: Any = None,
    ) -> None:
        unusual = {
            "pooling": pooling_params,
            "streaming input": resumable,
        }
        for what, given in unusual.items():
            if given is not None and given is not False and given != []:
                raise NotSimulated(f"requests with {what} are not simulated by the engine 'embedded'")
        if sampling_params is None:
            raise ValueError("sampling_params and pooling_params can't both be unset")
        if prompt_token_ids is None and prompt_embeds is None:
            raise ValueError("Neither prompt_token_ids nor prompt_embeds were defined.")
        assert sampling_params.max_tokens is not None
        extra = sampling_params.extra_args or {}
        self.request_id = request_id
        self.client_index = client_index
        self.priority = priority
        self.sampling_params = sampling_params
        self.pooling_params = pooling_params
        self.lora_request = lora_request
        self.cache_salt = cache_salt
        self.structured_output_request = None
        self.arrival_time = time.time() if arrival_time is None else arrival_time
        self.status = RequestStatus.WAITING
        self.stop_reason: int | str | None = None
        self.max_tokens = sampling_params.max_tokens
        self.kv_transfer_params: dict[str, Any] | None = extra.get("kv_transfer_params")
        self.ec_transfer_params: dict[str, Any] | None = extra.get("ec_transfer_params")
        self.kv_cache_report_mode = extra.get("kv_cache_report_mode", "incremental")
        self.trace_headers = trace_headers
        self.session_id = session_id
        self.kv_hints = kv_hints
        self.abort_immediately = abort_immediately
        self.resumable = resumable
        self.streaming_queue = None

        self.prompt_token_ids = prompt_token_ids
        self.prompt_embeds = prompt_embeds
        self.prompt_is_token_ids = prompt_is_token_ids
        self.mm_features: list[Any] = mm_features or []
        # Embeddings have no token ids.
        tokens = [0] * len(prompt_embeds) if prompt_token_ids is None else prompt_token_ids
        self.num_prompt_tokens = len(tokens)
        self._output_token_ids: list[int] = []
        self._all_token_ids: list[int] = list(tokens)
        self.output_token_ids = ConstantList(self._output_token_ids)
        self.all_token_ids = ConstantList(self._all_token_ids)
        self.spec_token_ids: list[int] = []

        self.num_computed_tokens = 0
        self.is_prefill_chunk = False
        self.num_preemptions = 0
        self.num_nans_in_logits = 0
        self.prefill_stats: PrefillStats | None = PrefillStats()
        self.shared_prefix_boundary = 0
        self.replay_start = 0

        # With asynchronous scheduling: tokens that are scheduled and whose results are not known; tokens promised to
        # the output; tokens under way when the request was preempted, and whether nobody wants them any more.
        self.num_in_flight_tokens = 0
        self.num_output_placeholders = 0
        self.num_stale_output_tokens = 0
        self.drop_stale_output = False
        self.next_decode_eligible_step = 0
        self.last_sched_seq = 0

        self.block_hashes: list[bytes] = []
        self._block_hasher = block_hasher
        self.update_block_hashes()
        self.skip_reading_prefix_cache = self.get_skip_reading_prefix_cache()

    def append_output_token_ids(self, token_ids: int | list[int]) -> None:
        """The model has said something."""
        new = [token_ids] if isinstance(token_ids, int) else token_ids
        self._output_token_ids.extend(new)
        self._all_token_ids.extend(new)
        self.update_block_hashes()

    def update_block_hashes(self) -> None:
        """Hash the blocks that are full by now."""
        if self._block_hasher is not None:
            self.block_hashes.extend(self._block_hasher(self))

    @property
    def use_structured_output(self) -> bool:
        """Whether a grammar restricts the output."""
        return self.structured_output_request is not None

    @property
    def num_tokens(self) -> int:
        """Prompt and output."""
        return len(self._all_token_ids)

    @property
    def num_tokens_with_spec(self) -> int:
        """With draft tokens."""
        return len(self._all_token_ids) + len(self.spec_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Output alone."""
        return len(self._output_token_ids)

    @property
    def num_encoder_inputs(self) -> int:
        """Multimodal items."""
        return len(self.mm_features)

    @property
    def has_encoder_inputs(self) -> bool:
        """Whether there are any."""
        return bool(self.mm_features)

    def get_skip_reading_prefix_cache(self) -> bool:
        """Whether no prefix may be used, because logits of the prompt are wanted."""
        return bool(self.sampling_params.skip_reading_prefix_cache)

    def is_finished(self) -> bool:
        """Whether it has ended."""
        return RequestStatus.is_finished(self.status)

    def get_finished_reason(self) -> FinishReason | None:
        """What the client is told."""
        return RequestStatus.get_finished_reason(self.status)

    def take_prefill_stats(self) -> PrefillStats | None:
        """What the prompt took, once."""
        stats, self.prefill_stats = self.prefill_stats, None
        return stats

    def __lt__(self, other: Request) -> bool:
        return self._rank() < other._rank()

    def _rank(self) -> tuple[int, float, str, int]:
        return self.priority, self.arrival_time, self.request_id, id(self)
