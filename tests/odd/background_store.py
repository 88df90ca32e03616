"""Legal but odd: a store that finds what was saved only a while later, and tells no hook of it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from kvconform.reference.file_store import FileStoreConnector


class PublishesLater(FileStoreConnector):
    """What has left the blocks is put into the store by a thread, as a queue to a server does."""

    seconds: ClassVar[float] = 0.001

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._queue = ThreadPoolExecutor(1)
        if self._scheduler is not None:
            publish = self._scheduler._publish

            def later(save_id: int, save: Any) -> bool:
                self._queue.submit(lambda: (time.sleep(self.seconds), publish(save_id, save)))
                return True

            self._scheduler._publish = later  # type: ignore[method-assign]

    def reset_cache(self) -> bool:
        """What is in the queue must not come back afterwards."""
        self._queue.submit(lambda: None).result()
        return super().reset_cache()

    def shutdown(self) -> None:
        self._queue.shutdown()
        super().shutdown()
