"""Limits of a step."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import Any

from vllm.config._tables import fields_of


@dataclass
class SchedulerConfig(fields_of("SchedulerConfig")):  # type: ignore[misc]
    """Requests and tokens per step."""

    max_model_len: InitVar[Any] = None
    is_encoder_decoder: InitVar[Any] = None

    def __post_init__(self, max_model_len: int, is_encoder_decoder: bool) -> None:
        self.max_model_len = max_model_len
        self.max_num_encoder_input_tokens = self.encoder_cache_size = self.max_num_batched_tokens
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be greater than or equal to max_num_seqs "
                f"({self.max_num_seqs})."
            )

    def get_scheduler_cls(self) -> type[Any]:
        """The scheduler."""
        if self.async_scheduling:
            from vllm.v1.core.sched.async_scheduler import AsyncScheduler

            return AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler

        return Scheduler
