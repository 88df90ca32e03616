"""Registered KV cache tensors as pages of opaque bytes.

vLLM registers one logical view ``[B, H, N, C]`` per layer since 0.29.0 (blocks, head slots, tokens, content; C holds K
and V side by side, or an MLA latent). The physical order is in the strides alone, and all views share one allocation
(vllm/v1/kv_cache_interface.py, create_kv_cache_views). So this module never looks at dimension sizes to guess what an
axis means, never assumes contiguity, never converts a dtype, and never touches a byte outside the views: what lies
between two pages is padding or belongs to another layer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence

import torch


class KVPages:
    """All layers of one worker, addressed by the scheduler's block ids.

    One block is stored as the concatenation of its layers' pages in registration order, each in logical order
    ``[kernel blocks per block, H, N, C]``.
    """

    def __init__(self, kv_caches: Mapping[str, torch.Tensor], layer_names: Collection[str], num_blocks: int) -> None:
        """``kv_caches``: layer name -> tensor of any dtype on any device, as passed to ``register_kv_caches``.

        Raises ValueError for a layer of the group without a tensor, and for tensors that are not pages of blocks.
        """
        missing = sorted(set(layer_names) - set(kv_caches))
        if missing:
            raise ValueError(f"No KV cache tensor was registered for layers {missing} of the KV cache group.")
        # Layers that share KV are registered under their own names with the tensor of their target layer.
        by_memory: dict[tuple[int, torch.Size], str] = {}
        for name, tensor in kv_caches.items():
            if name in layer_names:
                by_memory.setdefault((tensor.data_ptr(), tensor.shape), name)
        self._pages = {name: _as_pages(name, kv_caches[name], num_blocks) for name in by_memory.values()}
        # A pipeline stage may have no layer of the group.
        self._device = next((pages.device for pages in self._pages.values()), torch.device("cpu"))
        self._bytes_of = {name: pages[0].numel() for name, pages in self._pages.items()}
        self.block_bytes = sum(self._bytes_of.values())
        self.fingerprint = self._fingerprint(kv_caches)

    def read(self, block_ids: Sequence[int]) -> torch.Tensor:
        """Copy blocks to the host: uint8 ``[len(block_ids), block_bytes]``.

        On an accelerator the copy is queued on the current stream, behind the forward that wrote the blocks, and the
        transfer to pageable host memory returns only when it is done.
        """
        host = torch.empty((len(block_ids), self.block_bytes), dtype=torch.uint8)
        for layer in self._pages:
            self.read_layer(layer, block_ids, host)
        return host

    def write(self, block_ids: Sequence[int], host: torch.Tensor) -> None:
        """Fill blocks from ``host``, shaped as :meth:`read` returns it; block ids must differ from each other.

        On an accelerator the writes are queued on the current stream, ahead of the forward that reads the blocks.
        """
        for layer in self._pages:
            self.write_layer(layer, block_ids, host)

    def buffer(self, blocks: int) -> torch.Tensor:
        """Room for blocks beside the KV cache: uint8 ``[blocks, block_bytes]``, with any content."""
        return torch.empty((blocks, self.block_bytes), dtype=torch.uint8, device=self._device)

    def gather(self, block_ids: Sequence[int]) -> torch.Tensor:
        """Copy blocks into a buffer beside the KV cache. On CUDA all of it is queued on the current stream."""
        rows = self.buffer(len(block_ids))
        for layer in self._pages:
            self.read_layer(layer, block_ids, rows)
        return rows

    def scatter(self, block_ids: Sequence[int], rows: torch.Tensor) -> None:
        """Fill blocks from a buffer as :meth:`gather` returns it, likewise."""
        for layer in self._pages:
            self.write_layer(layer, block_ids, rows)

    @property
    def layers(self) -> Collection[str]:
        """Layers with memory of their own, in registration order."""
        return self._pages.keys()

    def read_layer(self, layer: str, block_ids: Sequence[int], host: torch.Tensor) -> None:
        """Copy one layer's part of the blocks into its columns of ``host``, shaped as :meth:`read` returns it."""
        pages = self._pages[layer]
        index = self._index(block_ids)
        self._columns(layer, host).copy_(pages.index_select(0, index).flatten(1))

    def write_layer(self, layer: str, block_ids: Sequence[int], host: torch.Tensor) -> None:
        """Fill one layer's part of the blocks from its columns of ``host``."""
        pages = self._pages[layer]
        index = self._index(block_ids)
        columns = self._columns(layer, host).to(pages.device)
        pages.index_copy_(0, index, columns.reshape(len(block_ids), *pages.shape[1:]))

    def _index(self, block_ids: Sequence[int]) -> torch.Tensor:
        """Block ids on the device. From pageable memory the host would wait for all that is queued on the stream."""
        pinned = self._device.type == "cuda"
        index = torch.tensor(block_ids, dtype=torch.long, device="cpu", pin_memory=pinned)
        return index.to(self._device, non_blocking=True)

    def _columns(self, layer: str, host: torch.Tensor) -> torch.Tensor:
        """One layer's columns of a ``[blocks, block_bytes]`` buffer."""
        start = 0
        for name, size in self._bytes_of.items():
            if name == layer:
                return host.narrow(1, start, size)
            start += size
        raise KeyError(layer)

    def _fingerprint(self, kv_caches: Mapping[str, torch.Tensor]) -> str:
        """Names the shape of this worker's part of a block.

        Layers of this pipeline stage and kernel block size are known to the worker only, so they can't be part of the
        key that the scheduler computes; the file's header carries them instead.
        """
        layers = [(name, str(kv_caches[name].dtype), list(pages.shape[1:])) for name, pages in self._pages.items()]
        return hashlib.sha256(json.dumps(layers).encode()).hexdigest()


def _as_pages(name: str, tensor: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """View ``[num_blocks * ratio, H, N, C]`` as uint8 ``[num_blocks, ratio, H, N, C * itemsize]``.

    vLLM splits a block into ``ratio`` kernel blocks when the attention kernel wants smaller ones; block ``b`` is then
    kernel blocks ``b * ratio`` to ``(b + 1) * ratio - 1`` (vllm/v1/kv_cache_interface.py, group_kernel_blocks).
    """
    if not isinstance(tensor, torch.Tensor) or tensor.ndim < 2 or tensor.shape[0] % num_blocks:
        shape = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise ValueError(
            f"The KV cache of layer {name} is {shape}; expected a tensor whose first dimension is a multiple of "
            f"{num_blocks} blocks. FileStoreConnector supports attention layers of vLLM 0.29.0 and later."
        )
    if tensor.stride(-1) != 1:
        raise ValueError(
            f"The KV cache of layer {name} has stride {tensor.stride(-1)} in its last dimension; "
            "FileStoreConnector needs 1 to view elements as bytes."
        )
    octets = tensor.view(torch.uint8)
    ratio = tensor.shape[0] // num_blocks
    # Kernel blocks are evenly spaced, so this is a view, never a copy (view() would raise).
    return octets.view(num_blocks, ratio, *octets.shape[1:])
