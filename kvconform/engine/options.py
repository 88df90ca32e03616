"""How an engine is set up for a scenario, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kvconform.kvcache.shape import KVCacheShape

Runner = Literal["v1", "v2", "v2-full-graph"]
Crossing = Literal["pickle", "reference"]


@dataclass(frozen=True)
class ConnectorSpec:
    """Which connector, in KVTransferConfig's terms; ``module_path`` None means a name in vLLM's registry."""

    class_name: str
    module_path: str | None
    kv_role: str = "kv_both"
    extra_config: dict[str, Any] = field(default_factory=dict)
    engine_id: str | None = None


@dataclass(frozen=True)
class EngineOptions:
    """Everything about an engine that is not the connector.

    ``runner`` chooses whose call order the worker side follows: ``v1`` is KVConnectorModelRunnerMixin, ``v2`` is
    ActiveKVConnector. ``crossing`` is ``pickle`` for what separate processes would see and ``reference`` for the
    in-process executor, which hands objects over as they are.
    """

    shape: KVCacheShape = field(default_factory=KVCacheShape)
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 16
    runner: Runner = "v2"
    crossing: Crossing = "pickle"
    load_failure_policy: Literal["recompute", "fail"] = "recompute"
    enable_prefix_caching: bool = True
    model: str = "model"
    model_seed: int = 0

    def __post_init__(self) -> None:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): vLLM's SchedulerConfig demands it"
            )
