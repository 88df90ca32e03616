"""A connector whose module starts a thread while it is imported."""

from __future__ import annotations

import threading

from kvconform.reference.file_store import FileStoreConnector

_stop = threading.Event()
_poller = threading.Thread(target=_stop.wait, name="store-poller", daemon=True)
_poller.start()


class ImportStartsThread(FileStoreConnector):
    """API server, engine core and every worker get the thread, used or not."""
