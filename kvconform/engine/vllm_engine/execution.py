"""The workers of one engine: building them, running a step on each, and what the executor makes of their outputs."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from kvconform.device import DeviceWork, Held
from kvconform.engine import compat
from kvconform.engine.byte_events import Arrived, Stray
from kvconform.engine.events import ForwardFailed, HeldBack, MetadataBound
from kvconform.engine.protocol import NotSimulated
from kvconform.engine.vllm_engine.arrivals import Awaited, WrongLayer, wrong_layers
from kvconform.engine.vllm_engine.drafts import sampled, verified
from kvconform.engine.vllm_engine.forward import LayerForward
from kvconform.engine.vllm_engine.held_forward import HeldForward
from kvconform.engine.vllm_engine.ledger import GroupBlocks
from kvconform.engine.vllm_engine.ownership import Load
from kvconform.engine.vllm_engine.ranks import RankWorld
from kvconform.engine.vllm_engine.reports import watched
from kvconform.engine.vllm_engine.rows import ScheduledRequest
from kvconform.engine.vllm_engine.worker import SimulatedWorker
from kvconform.engine.vllm_engine.wrong_slots import Contents, block_table, contents
from kvconform.kvcache.provenance import describe

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from kvconform.engine.vllm_engine.engine import VllmEngine
    from kvconform.kvcache.memory import KVMemory


class Execution:
    """The executor's part of an engine.

    With one worker its output is passed on as it is (UniProcExecutor); those of several go through vLLM's
    KVOutputAggregator (MultiprocExecutor.execute_model, 0.32.0).
    """

    def __init__(self, engine: VllmEngine, work: DeviceWork | None = None) -> None:
        self._engine = engine
        self._work = work
        #: What the scenario wants to be slow, and what is in this step.
        self._held: Held | None = None
        self._holding: Held | None = None
        self._ranks = RankWorld(engine.options.workers)
        self.workers: list[SimulatedWorker] = []
        self._running: SimulatedWorker | None = None
        self._fresh: list[GroupBlocks] | None = None
        self._aggregator: Any = None
        self._clearing: tuple[int, ...] = ()
        self._late: deque[tuple[set[str], set[str]]] = deque([(set(), set())] * engine.options.late_steps)
        self.fail_after: int | None = None
        self._awaited = Awaited(engine.provenance)
        engine.recorder.after["handle_preemptions"] = self._after_handle_preemptions
        for hook in ("bind_connector_metadata", "clear_connector_metadata"):
            engine.recorder.after[hook] = lambda *_, hook=hook: self._after_binding(hook)

    # -- start-up and end ------------------------------------------------------------------------------------------

    def build(self, config: KVCacheConfig, device: torch.device) -> None:
        """Build the workers, rank 0 first."""
        import copy

        from vllm.config import set_current_vllm_config

        engine = self._engine
        if self._work is None and device.type == "cuda":
            from kvconform.device.cuda import CudaWork

            self._work = CudaWork(device)
        for rank in range(self._ranks.size):
            own = self._ranks.config_of(engine.vllm_config, rank)
            with self._ranks.of(rank), set_current_vllm_config(own):
                plan = config if rank == 0 else copy.deepcopy(config)
                self.workers.append(
                    SimulatedWorker(own, plan, engine.options, engine.recorder, device, engine.number, rank)
                )
        self._ranks.built()

    def connect(self, scheduler_connector: Any) -> None:
        """The aggregator is made once the scheduler role is there (Executor.init_kv_output_aggregator)."""
        from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator

        if self._ranks.size == 1:
            scheduler_connector.get_finished_count()
        else:
            self._aggregator = KVOutputAggregator.from_connector(scheduler_connector, self._ranks.size)

    def handshake_metadata(self) -> list[dict[tuple[int, int], Any] | None]:
        """Every worker's handshake metadata."""
        collected = []
        for worker in self.workers:
            with self._ranks.of(worker.rank):
                collected.append(worker.handshake_metadata())
        return collected

    def dummy_run(self) -> None:
        """A dummy run on every worker."""
        for worker in self.workers:
            with self._ranks.of(worker.rank):
                worker.enter()
                worker.dummy_run()

    def hold(self, what: Held | None) -> None:
        """Make the device slow in all steps from now on, or no longer.

        Raises:
            NotSimulated: the KV caches are in host memory, where work is done in the order in which it is called.
        """
        if self._work is None:
            raise NotSimulated("work on the CPU has one order only: slow kernels and copies need a CUDA device")
        self._held = what
        if what is None:
            self._work.hold(None)

    def shutdown(self) -> None:
        """Shut the workers' connectors down; the last one first, so that the first one leaves the slot last."""
        for worker in reversed(self.workers):
            with self._ranks.of(worker.rank):
                worker.shutdown()

    # -- one step --------------------------------------------------------------------------------------------------

    def run(self, output: Any, partial: dict[str, bool]) -> Any:
        """Run a step on every worker; returns what the executor would return.

        ``partial`` tells the requests whose prompt is not complete after this step.
        """
        from vllm.v1.outputs import ModelRunnerOutput

        engine = self._engine
        self._fresh = None
        # Without a forward there are no kernels, and the host must not queue long ones for nothing.
        self._holding = None if self._held == "kernels" and not output.num_scheduled_tokens else self._held
        forwards: list[LayerForward] = []
        outputs = []
        requests: list[ScheduledRequest] = []
        failing, self.fail_after = (self.fail_after, None) if output.num_scheduled_tokens else (None, self.fail_after)
        if failing is not None:
            engine.history.add(ForwardFailed(engine.number, engine.steps))
        for worker in self.workers:
            if worker is not self.workers[0]:
                # Each worker process unpickles its own.
                output = pickle.loads(pickle.dumps(output))
            requests = verified(worker.update_requests(output), output.scheduled_spec_decode_tokens, engine.chains)
            self._know(requests)
            forward = self._forward(worker)
            forward.fail_after = failing
            forwards.append(forward)
            self._running = worker
            self._clearing = tuple(getattr(output, "new_block_ids_to_zero", None) or ())
            if isinstance(forward, HeldForward):
                forward.prepare(requests)
            with self._ranks.of(worker.rank):
                connector_output = worker.run(output, requests, forward).kv_connector_output
            if isinstance(forward, HeldForward):
                # vLLM takes the sampled tokens here, before anything else.
                forward.settle()
            invalid = _ids(connector_output, "invalid_block_ids")
            self._check(worker, "while saving, and collecting results")
            ids = [request.request_id for request in requests]
            proposed = output.scheduled_spec_decode_tokens
            tokens = {
                r.request_id: sampled(r, engine.chains[r.request_id], proposed.get(r.request_id, ())) for r in requests
            }
            crossed = engine.cross("worker output", connector_output)
            if worker is self.workers[-1] and self._late:
                crossed = self._delayed(crossed)
            outputs.append(
                ModelRunnerOutput(
                    req_ids=ids,
                    req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
                    sampled_token_ids=[[] if partial[i] else tokens[i] for i in ids],
                    logprobs=None,
                    prompt_logprobs_dict={},
                    pooler_output=None,
                    kv_connector_output=crossed,
                )
            )
            engine.ledger.executed(requests, invalid, keep=worker is not self.workers[0])
        for forward in forwards:
            forward.report(engine.history, engine.number, engine.steps, requests, engine.ledger.failed)
        for event in watched(outputs, engine.number, engine.steps):
            engine.history.add(event)
        result = outputs[0] if self._aggregator is None else self._aggregator.aggregate(outputs, 0)
        self._note_arrivals(result.kv_connector_output)
        engine.ledger.finished(requests, _ids(result.kv_connector_output, "finished_recving"))
        return result

    def _know(self, requests: list[ScheduledRequest]) -> None:
        engine = self._engine
        for request in requests:
            chain = engine.chains[request.request_id]
            engine.provenance.know(request.request_id, chain, request.computed + request.scheduled)

    def _forward(self, worker: SimulatedWorker) -> LayerForward:
        from kvconform.engine.vllm_engine.layers import with_layer_hooks

        engine = self._engine
        parts: dict[str, Any] = {
            "memory": worker.memory,
            "provenance": engine.provenance,
            "chains": engine.chains,
            "windows": engine.windows,
            "external": engine.ledger.external,
            "checkpoint": lambda phase: self._check(worker, phase),
            "hooked": with_layer_hooks,
            "kept": worker.kept,
        }
        if self._work is None or self._holding != "kernels":
            return LayerForward(**parts)
        return HeldForward(**parts, work=self._work, queued=lambda yes: self._note_held(worker, "saves", yes))

    def _note_held(
        self,
        worker: SimulatedWorker,
        before: Literal["loads", "saves"],
        unfinished: bool,
        cleared: tuple[int, ...] = (),
    ) -> None:
        engine = self._engine
        assert self._holding is not None
        event = HeldBack(engine.number, engine.steps, self._holding, before, unfinished, cleared, worker.rank)
        engine.history.add(event)

    def _delayed(self, output: Any) -> Any:
        """The last worker's output with the completions of some steps ago."""
        from vllm.v1.outputs import KVConnectorOutput

        output = KVConnectorOutput() if output is None else output
        self._late.append((set(output.finished_sending or ()), set(output.finished_recving or ())))
        sent, received = self._late.popleft()
        output.finished_sending, output.finished_recving = sent or None, received or None
        return output

    def _note_arrivals(self, connector_output: Any) -> None:
        """Compare the loads that are reported as complete; a request that has ended meanwhile has no use for them."""
        engine = self._engine
        if self._work is not None:
            # A later forward reads behind whatever the engine's stream was made to wait for.
            self._work.settle()
        failed_ids = _ids(connector_output, "failed_recving")
        for request_id in _ids(connector_output, "finished_recving"):
            load = engine.ownership.loads.get(request_id)
            request = engine.scheduler.requests.get(request_id)
            if load is None or not load.asynchronous or request is None or request.is_finished():
                continue
            table = engine.ownership.tables()[request_id]
            chain = engine.chains[request_id]
            found = (
                each
                for worker in self.workers
                for each in wrong_layers(worker.memory, chain, table, load.first, load.last)
            )
            self._note_arrival(request_id, load, table, next(found, None), reported=request_id in failed_ids)

    def _note_arrival(
        self, request_id: str, load: Load, table: tuple[list[int], ...], wrong: WrongLayer | None, *, reported: bool
    ) -> None:
        """Record a load; the block table, too, if something is not there and nobody has said so.

        What a failed load left behind is nobody's affair, and looking it up costs more than the step.
        """
        engine = self._engine
        place = (engine.number, engine.steps, request_id)
        tokens = load.last - load.first
        if wrong is None:
            engine.history.add(Arrived(*place, tokens, reported_failed=reported))
            return
        reported = reported or not engine.ledger.failed.isdisjoint(wrong.blocks)
        found = Contents((), ())
        if not reported:
            memory, external = self.workers[wrong.rank].memory, (load.first, load.last)
            chain = engine.chains[request_id]
            found = contents(engine.provenance, chain, wrong.positions, wrong.observed, wrong.layer, wrong.rank)
            engine.history.add(block_table(place, memory, table, load.last, 0, external))
            self._awaited.add(request_id, chain, table[wrong.group], wrong.blocks)
        engine.history.add(
            Arrived(
                *place,
                tokens,
                wrong.layer,
                len(wrong.positions),
                wrong.blocks,
                reported,
                wrong.group,
                wrong.rank,
                found.observed,
                found.held,
            )
        )

    # -- what the connectors do ------------------------------------------------------------------------------------

    def _after_handle_preemptions(self, *_: Any) -> None:
        """From here on the engine may overwrite every block that this step handed out (contract: PRE-02, FIN-13)."""
        assert self._running is not None
        if self._fresh is None:
            self._fresh = self._engine.ledger.take_fresh()
        memory, fresh, cleared = self._running.memory, self._fresh, self._clearing
        if fresh or cleared or not compat.inherits(self._running.connector, "handle_preemptions"):
            self._check(self._running, "in handle_preemptions")
        if self._work is None:
            _hand_out(memory, fresh)
            if cleared:
                memory.clearing(list(cleared))()
            return
        # What vLLM does not do stays out of the way of the connector's streams: it is over before a load can begin.
        self._work.run(lambda: _hand_out(memory, fresh))
        self._work.settle()
        clear = memory.clearing(list(cleared))
        if self._holding is not None:
            self._work.hold(self._holding)
        if cleared:
            self._work.run(clear)
        if self._holding is not None:
            self._note_held(self._running, "loads", self._work.pending(), cleared)

    def _after_binding(self, hook: str) -> None:
        if self._running is not None:
            answer = repr(self._running.connector.has_connector_metadata())
            self._engine.history.add(MetadataBound(self._engine.number, self._engine.steps, hook, answer))

    def check_writes(self, phase: str) -> None:
        """Record every write of any worker's connector to a place that it must not touch."""
        for worker in self.workers:
            self._check(worker, phase)

    def _check(self, worker: SimulatedWorker, phase: str) -> None:
        engine = self._engine
        if self._work is not None:
            self._work.settle()
        if worker.memory.untouched():
            return
        first_writable, group_of = engine.ownership.writable()
        for write in worker.memory.audit(first_writable, group_of):
            origins: tuple[str, ...] = ()
            late: tuple[str, ...] = ()
            barred = False
            if write.observed is not None:
                identified = engine.provenance.identify(write.observed.numpy())
                origins = describe(write.slots, identified, write.layer, worker.rank)
                owner = engine.ownership.to_compute(write.block, min(write.slots)) if write.block > 0 else None
                chain = None if owner is None else engine.chains[owner]
                barred = chain is not None and all(engine.provenance.is_of(origin, chain) for origin in identified)
                changed = worker.memory.layers[write.layer]
                late = self._awaited.owed(changed, worker.rank, write.block, write.slots, identified)
            owners = engine.ownership.owners(write.block) if write.block > 0 else ()
            requests = engine.scheduler.requests
            held = bool(owners) and all(requests[owner].is_finished() for owner in owners)
            layer = worker.memory.layers.get(write.layer)
            engine.history.add(
                Stray(
                    engine.number,
                    engine.steps,
                    phase,
                    write.layer,
                    write.block,
                    write.slots,
                    owners,
                    origins,
                    held,
                    layer.block_size if layer is not None else 0,
                    barred,
                    late,
                )
            )


def _hand_out(memory: KVMemory, fresh: Sequence[GroupBlocks]) -> None:
    # All blocks of a group at once: most of the work is done once for each call.
    of_group: dict[int, list[int]] = {}
    for group, blocks in fresh:
        of_group.setdefault(group, []).extend(blocks)
    for group, blocks in of_group.items():
        memory.poison(blocks, group)


def _ids(connector_output: Any, what: str) -> set[Any]:
    """Ids that the connector reported; none if it reported something else, on which vLLM itself will fail."""
    try:
        return set(getattr(connector_output, what, None) or ())
    except TypeError:
        return set()
