"""The worker side of a simulated engine: vLLM's hook wrappers around a forward that only writes KV.

One worker holds the WORKER connector, the KV tensors, and per request the block table that it was told through
SchedulerOutput, exactly as a model runner does. Instead of attention, each layer compares what it would read with the
oracle and writes what it would compute.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from kvconform.engine import compat
from kvconform.engine.instrument import HookTap
from kvconform.engine.options import EngineOptions
from kvconform.engine.vllm_engine.attention_metadata import Batch, metadata_class
from kvconform.engine.vllm_engine.forward import LayerForward
from kvconform.engine.vllm_engine.guard import VllmWouldRaise
from kvconform.engine.vllm_engine.rows import ScheduledRequest
from kvconform.engine.vllm_engine.slot import ConnectorSlot
from kvconform.kvcache.build import GUARD_BYTES, allocate, latent_layers
from kvconform.kvcache.kept_contents import KeptContents
from kvconform.kvcache.memory import KVMemory
from kvconform.kvcache.placing import to_device

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput


# A dummy forward takes a while, so that a connector's threads notice it.
DUMMY_LAYER_SECONDS = 0.01


@dataclass
class WorkerRequest:
    """What the worker knows of a request: its block table per KV cache group, and what was worked out of it."""

    block_ids: list[list[int]]
    computed: int = 0
    known: dict[tuple[object, ...], npt.NDArray[np.int64]] = field(default_factory=dict)


@dataclass
class WorkerStep:
    """The outcome of one worker step."""

    kv_connector_output: KVConnectorOutput | None
    executed: list[ScheduledRequest] = field(default_factory=list)


class SimulatedWorker:
    """One worker process' worth of state.

    Args:
        vllm_config: the engine's configuration.
        kv_cache_config: the worker's KVCacheConfig.
        options: the engine's set-up.
        recorder: records the connector's hooks.
        device: where the KV cache lives.
        engine: number of the engine in the history.
        rank: of this worker.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        kv_cache_config: KVCacheConfig,
        options: EngineOptions,
        recorder: HookTap,
        device: torch.device,
        engine: int,
        rank: int = 0,
    ) -> None:
        from vllm.distributed.kv_transfer import kv_transfer_state

        self.vllm_config = vllm_config
        self.kv_cache_config = kv_cache_config
        self.options = options
        self.rank = rank
        self.requests: dict[str, WorkerRequest] = {}
        self.connector: Any = None
        ConnectorSlot.open()
        try:
            self._place_layers()
            kv_transfer_state.ensure_kv_transfer_initialized(vllm_config, kv_cache_config)
            self.connector = kv_transfer_state._KV_CONNECTOR_AGENT
            ConnectorSlot.enter(self.connector)
            recorder.attach(self.connector, "worker", rank)
            if options.hook_order == "never cleared":
                self.connector.clear_connector_metadata = lambda: None
            with self._memory_pool():
                views = allocate(vllm_config, kv_cache_config, options.shape, device)
            self.memory = KVMemory(views, kv_cache_config, engine, GUARD_BYTES, rank)
            self.kept = KeptContents(rank)
            self.layer_names = tuple(self.memory.layers)
            self._latent = latent_layers(kv_cache_config)
            self._bind_layers(views)
            self._active = self._register(views)
        except BaseException:
            ConnectorSlot.leave(self.connector)
            raise

    # -- start-up --------------------------------------------------------------------------------------------------

    def _memory_pool(self) -> AbstractContextManager[Any]:
        """A connector may bring its allocator (vllm/v1/worker/gpu_worker.py, initialize_from_config, 0.31.0 on)."""
        from contextlib import nullcontext

        offered = getattr(self.connector, "get_mem_pool_context", lambda: None)()
        if offered is not None and not hasattr(type(offered), "__enter__"):
            raise VllmWouldRaise(f"get_mem_pool_context returned {offered!r:.60}, which is no context manager")
        return nullcontext() if offered is None else offered

    def _place_layers(self) -> None:
        from kvconform.engine.vllm_engine.layers import place_layers

        place_layers(self.vllm_config, self.kv_cache_config, self.options.shape.kernel_block_size)

    def _bind_layers(self, views: dict[str, torch.Tensor]) -> None:
        from kvconform.engine.vllm_engine.layers import bind_layers

        bind_layers(self.vllm_config, views)

    def _register(self, views: dict[str, torch.Tensor]) -> Any:
        """Registration in the order of the chosen model runner (gpu_model_runner.py / gpu/kv_connector.py)."""
        from vllm.distributed.kv_transfer.kv_connector.utils import copy_kv_blocks
        from vllm.v1.worker.gpu.kv_connector import ActiveKVConnector

        if self.options.runner == "v1":
            self.connector.register_kv_caches(views)
            self.connector.set_host_xfer_buffer_ops(copy_kv_blocks)
            return None
        return ActiveKVConnector(self.vllm_config, views)

    def handshake_metadata(self) -> dict[tuple[int, int], Any] | None:
        """What Worker.get_kv_connector_handshake_metadata returns for pipeline rank 0 and its rank."""
        metadata = self.connector.get_handshake_metadata()
        return None if metadata is None else {(0, self.rank): metadata}

    # -- one step --------------------------------------------------------------------------------------------------

    def update_requests(self, output: SchedulerOutput) -> list[ScheduledRequest]:
        """Follow SchedulerOutput as the model runners do and return the requests of this step.

        A known id among the new requests replaces the whole table (resumption under the V2 runner, continued sessions);
        so does an id in ``resumed_req_ids``; everything else appends (vllm/v1/core/sched/output.py, 0.32.0).
        """
        for request_id in output.finished_req_ids:
            self.requests.pop(request_id, None)
        for new in output.scheduled_new_reqs:
            self.requests[new.req_id] = WorkerRequest([list(group) for group in new.block_ids], new.num_computed_tokens)
        cached = output.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            state = self.requests[request_id]
            state.computed = cached.num_computed_tokens[index]
            new_blocks = cached.new_block_ids[index]
            if request_id in cached.resumed_req_ids:
                assert new_blocks is not None, f"vLLM resumed {request_id} without blocks"
                state.block_ids = [list(group) for group in new_blocks]
                state.known = {}
            elif new_blocks is not None:
                for table, ids in zip(state.block_ids, new_blocks, strict=True):
                    table.extend(ids)
                state.known = {}
        requests = []
        for request_id, count in output.num_scheduled_tokens.items():
            state = self.requests[request_id]
            requests.append(ScheduledRequest(request_id, state.block_ids, state.computed, count, 0, state.known))
        return requests

    def run(self, output: SchedulerOutput, requests: list[ScheduledRequest], forward: LayerForward) -> WorkerStep:
        """Run one step in the call order of the chosen model runner."""
        from vllm.config import set_current_vllm_config

        ConnectorSlot.enter(self.connector)
        if self.options.hook_order == "loads first":
            output = replace(output, has_sync_kv_loads=True)
        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            if self.options.hook_order == "bound first":
                self.connector.bind_connector_metadata(output.kv_connector_metadata)
            run = self._run_v1 if self.options.runner == "v1" else self._run_v2
            return WorkerStep(run(output, requests, forward), requests)

    def _run_v1(
        self, output: SchedulerOutput, requests: list[ScheduledRequest], forward: LayerForward
    ) -> KVConnectorOutput | None:
        """GPUModelRunner.execute_model (vllm/v1/worker/gpu_model_runner.py) around the mixin's own context manager."""
        from vllm.forward_context import set_forward_context
        from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin

        self.connector.handle_preemptions(output.kv_connector_metadata)
        self._apply_block_operations(output)
        if not requests:
            empty = KVConnectorModelRunnerMixin.kv_connector_no_forward(output, self.vllm_config)
            return empty.kv_connector_output
        metadata, slot_mapping = self._attention_metadata(requests)
        with (
            set_forward_context(metadata, self.vllm_config, num_tokens=_tokens(requests), slot_mapping=slot_mapping),
            KVConnectorModelRunnerMixin.maybe_get_kv_connector_output(
                output, defer_finalize=bool(self.options.drafts)
            ) as connector_output,
        ):
            forward.run(requests)
        if self.options.drafts:
            # Once the draft model has run as well (GPUModelRunner.sample_tokens).
            KVConnectorModelRunnerMixin.finalize_kv_connector()
        return connector_output

    def _run_v2(
        self, output: SchedulerOutput, requests: list[ScheduledRequest], forward: LayerForward
    ) -> KVConnectorOutput | None:
        """GPUModelRunner.execute_model (vllm/v1/worker/gpu/model_runner.py) around ActiveKVConnector."""
        from vllm.forward_context import set_forward_context

        self._apply_block_operations(output)
        if not requests:
            return self._active.no_forward(output).kv_connector_output
        metadata, slot_mapping = self._attention_metadata(requests)
        batch = SimpleNamespace(
            idx_mapping=to_device(np.arange(len(requests), dtype=np.int32), self.memory.raw.device),
            req_ids=[request.request_id for request in requests],
            num_tokens=_tokens(requests),
            num_reqs=len(requests),
        )
        if self.options.runner == "v2-full-graph":
            # A replayed full CUDA graph runs no Python: no forward context, no layer hooks (execute_model, FULL mode).
            compat.v2_pre_forward(self._active, output, batch, metadata)
            forward.run_without_hooks(requests)
        else:
            with set_forward_context(
                metadata, self.vllm_config, num_tokens=_tokens(requests), slot_mapping=slot_mapping
            ):
                compat.v2_pre_forward(self._active, output, batch, None)
                forward.run(requests)
        compat.v2_finish_forward(self._active)
        step: KVConnectorOutput | None = compat.v2_post_forward(
            self._active, output.finished_req_ids, bool(self.options.drafts)
        )
        return step

    def enter(self) -> None:
        """This worker has vLLM's process-wide slot now."""
        ConnectorSlot.enter(self.connector)

    def dummy_run(self) -> None:
        """Take the connector out of the process-wide slot for as long as a small forward takes, and put it back.

        Model runner V2 does it through ActiveKVConnector.set_disabled; V1 runs dummy batches without metadata, and for
        a connector that is the same.
        """
        from kvconform.engine.vllm_engine.layers import with_layer_hooks

        if self._active is None:
            return
        self._active.set_disabled(True)
        try:
            attention = with_layer_hooks(lambda _: time.sleep(DUMMY_LAYER_SECONDS))
            for name, layer in self.memory.layers.items():
                if not layer.recurrent:
                    attention(name)
        finally:
            self._active.set_disabled(False)

    def _apply_block_operations(self, output: SchedulerOutput) -> None:
        """Copy blocks as the step demands, which no cache of the suites does; Execution clears those to be cleared."""
        assert not getattr(output, "kv_cache_block_copies", None), "copy-on-write block copies are not simulated yet"

    def _attention_metadata(self, requests: list[ScheduledRequest]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What each layer's kernels are told of the batch, and the slot mapping alone."""
        metadata: dict[str, Any] = {}
        mappings: dict[str, torch.Tensor] = {}
        # The layers of a group share both, as in vLLM (GPUModelRunner._get_slot_mappings, 0.32.0).
        of_group: dict[tuple[int, int, bool], Batch] = {}
        for name, layer in self.memory.layers.items():
            if layer.recurrent:
                # Mamba's own knows states, and has no slots (vllm/v1/attention/backends/mamba_attn.py, 0.32.0).
                metadata[name] = SimpleNamespace()
                continue
            latent = name in self._latent
            key = (layer.group, layer.block_size, latent)
            batch = of_group.get(key)
            if batch is None:
                slots = [r.slots(layer.group, layer.block_size, r.computed, r.computed + r.scheduled) for r in requests]
                mapping = to_device(np.concatenate(slots), self.memory.raw.device)
                batch = of_group[key] = metadata_class(latent=latent)(requests, layer, mapping)
            mappings[name] = batch.slot_mapping
            metadata[name] = batch
        return metadata, mappings

    # -- end -------------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Shut the connector down (kv_transfer_state.ensure_kv_transfer_shutdown)."""
        ConnectorSlot.enter(self.connector)
        try:
            self.connector.shutdown()
        finally:
            ConnectorSlot.leave(self.connector)


def _tokens(requests: list[ScheduledRequest]) -> int:
    return sum(request.scheduled for request in requests)
