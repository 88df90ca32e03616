"""What workers report about a step."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import Any


@dataclass
class KVConnectorOutput:
    """The connector's part."""

    finished_sending: set[str] | None = None
    finished_recving: set[str] | None = None
    kv_connector_stats: Any = None
    kv_cache_events: Any = None
    kv_connector_worker_meta: Any = None
    invalid_block_ids: set[int] = field(default_factory=set)
    failed_recving: set[str] = field(default_factory=set)
    expected_finished_count: int = 0

    def is_empty(self) -> bool:
        """Whether there is nothing to report; an object that is false counts as nothing."""
        transfers = self.finished_sending or self.finished_recving or self.invalid_block_ids or self.failed_recving
        return not (transfers or self.kv_connector_stats or self.kv_cache_events or self.kv_connector_worker_meta)


@dataclass
class ModelRunnerOutput:
    """Tokens, and the connector's part."""

    req_ids: list[str]
    req_id_to_index: dict[str, int]
    sampled_token_ids: list[list[int]] = field(default_factory=list)
    logprobs: Any = None
    prompt_logprobs_dict: dict[str, Any] = field(default_factory=dict)
    prompt_token_id_logprobs_dict: dict[str, Any] = field(default_factory=dict)
    pooler_output: list[Any] | None = None
    kv_connector_output: KVConnectorOutput | None = None
    ec_connector_output: Any = None
    num_nans_in_logits: dict[str, int] | None = None
    cudagraph_stats: Any = None
    aux_output_connector_output: dict[str, Any] | None = None
    sampling_masks: Any = None

    @staticmethod
    def with_kv_conn_output_only(kv_connector_output: KVConnectorOutput | None) -> ModelRunnerOutput:
        """Of a step without tokens."""
        if kv_connector_output is None or kv_connector_output.is_empty():
            return EMPTY_MODEL_RUNNER_OUTPUT
        output = copy(EMPTY_MODEL_RUNNER_OUTPUT)
        output.kv_connector_output = kv_connector_output
        return output


EMPTY_MODEL_RUNNER_OUTPUT = ModelRunnerOutput(req_ids=[], req_id_to_index={})
