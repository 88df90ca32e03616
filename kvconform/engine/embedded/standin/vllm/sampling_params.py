"""What a request asks of sampling, as far as scheduling and connectors look at it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class SamplingParams:
    """The fields that end a request, and ``extra_args``, in which kv_transfer_params travel."""

    n: int = 1
    temperature: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    prompt_logprobs: int | None = None
    logprobs: int | None = None
    extra_args: dict[str, Any] | None = None
    skip_reading_prefix_cache: bool | None = None
    _all_stop_token_ids: set[int] = field(default_factory=set)
    _eos_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.skip_reading_prefix_cache is None:
            self.skip_reading_prefix_cache = self.prompt_logprobs is not None

    def update_from_generation_config(self, generation_config: dict[str, Any], eos_token_id: int | None = None) -> None:
        """The model's end of sequence."""
        if not self.ignore_eos:
            self._eos_token_id = eos_token_id
        if eos_token_id is not None:
            self._all_stop_token_ids.add(eos_token_id)

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a request."""
        return self._eos_token_id

    @property
    def all_stop_token_ids(self) -> set[int]:
        """All tokens that do."""
        return self._all_stop_token_ids
