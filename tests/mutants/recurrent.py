"""Connectors that are wrong about recurrent layers; each is the hybrid file store with one defect."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from kvconform.reference import hybrid_file_store
from kvconform.reference._hybrid_groups import _GroupSide
from kvconform.reference.hybrid_file_store import HybridFileStoreConnector


class LeavesStatesOut(HybridFileStoreConnector):
    """Only the KV of attention layers is stored and loaded (vllm#53505, R32)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        found = hybrid_file_store.transferred_groups(kv_cache_config)
        attention = [group for group in found if not group.recurrent]
        with patch.object(hybrid_file_store, "transferred_groups", lambda _: attention):
            super().__init__(vllm_config, role, kv_cache_config)


class _ChangesStateLoads(HybridFileStoreConnector):
    """Plans the loads of recurrent groups in another way."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        for side in self._scheduler_side()._sides:
            planned = side._planned_loads.get(request.request_id)
            if side.group.recurrent and planned:
                side._planned_loads[request.request_id] = self._changed(side, request, planned)

    def _changed(self, side: _GroupSide, request: Any, planned: Any) -> Any:
        raise NotImplementedError


class LoadsStateOfPromptsEnd(_ChangesStateLoads):
    """A hit that leaves a block to compute gets the state behind that block (R32)."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        tokens, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        step = self._scheduler_side()._step
        return (tokens - step if tokens and tokens > step else 0), False

    def _changed(self, side: _GroupSide, request: Any, planned: Any) -> Any:
        local = side._requests[request.request_id].local_tokens
        # As many blocks as the store could have supplied.
        offered = self._scheduler_side().match(request, local)
        end = (local + offered) // side.group.block_tokens - 1
        return [replace(load, block_hash=side._granularity.block_hash(request, end)) for load in planned]


class RestoresStatesFromTheStartOnly(_ChangesStateLoads):
    """States come with loads of whole prefixes; behind a local hit, it thinks, they are there (vllm#53505, R32)."""

    def _changed(self, side: _GroupSide, request: Any, planned: Any) -> Any:
        return [] if side._requests[request.request_id].local_tokens else planned


class SavesStatesLater(HybridFileStoreConnector):
    """States are read some steps after they were offered, when their blocks may be others' (1CatAI#249, R32)."""

    DELAY = 12

    def wait_for_save(self) -> None:
        waiting = self.__dict__.setdefault("_waiting", deque())
        waiting.append(self._step_metadata().groups)
        late = waiting.popleft() if len(waiting) > self.DELAY else None
        for index, (group, worker) in enumerate(zip(self._groups, self._worker_sides(), strict=True)):
            if not group.recurrent:
                worker.save(waiting[-1][index])
                continue
            worker._unfinished = None
            if late is not None:
                worker.save(late[index])


class SavesFirstState(HybridFileStoreConnector):
    """A page is taken for the first of the layer's states, as in the lists of earlier releases (R21)."""

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        own = dict(kv_caches)
        for group in self._kv_cache_config.kv_cache_groups:
            spec = group.kv_cache_spec
            if hasattr(spec, "shapes"):
                first = torch.empty(spec.shapes[0], dtype=spec.dtypes[0]).nbytes
                # Of a layer with a single state, the half that its convolution would be.
                size = first if len(spec.shapes) > 1 else first // 2
                own |= {name: kv_caches[name][..., :size] for name in group.layer_names}
        super().register_kv_caches(own)
