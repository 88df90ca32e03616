"""How many processes."""

from __future__ import annotations

from typing import Any

from kvconform.engine.protocol import NotSimulated
from vllm.config._tables import fields_of


class ParallelConfig(fields_of("ParallelConfig")):  # type: ignore[misc]
    """Tensor parallelism only."""

    distributed_executor_backend: Any

    def __post_init__(self) -> None:
        only_one = ("pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size")
        for name in (*only_one, "decode_context_parallel_size"):
            if getattr(self, name) != 1:
                raise NotSimulated(f"{name}={getattr(self, name)} is not simulated by the engine 'embedded'")
        self.world_size = self.tensor_parallel_size
        if self.distributed_executor_backend is None:
            self.distributed_executor_backend = "uni" if self.world_size == 1 else "mp"

    @property
    def world_size_across_dp(self) -> int:
        """All processes."""
        return int(self.world_size)
