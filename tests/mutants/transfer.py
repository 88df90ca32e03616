"""Connectors that get one thing wrong on the way of KV into the store and back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import early
import stepwise
import torch
from habits import OffersToEverybody

from kvconform.reference._async_messages import Hold
from kvconform.reference._async_scheduler import _OpenSave
from kvconform.reference._block_store import BlockFileError, read_block_file
from kvconform.reference._file_store_messages import BlockLoad, BlockSave
from kvconform.reference._file_store_scheduler import SchedulerSide
from kvconform.reference._file_store_worker import WorkerSide
from kvconform.reference.async_file_store import AsyncFileStoreConnector
from kvconform.reference.file_store import FileStoreConnector

Completions = tuple[set[str] | None, set[str] | None]
Match = tuple[int, bool]


# -- the match query --


class ReturnsAnInt(FileStoreConnector):
    """The answer of an earlier interface (bug 5, VUA#2; R2, R25)."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Any:
        return super().get_num_new_matched_tokens(request, num_computed_tokens)[0]


class CountsInFloats(FileStoreConnector):
    """Tokens are counted in blocks, and a division makes a float of them (R2)."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Any:
        return super().get_num_new_matched_tokens(request, num_computed_tokens)[0] / 16 * 16, False


class CutsTwice(FileStoreConnector):
    """Cuts the last token off twice, so that a local hit can be longer, and subtracts it (bug 20, vllm#40684; R2)."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Match:
        stored = super().get_num_new_matched_tokens(request, 0)[0]
        tokens, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        cut = (request.num_tokens - 2) // 16 * 16
        return (cut - num_computed_tokens if stored > cut else tokens), False


class RoundsUp(FileStoreConnector):
    """Counts the block that the prompt ends in as a whole one (bug 19, vllm#50864; R2)."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Match:
        tokens, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        rest = request.num_tokens - num_computed_tokens - tokens
        return (tokens + 16 if tokens and 0 < rest < 16 else tokens), False


class OffersTheWholePrompt(FileStoreConnector):
    """A prompt that is stored completely is offered completely (bug 17, LMCache#3322; R2)."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Match:
        scheduler = self._scheduler_side()
        tokens, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        last = (num_computed_tokens + tokens) // 16
        if request.num_tokens == 16 * (last + 1) and scheduler._is_stored(request.block_hashes[last]):
            tokens += 16
        return tokens, False


class LoadsWhatItOffered(OffersToEverybody):
    """Plans the load by what it has offered, as far as there are blocks, and not by what was allocated (R5)."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        local = self._scheduler_side()._track(request).local_tokens
        room = 16 * len(blocks.get_block_ids()[0]) - local
        offered, _ = self.get_num_new_matched_tokens(request, local)
        super().update_state_after_alloc(request, blocks, min(offered, room))


class AlwaysAsynchronous(AsyncFileStoreConnector):
    """Says "asynchronous" also of nothing (bug 32, vllm#57705; R2, R6)."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Match:
        return super().get_num_new_matched_tokens(request, num_computed_tokens)[0], True


class KnowsOneKindOfLayer(FileStoreConnector):
    """Looks layers up among those of one class; those of MLA have another (bug 16, vllm-ascend#7971; R21)."""

    def register_kv_caches(self, kv_caches: Any) -> None:
        from vllm.v1.kv_cache_interface import FullAttentionSpec

        groups = self._kv_cache_config.kv_cache_groups
        known = {
            name: group.kv_cache_spec
            for group in groups
            for name in group.layer_names
            if type(group.kv_cache_spec) is FullAttentionSpec
        }
        self.specs = [known[name] for name in kv_caches]
        super().register_kv_caches(kv_caches)


class NeverMakesUpItsMind(FileStoreConnector):
    """Puts the answer off until a lookup is done that nobody has started (R31)."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Any:
        return None, False


# -- where a load goes --


class CountsFromTheStart(FileStoreConnector):
    """What is loaded goes to the first blocks of the table, whatever is there (R5)."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Match:
        answer = super().get_num_new_matched_tokens(request, num_computed_tokens)
        self._scheduler_side()._track(request).local_tokens = 0
        return answer


class RefreshesTheLocalHit(FileStoreConnector):
    """Begins one block early where there is a local hit, with the object of the first block to load (R5)."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        scheduler = self._scheduler_side()
        planned = scheduler._planned_loads.get(request.request_id, [])
        last_local = blocks.get_block_ids()[0][scheduler._track(request).local_tokens // 16 - 1]
        loading = {load.block_id for loads in scheduler._planned_loads.values() for load in loads}
        if planned and scheduler._track(request).local_tokens and last_local not in loading:
            planned.append(BlockLoad(last_local, planned[0].block_hash))


class FillsTheNullBlock(FileStoreConnector):
    """Lists of ids are padded with zeros, and block 0 is loaded with the rest (R5)."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        planned = self._scheduler_side()._planned_loads.get(request.request_id, [])
        if planned:
            planned.append(BlockLoad(0, planned[0].block_hash))


class WaitsForThePrefix(FileStoreConnector):
    """A load behind blocks that another request loads in this step is put off to the next one (R5, ALLOC-05)."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        scheduler = self._scheduler_side()
        filled: set[int] = set()
        for request_id, planned in list(scheduler._planned_loads.items()):
            new = {r.req_id: r.block_ids[0] for r in scheduler_output.scheduled_new_reqs}
            if planned and filled.intersection(new.get(request_id, [])):
                del scheduler._planned_loads[request_id]
            filled |= {load.block_id for load in planned}
        return super().build_connector_meta(scheduler_output)


# -- what is saved --


class _SavesWhatHasAHash(SchedulerSide):
    """Takes a block for complete when its tokens are known."""

    def _completed_blocks(self, tracked: Any, computed: int, scheduled: int) -> Any:
        return super()._completed_blocks(tracked, computed, max(scheduled, tracked.request.num_tokens - computed))


class StoresUnfinishedChunks(FileStoreConnector):
    """A prompt is stored with its first chunk (ExampleConnector; R9)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._scheduler is not None:
            self._scheduler.__class__ = _SavesWhatHasAHash


class StoresTheLastTokensBlock(stepwise.Stepwise):
    """The last block is saved when a request ends, as soon as all its tokens are known (R9)."""

    def request_finished(self, request: Any, block_ids: list[int]) -> Any:
        scheduler = self._scheduler_side()
        tracked = scheduler._requests.get(request.request_id)
        index = -1 if tracked is None else tracked.next_block or 0
        held, params = super().request_finished(request, block_ids)
        if 0 < index < min(scheduler._granularity.hashed_blocks(request), len(block_ids)):
            block_id, block_hash = block_ids[index], bytes(request.block_hashes[index])
            scheduler._save_count += 1
            scheduler._saves[scheduler._save_count] = _OpenSave(
                request.request_id, block_id, block_hash, scheduler._namespace.blocks, list(block_ids)
            )
            self._last = BlockSave(scheduler._save_count, block_id, block_hash)
            saves = frozenset({scheduler._save_count}).union(*(h.save_ids for h in scheduler._holds if held))
            scheduler._holds = [h for h in scheduler._holds if h.request_id != request.request_id]
            scheduler._holds.append(Hold(request.request_id, saves))
            held = True
        return held, params

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        metadata, last = super().build_connector_meta(scheduler_output), self.__dict__.pop("_last", None)
        return metadata if last is None else replace(metadata, saves=(*metadata.saves, last))


class _Appends(SchedulerSide):
    """Takes every block list for an addition."""

    def _scheduled(self, output: Any) -> Any:
        before = {request_id: list(tracked.table) for request_id, tracked in self._requests.items()}
        for tracked, computed, scheduled in super()._scheduled(output):
            old = before.get(tracked.request.request_id, [])
            if tracked.table[: len(old)] != old:
                tracked.table = old + tracked.table
            yield tracked, computed, scheduled


class AppendsToOldTables(FileStoreConnector):
    """The blocks of a resumed request are added to those that it had before (bugs 4 and 35, LMCache#1361; R7)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._scheduler is not None:
            self._scheduler.__class__ = _Appends


class _ChecksNothing(WorkerSide):
    """A file is what was written, and what is missing is zero."""

    def _write(self, metadata: Any, save: BlockSave, row: torch.Tensor) -> bool:
        super()._write(metadata, save, row)
        return True

    def _read(self, metadata: Any, load: BlockLoad, row: torch.Tensor) -> bool:
        path = self._store.block_path(metadata.blocks, load.block_hash, self._rank)
        row.zero_()
        try:
            read_block_file(path, self._label(load.block_hash), row.numpy().data)
        except BlockFileError:
            return True
        except OSError:
            self._load_errors.add(load.block_id)
            return False
        return True


class ChecksNothing(FileStoreConnector):
    """Neither the error of a write nor the length of what is read is looked at (R18, R19)."""

    _worker_class = _ChecksNothing


class FlushesAtShutdown(stepwise.SlowSaves):
    """At shutdown everything that is being saved becomes visible, done or not (R19, R30)."""

    def shutdown(self) -> None:
        if self._worker is not None:
            for save, _ in self._worker._saves:
                for each in save.saves:
                    files, nothing = self._worker._require_files(), torch.zeros(save._files.pages.block_bytes)
                    files.stage(save._staging, each, nothing.to(torch.uint8))
        if self._scheduler is not None:
            for save_id, pending in self._scheduler._saves.items():
                self._scheduler._publish(save_id, pending)
        super().shutdown()


class KeepsDrafts(FileStoreConnector):
    """Copies a block as soon as the tokens scheduled so far fill it, drafts included, and stores that copy (R8, R9)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._copies: dict[int, dict[str, torch.Tensor]] = {}

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        super().register_kv_caches(kv_caches)
        self._views = kv_caches

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        metadata = super().build_connector_meta(scheduler_output)
        side, cached = self._scheduler_side(), scheduler_output.scheduled_cached_reqs
        full = []
        for request_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            tracked = side._requests[request_id]
            end = (computed + scheduler_output.num_scheduled_tokens[request_id]) // 16
            if end > len(tracked.request.block_hashes) and scheduler_output.scheduled_spec_decode_tokens:
                full.append(tracked.table[end - 1])
        object.__setattr__(metadata, "full", full)
        return metadata

    def wait_for_save(self) -> None:
        metadata: Any = self._get_connector_metadata()
        true = {}
        for save in metadata.saves:
            true[save.block_id] = self._page(save.block_id)
            self._fill(save.block_id, self._copies.pop(save.block_id, {}))
        super().wait_for_save()
        for block, page in true.items():
            self._fill(block, page)
        self._copies |= {block: self._page(block) for block in metadata.full}

    def _page(self, block: int) -> dict[str, torch.Tensor]:
        return {name: view[block].clone() for name, view in self._views.items()}

    def _fill(self, block: int, page: dict[str, torch.Tensor]) -> None:
        for name, content in page.items():
            self._views[name][block] = content


# -- failures --


class ForgetsFailedRequests(early.FailsEarly):
    """A request whose load has failed is over once it has ended: nobody waits for the rest (R14, R17)."""

    _ended: frozenset[str] = frozenset()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        jobs = self.__dict__.setdefault("_jobs", {})
        jobs.update({job.load_id: job.request_id for job in self._step_metadata().loads})
        self._ended |= {jobs[load_id] for load_id in self._step_metadata().cancels}

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        sent, received = super().get_finished(finished_req_ids)
        return sent, (received or set()) - (self.failed & self._ended)


class PromisesBrokenFiles(AsyncFileStoreConnector):
    """What could not be read stays where it is, and is promised again (bug 104; R17)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for side in (self._scheduler, self._worker):
            if side is not None:
                side._store.remove = lambda *_: None  # type: ignore[method-assign]

    def update_connector_output(self, connector_output: Any) -> None:
        super().update_connector_output(connector_output)
        self._scheduler_side()._unreadable.clear()


# -- layouts --


class _Views(FileStoreConnector):
    """For connectors that see other pages in the registered tensors than vLLM does."""

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        super().register_kv_caches(kv_caches)
        pages = self._worker_side()._require_pages()
        for name in pages._pages:
            pages._pages[name] = self.view(name, pages._pages[name])
        pages._bytes_of = {name: page[0].numel() for name, page in pages._pages.items()}
        pages.block_bytes = sum(pages._bytes_of.values())

    def view(self, name: str, page: torch.Tensor) -> torch.Tensor:
        """``page`` is [blocks, kernel blocks, heads, tokens, bytes]."""
        raise NotImplementedError


class AssumesContiguity(_Views):
    """Addresses blocks by the shape of the tensor, not by its strides (R21)."""

    def view(self, name: str, page: torch.Tensor) -> torch.Tensor:
        size = math.prod(page.shape[1:])
        return page.as_strided(page.shape, (min(size, page.stride(0)), *page.stride()[1:]))


class IgnoresKernelBlocks(_Views):
    """Takes the first dimension for the scheduler's blocks (R21: kernel-granular and manager-granular blocks)."""

    def view(self, name: str, page: torch.Tensor) -> torch.Tensor:
        if page.shape[1] == 1:
            return page
        return page[:, :1].as_strided(page[:, :1].shape, (page.stride(1), *page.stride()[1:]))


class ForgetsPadding(_Views):
    """Pages of one layer follow each other without a gap, it thinks (R21)."""

    def view(self, name: str, page: torch.Tensor) -> torch.Tensor:
        size = math.prod(page.shape[1:])
        stride = size if size < page.stride(0) < 2 * size else page.stride(0)
        return page.as_strided(page.shape, (stride, *page.stride()[1:]))


class ConvertsBytes(FileStoreConnector):
    """Caches of raw bytes are taken for float8 and pass through float16 (bug 107, LMCache#4064; R21)."""

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        super().register_kv_caches(kv_caches)
        pages = self._worker_side()._require_pages()
        read = pages.read
        if all(tensor.dtype is torch.uint8 for tensor in kv_caches.values()):
            float8 = torch.float8_e5m2
            pages.read = lambda ids: read(ids).view(float8).to(torch.float16).to(float8).view(torch.uint8)  # type: ignore[method-assign]


class HalvesTheLatent(_Views):
    """Moves the first half of an MLA latent, which would be K, and finds no V (R21)."""

    def view(self, name: str, page: torch.Tensor) -> torch.Tensor:
        specs = self._group.kv_cache_spec
        spec = getattr(specs, "kv_cache_specs", {}).get(name, specs)
        return page[..., : page.shape[-1] // 2] if type(spec).__name__.startswith("MLA") else page


class DoublesTheHeadSize(_Views):
    """A token has 2 * head_size elements per head, whatever the tensor's last dimension says (R21)."""

    def view(self, name: str, page: torch.Tensor) -> torch.Tensor:
        specs = self._group.kv_cache_spec
        spec = getattr(specs, "kv_cache_specs", {}).get(name, specs)
        if type(spec).__name__.startswith("MLA"):
            return page
        return page[..., : 2 * spec.head_size * spec.dtype.itemsize]


# -- capabilities --


class DeclaresTooMuch(FileStoreConnector):
    """Declared as asynchronous; the file store it is loads synchronously (CAP-01)."""


class WritesLatentsIntoACopy(FileStoreConnector):
    """ExampleConnector, found by the kit: a reshaped view of a latent cache is a copy in some layouts (R21).

    Only where the metadata of the batch says that the kernels are those for latents.
    """

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        super().register_kv_caches(kv_caches)
        self._caches = kv_caches

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        from vllm.model_executor.layers.attention.mla_attention import MLACommonMetadata

        told = forward_context.attn_metadata or {}
        latents = [cache for name, cache in self._caches.items() if isinstance(told.get(name), MLACommonMetadata)]
        copies = [cache for cache in latents if cache.reshape(-1, cache.shape[-1]).data_ptr() != cache.data_ptr()]
        before = [cache.clone() for cache in copies]
        super().start_load_kv(forward_context, **kwargs)
        for cache, content in zip(copies, before, strict=True):
            cache.copy_(content)
