"""An engine for measuring: vLLM's scheduler and the kit's worker, without record, oracle or audit.

The order of everything is that of :class:`kvconform.engine.vllm_engine.engine.VllmEngine`; the forward calls the layer
hooks and computes nothing, so that what hooks take is all that a step takes beside the scheduler.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from kvconform.api import prepare
from kvconform.bench.clock import Call, HookClock
from kvconform.bench.plan import Case
from kvconform.engine import compat
from kvconform.engine.options import ConnectorSpec, EngineOptions
from kvconform.engine.vllm_engine.configuration import build_vllm_config, ensure_parallel_state
from kvconform.engine.vllm_engine.requests import build_request, hash_function
from kvconform.engine.vllm_engine.rows import ScheduledRequest
from kvconform.engine.vllm_engine.startup import build_scheduler
from kvconform.engine.vllm_engine.worker import SimulatedWorker
from kvconform.kvcache.build import plan_kv_cache
from kvconform.scenario.program import RequestSpec

#: Between steps that compute nothing. An engine core sleeps ten times as long there; transfers shall not wait for it.
POLL_SECONDS = 0.0001
#: What the forward is said to have sampled.
TOKEN = 11


@dataclass(frozen=True)
class Stepped:
    """One step: the calls of hooks in it, the requests that computed something, and what the worker reported."""

    calls: tuple[Call, ...]
    scheduled: frozenset[str]
    finished_sending: frozenset[str]
    finished_recving: frozenset[str]
    failed_blocks: frozenset[int]

    def of(self, *hooks: str) -> list[Call]:
        """The calls of some hooks."""
        return [call for call in self.calls if call.hook in hooks]

    @property
    def worker_seconds(self) -> float:
        """What all hooks of the worker role took together."""
        return sum(call.seconds for call in self.calls if call.role == "worker")


@dataclass(frozen=True)
class _Layers:
    """A forward that calls the layer hooks."""

    names: tuple[str, ...]

    def run(self, _: list[ScheduledRequest]) -> None:
        from kvconform.engine.vllm_engine.layers import with_layer_hooks

        attention = with_layer_hooks(lambda _: None)
        for name in self.names:
            attention(name)

    run_without_hooks = run


class BenchEngine:
    """One engine with one connector.

    Args:
        case: decides the KV cache and how long a prompt may be.
        connector: the connector.
        device: "cpu" or "cuda".

    Raises:
        Exception: whatever the connector or vLLM raises at the start.
    """

    def __init__(self, case: Case, connector: ConnectorSpec, device: str) -> None:
        prepare(device)
        ensure_parallel_state()
        self.clock = HookClock()
        self.device = torch.device(device)
        self.worker: SimulatedWorker | None = None
        self.scheduler: Any = None
        with patch.dict(os.environ, connector.env):
            try:
                self._start(case, connector)
            except BaseException:
                self.shutdown()
                raise
        self.clock.take()

    def _start(self, case: Case, connector: ConnectorSpec) -> None:
        from vllm.config import set_current_vllm_config

        hash_fn = hash_function()
        options = EngineOptions(case.shape, max_num_batched_tokens=max(2048, case.prompt), crossing="pickle")
        config = build_vllm_config(options, connector, self.device.type)
        # The suites' prompts are short; one request is to have all blocks here.
        config.model_config.max_model_len = config.scheduler_config.max_model_len = case.shape.usable_tokens
        with set_current_vllm_config(config):
            plans = plan_kv_cache(config, case.shape)
            self.worker = SimulatedWorker(config, plans.worker, options, self.clock, self.device, 1)
            self.scheduler, hash_block_size = build_scheduler(config, plans.scheduler, self.clock)
            self.scheduler.use_v2_model_runner = True
            self._connector = self.scheduler.get_kv_connector()
            self._connector.get_finished_count()
            compat.deliver_handshake(self._connector, [_crossed(self.worker.handshake_metadata())])
        self._hasher = compat.request_block_hasher(config, hash_block_size, hash_fn)
        self._model = options.kv_model
        self._layers = _Layers(self.worker.layer_names)

    @property
    def memory(self) -> Any:
        """The worker's KV memory."""
        assert self.worker is not None
        return self.worker.memory

    def add(self, spec: RequestSpec) -> None:
        """Queue a request."""
        self.scheduler.add_request(build_request(spec, self._model, self._hasher))

    def busy(self) -> bool:
        """Whether there is something to do, transfers that the scheduler waits for included."""
        return bool(self.scheduler.has_requests())

    def holds(self, request_id: str) -> bool:
        """Whether the scheduler still has the request."""
        return request_id in self.scheduler.requests

    def saving(self, request_id: str) -> bool:
        """Whether something is left to do for a request that has computed all: it, its blocks, or work are held."""
        pool = self.scheduler.kv_cache_manager.block_pool
        blocks_held = pool.free_block_queue.num_free_blocks < pool.num_gpu_blocks - 1
        # What keeps an engine stepping although no request is left (Scheduler.has_unfinished_requests, 0.32.0).
        return self.holds(request_id) or blocks_held or bool(self._connector.has_pending_push_work())

    def forget(self) -> bool:
        """Drop the local prefix cache, of an idle engine; whether that succeeded."""
        return bool(self.scheduler.reset_prefix_cache())

    def settle(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def step(self, scheduled: Callable[[Any], None] = lambda _: None) -> Stepped:
        """One step; ``scheduled`` is called with the scheduler's output before the worker gets it."""
        from vllm.v1.outputs import ModelRunnerOutput

        assert self.worker is not None
        output = self.scheduler.schedule()
        scheduled(output)
        partial = {i: self.scheduler.requests[i].is_prefill_chunk for i in output.num_scheduled_tokens}
        crossed = _crossed(output)
        requests = self.worker.update_requests(crossed)
        self.settle()
        forward: Any = self._layers
        reported = _crossed(self.worker.run(crossed, requests, forward).kv_connector_output)
        ids = [request.request_id for request in requests]
        result = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
            sampled_token_ids=[[] if partial[i] else [TOKEN] for i in ids],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=None,
            kv_connector_output=reported,
        )
        self.scheduler.update_from_output(output, result)
        if not requests:
            time.sleep(POLL_SECONDS)
        return Stepped(
            tuple(self.clock.take()),
            frozenset(ids),
            _ids(getattr(reported, "finished_sending", None)),
            _ids(getattr(reported, "finished_recving", None)),
            frozenset(getattr(reported, "invalid_block_ids", None) or ()),
        )

    def shutdown(self) -> None:
        """Worker role first, then scheduler role, as EngineCore.shutdown does."""
        worker, self.worker = self.worker, None
        scheduler, self.scheduler = self.scheduler, None
        try:
            if worker is not None:
                worker.shutdown()
        finally:
            if scheduler is not None:
                scheduler.shutdown()


def _ids(found: Iterable[str] | None) -> frozenset[str]:
    return frozenset(found or ())


def _crossed(value: Any) -> Any:
    """What another process would get; off the clock, as it is not the connector's work."""
    return value if value is None else pickle.loads(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))
