"""What the two roles of FileStoreConnector tell each other.

They may live in different processes on different hosts. Plain frozen dataclasses of numbers, strings and bytes survive
every pickler and can't alias the state of either role.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata


@dataclass(frozen=True)
class BlockLoad:
    """Fill GPU block ``block_id`` with the stored block ``block_hash``."""

    block_id: int
    block_hash: bytes


@dataclass(frozen=True)
class BlockSave:
    """Stage GPU block ``block_id``, which this step's forward completes, under the attempt ``save_id``."""

    save_id: int
    block_id: int
    block_hash: bytes


@dataclass(frozen=True)
class FileStoreMetadata(KVConnectorMetadata):
    """The work of one engine step, the same for all ranks. ``step`` is unique within an engine life.

    ``blocks`` and ``staging`` are directories relative to the store's root.
    """

    step: int
    blocks: str
    staging: str
    loads: tuple[BlockLoad, ...] = ()
    saves: tuple[BlockSave, ...] = ()

    @property
    def has_work(self) -> bool:
        return bool(self.loads or self.saves)


@dataclass(frozen=True)
class StepResult:
    """``votes`` ranks have done a step's work; ``failed`` are the saves that at least one of them could not write."""

    votes: int
    failed: frozenset[int] = frozenset()

    def merged(self, other: StepResult) -> StepResult:
        return StepResult(self.votes + other.votes, self.failed | other.failed)


@dataclass(frozen=True)
class FileStoreReport(KVConnectorWorkerMetadata):
    """Results by step; vLLM merges the reports of all ranks before the scheduler role sees them.

    A report travels in the same KVConnectorOutput as the block ids that failed to load in that step, possibly reported
    by other ranks or by other children of a MultiConnector. That makes it the place to learn whether KV was good.
    """

    steps: dict[int, StepResult] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> FileStoreReport:
        assert isinstance(other, FileStoreReport)
        merged = dict(self.steps)
        for step, result in other.steps.items():
            merged[step] = merged[step].merged(result) if step in merged else result
        return FileStoreReport(merged)
