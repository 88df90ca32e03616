"""Connectors each of which answers one hook with something that the contract does not allow, made from a table."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from kvconform.reference.file_store import FileStoreConnector

#: Hook and answer, by class name. Some of it vLLM shrugs off, most of it ends an engine.
ANSWERS: dict[str, tuple[str, Any]] = {
    "ErrorsAreANumber": ("get_block_ids_with_load_errors", 5),
    "ErrorsAreAList": ("get_block_ids_with_load_errors", ["x", 3]),
    "ErrorsAreMixed": ("get_block_ids_with_load_errors", {"x", 3}),
    "ErrorsAreLists": ("get_block_ids_with_load_errors", [[1]]),
    "SentIsANumber": ("get_finished", (5, None)),
    "ReceivedIsANumber": ("get_finished", (None, 7)),
    "SentIsMixed": ("get_finished", ({1, "a"}, None)),
    "ReceivedIsMixed": ("get_finished", (None, {1, "a"})),
    "SentAreLists": ("get_finished", ([["a"]], None)),
    "ReceivedAreLists": ("get_finished", (None, [["a"]])),
    "FinishedIsANumber": ("get_finished", 5),
    "FinishedIsNone": ("get_finished", None),
    "ReceivedIsUnknown": ("get_finished", (None, {"nobody"})),
    "ResultsAreANumber": ("get_transfer_results", 5),
    "HandshakeIsANumber": ("get_handshake_metadata", 7),
    "WorkerMetadataIsANumber": ("build_connector_worker_meta", 7),
    "StatisticsAreANumber": ("get_kv_connector_stats", 7),
    "StatisticsAreADict": ("get_kv_connector_stats", {"a": object()}),
    "WorkerEventsAreANumber": ("get_kv_connector_kv_cache_events", 7),
    "EventsAreANumber": ("take_events", 5),
    "EventsAreNumbers": ("take_events", [5]),
    "MatchIsText": ("get_num_new_matched_tokens", ("3", False)),
    "MatchIsNotANumber": ("get_num_new_matched_tokens", (float("nan"), False)),
    "MatchIsAFloat": ("get_num_new_matched_tokens", (16.0, False)),
    "MatchIsHuge": ("get_num_new_matched_tokens", (1 << 40, False)),
    "MatchIsNegative": ("get_num_new_matched_tokens", (-5, False)),
    "MatchIsNoPair": ("get_num_new_matched_tokens", 7),
    "MatchIsABool": ("get_num_new_matched_tokens", (True, False)),
    "EndIsANumber": ("request_finished", 5),
    "ParamsAreANumber": ("request_finished", (False, 7)),
    "ParamsHoldAnObject": ("request_finished", (False, {1: object()})),
    "HoldIsText": ("request_finished", ("yes", {"a": float("nan")})),
    "MetadataIsNone": ("build_connector_meta", None),
    "MetadataIsANumber": ("build_connector_meta", 7),
    "MetadataIsAFile": ("build_connector_meta", open(os.devnull)),  # noqa: PTH123, SIM115
    "PushWorkIsText": ("has_pending_push_work", "x"),
    "CountIsText": ("get_finished_count", "x"),
    "CountIsNegative": ("get_finished_count", -1),
    "RegistrationAnswers": ("register_kv_caches", 3),
    "ResetIsText": ("reset_cache", "x"),
    "SourcesAreANumber": ("get_external_cache_hit_sources", 7),
    "PoolIsANumber": ("get_mem_pool_context", 7),
    "LoadAnswers": ("start_load_kv", 7),
    "SaveAnswers": ("wait_for_save", 7),
}


def _answering(name: str, hook: str, answer: Any) -> type:
    def answers(self: Any, *args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(Exception):
            getattr(super(made, self), hook)(*args, **kwargs)
        return answer

    made = type(name, (FileStoreConnector,), {hook: answers, "__module__": __name__})
    return made


globals().update({name: _answering(name, *told) for name, told in ANSWERS.items()})
