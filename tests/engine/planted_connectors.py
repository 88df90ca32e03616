"""Small connectors for tests of the engine, all made of the reference file store: each does one thing differently."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from kvconform.reference._file_store_messages import BlockLoad, FileStoreMetadata
from kvconform.reference.file_store import FileStoreConnector

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorRole
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

Views = dict[str, torch.Tensor]


class Extended(FileStoreConnector):
    """The file store with its options and, on the worker, the registered views as bytes [B, H, N, C] at hand."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.options: dict[str, Any] = self._kv_transfer_config.kv_connector_extra_config
        self.views: Views = {}

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        super().register_kv_caches(kv_caches)
        self.views = {name: view.view(torch.uint8) for name, view in kv_caches.items()}


class Tampering(Extended):
    """Loads, and then does to the loaded blocks whatever the test wants."""

    tamper: ClassVar[Callable[[Views, tuple[BlockLoad, ...]], None] | None] = None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        loads = self._step_metadata().loads
        if type(self).tamper is not None and loads:
            type(self).tamper(self.views, loads)


class Raising(Extended):
    """Raises in the hook that ``raise_in`` names, from its ``after``-th call on; ``wrapped`` raises something else."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        hook = self.options.get("raise_in")
        if hook == "__init__" and role.name == self.options.get("role", role.name):
            raise RuntimeError("planted in __init__")
        self.calls = 0
        if hook and hook != "__init__" and role.name == self.options.get("role", role.name):
            original = getattr(self, hook)

            def raising(*args: Any, **kwargs: Any) -> Any:
                self.calls += 1
                if self.calls > self.options.get("after", 0):
                    raise RuntimeError(f"planted in {hook}")
                return original(*args, **kwargs)

            setattr(self, hook, raising)


class OddMessages(Extended):
    """Puts an object that no pickler takes into what ``unpicklable`` names."""

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        metadata = super().build_connector_meta(scheduler_output)
        if self.options.get("unpicklable") == "metadata":
            object.__setattr__(metadata, "lock", threading.Lock())
        return metadata

    def build_connector_worker_meta(self) -> Any:
        report = super().build_connector_worker_meta()
        if report is not None and self.options.get("unpicklable") == "report":
            object.__setattr__(report, "lock", threading.Lock())
        return report

    def get_handshake_metadata(self) -> Any:
        if "unpicklable" not in self.options:
            return None
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata

        handshake = KVConnectorHandshakeMetadata()
        if self.options.get("unpicklable") == "handshake":
            object.__setattr__(handshake, "lock", threading.Lock())
        return handshake


class Failing(Extended):
    """Fails to load the blocks with the indices ``fail`` of each step's loads, and reports those in ``report``.

    ``fail_once`` makes later loads succeed.
    """

    failures = 0

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        loads = self._step_metadata().loads
        if not loads or (self.options.get("fail_once") and self.failures):
            return
        self.failures += 1
        for index in self.options["fail"]:
            for view in self.views.values():
                view[loads[index].block_id] = 0xEE
        self._worker_side()._load_errors |= {loads[index].block_id for index in self.options["report"]}


@dataclass(frozen=True)
class AsyncMetadata(FileStoreMetadata):
    """File store metadata whose loads also say which request they are for."""

    by_request: dict[str, tuple[BlockLoad, ...]] = field(default_factory=dict)


class AsyncFileStore(Extended):
    """Loads outside the step that admitted the request.

    ``mode``: "next step" loads one step later, "thread" in a thread that the next step waits for, "free thread" in a
    thread that nobody waits for, "early" reports completion before it loads, "never loads" reports and loads nothing.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.mode: str = self.options["mode"]
        self.waiting: list[tuple[str, FileStoreMetadata, tuple[BlockLoad, ...]]] = []
        self.threads: dict[str, threading.Thread] = {}
        self.done: set[str] = set()

    # Scheduler role.

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        count, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return count, count > 0

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        planned = {request: tuple(loads) for request, loads in self._scheduler_side()._planned_loads.items()}
        metadata = super().build_connector_meta(scheduler_output)
        assert isinstance(metadata, FileStoreMetadata)
        return AsyncMetadata(**metadata.__dict__, by_request=planned)

    # Worker role.

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._step_metadata()
        assert isinstance(metadata, AsyncMetadata)
        self._worker_side().load(replace(metadata, loads=()))
        ready, self.waiting = self.waiting, []
        for request, of_step, loads in ready:
            if self.mode != "never loads":
                self._worker_side().load(replace(of_step, loads=loads, saves=()))
                self._worker_side()._unfinished = metadata if metadata.has_work else None
            if self.mode == "next step":
                self.done.add(request)
        for request, loads in metadata.by_request.items():
            if self.mode in ("thread", "free thread"):
                self.threads[request] = threading.Thread(target=self._load_in_thread, args=(metadata, loads))
                self.threads[request].start()
            else:
                self.waiting.append((request, metadata, loads))
                if self.mode in ("early", "never loads"):
                    self.done.add(request)

    def _load_in_thread(self, metadata: FileStoreMetadata, loads: tuple[BlockLoad, ...]) -> None:
        worker = self._worker_side()
        for load in loads:
            row = torch.empty(worker._require_pages().block_bytes, dtype=torch.uint8)
            assert worker._read(metadata, load, row)
            worker._require_pages().write([load.block_id], row.view(1, -1))

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        for request, thread in list(self.threads.items()):
            if self.mode == "thread":
                thread.join()
            if not thread.is_alive():
                del self.threads[request]
                self.done.add(request)
        done, self.done = self.done, set()
        return None, done or None


class Careless(Extended):
    """Writes where it must not, once: ``where`` is "null", "free", "prefix" or "guard"."""

    wrote = False

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        loads = self._step_metadata().loads
        if not loads or self.wrote:
            return
        self.wrote = True
        first = next(iter(self.views.values()))
        where = self.options["where"]
        if where == "guard":
            storage = torch.empty(0, dtype=torch.uint8).set_(first.untyped_storage())
            storage[-1] ^= 0xFF
        else:
            # A fresh pool hands out ascending ids: two before the load's first block lies the end of the prefix.
            block = {"null": 0, "free": first.shape[0] - 1, "prefix": loads[0].block_id - 2}[where]
            first[block] ^= 0xFF


class TwoArguments(FileStoreConnector):
    """The constructor that vLLM stopped to accept in 0.21.0."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole) -> None:
        raise AssertionError("vLLM must refuse this class before it is built")
