"""Legal: keys and names of one's own making, which contain everything that vLLM's block hashes and the kit's contain.

Mutants leave something out of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable
from typing import Any

from kvconform.reference._compat import block_granularity
from kvconform.reference._file_store_scheduler import Granularity
from kvconform.reference._kv_identity import KVIdentity, describe
from kvconform.reference._store_namespace import StoreNamespace
from kvconform.reference.file_store import FileStoreConnector


class OwnKeys(Granularity):
    """Keys of everything up to the end of a block, made without block_hashes."""

    def block_hash(self, request: Any, index: int) -> bytes:
        start, end = index * self.block_tokens, (index + 1) * self.block_tokens
        parts = (self.tokens(request, start, end), self.extras(request, end))
        return hashlib.sha256(repr(parts).encode()).digest()

    def tokens(self, request: Any, start: int, end: int) -> list[int]:
        return list(request.all_token_ids[:end])

    def extras(self, request: Any, end: int) -> Hashable:
        adapter, salt = self.adapter(request), request.cache_salt or None
        return ("lora", adapter, "salt", salt, "items", self.items(request, end), "embeds", self.embeds(request, end))

    def adapter(self, request: Any) -> Hashable:
        return request.lora_request and (request.lora_request.lora_name, request.lora_request.lora_path)

    def items(self, request: Any, end: int) -> Hashable:
        features = [(feature.identifier, feature.mm_position.offset) for feature in request.mm_features]
        return tuple(feature for feature in features if feature[1] < end)

    def embeds(self, request: Any, end: int) -> Hashable:
        return None if request.prompt_embeds is None else request.prompt_embeds[:end].numpy().tobytes()


class KeepsOwnKeys(FileStoreConnector):
    """Doesn't use vLLM's block hashes."""

    Keys: type[Granularity] = OwnKeys

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if self._scheduler is not None:
            self._scheduler._granularity = self.Keys(*block_granularity(vllm_config, kv_cache_config))


class NamesItsStore(FileStoreConnector):
    """Makes the name of its part of the store itself."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if self._scheduler is not None:
            description = dict(describe(vllm_config, kv_cache_config).description)
            self.leave_out(description)
            digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
            identity = KVIdentity(description, digest, shareable=True)
            self._scheduler._namespace = StoreNamespace(self._scheduler._store.root, identity)

    def leave_out(self, description: dict[str, Any]) -> None:
        """For mutants: make the name say less."""
