"""Connectors whose keys leave out what they should contain: the file store with one defect each.

The first half hashes requests itself, as connectors do that don't use vLLM's block hashes; the second half leaves
something out of the name of the engine's part of the store.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from own_keys import KeepsOwnKeys, NamesItsStore, OwnKeys

from kvconform.reference._compat import block_granularity
from kvconform.reference._file_store_worker import WorkerSide
from kvconform.reference.file_store import FileStoreConnector


class KeysByTokens(KeepsOwnKeys):
    """Token ids and nothing else (bug 112, UCM#1370; bug 113, vllm#53495)."""

    class Keys(OwnKeys):
        def extras(self, request: Any, end: int) -> Hashable:
            return None


class IgnoresSalts(KeepsOwnKeys):
    """The cache salt is no part of the key (bug 109, LMCache#2878)."""

    class Keys(OwnKeys):
        def extras(self, request: Any, end: int) -> Hashable:
            return self.adapter(request), self.items(request, end), self.embeds(request, end)


class IgnoresAdapters(KeepsOwnKeys):
    """The LoRA adapter is no part of the key (bugs 112 and 113)."""

    class Keys(OwnKeys):
        def adapter(self, request: Any) -> Hashable:
            return None


class NamesAdapters(KeepsOwnKeys):
    """An adapter is known by its name, also when the name stands for other weights (bug 115, vllm#30931)."""

    class Keys(OwnKeys):
        def adapter(self, request: Any) -> Hashable:
            return request.lora_request and request.lora_request.lora_name


class JoinsNames(KeepsOwnKeys):
    """Salt and adapter are joined without saying which is which (bug 109, R20: domain separation)."""

    class Keys(OwnKeys):
        def extras(self, request: Any, end: int) -> Hashable:
            name = request.lora_request.lora_name if request.lora_request else ""
            return name + (request.cache_salt or ""), self.items(request, end), self.embeds(request, end)


class IgnoresItems(KeepsOwnKeys):
    """Images share their placeholder tokens, and keys see nothing else of them (bug 110, LMCache#690)."""

    class Keys(OwnKeys):
        def items(self, request: Any, end: int) -> Hashable:
            return None


class IgnoresOffsets(KeepsOwnKeys):
    """Which items there are is known, not where (R20: position-aware)."""

    class Keys(OwnKeys):
        def items(self, request: Any, end: int) -> Hashable:
            return tuple(sorted(feature.identifier for feature in request.mm_features))


class BlocksOnTheirOwn(KeepsOwnKeys):
    """A block is known by its own tokens, whatever comes before them (R20: token chain)."""

    class Keys(OwnKeys):
        def tokens(self, request: Any, start: int, end: int) -> list[int]:
            return [start, *request.all_token_ids[start:end]]


class BeginningsOfBlocks(KeepsOwnKeys):
    """A block is known by its first tokens and by what comes before them (R20: token chain)."""

    class Keys(OwnKeys):
        def tokens(self, request: Any, start: int, end: int) -> list[int]:
            return list(request.all_token_ids[: (start + end) // 2])


class IgnoresEmbeddings(KeepsOwnKeys):
    """Prompts of embeddings are all zeros to it (bug 112, UCM#1370)."""

    class Keys(OwnKeys):
        def embeds(self, request: Any, end: int) -> Hashable:
            return None


class NeedsTokenIds(FileStoreConnector):
    """The match reads prompt_token_ids, which a prompt of embeddings does not have (MATCH-25)."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        if len(request.prompt_token_ids) < 16:
            return 0, False
        return super().get_num_new_matched_tokens(request, num_computed_tokens)


class NeedsPrefixCaching(FileStoreConnector):
    """Takes keys from the blocks, which have none with prefix caching switched off (R20)."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        planned = self._scheduler_side()._planned_loads.get(request.request_id, [])
        hashes = {block.block_id: block.block_hash for block in blocks.blocks[0]}
        for load in planned:
            assert hashes[load.block_id].startswith(load.block_hash), "the block is not cached"


# -- the engine's part of the store --


class IgnoresModel(NamesItsStore):
    """The model is no part of the name (R20)."""

    def leave_out(self, description: dict[str, Any]) -> None:
        del description["model"]


class IgnoresDtype(NamesItsStore):
    """Model name and sizes only: two formats of the same width are one to it (R20: resolved dtype)."""

    def leave_out(self, description: dict[str, Any]) -> None:
        description["model"] = description["model"]["name"]
        del description["kv_cache"]["groups"]

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        super().register_kv_caches({name: tensor.view(torch.float16) for name, tensor in kv_caches.items()})


class IgnoresLayout(NamesItsStore):
    """Stores pages as they lie in memory, and not how they lie (bug 118, vllm#55904)."""

    def leave_out(self, description: dict[str, Any]) -> None:
        del description["kv_cache"]["layout"]

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        super().register_kv_caches(kv_caches)
        pages = self._worker_side()._require_pages()
        for name, page in pages._pages.items():
            order = sorted(range(1, page.ndim), key=lambda axis: -page.stride(axis))
            pages._pages[name] = page.permute(0, *order)


class _ReadsWhatFits(WorkerSide):
    """Fills a block with the beginning of whatever is stored under its key."""

    def _read(self, metadata: Any, load: Any, row: torch.Tensor) -> bool:
        data = self._store.block_path(metadata.blocks, load.block_hash, self._rank).read_bytes()
        payload = data[36 + len(self._label(load.block_hash)) :][: len(row)].ljust(len(row), b"\0")
        row.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        return True


class IgnoresWorldSize(NamesItsStore):
    """A rank's part is known by the rank alone, not by how many there are (bug 119, vllm#55191).

    Nor by how many heads it has, which follows from that.
    """

    _worker_class = _ReadsWhatFits

    def leave_out(self, description: dict[str, Any]) -> None:
        del description["parallel"], description["kv_cache"]["groups"]

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if self._worker is not None:
            self._worker._world_size = 1


class IgnoresBlockSize(NamesItsStore):
    """Keys end where a block ends and don't say where it begins (bug 34, llm-d-kv-cache#658; R20: chunk size)."""

    _worker_class = _ReadsWhatFits

    def leave_out(self, description: dict[str, Any]) -> None:
        for name in ("block_size", "hash_block_size", "groups"):
            del description["kv_cache"][name]

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if self._scheduler is not None:
            self._scheduler._granularity = OwnKeys(*block_granularity(vllm_config, kv_cache_config))


# -- other processes --


class HashesWithPython(KeepsOwnKeys):
    """Keys are hash() of a tuple with None in it (bug 116, LMCache#1139 and vllm#51875; R20)."""

    class Keys(OwnKeys):
        def block_hash(self, request: Any, index: int) -> bytes:
            key = hash((super().block_hash(request, index).hex(), None))
            return key.to_bytes(8, "little", signed=True)
