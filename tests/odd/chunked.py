"""Stores that keep KV in chunks of many blocks, as most do by default."""

from __future__ import annotations

from typing import Any, ClassVar

from kvconform.reference.file_store import FileStoreConnector


class InChunks(FileStoreConnector):
    """Offers whole chunks of 256 tokens only."""

    chunk_size: ClassVar[int] = 256

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        tokens, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        end = (num_computed_tokens + tokens) // self.chunk_size * self.chunk_size
        return max(0, end - num_computed_tokens), False
