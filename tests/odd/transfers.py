"""Asynchronous connectors that do legal things in unusual ways."""

from __future__ import annotations

from typing import Any

import stepwise

from kvconform.reference._async_messages import Hold
from kvconform.reference.async_file_store import AsyncFileStoreConnector

Completions = tuple[set[str] | None, set[str] | None]


class AnswersLater(stepwise.Stepwise):
    """Puts the answer to the first three queries of a request off."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._asked: dict[str, int] = {}

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Any:
        asked = self._asked[request.request_id] = self._asked.get(request.request_id, 0) + 1
        if asked <= 3:
            return None, False
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def request_finished(self, request: Any, block_ids: list[int]) -> Any:
        self._asked.pop(request.request_id, None)
        return super().request_finished(request, block_ids)


class OnlySaves(stepwise.Stepwise):
    """Never offers anything."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        super().get_num_new_matched_tokens(request, num_computed_tokens)
        return 0, False


class OnlyLoads(stepwise.Stepwise):
    """Stores nothing, so it never has anything either."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if self._scheduler is not None:
            self._scheduler._may_save = False


class LoadsShortOnesAtOnce(AsyncFileStoreConnector):
    """One block is loaded before the forward, synchronously; more is loaded asynchronously."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        tokens, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return tokens, tokens > 16

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        metadata = super().build_connector_meta(scheduler_output)
        for job in metadata.loads:
            if len(job.loads) == 1:
                del self._scheduler_side()._loads[job.request_id]
        return metadata

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        worker = self._worker_side()
        for load_id, (load, future) in list(worker._loads.items()):
            if len(load.job.loads) == 1:
                future.result()
                worker._load_errors |= load.errors
                del worker._loads[load_id]


class ReportsInBulk(stepwise.Immediate):
    """Collects completions, and reports them in every fourth step only."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._waiting: tuple[set[str], set[str]] = (set(), set())
        self._steps = 0

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        for waiting, new in zip(self._waiting, super().get_finished(finished_req_ids), strict=True):
            waiting |= new or set()
        self._steps += 1
        if self._steps % 4:
            return None, None
        sent, received = self._waiting
        self._waiting = (set(), set())
        return sent, received


class NeverHolds(stepwise.SlowSaves):
    """Lets blocks go at the end of a request, and takes them out when somebody else gets them."""

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        super().request_finished(request, block_ids)
        self._scheduler_side()._holds.clear()
        return False, None


class AlwaysHolds(AsyncFileStoreConnector):
    """Holds every request that has blocks, at least for a step."""

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        scheduler = self._scheduler_side()
        loading = request.status.name == "FINISHED_ABORTED" and request.request_id in scheduler._loads
        held, params = super().request_finished(request, block_ids)
        if not held and block_ids and not loading:
            scheduler._holds.append(Hold(request.request_id, frozenset()))
            held = True
        return held, params


class CopiesFirst(stepwise.SlowSaves):
    """Copies the blocks within the step and writes the copy later, so that nobody has to wait for it."""

    def wait_for_save(self) -> None:
        super().wait_for_save()
        for save, _ in self._worker_side()._saves:
            save.take_out()

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        super().request_finished(request, block_ids)
        self._scheduler_side()._holds.clear()
        return False, None


class CoarseChunks(stepwise.Stepwise):
    """Offers only whole pairs of blocks."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        tokens, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        tokens = max(0, tokens - (num_computed_tokens + tokens) % 32)
        return tokens, tokens > 0


class ReturnsLists(stepwise.Stepwise):
    """Completions as lists, which vLLM takes from 0.30.0 on, and a number for the truth value of a hold."""

    def get_finished(self, finished_req_ids: set[str]) -> Any:
        sent, received = super().get_finished(finished_req_ids)
        return sorted(sent or ()), sorted(received or ())

    def request_finished(self, request: Any, block_ids: list[int]) -> Any:
        held, params = super().request_finished(request, block_ids)
        return int(held), params
