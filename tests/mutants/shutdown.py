"""Connectors that get one thing wrong when an engine ends."""

from __future__ import annotations

import os
from typing import Any

from kvconform.reference._block_store import BlockFileError, read_block_file
from kvconform.reference.file_store import FileStoreConnector


class RaisesInShutdown(FileStoreConnector):
    """R30: clean-up of what this process never had."""

    def shutdown(self) -> None:
        super().shutdown()
        if self._worker is not None and self.__dict__.get("_registered"):
            raise FileNotFoundError("no socket to close")

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        super().register_kv_caches(kv_caches)
        self._registered = True


class ClosesTwice(FileStoreConnector):
    """R30: the second call closes a handle that is gone."""

    def shutdown(self) -> None:
        super().shutdown()
        if self.__dict__.setdefault("_closed", False):
            raise ValueError("already closed")
        self._closed = True


class NeedsTensorsToShutDown(FileStoreConnector):
    """R30: a failed start ends in a second error, because shutdown unregisters what was never registered."""

    _registered = False

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        super().register_kv_caches(kv_caches)
        self._registered = True

    def shutdown(self) -> None:
        if self._worker is not None and not self._registered:
            raise RuntimeError("no KV cache to unregister")
        super().shutdown()


class WaitsForPendingWorkInShutdown(FileStoreConnector):
    """R30: shutdown wants all requests to have ended first, and raises in whoever comes next if they have not."""

    def shutdown(self) -> None:
        if self._scheduler is not None and self._scheduler._requests:
            path = self._scheduler._store.root / "unfinished"
            path.write_text("requests were lost")
        super().shutdown()

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        assert not (self._scheduler_side()._store.root / "unfinished").exists(), "the last engine lost requests"
        return super().get_num_new_matched_tokens(request, num_computed_tokens)


class LocksItsStore(FileStoreConnector):
    """vllm#51579, bugs 148 (R30): a file that only an orderly shutdown removes keeps the next engine from starting."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._scheduler is not None:
            self._scheduler._store.root.mkdir(parents=True, exist_ok=True)
            self._lock = self._scheduler._store.root / "lock"
            os.close(os.open(self._lock, os.O_CREAT | os.O_EXCL))

    def shutdown(self) -> None:
        super().shutdown()
        if self._scheduler is not None:
            self._lock.unlink(missing_ok=True)


class CompletesItsFilesAtShutdown(FileStoreConnector):
    """R19, R30: files are cut short until shutdown writes the rest, and nobody checks what is read."""

    def wait_for_save(self) -> None:
        worker = self._worker_side()
        metadata = self._step_metadata()
        super().wait_for_save()
        for save in metadata.saves:
            path = worker._store.staged_path(metadata.staging, save.save_id, 0)
            if path.exists():
                final = worker._store.block_path(metadata.blocks, save.block_hash, 0)
                self.__dict__.setdefault("_rest", {})[final] = path.read_bytes()
                path.write_bytes(path.read_bytes()[:-64])

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        worker = self._worker_side()

        def read(metadata: Any, load: Any, row: Any) -> bool:
            path = worker._store.block_path(metadata.blocks, load.block_hash, 0)
            whole = self.__dict__.get("_rest", {}).get(path)
            if whole is not None:
                path.write_bytes(whole)
            try:
                read_block_file(path, worker._label(load.block_hash), row.numpy().data)
            except BlockFileError:
                row.zero_()
            return True

        worker._read = read  # type: ignore[method-assign]
        super().start_load_kv(forward_context, **kwargs)

    def shutdown(self) -> None:
        for path, content in self.__dict__.get("_rest", {}).items():
            if path.exists():
                path.write_bytes(content)
        super().shutdown()
