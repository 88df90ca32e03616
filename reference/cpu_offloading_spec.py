"""MemcpyOffloadingSpec: vLLM's own OffloadingConnector on a machine without a GPU.

``CPUOffloadingSpec``, the connector's default, refuses every platform but CUDA-alike ones and XPU, because its worker
copies with streams and events. This spec keeps everything else of it, capacity, ``CPUOffloadingManager`` and metrics,
and puts a worker in place that copies plain memory in one thread. It comes in through the public hook for specs of
others::

    {"spec_name": "MemcpyOffloadingSpec", "spec_module_path": "kvconform.reference.cpu_offloading_spec",
     "cpu_bytes_to_use": 4194304}

So all of the connector is on trial: its scheduler, its bookkeeping of jobs, its fences before blocks are used again.
What is not: vLLM's copy worker for GPUs, its streams, its pinned and shared memory. Where KV caches are in device
memory the spec leaves the work to that one.

Transfers run in the order in which they were submitted, beside the forward, as on a stream of their own. The option
``transfer_seconds`` (default 0) makes each take at least so long, which shows what a connector relies on.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import BlockIDsLoadStoreSpec, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec, LoadStoreSpec
    from vllm.v1.kv_offload.config import OffloadingConfig

logger = init_logger(__name__)

# (tensor's index, rows of the KV cache, rows of the store, bytes of a row)
_Copy = tuple[int, torch.Tensor, torch.Tensor, int]


class MemcpyOffloadingSpec(CPUOffloadingSpec):
    """``CPUOffloadingSpec`` with a worker that needs no device."""

    def __init__(self, config: OffloadingConfig) -> None:
        """Raises ValueError for a negative ``transfer_seconds``, Exception (vLLM's) without ``cpu_bytes_to_use``."""
        super().__init__(config)
        self._transfer_seconds = float(self.extra_config.get("transfer_seconds", 0.0))
        if self._transfer_seconds < 0:
            raise ValueError(f"transfer_seconds is {self._transfer_seconds}: expected a number of seconds from 0 on")

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """The worker for these KV caches, made once."""
        if self._worker is None and all(each.tensor.device.type == "cpu" for each in kv_caches.tensors):
            self._worker = MemcpyWorker(kv_caches, self.blocks_per_chunk, self.num_chunks, self._transfer_seconds)
        return super().get_worker(kv_caches)


class MemcpyWorker(OffloadingWorker):
    """Copies between KV caches and a store, both in host memory; one transfer after the other, in a thread.

    Expedited loads have a thread of their own.

    Args:
        kv_caches: per tensor a view (num_blocks, page bytes), int8; per group which part of which tensor it uses.
        blocks_per_chunk: blocks of the KV cache that one chunk of the store holds.
        num_chunks: size of the store.
        transfer_seconds: what a transfer takes at least.
    """

    def __init__(
        self, kv_caches: CanonicalKVCaches, blocks_per_chunk: int, num_chunks: int, transfer_seconds: float = 0.0
    ) -> None:
        self._group_refs = kv_caches.group_data_refs
        self._blocks_per_chunk = blocks_per_chunk
        self._transfer_seconds = transfer_seconds
        self._caches = [each.tensor for each in kv_caches.tensors]
        # A row for each block, those of a chunk one after the other.
        self._store = [
            torch.zeros((num_chunks * blocks_per_chunk, each.page_size_bytes), dtype=torch.int8)
            for each in kv_caches.tensors
        ]
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memcpy-offloading")
        self._express = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memcpy-offloading-express")
        self._jobs: dict[int, Future[TransferResult]] = {}

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        """Copy blocks of the KV cache into chunks."""
        self._jobs[job_id] = self._thread.submit(self._transfer, job_id, self._copies(src_spec, dst_spec), True)
        return True

    def submit_load(
        self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, expedited: bool = False
    ) -> bool:
        """Copy chunks into blocks of the KV cache; an expedited load (0.33.0) passes the others by."""
        thread = self._express if expedited else self._thread
        self._jobs[job_id] = thread.submit(self._transfer, job_id, self._copies(dst_spec, src_spec), False)
        return True

    def get_finished(self) -> list[TransferResult]:
        """Transfers that ended since the last call."""
        ended = [job_id for job_id, job in self._jobs.items() if job.done()]
        return [self._jobs.pop(job_id).result() for job_id in ended]

    def wait(self, job_ids: set[int]) -> None:
        """Return once these transfers have ended; unknown ones have ended before."""
        wait([self._jobs[job_id] for job_id in job_ids if job_id in self._jobs])

    def shutdown(self) -> None:
        """End the transfers that were submitted, and the threads."""
        self._thread.shutdown(wait=True)
        self._express.shutdown(wait=True)
        self._jobs.clear()
        self._store.clear()
        self._caches.clear()

    def _copies(self, blocks: GPULoadStoreSpec, chunks: LoadStoreSpec) -> list[_Copy]:
        assert isinstance(chunks, BlockIDsLoadStoreSpec)
        copies: list[_Copy] = []
        for refs, block_rows, store_rows in zip(self._group_refs, *self._rows(blocks, chunks), strict=True):
            copies += [(ref.tensor_idx, block_rows, store_rows, ref.page_size_bytes) for ref in refs]
        return copies

    def _rows(
        self, blocks: GPULoadStoreSpec, chunks: BlockIDsLoadStoreSpec
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Per group the rows of the KV cache and those of the store, in the same order.

        A group's blocks follow each other in the request from ``block_indices`` on, so the first of them may lie in the
        middle of its chunk, and the last one, too (``SingleDirectionOffloadingHandler.transfer_async``, 0.32.0).
        """
        per_chunk = self._blocks_per_chunk
        block_rows, store_rows = [], []
        first_block = first_chunk = 0
        for size, index in zip(blocks.group_sizes, blocks.block_indices, strict=True):
            skipped = index % per_chunk if size else 0
            num_chunks = -(-(size + skipped) // per_chunk)
            ids = chunks.block_ids[first_chunk : first_chunk + num_chunks].astype(np.int64)
            rows = (ids[:, None] * per_chunk + np.arange(per_chunk)).ravel()[skipped : skipped + size]
            block_rows.append(torch.from_numpy(blocks.block_ids[first_block : first_block + size].astype(np.int64)))
            store_rows.append(torch.from_numpy(rows))
            first_block, first_chunk = first_block + size, first_chunk + num_chunks
        if (first_block, first_chunk) != (len(blocks.block_ids), len(chunks.block_ids)):
            raise ValueError(
                f"{len(blocks.block_ids)} blocks and {len(chunks.block_ids)} chunks were given, but the groups of "
                f"{list(blocks.group_sizes)} blocks need {first_block} and {first_chunk}"
            )
        return block_rows, store_rows

    def _transfer(self, job_id: int, copies: list[_Copy], stores: bool) -> TransferResult:
        """In the thread: do the copies of one job."""
        start = time.perf_counter()
        try:
            size = sum(self._copy(copy, stores) for copy in copies)
        except Exception:
            logger.exception("The transfer of job %d failed", job_id)
            return TransferResult(job_id, success=False)
        time.sleep(max(0.0, self._transfer_seconds - (time.perf_counter() - start)))
        return TransferResult(job_id, success=True, transfer_size=size, transfer_time=time.perf_counter() - start)

    def _copy(self, copy: _Copy, stores: bool) -> int:
        tensor, block_rows, store_rows, size = copy
        cache, store = self._caches[tensor][:, :size], self._store[tensor][:, :size]
        if stores:
            store[store_rows] = cache[block_rows]
        else:
            cache[block_rows] = store[store_rows]
        return len(block_rows) * size
