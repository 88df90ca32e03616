"""The in-process engine: vLLM's own scheduler and cache manager, our worker, one thread of control."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from kvconform.api import prepare
from kvconform.device import DeviceWork
from kvconform.engine import compat
from kvconform.engine.events import (
    DivergentHit,
    EngineStarted,
    HookCall,
    ProgramAction,
    Scheduled,
)
from kvconform.engine.history import History
from kvconform.engine.instrument import Recorder
from kvconform.engine.options import PATIENCE, ConnectorSpec, EngineOptions
from kvconform.engine.protocol import EngineStopped
from kvconform.engine.router import Router
from kvconform.engine.vllm_engine.block_state import BlockStateWatch
from kvconform.engine.vllm_engine.configuration import build_vllm_config, ensure_parallel_state
from kvconform.engine.vllm_engine.controls import Controls
from kvconform.engine.vllm_engine.deliveries import Deliveries
from kvconform.engine.vllm_engine.divergent_hits import note_divergent_hits
from kvconform.engine.vllm_engine.drafts import proposals
from kvconform.engine.vllm_engine.execution import Execution
from kvconform.engine.vllm_engine.guard import Guard
from kvconform.engine.vllm_engine.idle_audit import held_by
from kvconform.engine.vllm_engine.ledger import BlockLedger
from kvconform.engine.vllm_engine.observability import Observer
from kvconform.engine.vllm_engine.ownership import Ownership
from kvconform.engine.vllm_engine.requests import build_request, hash_function, token_chain
from kvconform.engine.vllm_engine.role_watch import RoleWatch
from kvconform.engine.vllm_engine.startup import build_scheduler, demand_full_graphs
from kvconform.engine.vllm_engine.waiting import Waiting
from kvconform.engine.vllm_engine.worker import SimulatedWorker
from kvconform.kvcache.build import plan_kv_cache
from kvconform.kvcache.oracle import TokenChain
from kvconform.kvcache.provenance import Provenance
from kvconform.scenario.program import RequestSpec

# An engine core that has work left sleeps so long after a step without tokens, so that transfer threads get on
# (EngineCore._process_engine_step, vllm/v1/engine/core.py, 0.32.0).
EMPTY_STEP_SECONDS = 0.001
# VllmConfig.max_concurrent_batches with asynchronous scheduling and one pipeline stage.
BATCH_QUEUE_SIZE = 2


class VllmEngine(Controls):
    """One engine on the installed vLLM.

    Args:
        options: the set-up.
        connector: the connector under test, in vLLM's own terms.
        history: where everything observable goes; engines of one scenario share it.
        provenance: what bytes can be; shared likewise.
        number: this engine's number in the history, from 1.
        device: "cpu" or "cuda".
        patience: seconds that a drain waits for transfers when nothing can be computed.
        work: the engine's stream; by default the current one on CUDA, and none on the CPU.
        hurried: whether patience is less than it should be.
        router: what stands before this engine if it is a producer.

    Raises:
        EngineStopped: the connector or vLLM refused to start; the reason is in the history and the exception.
    """

    def __init__(
        self,
        options: EngineOptions,
        connector: ConnectorSpec,
        history: History,
        provenance: Provenance,
        number: int = 1,
        device: str = "cpu",
        patience: float = PATIENCE,
        work: DeviceWork | None = None,
        hurried: bool = False,
        router: Router | None = None,
    ) -> None:
        prepare(device)
        ensure_parallel_state()
        self.options = options
        self.history = history
        self.provenance = provenance
        self.number = number
        self.steps = 0
        self.chains: dict[str, TokenChain] = {}
        self.deliveries = Deliveries()
        self._router = router
        self._begun: tuple[Any, Any] | None = None
        self._in_flight: deque[tuple[Any, Any]] = deque()
        #: Whether the last step had no tokens.
        self.empty_step = False
        self._aborted_on_arrival: set[str] = set()
        self._waiting = Waiting(self, patience, hurried)
        self._block_state = BlockStateWatch(history, number)
        self.recorder = Recorder(history, lambda: (self.number, self.steps), connector.child)
        self.guard = Guard(history, self.recorder, lambda: (self.number, self.steps))
        self.recorder.after["get_num_new_matched_tokens"] = self._after_match
        self.recorder.after["update_state_after_alloc"] = self._after_alloc
        self.recorder.after["build_connector_meta"] = self._block_state.built
        self.execution = Execution(self, work)
        self.scheduler: Any = None
        try:
            with patch.dict(os.environ, connector.env):
                self._guard("start-up", lambda: self._start(connector, torch.device(device)))
        except EngineStopped:
            # Nobody else will ever hold this engine.
            self.release()
            raise

    @property
    def worker(self) -> SimulatedWorker | None:
        """The first worker."""
        return self.execution.workers[0] if self.execution.workers else None

    @property
    def connectors(self) -> tuple[Any, ...]:
        """As in the protocol."""
        roles = [None if self.scheduler is None else self.scheduler.get_kv_connector()]
        roles += [worker.connector for worker in self.execution.workers]
        return tuple(connector for connector in roles if connector is not None)

    @property
    def delivered(self) -> dict[str, Any]:
        """As in the protocol."""
        returned = self.deliveries.params
        return returned if self._router is None else self._router.to_consumer(returned)

    @property
    def longest_wait(self) -> float:
        """As in the protocol."""
        return self._waiting.longest

    # -- start-up --------------------------------------------------------------------------------------------------

    def _start(self, connector: ConnectorSpec, device: torch.device) -> None:
        """The order of EngineCore.__init__: plan, worker role, tensors, registration, scheduler role, handshake."""
        from vllm.config import set_current_vllm_config

        hash_fn = hash_function()
        self.vllm_config = build_vllm_config(self.options, connector, device.type)
        if self.options.runner == "v2-full-graph":
            demand_full_graphs(self.vllm_config)
        with set_current_vllm_config(self.vllm_config):
            configs = plan_kv_cache(self.vllm_config, self.options.shape)
            self.execution.build(configs.worker, device)
            self.scheduler, hash_block_size = build_scheduler(self.vllm_config, configs.scheduler, self.recorder)
            self.scheduler.use_v2_model_runner = self.options.runner != "v1"
            if self.options.drafts:
                # What a draft model looks ahead (VllmConfig.num_lookahead_tokens); without a model there are no slots.
                self.scheduler.num_lookahead_tokens = self.options.drafts
            self.connector = self.scheduler.get_kv_connector()
            self.execution.connect(self.connector)
            compat.deliver_handshake(self.connector, self._handshake_metadata())
        self.hasher = compat.request_block_hasher(self.vllm_config, hash_block_size, hash_fn)
        groups = configs.scheduler.kv_cache_groups
        sizes = tuple(group.kv_cache_spec.block_size for group in groups)
        self.ownership = Ownership(self.scheduler, configs.scheduler.num_blocks, sizes)
        self.ledger = BlockLedger(self.ownership)
        self.windows = {
            name: window
            for group in groups
            if (window := getattr(group.kv_cache_spec, "sliding_window", None)) is not None
            for name in group.layer_names
        }
        workers = self.execution.workers
        for worker in workers:
            rank = f", rank {worker.rank}" if len(workers) > 1 else ""
            self.provenance.know_memory(worker.memory, f" (engine {self.number}{rank})")
        self.provenance.ranks = max(self.provenance.ranks, tuple(range(len(workers))))
        self.watch = RoleWatch(
            self.history,
            self.number,
            self.scheduler,
            {"scheduler": self.connector, "worker": workers[0].connector},
            workers[0].memory,
            separate=self.options.crossing == "pickle",
        )
        self.observer = Observer(
            self.history,
            self.number,
            self.scheduler,
            self.connector,
            hash_block_size,
            self.watch,
            wrapped=bool(self.options.place),
        )
        self.observer.worker = workers[0].connector
        self.recorder.watch = self.observer
        recurrent = tuple(sorted({layer.group for layer in workers[0].memory.layers.values() if layer.recurrent}))
        if recurrent:
            note_divergent_hits(self.scheduler.kv_cache_manager, self._note_divergent_hit)
        sibling = self.options.sibling if self.options.place else ""
        policy = self.options.load_failure_policy
        self.history.add(
            EngineStarted(self.number, 0, sizes, policy, recurrent, sibling, self.options.shape.describe())
        )

    def _note_divergent_hit(self, request_id: str, tokens: int) -> None:
        self.history.add(DivergentHit(self.number, self.steps, request_id, tokens))

    # -- what the scenario does ------------------------------------------------------------------------------------

    def add(self, spec: RequestSpec) -> None:
        """Queue a request."""
        if self._router is not None:
            spec = self._router.to_producer(spec)
        model = self.options.kv_model
        chain = self.chains[spec.id] = token_chain(spec, model)
        # With the tokens that it will generate, so that checks can tell what requests have in common.
        tokens = [int(token) for token in chain.tokens(spec.prompt_length + spec.max_tokens)]
        shape, identity = self.options.shape, chain.identity
        detail = {
            "request": spec.id,
            "tokens": tokens,
            "embeds": spec.embeds,
            "identity": repr((identity.lora, identity.salt or None, identity.extras)),
            "set_up": f"{model}, {shape.layout}, blocks of {shape.block_size} tokens",
            "local_cache": self.options.enable_prefix_caching,
        }
        if spec.takes_no_cache:
            detail["takes_no_cache"] = True
        if spec.kv_transfer_params is not None:
            detail["kv_transfer_params"] = spec.kv_transfer_params
            if self._router is not None and self._router.routed(spec.id):
                detail["routed"] = True
        self.history.add(ProgramAction(self.number, self.steps, "add", detail))
        self._guard("add_request", lambda: self._queue(spec, model))

    def _queue(self, spec: RequestSpec, model: str) -> None:
        if spec.items:
            compat.admit_items(self.scheduler)
        self.scheduler.add_request(build_request(spec, model, self.hasher))

    def abort(self, request_id: str, when: str = "between steps") -> None:
        """Abort a live request."""
        from vllm.v1.request import RequestStatus

        self.history.add(ProgramAction(self.number, self.steps, "abort", {"request": request_id, "when": when}))
        self._guard(
            "finish_requests", lambda: self.scheduler.finish_requests([request_id], RequestStatus.FINISHED_ABORTED)
        )

    def abort_on_arrival(self, request_id: str) -> None:
        """As an abort that comes in while the workers run that very step (EngineCore._process_aborts_queue)."""
        self._aborted_on_arrival.add(request_id)

    def step(self) -> bool:
        """One EngineCore.step: schedule, execute, update."""
        if not self.begin_step():
            return False
        self.finish_step()
        return True

    def begin_step(self) -> bool:
        """Schedule, and put the result through serialisation."""
        if not self._guard("has_requests", self.scheduler.has_requests):
            self._begun = None
            return bool(self._in_flight)
        self.steps += 1
        self.ledger.begin_step()
        output = self._guard("schedule", self.scheduler.schedule)
        self._note_schedule(output)
        self._block_state.scheduled(output, self.steps)
        self._begun = (output, self.cross("scheduler output", output))
        return True

    def finish_step(self, aborts: tuple[str, ...] = ()) -> None:
        """Execute, and take the results; aborts come in between (EngineCore._process_aborts_queue)."""
        if self._begun is not None:
            output, crossed = self._begun
            self._in_flight.append(
                (output, self._guard("execute_model", lambda: self.execution.run(crossed, self._partial)))
            )
            if self._goes_ahead(output):
                return
        output, result = self._in_flight.popleft()
        for request_id in (*aborts, *self._arriving(result)):
            self.abort(request_id, "during step")
        self._finish_step(output, result)
        self.empty_step = not output.num_scheduled_tokens
        if self.empty_step and self._guard("has_requests", self.scheduler.has_requests):
            time.sleep(EMPTY_STEP_SECONDS)

    def _arriving(self, result: Any) -> list[str]:
        """Requests that are to be aborted as soon as their load is reported, which these results do."""
        reported = getattr(getattr(result, "kv_connector_output", None), "finished_recving", None)
        # On anything else vLLM fails by itself.
        arriving = self._aborted_on_arrival.intersection(reported if isinstance(reported, (set, frozenset)) else ())
        self._aborted_on_arrival -= arriving
        return sorted(arriving)

    def _goes_ahead(self, output: Any) -> bool:
        """Whether the next step is scheduled before the results of this one are taken (step_with_batch_queue)."""
        if not self.options.async_scheduling or len(self._in_flight) >= BATCH_QUEUE_SIZE:
            return False
        self.empty_step = False
        return bool(output.num_scheduled_tokens) or bool(self._guard("has_requests", self.scheduler.has_requests))

    def _handshake_metadata(self) -> list[Any]:
        return [self.cross("handshake metadata", each) for each in self.execution.handshake_metadata()]

    def drain(self, meanwhile: Callable[[], object] = lambda: None, *, held: bool = False) -> None:
        """As in the protocol."""
        self._waiting.drain(meanwhile, held=held)

    def outlast(self, limit: float, meanwhile: Callable[[], object]) -> bool:
        """As in the protocol."""
        return self._waiting.outlast(limit, meanwhile)

    def audit(self) -> None:
        """What the scheduler still holds; an idle engine holds nothing."""
        self.execution.check_writes("after the last step")
        for event in held_by(self.scheduler, self.number, self.steps):
            self.history.add(event)
        self.watch.inspect()
        self.observer.idle()

    def shutdown(self) -> None:
        """Worker role first, scheduler role second (EngineCore.shutdown)."""
        if self.guard.stopped:
            self.release()
            return
        self.history.add(ProgramAction(self.number, self.steps, "shutdown", {}))
        self._guard("worker shutdown", self.execution.shutdown)
        self._guard("scheduler shutdown", self.scheduler.shutdown)

    def shutdown_again(self) -> None:
        """What an error path or a finaliser may do after :meth:`shutdown`."""
        assert self.worker is not None
        self.history.add(ProgramAction(self.number, self.steps, "shutdown again", {}))
        self._guard("second worker shutdown", self.worker.shutdown)
        self._guard("second scheduler shutdown", self.connector.shutdown)

    def release(self) -> None:
        """Give process-wide state back after an engine that died; errors of a dead connector's shutdown don't count."""
        import contextlib

        with contextlib.suppress(Exception):
            self.execution.shutdown()
        if self.scheduler is not None:
            with contextlib.suppress(Exception):
                self.scheduler.shutdown()

    # -- one step --------------------------------------------------------------------------------------------------

    def _finish_step(self, output: Any, result: Any) -> None:
        outputs = self._guard("update_from_output", lambda: self.scheduler.update_from_output(output, result))
        if self.options.drafts and output.num_scheduled_tokens:
            self._propose_drafts(output)
        self.execution.check_writes("while the scheduler took the results")
        self.watch.step_ended()
        self.observer.step_ended(outputs)
        for event in self.deliveries.take(outputs, self.scheduler.requests.keys(), self.number, self.steps):
            self.history.add(event)

    def _propose_drafts(self, output: Any) -> None:
        """EngineCore.post_step: the draft model's proposals for every request that decodes from here on."""
        live = (self.scheduler.requests.get(request_id) for request_id in output.num_scheduled_tokens)
        lengths = [
            (request.request_id, request.num_tokens)
            for request in live
            if request is not None and not request.is_finished() and not self._partial[request.request_id]
        ]
        drafts = proposals(lengths, self.chains, self.options.drafts)
        self._guard("update_draft_token_ids", lambda: self.scheduler.update_draft_token_ids(drafts))

    def _note_schedule(self, output: Any) -> None:
        computed = self.ledger.scheduled(output)
        cached = output.scheduled_cached_reqs
        self._partial = {i: self.scheduler.requests[i].is_prefill_chunk for i in output.num_scheduled_tokens}
        self.history.add(
            Scheduled(
                self.number,
                self.steps,
                computed,
                dict(output.num_scheduled_tokens),
                tuple(new.req_id for new in output.scheduled_new_reqs),
                tuple(sorted(cached.resumed_req_ids)),
                tuple(sorted(output.preempted_req_ids or ())),
                tuple(sorted(output.finished_req_ids)),
                compat.has_sync_kv_loads(output),
            )
        )

    # -- what the recorder tells us --------------------------------------------------------------------------------

    def _after_match(self, request: Any, num_computed_tokens: int) -> None:
        call = self.history.events[-1]
        asynchronous = isinstance(call, HookCall) and isinstance(call.result, tuple) and bool(call.result[-1])
        self.ledger.matched(request.request_id, num_computed_tokens, asynchronous)

    def _after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self.ledger.allocated(request, blocks, num_external_tokens)

    def cross(self, what: str, value: Any) -> Any:
        """Put what crosses a process boundary through serialisation."""
        if self.options.crossing == "reference" or value is None:
            return value
        return self.guard.pickled(what, value)

    def _guard(self, during: str, call: Any) -> Any:
        """Run vLLM's code; whatever it raises ends this engine."""
        return self.guard.run(during, call)
