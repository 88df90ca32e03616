"""Connectors with one defect each in how their two roles live apart."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
)

from kvconform.reference._file_store_messages import FileStoreReport
from kvconform.reference.file_store import FileStoreConnector


class SchedulerReadsBoundMetadata(FileStoreConnector):
    """A scheduler-side hook looks at the metadata of the last step, which is bound on workers only."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        self._get_connector_metadata()
        return super().build_connector_meta(scheduler_output)


class SchedulerCountsLayers(FileStoreConnector):
    """A scheduler-side hook needs what register_kv_caches has set (R24)."""

    def register_kv_caches(self, kv_caches: Any) -> None:
        super().register_kv_caches(kv_caches)
        self.num_layers = len(kv_caches)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        assert self.num_layers
        super().update_state_after_alloc(request, blocks, num_external_tokens)


class WorkerAsksForRequests(FileStoreConnector):
    """A worker-side hook looks into the requests that only the scheduler role is told of (R10)."""

    def on_new_request(self, request: Any) -> None:
        self.known = {request.request_id}

    def wait_for_save(self) -> None:
        if self.known:
            super().wait_for_save()


class StatsOfWorkerOnly(FileStoreConnector):
    """Statistics assume worker resources; the scheduler asks its own instance too (R28)."""

    def get_kv_connector_stats(self) -> None:
        if self._worker is None:
            raise RuntimeError("not registered")


class SchedulerHoldsTensors(FileStoreConnector):
    """The scheduler role reaches into the layers, which its process does not have (R24)."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        layers = self._vllm_config.compilation_config.static_forward_context.values()
        self.pages = [layer.kv_cache for layer in layers]
        return super().build_connector_meta(scheduler_output)


class PlanInClass(FileStoreConnector):
    """The plan of a step goes to the worker through a class attribute instead of the metadata (R10)."""

    plan: ClassVar[Any] = None

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        type(self).plan = super().build_connector_meta(scheduler_output)
        return KVConnectorMetadata()

    def _step_metadata(self) -> Any:
        return type(self).plan


@dataclass
class Wrapped(KVConnectorMetadata):
    """Metadata around the reference connector's, with room for a defect."""

    inner: Any
    marks: Any = field(default_factory=list)


class _Wrapping(FileStoreConnector):
    def build_connector_meta(self, scheduler_output: Any) -> Any:
        return Wrapped(super().build_connector_meta(scheduler_output))

    def _step_metadata(self) -> Any:
        return self._get_connector_metadata().inner


class AnswersInMetadata(_Wrapping):
    """The worker writes its result into the metadata, where only an in-process scheduler can see it (R10)."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        self.last = super().build_connector_meta(scheduler_output)
        return self.last

    def wait_for_save(self) -> None:
        super().wait_for_save()
        self._get_connector_metadata().marks.append("saved")

    def update_connector_output(self, connector_output: Any) -> None:
        if not self.last.marks:
            raise TimeoutError("the worker did not confirm the step")
        super().update_connector_output(connector_output)


class WorkerEmptiesPlan(_Wrapping):
    """The worker takes entries out of a list that the scheduler role goes on using (R10)."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        self.last = super().build_connector_meta(scheduler_output)
        self.last.marks.append("step")
        return self.last

    def wait_for_save(self) -> None:
        super().wait_for_save()
        self._get_connector_metadata().marks.clear()

    def update_connector_output(self, connector_output: Any) -> None:
        self.last.marks.remove("step")
        super().update_connector_output(connector_output)


class LockInMetadata(_Wrapping):
    """A live object in the metadata (R10)."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        metadata = super().build_connector_meta(scheduler_output)
        metadata.marks = threading.Lock()
        return metadata


@dataclass(frozen=True)
class ReportWithCallback(FileStoreReport):
    """A report that carries a function."""

    callback: Callable[[], None] = lambda: None


class CallbackInReport(FileStoreConnector):
    """A lambda in what the worker returns."""

    def build_connector_worker_meta(self) -> Any:
        return ReportWithCallback(getattr(super().build_connector_worker_meta(), "steps", {}))


class ReusedMetadata(_Wrapping):
    """One metadata object for all steps: the next step's plan is written over the one in use."""

    _shared: Wrapped | None = None

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        fresh = super().build_connector_meta(scheduler_output)
        self._shared = self._shared or fresh
        self._shared.inner = fresh.inner
        return self._shared


@dataclass
class Address(KVConnectorHandshakeMetadata):
    """Handshake metadata with a live object in it."""

    host: str = "127.0.0.1"
    guard: Any = None


class LockInHandshake(FileStoreConnector):
    """Handshake metadata that can't leave the worker."""

    def get_handshake_metadata(self) -> Address:
        return Address(guard=threading.Lock())


class NeedsOnePeer(FileStoreConnector):
    """Takes for granted that some worker offers handshake metadata."""

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Any]) -> None:
        self.peer = metadata[(0, 0)]


class OneHandshakeOnly(FileStoreConnector):
    """Refuses the delivery after a wake-up."""

    peers: Any = None

    def get_handshake_metadata(self) -> Address:
        return Address()

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Any]) -> None:
        if self.peers:
            raise RuntimeError("the peers are known already")
        self.peers = metadata


class UuidInParams(FileStoreConnector):
    """kv_transfer_params with an object in them."""

    def request_finished(self, request: Any, block_ids: list[int]) -> Any:
        delayed, _ = super().request_finished(request, block_ids)
        return delayed, {"remote": {"transfer_id": uuid.uuid4()}}


class PinsByHand(FileStoreConnector):
    """Counts references itself instead of asking the block pool (R1)."""

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        self.pool = gpu_block_pool

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        (ids,) = blocks.get_block_ids()
        self.pinned = getattr(self, "pinned", {})
        self.pinned[request.request_id] = [self.pool.blocks[i] for i in ids]
        for block in self.pinned[request.request_id]:
            block.ref_cnt += 1

    def request_finished(self, request: Any, block_ids: list[int]) -> Any:
        for block in self.pinned.pop(request.request_id):
            block.ref_cnt -= 1
        return super().request_finished(request, block_ids)


class EditsSchedulerOutput(FileStoreConnector):
    """Leaves a note for its workers in the engine's own message."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        scheduler_output.free_encoder_mm_hashes.append("kv")
        return super().build_connector_meta(scheduler_output)


class OnlyBuiltForWorkers(FileStoreConnector):
    """shutdown assumes worker resources (R30)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if role is KVConnectorRole.WORKER:
            self.queue: list[Any] = []

    def shutdown(self) -> None:
        self.queue.clear()
        super().shutdown()


class ReturnsItsOwnParams(FileStoreConnector):
    """One dict for all requests, which is changed for each (R10)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._params = {"blocks": 0}

    def request_finished(self, request: Any, block_ids: list[int]) -> Any:
        self._params["blocks"] = len(block_ids)
        return super().request_finished(request, block_ids)[0], self._params
