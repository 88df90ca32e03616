"""What the two roles of AsyncFileStoreConnector tell each other.

Everything that is under way has a number of its own: a transfer may outlive the request that started it, and the id of
that request may be used again. Plain frozen dataclasses, for the reasons given in ``_file_store_messages``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from ._file_store_messages import BlockLoad, BlockSave


@dataclass(frozen=True)
class LoadJob:
    """Everything that one admission of a request waits for; ``blocks`` is the directory, relative to the root."""

    load_id: int
    request_id: str
    blocks: str
    loads: tuple[BlockLoad, ...]


@dataclass(frozen=True)
class Hold:
    """``request_id`` has finished, and its blocks stay until every rank is done with ``save_ids``."""

    request_id: str
    save_ids: frozenset[int]


@dataclass(frozen=True)
class AsyncStoreMetadata(KVConnectorMetadata):
    """What is new in one engine step, the same for all ranks.

    ``fences`` are saves whose blocks this step hands to somebody else: they must have left the KV cache when
    ``handle_preemptions`` returns. ``cancels`` are loads that nobody waits for any more.
    """

    staging: str
    loads: tuple[LoadJob, ...] = ()
    saves: tuple[BlockSave, ...] = ()
    fences: frozenset[int] = frozenset()
    cancels: frozenset[int] = frozenset()
    holds: tuple[Hold, ...] = ()


@dataclass(frozen=True)
class SaveVotes:
    """``votes`` ranks are done with a save; ``failures`` of them could not write their part."""

    votes: int
    failures: int = 0

    def merged(self, other: SaveVotes) -> SaveVotes:
        return SaveVotes(self.votes + other.votes, self.failures + other.failures)


@dataclass(frozen=True)
class AsyncStoreReport(KVConnectorWorkerMetadata):
    """Saves that have ended since the last report; vLLM merges the reports of all ranks."""

    saves: dict[int, SaveVotes] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> AsyncStoreReport:
        assert isinstance(other, AsyncStoreReport)
        merged = dict(self.saves)
        for save_id, votes in other.saves.items():
            merged[save_id] = merged[save_id].merged(votes) if save_id in merged else votes
        return AsyncStoreReport(merged)
