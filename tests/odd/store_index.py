"""Legal but odd: a store whose scheduler role never looks at the disk."""

from __future__ import annotations

from typing import Any

from kvconform.reference.file_store import FileStoreConnector


class TrustsItsIndex(FileStoreConnector):
    """Matches by an index in memory, so that it promises what somebody has removed meanwhile, and reports the failure.

    What failed once leaves the index until it is stored again. After a restart the index is empty.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._scheduler is not None:
            index: set[bytes] = set()
            scheduler, publish, reset = self._scheduler, self._scheduler._publish, self._scheduler.reset

            def noted(save_id: int, save: Any) -> bool:
                done = publish(save_id, save)
                if done:
                    index.add(save.block_hash)
                return done

            def emptied() -> bool:
                index.clear()
                return reset()

            scheduler._publish = noted  # type: ignore[method-assign]
            scheduler.reset = emptied  # type: ignore[method-assign]
            scheduler._is_stored = lambda key: key in index and key not in scheduler._unreadable  # type: ignore[method-assign]
