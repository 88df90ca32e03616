"""How an engine is set up for a scenario, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kvconform.kvcache.shape import KVCacheShape

Runner = Literal["v1", "v2", "v2-full-graph"]
Crossing = Literal["pickle", "reference"]
#: Seconds that an engine waits for transfers, or for a peer, where nobody says how long they may take.
PATIENCE = 3.0
#: Steps without tokens that end a drain at the earliest: transfers may need much longer, so its time has to be up, too.
EMPTY_STEP_LIMIT = 200
#: Where below MultiConnector: it asks its children in order, and the first one that offers something loads.
Place = Literal["", "first", "last"]
#: Beside whom: another instance of the class, a connector of the kit that shares nothing with it but the interface, or
#: one that stores what its engine computes.
Sibling = Literal["twin", "stranger", "store"]
STRANGER = "StrangerConnector", "kvconform.engine.stranger"
STORE = "AsyncFileStoreConnector", "kvconform.reference.async_file_store"
HookOrder = Literal["vllm", "loads first", "bound first", "never cleared"]


@dataclass(frozen=True)
class ConnectorSpec:
    """Which connector, in KVTransferConfig's terms; ``module_path`` None means a name in vLLM's registry.

    ``child`` says which child of a MultiConnector is the connector under test; None if there is none. ``env`` are
    environment variables that are set while the connector is built. ``models`` is a folder in which the models are
    that its engines run, and which their names show; empty for the one that all engines share.
    """

    class_name: str
    module_path: str | None
    kv_role: str = "kv_both"
    extra_config: dict[str, Any] = field(default_factory=dict)
    engine_id: str | None = None
    child: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    models: str = ""


def below_multi_connector(connector: ConnectorSpec, sibling: ConnectorSpec, place: Place) -> ConnectorSpec:
    """vLLM's MultiConnector with both as children, in the terms of MultiConnector.__init__ (0.9.2 on)."""
    order = [connector, sibling] if place == "first" else [sibling, connector]
    children = [
        {
            "kv_connector": child.class_name,
            **({} if child.module_path is None else {"kv_connector_module_path": child.module_path}),
            "kv_role": child.kv_role,
            "kv_connector_extra_config": child.extra_config,
        }
        for child in order
    ]
    # Not looked up in the list: a sibling with the same settings is equal to it.
    child = 0 if place == "first" else 1
    return replace(
        connector,
        class_name="MultiConnector",
        module_path=None,
        extra_config={"connectors": children},
        engine_id=None,
        child=child,
    )


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

    ``place`` puts the connector below MultiConnector, with a ``sibling``: a twin, of its class and with a store of its
    own, a stranger, or a store.

    ``drafts`` tokens per decode step are proposed by a draft model, of which the target accepts some: speculative
    decoding, with as many slots reserved for the draft model to look ahead.

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
    place: Place = ""
    sibling: Sibling = "twin"
    drafts: int = 0
    load_failure_policy: Literal["recompute", "fail"] = "recompute"
    enable_prefix_caching: bool = True
    model: str = "model"
    model_seed: int = 0

    @property
    def kv_model(self) -> str:
        """What an engine computes KV with, by name: another dtype, or a split over ranks, gives other KV as well."""
        dtypes = sorted({layer.dtype for layer in self.shape.layers})
        kind = "" if dtypes == ["float16"] else f" in {', '.join(dtypes)}"
        return self.model + kind + ("" if self.workers == 1 else f" on {self.workers} ranks")

    def __post_init__(self) -> None:
        if self.workers < 1 or self.late_steps < 0 or (self.late_steps and self.workers == 1):
            raise ValueError(f"{self.workers} workers, the last of them {self.late_steps} steps late, make no sense")
        if self.drafts < 0 or (self.drafts and self.async_scheduling):
            raise ValueError(
                "drafts are 0 or more, and come with plain scheduling only: the kit takes them step by step"
            )
        if self.shape.recurrent and (self.drafts or not self.enable_prefix_caching):
            raise ValueError("recurrent layers are simulated with prefix caching and without drafts")
        if self.model in ("", ".", "..") or "/" in self.model:
            raise ValueError(f"the model's name {self.model!r} is no name of a folder")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): vLLM's SchedulerConfig demands it"
            )
