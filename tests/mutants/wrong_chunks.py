"""Stores in chunks of 256 tokens with defects that no prompt of a few blocks shows."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from chunked import InChunks

from kvconform.reference._file_store_scheduler import Granularity


class _ByFirstBlock(Granularity):
    """Takes the hash of a chunk's first block for that of the whole chunk."""

    def block_hash(self, request: Any, index: int) -> bytes:
        first = index - index % (InChunks.chunk_size // self.block_tokens)
        return hashlib.sha256(super().block_hash(request, first) + bytes([index - first])).digest()


class KeysChunksByTheirFirstBlock(InChunks):
    """Finds a chunk by how it begins."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._scheduler is not None:
            usual = self._scheduler._granularity
            self._scheduler._granularity = _ByFirstBlock(usual.block_tokens, usual.hash_tokens)


class SkipsTheLastBlockOfAChunk(InChunks):
    """Loads a chunk but for its last block."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._step_metadata()
        blocks = self.chunk_size // 16
        loads = [load for index, load in enumerate(metadata.loads, 1) if index % blocks]
        self.bind_connector_metadata(replace(metadata, loads=loads))
        super().start_load_kv(forward_context, **kwargs)
        self.bind_connector_metadata(metadata)
