"""The in-process engine: vLLM's own scheduler and cache manager, our worker, one thread of control."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from kvconform.api import prepare
from kvconform.engine import compat
from kvconform.engine.history import (
    Audited,
    Crossing,
    EngineRaised,
    History,
    HookCall,
    Leaked,
    NeverIdle,
    ProgramAction,
    Scheduled,
    Stray,
    Tokens,
)
from kvconform.engine.instrument import Recorder, describe_error
from kvconform.engine.options import ConnectorSpec, EngineOptions
from kvconform.engine.protocol import EngineStopped
from kvconform.engine.vllm_engine.configuration import build_vllm_config, ensure_parallel_state
from kvconform.engine.vllm_engine.forward import LayerForward, ScheduledRequest
from kvconform.engine.vllm_engine.ledger import BlockLedger
from kvconform.engine.vllm_engine.ownership import Ownership
from kvconform.engine.vllm_engine.requests import build_request, hash_function, token_chain
from kvconform.engine.vllm_engine.role_watch import RoleWatch
from kvconform.engine.vllm_engine.worker import SimulatedWorker
from kvconform.kvcache.build import plan_kv_cache
from kvconform.kvcache.oracle import TokenChain
from kvconform.kvcache.provenance import Provenance, describe
from kvconform.scenario.program import RequestSpec

STEP_LIMIT = 400


class VllmEngine:
    """One engine on the installed vLLM.

    Args:
        options: the set-up.
        connector: the connector under test, in vLLM's own terms.
        history: where everything observable goes; engines of one scenario share it.
        provenance: what bytes can be; shared likewise.
        number: this engine's number in the history, from 1.
        device: "cpu" or "cuda".

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
    ) -> None:
        prepare(device)
        ensure_parallel_state()
        self.options = options
        self.history = history
        self.provenance = provenance
        self.number = number
        self.steps = 0
        self.chains: dict[str, TokenChain] = {}
        self._stopped = False
        self._begun: tuple[Any, Any] = (None, None)
        self.recorder = Recorder(history, lambda: (self.number, self.steps))
        self.recorder.after["get_num_new_matched_tokens"] = self._after_match
        self.recorder.after["update_state_after_alloc"] = self._after_alloc
        self.recorder.after["handle_preemptions"] = self._after_handle_preemptions
        self.worker: SimulatedWorker | None = None
        self.scheduler: Any = None
        try:
            self._guard("start-up", lambda: self._start(connector, torch.device(device)))
        except EngineStopped:
            # Nobody else will ever hold this engine.
            self.release()
            raise

    # -- start-up --------------------------------------------------------------------------------------------------

    def _start(self, connector: ConnectorSpec, device: torch.device) -> None:
        """The order of EngineCore.__init__: plan, worker role, tensors, registration, scheduler role, handshake."""
        from vllm.config import set_current_vllm_config
        from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
        from vllm.v1.structured_output import StructuredOutputManager

        hash_fn = hash_function()
        self.vllm_config = build_vllm_config(self.options, connector, device.type)
        with set_current_vllm_config(self.vllm_config):
            configs = plan_kv_cache(self.vllm_config, self.options.shape)
            self.worker = SimulatedWorker(
                self.vllm_config, configs.worker, self.options, self.recorder, device, self.number
            )
            block_size, hash_block_size = resolve_kv_cache_block_sizes(configs.scheduler, self.vllm_config)
            scheduler_class: Any = self.vllm_config.scheduler_config.get_scheduler_cls()
            with self._instrumented_factory():
                self.scheduler = scheduler_class(
                    vllm_config=self.vllm_config,
                    kv_cache_config=configs.scheduler,
                    structured_output_manager=StructuredOutputManager(self.vllm_config),
                    block_size=block_size,
                    hash_block_size=hash_block_size,
                    log_stats=True,
                )
            self.scheduler.use_v2_model_runner = self.options.runner != "v1"
            self.connector = self.scheduler.get_kv_connector()
            self.connector.get_finished_count()
            compat.deliver_handshake(
                self.connector, [self._cross("handshake metadata", self.worker.handshake_metadata())]
            )
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
        self.provenance.know_memory(self.worker.memory, f" (engine {self.number})")
        self.watch = RoleWatch(
            self.history,
            self.number,
            self.scheduler,
            {"scheduler": self.connector, "worker": self.worker.connector},
            self.worker.memory,
            separate=self.options.crossing == "pickle",
        )
        self.recorder.watch = self.watch

    def _instrumented_factory(self) -> Any:
        """While the Scheduler is built, record the scheduler-role connector's hooks from its very first call on."""
        from unittest.mock import patch

        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

        create = KVConnectorFactory.create_connector

        def recorded(*args: Any, **kwargs: Any) -> Any:
            made = create(*args, **kwargs)
            self.recorder.attach(made, "scheduler")
            return made

        return patch.object(KVConnectorFactory, "create_connector", recorded)

    # -- what the scenario does ------------------------------------------------------------------------------------

    def add(self, spec: RequestSpec) -> None:
        """Queue a request."""
        self.history.add(ProgramAction(self.number, self.steps, "add", {"request": spec.id}))
        self.chains[spec.id] = token_chain(spec, self.options.model)
        self._guard(
            "add_request", lambda: self.scheduler.add_request(build_request(spec, self.options.model, self.hasher))
        )

    def abort(self, request_id: str) -> None:
        """Abort a live request."""
        from vllm.v1.request import RequestStatus

        self.history.add(ProgramAction(self.number, self.steps, "abort", {"request": request_id}))
        self._guard(
            "finish_requests", lambda: self.scheduler.finish_requests([request_id], RequestStatus.FINISHED_ABORTED)
        )

    def step(self) -> bool:
        """One EngineCore.step: schedule, execute, update."""
        if not self.begin_step():
            return False
        self.finish_step()
        return True

    def begin_step(self) -> bool:
        """Schedule, and put the result through serialisation."""
        if not self._guard("has_requests", self.scheduler.has_requests):
            return False
        self.steps += 1
        self.ledger.begin_step()
        output = self._guard("schedule", self.scheduler.schedule)
        self._note_schedule(output)
        self._begun = (output, self._cross("scheduler output", output))
        return True

    def finish_step(self) -> None:
        """Execute, and take the results."""
        output, crossed = self._begun
        result = self._guard("execute_model", lambda: self._execute(crossed))
        self._finish_step(output, result)

    def dummy_run(self) -> None:
        """GPUModelRunner._dummy_run with the connector disabled (vllm/v1/worker/gpu/model_runner.py, 0.32.0)."""
        assert self.worker is not None
        self.history.add(ProgramAction(self.number, self.steps, "dummy run", {}))
        self._guard("dummy run", self.worker.dummy_run)
        self._check_writes("in a dummy run")

    def repeat_handshake(self) -> None:
        """EngineCore.wake_up does this from 0.33.0 on, once the KV cache is back."""
        worker = self.worker
        assert worker is not None
        self.history.add(ProgramAction(self.number, self.steps, "handshake again", {}))
        metadata = self._guard("collecting handshake metadata", worker.handshake_metadata)
        crossed = self._cross("handshake metadata", metadata)
        self._guard("delivering handshake metadata", lambda: compat.deliver_handshake(self.connector, [crossed]))

    def drain(self) -> None:
        """Step until idle."""
        for _ in range(STEP_LIMIT):
            if not self.step():
                return
        unfinished = tuple(sorted(self.scheduler.requests))
        self.history.add(NeverIdle(self.number, self.steps, STEP_LIMIT, unfinished))
        raise EngineStopped(f"not idle after {STEP_LIMIT} steps")

    def reset_prefix_cache(self, *, running: bool = False, connector: bool = False) -> bool:
        """vLLM's own reset."""
        action = "preempt all" if running else "reset connector" if connector else "forget local"
        self.history.add(ProgramAction(self.number, self.steps, action, {}))

        def reset() -> bool:
            try:
                return bool(
                    self.scheduler.reset_prefix_cache(reset_running_requests=running, reset_connector=connector)
                )
            except RuntimeError:
                # With reset_running_requests, vLLM raises while a load or a held request keeps blocks. The caller of
                # the utility gets that error, the engine core lives on (Scheduler.reset_prefix_cache, 0.32.0).
                if running and self.recorder.raised.error is None:
                    return False
                raise

        return bool(self._guard("reset_prefix_cache", reset))

    def audit(self) -> None:
        """What the scheduler still holds; an idle engine holds nothing."""
        self._check_writes("after the last step")
        for container, ids in compat.tracked_request_ids(self.scheduler).items():
            self.history.add(Leaked(self.number, self.steps, f"requests in scheduler.{container}", ", ".join(ids)))
        pool = self.scheduler.kv_cache_manager.block_pool
        free, usable = pool.free_block_queue.num_free_blocks, pool.num_gpu_blocks - 1
        held = [block.block_id for block in pool.blocks if block.ref_cnt and block is not pool.null_block]
        if held or free != usable:
            detail = f"{len(held)} blocks with references: {held[:20]}; {free} of {usable} free"
            self.history.add(Leaked(self.number, self.steps, "blocks", detail))
        self.history.add(Audited(self.number, self.steps, free, usable))
        self.watch.inspect()

    def shutdown(self) -> None:
        """Worker role first, scheduler role second (EngineCore.shutdown)."""
        if self._stopped:
            self.release()
            return
        self.history.add(ProgramAction(self.number, self.steps, "shutdown", {}))
        assert self.worker is not None
        self._guard("worker shutdown", self.worker.shutdown)
        self._guard("scheduler shutdown", self.scheduler.shutdown)

    def release(self) -> None:
        """Give process-wide state back after an engine that died; errors of a dead connector's shutdown don't count."""
        import contextlib

        if self.worker is not None:
            with contextlib.suppress(Exception):
                self.worker.shutdown()
        if self.scheduler is not None:
            with contextlib.suppress(Exception):
                self.scheduler.shutdown()

    # -- one step --------------------------------------------------------------------------------------------------

    def _execute(self, output: Any) -> Any:
        """The worker's part; returns what the model runner would return."""
        from vllm.v1.outputs import ModelRunnerOutput

        assert self.worker is not None
        requests = self.worker.update_requests(output)
        forward = LayerForward(
            memory=self.worker.memory,
            provenance=self.provenance,
            chains=self.chains,
            windows=self.windows,
            external=self.ledger.external,
            checkpoint=self._check_writes,
            hooked=self._hooked,
        )
        for request in requests:
            self.provenance.know(
                request.request_id, self.chains[request.request_id], request.computed + request.scheduled
            )
        result = self.worker.run(output, requests, forward)
        connector_output = result.kv_connector_output
        self.ledger.executed(requests, set(getattr(connector_output, "invalid_block_ids", None) or ()))
        self._check_writes("while saving, and collecting results")
        forward.report(self.history, self.number, self.steps, requests, self.ledger.failed)
        self.ledger.finished(requests, set(getattr(connector_output, "finished_recving", None) or ()))
        sampled = {
            request.request_id: self.chains[request.request_id].next_token(request.computed + request.scheduled)
            for request in requests
        }
        ids = [request.request_id for request in requests]
        tokens = [[sampled[i]] if not self._partial[i] else [] for i in ids]
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
            sampled_token_ids=tokens,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=None,
            kv_connector_output=self._cross("worker output", connector_output),
        )

    def _hooked(self, body: Any) -> Any:
        from kvconform.engine.vllm_engine.layers import with_layer_hooks

        return with_layer_hooks(body)

    def _finish_step(self, output: Any, result: Any) -> None:
        outputs = self._guard("update_from_output", lambda: self.scheduler.update_from_output(output, result))
        self._check_writes("while the scheduler took the results")
        self.watch.step_ended()
        for client in outputs.values():
            for item in client.outputs:
                reason = None if item.finish_reason is None else str(item.finish_reason)
                self.history.add(Tokens(self.number, self.steps, item.request_id, tuple(item.new_token_ids), reason))

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

    def _after_handle_preemptions(self, *_: Any) -> None:
        """From here on the engine may overwrite every block that this step handed out (contract: PRE-02, FIN-13)."""
        assert self.worker is not None
        self._check_writes("in handle_preemptions")
        for group, blocks in self.ledger.take_fresh():
            self.worker.memory.poison(blocks, group)

    def _check_writes(self, phase: str) -> None:
        """Record every write of the connector to a place that it must not touch."""
        assert self.worker is not None
        first_writable, group_of = self.ownership.writable()
        for write in self.worker.memory.audit(first_writable, group_of):
            origins: tuple[str, ...] = ()
            if write.observed is not None:
                origins = describe(write.slots, self.provenance.identify(write.observed.numpy()), write.layer)
            owners = self.ownership.owners(write.block) if write.block > 0 else ()
            self.history.add(
                Stray(self.number, self.steps, phase, write.layer, write.block, write.slots, owners, origins)
            )

    def _cross(self, what: str, value: Any) -> Any:
        """Put what crosses a process boundary through the pickler that vLLM's message queue uses."""
        if self.options.crossing == "reference" or value is None:
            return value
        try:
            data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
            crossed = pickle.loads(data)
        except Exception as error:
            text, where = describe_error(error)
            self.history.add(Crossing(self.number, self.steps, what, 0, text))
            self._stop(f"serialising the {what}", text, where, None)
        self.history.add(Crossing(self.number, self.steps, what, len(data)))
        return crossed

    def _guard(self, during: str, call: Any) -> Any:
        """Run vLLM's code; whatever it raises ends this engine, as it would end an engine core."""
        if self._stopped:
            raise EngineStopped("the engine is dead")
        self.recorder.raised.hook = self.recorder.raised.error = None
        try:
            return call()
        except EngineStopped:
            raise
        except Exception as error:
            text, where = describe_error(error)
            cause = self.recorder.raised
            same = cause.error is not None and _in_chain(error, cause.error)
            self._stop(during, text, where, cause.hook if same else None)

    def _stop(self, during: str, text: str, where: str, hook: str | None) -> Any:
        self._stopped = True
        self.history.add(EngineRaised(self.number, self.steps, during, text, where, hook))
        raise EngineStopped(f"{during}: {text}")


def _in_chain(error: BaseException | None, cause: BaseException) -> bool:
    while error is not None:
        if error is cause:
            return True
        error = error.__cause__ or error.__context__
    return False


__all__ = ["STEP_LIMIT", "ScheduledRequest", "VllmEngine"]
