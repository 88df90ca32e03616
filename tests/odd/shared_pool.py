"""Legal: one thread pool for the process, made once and kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kvconform.reference.file_store import FileStoreConnector

_POOL = ThreadPoolExecutor(2, thread_name_prefix="store")


class SharedPool(FileStoreConnector):
    """Work of all instances goes through one pool, whose threads start when they are first needed."""

    def register_kv_caches(self, kv_caches: Any) -> None:
        super().register_kv_caches(kv_caches)
        _POOL.submit(len, kv_caches).result()


class Lingering(FileStoreConnector):
    """Its thread ends on its own, a moment after shutdown has returned."""

    def shutdown(self) -> None:
        import threading
        import time

        super().shutdown()
        threading.Thread(target=time.sleep, args=(0.4,), name="farewell").start()
