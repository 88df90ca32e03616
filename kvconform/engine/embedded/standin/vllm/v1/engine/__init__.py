"""What an engine core gives back."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.metrics.stats import PrefillStats, SchedulerStats


class FinishReason(enum.IntEnum):
    """Why a request ended."""

    STOP = 0
    LENGTH = 1
    ABORT = 2
    ERROR = 3
    REPETITION = 4

    def __str__(self) -> str:
        return self.name.lower()


@dataclass
class EngineCoreOutput:
    """New tokens of a request."""

    request_id: str
    new_token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    kv_transfer_params: dict[str, Any] | None = None
    prefill_stats: PrefillStats | None = None

    @property
    def finished(self) -> bool:
        """Whether there will be no more."""
        return self.finish_reason is not None


@dataclass
class EngineCoreOutputs:
    """All new tokens of a step for one client."""

    outputs: list[EngineCoreOutput] = field(default_factory=list)
    scheduler_stats: SchedulerStats | None = None
