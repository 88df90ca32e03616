"""Connectors that leave one thing behind in their process after shutdown."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import resource_tracker, shared_memory
from typing import Any

from kvconform.reference.file_store import FileStoreConnector


class PollsForEver(FileStoreConnector):
    """A poller that nobody ends (R24)."""

    def register_kv_caches(self, kv_caches: Any) -> None:
        super().register_kv_caches(kv_caches)
        threading.Thread(target=lambda: time.sleep(3600), name="poller", daemon=True).start()


class KeepsListening(FileStoreConnector):
    """A socket of the worker role stays open: the next engine finds its port taken."""

    def register_kv_caches(self, kv_caches: Any) -> None:
        import socket

        super().register_kv_caches(kv_caches)
        _KEPT.append(socket.create_server(("127.0.0.1", 0)))


class KeepsLogOpen(FileStoreConnector):
    """A file per instance, closed by nobody."""

    def shutdown(self) -> None:
        super().shutdown()
        _KEPT.append(open("/dev/null", "wb"))  # noqa: PTH123, SIM115


class LeavesSegments(FileStoreConnector):
    """A shared memory segment that is closed and never unlinked."""

    def register_kv_caches(self, kv_caches: Any) -> None:
        super().register_kv_caches(kv_caches)
        segment = shared_memory.SharedMemory(create=True, size=64)
        # Python's own helper would tidy up; a segment made by native code has none.
        resource_tracker.unregister(segment._name, "shared_memory")  # type: ignore[attr-defined]
        segment.close()


class LeavesTemporaryFiles(FileStoreConnector):
    """A staging file that outlives its connector."""

    def register_kv_caches(self, kv_caches: Any) -> None:
        super().register_kv_caches(kv_caches)
        with tempfile.NamedTemporaryFile(delete=False, prefix="staging-") as staging:
            staging.write(b"x")


class LeavesServer(FileStoreConnector):
    """A helper process that nobody ends."""

    def register_kv_caches(self, kv_caches: Any) -> None:
        super().register_kv_caches(kv_caches)
        _KEPT.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))


_KEPT: list[Any] = []
