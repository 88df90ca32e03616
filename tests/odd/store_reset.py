"""Legal but odd: stores that are not emptied, and say so."""

from __future__ import annotations

from kvconform.reference.file_store import FileStoreConnector


class RefusesToReset(FileStoreConnector):
    """A store that others share: nobody may empty it from here. The honest answer is False."""

    def reset_cache(self) -> bool:
        return False
