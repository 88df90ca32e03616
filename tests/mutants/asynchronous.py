"""Connectors that get one thing wrong about the end of a transfer."""

from __future__ import annotations

from functools import partial
from typing import Any

import stepwise

from kvconform.reference._async_messages import Hold, LoadJob
from kvconform.reference._async_transfers import Load
from kvconform.reference.async_file_store import AsyncFileStoreConnector
from kvconform.reference.file_store import FileStoreConnector

Completions = tuple[set[str] | None, set[str] | None]


class ForgetsAbortedLoads(stepwise.Stepwise):
    """vllm-ascend#16662, bugs 77: an abort takes the id off the list by which completions are filtered."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        for load_id in self._step_metadata().cancels:
            self._worker_side()._loads.pop(load_id, None)


class DropsShortLoads(AsyncFileStoreConnector):
    """ROCm/ATOM#2146, bugs 31 (R6): promises an asynchronous load, and then finds it too short to be worth it."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens > 16:
            super().update_state_after_alloc(request, blocks, num_external_tokens)


class ReportsIdsOfItsOwn(AsyncFileStoreConnector):
    """vllm#43226, bugs 80 (R13): reports a load under an id that the scheduler does not know."""

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        sent, received = super().get_finished(finished_req_ids)
        return sent, {f"{request_id}-0" for request_id in received or ()}


class ReportsSynchronousLoads(FileStoreConnector):
    """tpu-inference#2006, bugs 91 (R13): what was loaded in its step is reported as received as well."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._done: set[str] = set()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        if self._step_metadata().loads:
            self._done = set(kwargs.get("request_ids", ()))

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        done, self._done = self._done, set()
        return None, done


class LoadsNothing(AsyncFileStoreConnector):
    """vllm#42831, bugs 14 (R5, R33): begins and reports a load whenever blocks were allocated, also for 0 tokens."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        scheduler = self._scheduler_side()
        job = LoadJob(-len(scheduler._requests), request.request_id, scheduler._namespace.blocks, ())
        scheduler._planned.setdefault(request.request_id, job)


class ReportsLoadsTwice(stepwise.Stepwise):
    """LMCache#2356, bugs 88 (R13): what was reported once is reported with the next step again."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._before: set[str] = set()

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        sent, received = super().get_finished(finished_req_ids)
        again, self._before = self._before, received or set()
        return sent, again | self._before


class ReportsLoadsThatRun(stepwise.Stepwise):
    """R13: reports a load as received when it was submitted, not when it has ended."""

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        sent, _ = super().get_finished(finished_req_ids)
        return sent, {job.request_id for job in self._step_metadata().loads}


class ReportsWhateverFinished(AsyncFileStoreConnector):
    """vllm#43226, bugs 80 (R14): every finished request is reported as sent, whether it was held or not.

    All but those that load, or have loaded in an earlier life: their report as sent would break ASYNC-09.
    """

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        loading = {load.job.request_id for load, _ in self._worker_side()._loads.values()}
        self._loaded = getattr(self, "_loaded", frozenset()) | loading
        _, received = super().get_finished(finished_req_ids)
        return set(finished_req_ids) - self._loaded, received

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        held, params = super().request_finished(request, block_ids)
        return held and request.num_tokens < 40, params


class ForgetsHolds(stepwise.Stepwise):
    """vllm#43742, bugs 89 (R14, R18): a counter of saves that never comes down to 0 again."""

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        _, received = super().get_finished(finished_req_ids)
        return None, received


class ReleasesHoldsTwice(stepwise.Stepwise):
    """vllm-ascend#5726, bugs 92 (R14): a hold ends by time-out, and once more when its saves are done."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._timed_out: set[str] = set()

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        overdue = {hold.request_id for hold in self._worker_side()._holds} - self._timed_out
        sent, received = super().get_finished(finished_req_ids)
        self._timed_out |= overdue
        return overdue | (sent or set()), received


class SendsWhatItLoads(stepwise.Stepwise):
    """vllm#46240, bugs 79 (R13): holds a request that is aborted while it loads, and reports it both ways."""

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        scheduler = self._scheduler_side()
        loading = request.request_id in scheduler._loads
        held, params = super().request_finished(request, block_ids)
        if loading:
            scheduler._holds.append(Hold(request.request_id, frozenset()))
        return held or loading, params


class ScribblesOnHeldBlocks(stepwise.Stepwise):
    """Uses the blocks of a held request for its own purposes (R12)."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        worker = self._worker_side()
        held = {save_id for hold in worker._holds for save_id in hold.save_ids}
        for save, _ in worker._saves:
            blocks = [each.block_id for each in save.saves if each.save_id in held]
            if blocks:
                worker._require_files().pages.write(blocks, save.take_out()[: len(blocks)] ^ 1)


class LoadsAPrefixOnce(stepwise.Stepwise):
    """R6: two loads of one key at a time are taken for one; the second request's blocks stay empty."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        seen: set[bytes] = set()
        for load, _ in self._worker_side()._loads.values():
            if load.job.loads and load.job.loads[0].block_hash in seen:
                load.job = LoadJob(load.job.load_id, load.job.request_id, load.job.blocks, ())
            seen.update(each.block_hash for each in load.job.loads)


class ReturnsNoPair(AsyncFileStoreConnector):
    """R25: nothing to report, so nothing is returned."""

    def get_finished(self, finished_req_ids: set[str]) -> Any:
        sent, received = super().get_finished(finished_req_ids)
        return (sent, received) if sent or received else None


class ReturnsAPairForResults(AsyncFileStoreConnector):
    """R25: overrides the newer hook with the older one's answer."""

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        return self.get_finished(finished_req_ids)


class FailsWithoutAnEnd(AsyncFileStoreConnector):
    """R17: a failed load is in failed_recving, and its request waits on."""

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        # Within: 0.29.0 has no such class.
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults

        sent, received = self.get_finished(finished_req_ids)
        failed = (received or set()) if self._worker_side()._load_errors else set()
        self._worker_side().take_load_errors()
        return KVConnectorTransferResults(sent or set(), (received or set()) - failed, failed)


class AlwaysHasPushWork(AsyncFileStoreConnector):
    """R31: pending work is announced once and never taken back."""

    def has_pending_push_work(self) -> bool:
        return True


class AlwaysHasBlocksToFree(AsyncFileStoreConnector):
    """R31: promises blocks instead of a preemption, for ever."""

    def has_pending_block_frees(self) -> bool:
        return True


class ReleasesAfterTheFirstSave(stepwise.Stepwise):
    """LMCache#3640 and #5062, bugs 37 and 38 (R13): of several saves of a request one is waited for."""

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        held, params = super().request_finished(request, block_ids)
        scheduler = self._scheduler_side()
        if held:
            save_ids = scheduler._holds[-1].save_ids
            scheduler._holds[-1] = Hold(request.request_id, frozenset({min(save_ids)}))
            for save_id in save_ids:
                # Held blocks need no fence.
                scheduler._saves[save_id].fenced = True
        return held, params


class NeverForgetsAborts(stepwise.Stepwise):
    """R16: an id that was aborted once is taken for aborted ever after."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._gone: set[str] = set()

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        if request.status.name == "FINISHED_ABORTED":
            self._gone.add(request.request_id)
        return super().request_finished(request, block_ids)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if request.request_id not in self._gone:
            super().update_state_after_alloc(request, blocks, num_external_tokens)


class _OneAtATime(stepwise.StepwisePool):
    """A storage that does one transfer in a step."""

    def tick(self) -> None:
        waiting, self.queue = self.queue[1:], self.queue[:1]
        super().tick()
        self.queue += waiting


class LoadsOneBlockBeside(stepwise.Immediate):
    """R5: every block of a load goes into its neighbour in the cache, which may be another load's that has ended."""

    def _make_pool(self, threads: int) -> _OneAtATime:  # type: ignore[override]
        self.storage = _OneAtATime(self.load_steps, self.save_steps)
        return self.storage

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        super().register_kv_caches(kv_caches)
        last_block = next(iter(kv_caches.values())).shape[0] - 1
        pages = self._worker_side()._require_files().pages
        write = pages.write
        pages.write = lambda blocks, rows: write([(block - 2) % last_block + 1 for block in blocks], rows)


class WholePrompt(LoadJob):
    """A load of all tokens of its request."""


class _SparesTheLastToken(stepwise.StepwisePool):
    """The last slot of a whole prompt is left as it was."""

    caches: dict[str, Any]

    def submit(self, run: Any, /) -> Any:
        load = getattr(run, "__self__", None)
        if isinstance(load, Load) and isinstance(load.job, WholePrompt) and load.job.loads:
            load._run = partial(self._fill, load.job.loads[-1].block_id, load._run)  # type: ignore[method-assign]
        return super().submit(run)

    def _fill(self, last_block: int, fill: Any) -> None:
        slots = [cache[last_block][:, -1] for cache in self.caches.values()]
        before = [slot.clone() for slot in slots]
        fill()
        for slot, old in zip(slots, before, strict=True):
            slot.copy_(old)


class LeavesTheLastToken(stepwise.Immediate):
    """R13: trusts that vLLM computes the last token of a prompt anew, which has cached its block by then."""

    def _make_pool(self, threads: int) -> _SparesTheLastToken:  # type: ignore[override]
        self.storage = _SparesTheLastToken(self.load_steps, self.save_steps)
        self.storage.caches = self._caches
        return self.storage

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        self._caches = kv_caches
        super().register_kv_caches(kv_caches)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Offer the last block of a prompt, too; the reference leaves a token to compute."""
        tokens, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        side, found = self._scheduler_side(), num_computed_tokens + tokens
        if found + 16 == request.num_tokens and side._is_stored(side._granularity.block_hash(request, found // 16)):
            tokens += 16
        return tokens, tokens > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        planned = self._scheduler_side()._planned
        job = planned.get(request.request_id)
        if job is not None and len(job.loads) * 16 >= request.num_tokens - request.num_computed_tokens:
            planned[request.request_id] = WholePrompt(job.load_id, job.request_id, job.blocks, job.loads)
