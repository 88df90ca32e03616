"""What the roles and the two engines of ProducerConsumerConnector tell each other.

Two routes. Within an engine: frozen dataclasses, scheduler role to worker role, in each step's metadata. Between
engines: a dictionary of JSON values that the producer returns when a prefill ends and that the front-end passes to the
consumer with the decode request. The consumer reads that dictionary with care: it has been through strangers' hands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata, KVConnectorMetadata

if TYPE_CHECKING:
    from vllm.v1.request import Request


@dataclass(frozen=True)
class WorkerAddress(KVConnectorHandshakeMetadata):
    """Where a producer's worker listens; collected by vLLM at start and given to the scheduler role."""

    host: str
    port: int


@dataclass(frozen=True)
class HandOff:
    """One prefill that a producer keeps for a consumer.

    ``transfer_id`` names it on both sides: the request's ids on the two engines differ. ``ports`` are those of the
    producer's workers, by rank. ``block_ids`` cover ``num_tokens`` tokens. ``kv`` and ``prompt`` are digests of
    everything that determines the content: the consumer takes nothing that it would have computed differently.
    """

    transfer_id: str
    host: str
    ports: tuple[int, ...]
    block_ids: tuple[int, ...]
    num_tokens: int
    kv: str
    prompt: str

    def params(self, engine_id: str, request_id: str) -> dict[str, Any]:
        """The ``kv_transfer_params`` that the front-end passes on, by the names that vLLM's own connectors use."""
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": engine_id,
            "remote_request_id": request_id,
            "remote_transfer_id": self.transfer_id,
            "remote_host": self.host,
            "remote_ports": list(self.ports),
            "remote_block_ids": list(self.block_ids),
            "remote_num_tokens": self.num_tokens,
            "remote_kv": self.kv,
            "remote_prompt": self.prompt,
        }


def read_hand_off(params: Mapping[str, Any] | None) -> HandOff | None:
    """The hand-off that a decode request names; None if it names none, or not in our words."""
    if not params or not params.get("do_remote_prefill"):
        return None
    ports, blocks = params.get("remote_ports"), params.get("remote_block_ids")
    texts = [params.get(f"remote_{name}") for name in ("transfer_id", "host", "kv", "prompt")]
    tokens = params.get("remote_num_tokens")
    if not (_are_ints(ports) and _are_ints(blocks) and _are_ints([tokens]) and all(isinstance(t, str) for t in texts)):
        return None
    transfer_id, host, kv, prompt = map(str, texts)
    return HandOff(transfer_id, host, tuple(ports or ()), tuple(blocks or ()), int(tokens or 0), kv, prompt)


def _are_ints(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in values)


def prompt_digest(request: Request, num_tokens: int) -> str | None:
    """Names the first ``num_tokens`` tokens and what else of the request changes their KV.

    None where token ids don't tell: prompt embeddings and multimodal items are left to other connectors.
    """
    if request.prompt_token_ids is None or getattr(request, "mm_features", None):
        return None
    lora = None if request.lora_request is None else request.lora_request.lora_name
    tokens = list(request.prompt_token_ids[:num_tokens])
    return hashlib.sha256(repr((tokens, lora, request.cache_salt or None)).encode()).hexdigest()


@dataclass(frozen=True)
class Grant:
    """The producer's scheduler role lets its workers hand out ``block_ids`` of a request that has finished."""

    transfer_id: str
    request_id: str
    block_ids: tuple[int, ...]


@dataclass(frozen=True)
class Pull:
    """One load: the producer's blocks ``remote`` into our blocks ``local``, pair by pair."""

    pull_id: int
    request_id: str
    hand_off: HandOff
    remote: tuple[int, ...]
    local: tuple[int, ...]


@dataclass(frozen=True)
class PairMetadata(KVConnectorMetadata):
    """What is new in one engine step, the same for all ranks.

    ``cancels`` are pulls that nobody waits for any more; ``releases`` are hand-offs that nobody will fetch.
    """

    grants: Sequence[Grant] = ()
    pulls: Sequence[Pull] = ()
    cancels: frozenset[int] = frozenset()
    releases: Sequence[HandOff] = ()
