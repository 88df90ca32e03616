"""Connectors that keep wrong books: of a request, a promise, a chunk or a block; a reference with one defect each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvconform.reference._file_store_scheduler import SchedulerSide
from kvconform.reference.file_store import FileStoreConnector
from kvconform.reference.host_offload import HostOffloadConnector


class OffersTheLocalHitAgain(FileStoreConnector):
    """bug 19, vllm#50864 (R2): answers with the whole hit, of which the engine has the beginning already."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        tokens, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return (tokens + num_computed_tokens if tokens else 0), False


class EvictsWhatItPromised(HostOffloadConnector):
    """bug 28, vllm#39702 (R4): room for the saves of a request is made before its hit is looked up a second time."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        scheduler, pool = self._scheduler_side(), self._pool
        local = scheduler._track(request).local_tokens
        if num_external_tokens:
            scheduler._release_promise(request.request_id)
            wanted = len(blocks.get_block_ids()[0]) - (local + num_external_tokens) // 16
            while pool._slots and len(pool._free) < wanted:
                pool.remove(next(iter(pool._slots)))
            found = SchedulerSide.match(scheduler, request, local)
            assert found >= num_external_tokens, f"expected {num_external_tokens} tokens, got {found}"
        super().update_state_after_alloc(request, blocks, num_external_tokens)


class HasTwoChunkSizes(FileStoreConnector):
    """bug 34, llm-d-kv-cache#658 (R20): one role counts in blocks, the other one in chunks of two by default."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._step_metadata()
        whole = len(metadata.loads) // 2 * 2
        self.bind_connector_metadata(replace(metadata, loads=metadata.loads[:whole]))
        super().start_load_kv(forward_context, **kwargs)
        self.bind_connector_metadata(metadata)


class CountsTheLoadedPrefixTwice(FileStoreConnector):
    """bug 40, pegaflow#449 (R8): adds what was loaded to a table that contains it, once the request was resumed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loaded: dict[str, int] = {}
        self._resumed: set[str] = set()

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._loaded[request.request_id] = num_external_tokens // 16
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        self._resumed |= set(scheduler_output.preempted_req_ids or ())
        scheduler, metadata = self._scheduler_side(), super().build_connector_meta(scheduler_output)
        tables = {id(tracked.table): name for name, tracked in scheduler._requests.items() if name in self._resumed}
        saves = []
        for save in metadata.saves:  # type: ignore[attr-defined]
            table = scheduler._steps[metadata.step].saves[save.save_id].table  # type: ignore[attr-defined]
            twice = self._loaded.get(tables.get(id(table), ""), 0)
            window = table[table.index(save.block_id) :][twice : twice + 1]
            saves += [replace(each, block_id=block) for each, block in zip([save], window, strict=True)]
        return replace(metadata, saves=tuple(saves))  # type: ignore[type-var]


class GuessesTheBlockSize(FileStoreConnector):
    """bug 130, vllm#35125 (R21): a block's tokens are its first dimension in memory, which under HND are the heads."""

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        super().register_kv_caches(kv_caches)
        pages = self._worker_side()._require_pages()
        for name, page in pages._pages.items():
            if page.shape[1] == 1 < page.shape[2]:
                tokens = page.shape[max((2, 3), key=page.stride)]
                pages._pages[name] = page[:, :, :, :tokens]
        pages._bytes_of = {name: page[0].numel() for name, page in pages._pages.items()}
        pages.block_bytes = sum(pages._bytes_of.values())
