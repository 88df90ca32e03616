"""Connectors that get one thing wrong in a reset or a pause."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvconform.reference.file_store import FileStoreConnector

if TYPE_CHECKING:
    from vllm.v1.request import Request


class KeepsEverythingOnReset(FileStoreConnector):
    """vllm#42695, bugs 124 (R27): "clear caches" leaves the external store as it was, and reports success."""

    def reset_cache(self) -> bool:
        return True


class ForgetsOnlyItsMemoryOnReset(FileStoreConnector):
    """R27: what is being saved is forgotten, what lies in the store is not."""

    def reset_cache(self) -> bool:
        scheduler = self._scheduler_side()
        scheduler._being_saved.clear()
        scheduler._unreadable.clear()
        return True


class AnswersZeroForAFailedReset(FileStoreConnector):
    """R27: only the very value False is a failure; everything else counts as success."""

    def reset_cache(self) -> bool:
        return int(super().reset_cache()) and 1  # type: ignore[return-value]


class RemembersWhatItStoredBeforeTheReset(FileStoreConnector):
    """R27: the set of keys that need no save survives the reset, so that nothing of it is ever stored again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stored: set[bytes] = set()
        if self._scheduler is not None:
            publish, scheduler = self._scheduler._publish, self._scheduler

            def noted(save_id: int, save: Any) -> bool:
                self._stored.add(save.block_hash)
                return publish(save_id, save)

            scheduler._publish = noted  # type: ignore[method-assign]

    def reset_cache(self) -> bool:
        done = super().reset_cache()
        self._scheduler_side()._being_saved.update(dict.fromkeys(self._stored, -1))
        return done


class RemembersWhatTenantsStored(RemembersWhatItStoredBeforeTheReset):
    """R27: as above, where each tenant has a set of such keys: only that of requests without a salt is emptied."""

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        if request.cache_salt is None:
            self.__dict__.setdefault("_plain", set()).update(map(bytes, request.block_hashes))
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def reset_cache(self) -> bool:
        self._stored -= self.__dict__.get("_plain", set())
        return super().reset_cache()


class KeepsAdaptersOnReset(FileStoreConnector):
    """R27: each LoRA adapter has a part of the store, and the reset empties that of the base model."""

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        if request.lora_request is not None:
            self.__dict__.setdefault("_adapted", set()).update(map(bytes, request.block_hashes))
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def reset_cache(self) -> bool:
        scheduler = self._scheduler_side()
        store, before = scheduler._store, scheduler._namespace.blocks
        adapted = [each for each in self.__dict__.get("_adapted", ()) if store.contains(before, each, 1)]
        kept = {each: store.block_path(before, each, 0).read_bytes() for each in adapted}
        done = super().reset_cache()
        for block_hash, content in kept.items():
            path = store.block_path(scheduler._namespace.blocks, block_hash, 0)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return done


class ForgetsRequestsOnReset(FileStoreConnector):
    """R27: requests that are under way are forgotten with the entries, and missed when their step has ended."""

    _scheduled: tuple[str, ...] = ()

    def reset_cache(self) -> bool:
        done = super().reset_cache()
        self._scheduler_side()._requests.clear()
        return done

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        self._scheduled = tuple(scheduler_output.num_scheduled_tokens)
        return super().build_connector_meta(scheduler_output)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        self._scheduled = tuple(each for each in self._scheduled if each != request.request_id)
        return super().request_finished(request, block_ids)

    def update_connector_output(self, connector_output: Any) -> None:
        for request_id in self._scheduled:
            self._scheduler_side()._requests[request_id]
        super().update_connector_output(connector_output)


class ExpectsProgressInEveryStep(FileStoreConnector):
    """Takes for granted that every running request is scheduled in every step; a paused engine schedules none."""

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        running = self.__dict__.setdefault("_running", set())
        running -= set(scheduler_output.preempted_req_ids or ())
        missing = running - set(scheduler_output.num_scheduled_tokens)
        assert not missing, f"{sorted(missing)} made no progress"
        running |= set(scheduler_output.num_scheduled_tokens)
        return super().build_connector_meta(scheduler_output)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        self.__dict__.setdefault("_running", set()).discard(request.request_id)
        return super().request_finished(request, block_ids)


class PinsBlocksForEver(FileStoreConnector):
    """R4: takes a reference on a block of each finished request and gives none back."""

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        self._pool = kv_cache_manager.block_pool

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        if block_ids:
            self._pool.touch([self._pool.blocks[block_ids[0]]])
        return super().request_finished(request, block_ids)


class ReleasesPinsTwice(FileStoreConnector):
    """LMCache-Ascend#145, bugs 146 (R4): both the caller and the callee give the same reference back."""

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        self._pool = kv_cache_manager.block_pool

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        if block_ids:
            block = self._pool.blocks[block_ids[0]]
            self._pool.touch([block])
            self._pool.free_blocks([block])
            self._pool.free_blocks([block])
        return super().request_finished(request, block_ids)
