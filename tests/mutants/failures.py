"""Connectors that get one thing wrong when a load or a save fails."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import distant_store
import stepwise
from vllm.v1.request import RequestStatus

from kvconform.reference._block_store import BlockFileError, read_block_file
from kvconform.reference._file_store_scheduler import SchedulerSide
from kvconform.reference.async_file_store import AsyncFileStoreConnector
from kvconform.reference.file_store import FileStoreConnector

if TYPE_CHECKING:
    from vllm.v1.request import Request


class CountsFailedLoadsAsDone(FileStoreConnector):
    """dynamo#15079, bugs 100 (R17): the error of a transfer is dropped, and its completion counted."""

    def get_block_ids_with_load_errors(self) -> set[int]:
        super().get_block_ids_with_load_errors()
        return set()


class StopsAtTheFirstMissingBlock(FileStoreConnector):
    """LMCache#4133, bugs 29 (R4, R17): what was evicted since the query ends the load early, and nobody is told."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        worker = self._worker_side()
        read = type(worker)._read

        def until_missing(metadata: Any, load: Any, row: Any) -> bool:
            return not worker._load_errors and read(worker, metadata, load, row)

        worker._read = until_missing  # type: ignore[method-assign]
        super().start_load_kv(forward_context, **kwargs)
        worker._load_errors = set()


class RaisesWhenALoadFails(FileStoreConnector):
    """pegaflow#220, bugs 103 (R17): the error of a load leaves the worker as an exception."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        if self._worker_side()._load_errors:
            raise OSError(f"could not read blocks {sorted(self._worker_side()._load_errors)}")


class TrustsTornFiles(FileStoreConnector):
    """Reads what there is of a block and takes it for the block: no check of length or content (R19)."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        worker = self._worker_side()

        def read(metadata: Any, load: Any, row: Any) -> bool:
            path = worker._store.block_path(metadata.blocks, load.block_hash, 0)
            try:
                read_block_file(path, worker._label(load.block_hash), row.numpy().data)
            except BlockFileError:
                row.zero_()
            except OSError:
                worker._load_errors.add(load.block_id)
                return False
            return True

        worker._read = read  # type: ignore[method-assign]
        super().start_load_kv(forward_context, **kwargs)


class ReportsErrorsTwice(FileStoreConnector):
    """Keeps reported errors for one more step (R17)."""

    _before: set[int] = frozenset()  # type: ignore[assignment]

    def get_block_ids_with_load_errors(self) -> set[int]:
        now = super().get_block_ids_with_load_errors()
        before, self._before = self._before, now
        return now | before


class ReportsNoneForNoErrors(FileStoreConnector):
    """None instead of an empty set: the aggregator of several workers unites sets (R17, R26)."""

    def get_block_ids_with_load_errors(self) -> set[int]:
        return super().get_block_ids_with_load_errors() or None  # type: ignore[return-value]


class ReportsAStepLate(FileStoreConnector):
    """Errors are collected in the step after the one that loaded (R17)."""

    _late: set[int] = frozenset()  # type: ignore[assignment]

    def get_block_ids_with_load_errors(self) -> set[int]:
        late, self._late = self._late, super().get_block_ids_with_load_errors()
        return set(late)


class ReportsForeignBlocks(FileStoreConnector):
    """Adds a block to its errors that it never loaded: whoever owns it is rolled back (R17)."""

    def get_block_ids_with_load_errors(self) -> set[int]:
        errors = super().get_block_ids_with_load_errors()
        return errors | {max(errors) + 9} if errors else errors


class ReportsLocalBlocks(FileStoreConnector):
    """Fails the whole block table of a request instead of the blocks that it was to load (R5, R17)."""

    _tables: list[list[int]]

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        if num_external_tokens:
            self._tables = [*getattr(self, "_tables", []), blocks.get_block_ids()[0]]

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        metadata = super().build_connector_meta(scheduler_output)
        object.__setattr__(metadata, "tables", getattr(self, "_tables", []))
        self._tables = []
        return metadata

    def get_block_ids_with_load_errors(self) -> set[int]:
        errors = super().get_block_ids_with_load_errors()
        tables = self._step_metadata().tables  # type: ignore[attr-defined]
        return errors.union(*(t[: t.index(min(errors)) + 1] for t in tables if min(errors) in t)) if errors else errors


class ReportsSyncFailuresByRequest(FileStoreConnector):
    """A failed synchronous load in failed_recving, which the scheduler passes over (R17)."""

    _loading: tuple[str, ...] = ()

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        self._loading += (request.request_id,) if num_external_tokens else ()

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        metadata = super().build_connector_meta(scheduler_output)
        object.__setattr__(metadata, "loading", self._loading)
        self._loading = ()
        return metadata

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        # Within: 0.29.0 has no such class.
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults

        failed = set(self._step_metadata().loading) if self._worker_side().take_load_errors() else set()  # type: ignore[attr-defined]
        return KVConnectorTransferResults(finished_sending=set(), finished_recving=set(), failed_recving=failed)


class StoresWhatWasComputedOnAFailedLoad(FileStoreConnector):
    """unified-cache-management#1007, bugs 43 (R8, R17): blocks completed on top of missing ones are stored as good."""

    def update_connector_output(self, connector_output: Any) -> None:
        scheduler = self._scheduler_side()
        taint = scheduler._on_load_errors
        scheduler._on_load_errors = lambda _: None  # type: ignore[method-assign]
        super().update_connector_output(connector_output)
        scheduler._on_load_errors = taint  # type: ignore[method-assign]


class StoresForFailedRequests(StoresWhatWasComputedOnAFailedLoad):
    """Believes that the engine recomputes whatever failed: under the policy "fail" nobody does (R17)."""

    def update_connector_output(self, connector_output: Any) -> None:
        if self._kv_transfer_config.kv_load_failure_policy == "fail":
            super().update_connector_output(connector_output)
        else:
            FileStoreConnector.update_connector_output(self, connector_output)


class AssertsMonotoneProgress(FileStoreConnector):
    """LMCache#2516, bugs 44 (R7, R17): after a failed load a request has fewer computed tokens than before."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        cached = scheduler_output.scheduled_cached_reqs
        progress = self.__dict__.setdefault("_progress", {})
        for new in scheduler_output.scheduled_new_reqs:
            progress[new.req_id] = new.num_computed_tokens
        for request_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            resumed = request_id in cached.resumed_req_ids
            assert resumed or computed >= progress[request_id], f"{request_id} went back to {computed} tokens"
            progress[request_id] = computed
        return super().build_connector_meta(scheduler_output)


class KnowsNoErrorStatus(FileStoreConnector):
    """A hand-off for every way to end but one (compare bugs 95, R15): a failed request raises."""

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        known = (RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_ABORTED)
        if request.status not in known:
            raise ValueError(f"unknown status {request.status.name}")
        return super().request_finished(request, block_ids)


class WaitsForTheRecomputation(FileStoreConnector):
    """R17: counts on a failed request to be computed in a later step, which the policy "fail" never does."""

    _missing = 0

    def update_connector_output(self, connector_output: Any) -> None:
        super().update_connector_output(connector_output)
        if connector_output.invalid_block_ids:
            self._missing = 1

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        if self._missing and scheduler_output.num_scheduled_tokens:
            new = {request.req_id for request in scheduler_output.scheduled_new_reqs}
            again = set(scheduler_output.num_scheduled_tokens) - new
            assert again, "the request whose load failed was not scheduled again"
            self._missing = 0
        return super().build_connector_meta(scheduler_output)


class RaisesWhenASaveFails(FileStoreConnector):
    """A full disk ends the worker (R18)."""

    def wait_for_save(self) -> None:
        super().wait_for_save()
        if any(result.failed for result in self._worker_side()._results.values()):
            raise OSError("no space left for a KV block")


class _CountsOnwards(SchedulerSide):
    """Counts what was scheduled itself; begins anew only with a new block table."""

    def _completed_blocks(self, tracked: Any, computed: int, scheduled: int) -> Any:
        table, count = tracked.__dict__.get("counted", (None, 0))
        count = scheduled + (max(count, computed) if table is tracked.table else computed)
        tracked.counted = (tracked.table, count)
        request = tracked.request
        assert count <= request.num_tokens_with_spec + request.num_output_placeholders, f"{count} tokens to save"
        return super()._completed_blocks(tracked, computed, scheduled)


class CountsOnwards(FileStoreConnector):
    """unified-cache-management#1007, bugs 43 (R8, R17): its token count does not go back when the engine's does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._scheduler is not None:
            self._scheduler.__class__ = _CountsOnwards


class KeepsFailedSavesInFlight(stepwise.Stepwise):
    """vllm#43742, bugs 89 (R18): only a save that succeeds is taken off the count of those under way."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        if self.storage is not None:
            self.storage.tick()
        worker = self._worker_side()
        worker._saves = [
            (save, Future() if future.done() and save.failed else future) for save, future in worker._saves
        ]
        return AsyncFileStoreConnector.get_finished(self, finished_req_ids)


class LosesItsThread(stepwise.Stepwise):
    """pegaflow#449, bugs 40 (R18): the exception of one save ends the thread that would do all later transfers."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        saves, dead = self._worker_side()._saves, self.__dict__.setdefault("_dead", [])
        for queued in self.storage.queue if self.storage is not None and dead else ():
            queued.steps += queued.future in [future for _, future in saves]
        if self.storage is not None:
            self.storage.tick()
        dead += [save for save, future in saves if future.done() and save.failed]
        return AsyncFileStoreConnector.get_finished(self, finished_req_ids)


class TakesSilenceForAnAnswer(distant_store.DistantStore):
    """R17, R31: the time-out of a read ends the wait, and what is in the buffer is taken for the block."""

    class _worker_class(distant_store.DistantStore._worker_class):  # type: ignore[name-defined]  # noqa: N801
        def _read(self, metadata: Any, load: Any, row: Any) -> bool:
            done: bool = super()._read(metadata, load, row)
            if self.server.silent:
                self._load_errors.discard(load.block_id)
                row.zero_()
            return done or self.server.silent


class WaitsForEver(distant_store.DistantAsyncStore):
    """R31: what was asked of the store has no time-out."""

    class pool_class(distant_store.DistantPool):  # noqa: N801
        def give_up(self, queued: Any, load: Any) -> None:
            pass


class TakesLateAnswers(distant_store.DistantAsyncStore):
    """R17, R31: an answer that comes after the load was given up goes where the load would have put it."""

    class pool_class(distant_store.DistantPool):  # noqa: N801
        def give_up(self, queued: Any, load: Any) -> None:
            super().give_up(queued, load)
            self.late = [*getattr(self, "late", []), load]

        def tick(self) -> None:
            super().tick()
            if not self.server().silent:
                for load in self.__dict__.pop("late", []):
                    load.run()
