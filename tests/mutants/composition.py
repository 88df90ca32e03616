"""Children of MultiConnector that mind their siblings' business."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata

from kvconform.reference._async_messages import LoadJob
from kvconform.reference.async_file_store import AsyncFileStoreConnector
from kvconform.reference.file_store import FileStoreConnector


class InsistsOnItsOffer(FileStoreConnector):
    """R5, R33: what it has offered it expects to be asked for."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._offers: dict[str, int] = {}

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        tokens, asynchronous = super().get_num_new_matched_tokens(request, num_computed_tokens)
        self._offers[request.request_id] = tokens
        return tokens, asynchronous

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        offer = self._offers.pop(request.request_id, 0)
        if num_external_tokens != offer:
            raise ValueError(f"{offer} tokens were offered for {request.request_id}, not {num_external_tokens}")
        super().update_state_after_alloc(request, blocks, num_external_tokens)


class EndsLoadsThatItNeverBegan(AsyncFileStoreConnector):
    """R13, R33: whatever it has offered becomes a job, one of no block if it was not chosen, and is reported."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._offers: set[str] = set()

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        tokens, asynchronous = super().get_num_new_matched_tokens(request, num_computed_tokens)
        if tokens:
            self._offers.add(request.request_id)
        return tokens, asynchronous

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        if request.request_id in self._offers and not num_external_tokens:
            side = self._scheduler_side()
            side._load_count += 1
            side._planned[request.request_id] = LoadJob(
                side._load_count, request.request_id, side._namespace.blocks, ()
            )
        self._offers.discard(request.request_id)


class SharesItsErrors(FileStoreConnector):
    """R33: failed blocks are collected in the class, of which MultiConnector has two instances."""

    _failed: ClassVar[set[int]] = set()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._failed.clear()
        super().start_load_kv(forward_context, **kwargs)

    def get_block_ids_with_load_errors(self) -> set[int]:
        self._failed.update(super().get_block_ids_with_load_errors())
        return set(self._failed)


class KnowsEveryLoad(AsyncFileStoreConnector):
    """vllm#43226, R33: looks up each request that was received among its own loads."""

    def update_connector_output(self, connector_output: Any) -> None:
        for request in connector_output.finished_recving or ():
            if request not in self._scheduler_side()._loads:
                raise KeyError(request)
        super().update_connector_output(connector_output)


@dataclass(frozen=True)
class Address(KVConnectorHandshakeMetadata):
    """Where a worker listens."""

    port: int


class ListensToEverybody(FileStoreConnector):
    """R33: whatever handshake metadata comes is an address."""

    def get_handshake_metadata(self) -> Address:
        return Address(7)

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Any]) -> None:
        self._ports = {rank: address.port for rank, address in metadata.items()}


class LooksOnce(FileStoreConnector):
    """R33, R1: a request that had no transfer parameters when it was matched has none later, it thinks."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._plain: set[str] = set()

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        if request.kv_transfer_params is None:
            self._plain.add(request.request_id)
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if request.request_id in self._plain and request.kv_transfer_params is not None:
            raise ValueError(f"{request.request_id} had no transfer parameters")
        super().update_state_after_alloc(request, blocks, num_external_tokens)
