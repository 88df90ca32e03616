"""How an engine is set up for a scenario, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kvconform.kvcache.shape import KVCacheShape

Runner = Literal["v1", "v2", "v2-full-graph"]
Crossing = Literal["pickle", "reference"]
#: Seconds that an engine waits for transfers while nothing can be computed.
PATIENCE = 3.0
HookOrder = Literal["vllm", "loads first", "bound first", "never cleared"]


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

    ``async_scheduling`` takes the results of a step once the next one is scheduled (AsyncScheduler and a batch queue
    of two, as in EngineCore.step_with_batch_queue); the workers are as fast as can be.

    ``workers`` are the tensor-parallel ranks of one engine; their outputs go through vLLM's KVOutputAggregator. The
    completions of the last of them reach it ``late_steps`` steps later, as if its transfers were slower.

    ``hook_order`` departs from the runner's order, for contrast: ``loads first`` starts loads before the forward in
    every step, ``bound first`` binds the metadata before handle_preemptions, as well as after it. ``never cleared``
    leaves clear_connector_metadata out, as a pipeline stage with deferred finalisation does.
    """

    shape: KVCacheShape = field(default_factory=KVCacheShape)
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 16
    runner: Runner = "v2"
    crossing: Crossing = "pickle"
    async_scheduling: bool = False
    workers: int = 1
    late_steps: int = 0
    hook_order: HookOrder = "vllm"
    load_failure_policy: Literal["recompute", "fail"] = "recompute"
    enable_prefix_caching: bool = True
    model: str = "model"
    model_seed: int = 0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.late_steps < 0 or (self.late_steps and self.workers == 1):
            raise ValueError(f"{self.workers} workers, the last of them {self.late_steps} steps late, make no sense")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): vLLM's SchedulerConfig demands it"
            )
