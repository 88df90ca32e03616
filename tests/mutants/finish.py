"""Connectors that get one thing wrong when a request ends."""

from __future__ import annotations

from typing import Any

import stepwise

from kvconform.reference.file_store import FileStoreConnector

Answer = tuple[bool, dict[str, Any] | None]


class ExpectsAFirstStep(FileStoreConnector):
    """vllm#56841, bugs 73 and 74 (R15): removes at the end what only the first step of a request puts there."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._seen: dict[str, int] = {}

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        self._seen.update(scheduler_output.num_scheduled_tokens)
        return super().build_connector_meta(scheduler_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> Answer:
        del self._seen[request.request_id]
        return super().request_finished(request, block_ids)


class AnswersWithABool(FileStoreConnector):
    """R25: the answer of an earlier interface."""

    def request_finished(self, request: Any, block_ids: list[int]) -> Any:
        return super().request_finished(request, block_ids)[0]


class AnswersWithThree(FileStoreConnector):
    """R25: one value too many."""

    def request_finished(self, request: Any, block_ids: list[int]) -> Any:
        return (*super().request_finished(request, block_ids), None)


class LetsBlocksGo(stepwise.SlowSaves):
    """vllm-ascend#13024, bugs 98 (R12): saves go on after the end of a request, and nothing keeps its blocks."""

    def request_finished(self, request: Any, block_ids: list[int]) -> Answer:
        for save in self._scheduler_side()._saves.values():
            save.fenced = save.fenced or save.request_id == request.request_id
        return super().request_finished(request, block_ids)


class ReleasesAtOnce(stepwise.SlowSaves):
    """R12, R14: holds the blocks, and reports them as sent while the saves still read them."""

    def request_finished(self, request: Any, block_ids: list[int]) -> Answer:
        held, params = super().request_finished(request, block_ids)
        scheduler = self._scheduler_side()
        if held:
            hold = scheduler._holds[-1]
            for save_id in hold.save_ids:
                scheduler._saves[save_id].fenced = True
            scheduler._holds[-1] = type(hold)(hold.request_id, frozenset())
        return held, params


class RemembersAborted(FileStoreConnector):
    """R15: what it keeps of a request goes with the last token, which an aborted one does not have."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._tokens: dict[str, int] = {}

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._tokens[request.request_id] = num_external_tokens
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    def request_finished(self, request: Any, block_ids: list[int]) -> Answer:
        if "ABORTED" not in request.status.name:
            del self._tokens[request.request_id]
        return super().request_finished(request, block_ids)


class RemembersUnasked(FileStoreConnector):
    """R15: what it notes of a new request goes with the first match, which some requests never get to."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._new: dict[str, int] = {}

    def on_new_request(self, request: Any) -> None:
        self._new[request.request_id] = request.num_tokens

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        self._new.pop(request.request_id, None)
        return super().get_num_new_matched_tokens(request, num_computed_tokens)
