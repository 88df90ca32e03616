"""LayerwiseFileStoreConnector: the file store, with each layer moved around that layer's attention.

Loads of a layer are due when the layer is about to read, not before the forward; saves of a layer can leave as soon as
it has written. So the copies of one layer overlap with the computation of others on a device that can do both. What is
loaded and stored, and under which keys, is FileStoreConnector's; read that module first.

The price: the layer hooks run Python inside the forward, so full CUDA graphs are out
(``requires_piecewise_for_cudagraph``), and a block is complete only after the last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ._file_store_messages import BlockSave, FileStoreMetadata
from ._file_store_worker import WorkerSide
from .file_store import FileStoreConnector

if TYPE_CHECKING:
    from vllm.v1.attention.backend import AttentionMetadata


@dataclass
class _Loads:
    """Blocks that were read from files, uint8 ``[len(block_ids), block_bytes]``, and the layers still to be filled."""

    block_ids: list[int]
    host: torch.Tensor
    layers: set[str]


@dataclass
class _Saves:
    """Blocks on their way to files, as :class:`_Loads`; ``layers`` have arrived in ``host``."""

    saves: Sequence[BlockSave]
    host: torch.Tensor
    layers: set[str] = field(default_factory=set)


class LayerwiseWorkerSide(WorkerSide):
    """One rank's loads and saves, layer by layer."""

    _loads: _Loads | None = None
    _saves: _Saves | None = None

    def load(self, metadata: FileStoreMetadata) -> None:
        """Begin a step: read the files; the KV cache is filled layer by layer.

        A block that can't be read is left as it is and reported, as by the file store.
        """
        self._begin(metadata)
        self._loads = self._saves = None
        pages = self._require_pages() if metadata.has_work else None
        if pages is None:
            return
        host = torch.empty((len(metadata.loads), pages.block_bytes), dtype=torch.uint8)
        good = [row for row, load in enumerate(metadata.loads) if self._read(metadata, load, host[row])]
        if good:
            ids = [metadata.loads[row].block_id for row in good]
            self._loads = _Loads(ids, host[good], set(pages.layers))
        if metadata.saves:
            empty = torch.empty((len(metadata.saves), pages.block_bytes), dtype=torch.uint8)
            self._saves = _Saves(metadata.saves, empty)

    def load_layer(self, layer: str) -> None:
        """Fill one layer's part of the blocks. Called for every layer of every forward, mostly with nothing to do."""
        if self._loads is not None and layer in self._loads.layers:
            self._require_pages().write_layer(layer, self._loads.block_ids, self._loads.host)
            self._loads.layers.remove(layer)

    def save_layer(self, layer: str) -> None:
        """Copy one layer's part of the blocks that this step completes; no later layer changes it."""
        pages = self._pages
        if self._saves is not None and pages is not None and layer in pages.layers:
            ids = [save.block_id for save in self._saves.saves]
            pages.read_layer(layer, ids, self._saves.host)
            self._saves.layers.add(layer)

    def save(self, metadata: FileStoreMetadata) -> None:
        """End a step: stage the blocks. Layers whose hook was not called are copied now, which is late but right."""
        saves, self._saves = self._saves, None
        self._loads = None
        if saves is None:
            super().save(metadata)
            return
        pages = self._require_pages()
        ids = [save.block_id for save in saves.saves]
        for layer in set(pages.layers) - saves.layers:
            pages.read_layer(layer, ids, saves.host)
        self._end(metadata, self._stage(metadata, saves.saves, saves.host))


class LayerwiseFileStoreConnector(FileStoreConnector):
    """A synchronous KV store in a directory that moves each layer around its attention."""

    _worker_class = LayerwiseWorkerSide

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """A full graph replays no Python, so no layer would be loaded."""
        return True

    def wait_for_layer_load(self, layer_name: str) -> None:
        """The layer is in place when this returns; also called outside any step, when there is nothing to do."""
        self._layers().load_layer(layer_name)

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        """The registered tensor is read, not ``kv_layer``, which may be another view of it."""
        self._layers().save_layer(layer_name)

    def _layers(self) -> LayerwiseWorkerSide:
        worker = self._worker_side()
        assert isinstance(worker, LayerwiseWorkerSide)
        return worker
