"""A connector's step in model runner V2."""

from __future__ import annotations

from typing import Any

import torch

from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group, kv_transfer_state
from vllm.distributed.kv_transfer.kv_connector.utils import copy_kv_blocks
from vllm.forward_context import get_forward_context, is_forward_context_available, set_forward_context
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, KVConnectorOutput, ModelRunnerOutput


class KVConnector:
    """Where there is no connector."""

    def pre_forward(
        self, scheduler_output: Any, input_batch: Any = None, attn_metadata: dict[str, Any] | None = None
    ) -> None:
        """A step begins."""

    def finish_forward(self) -> None:
        """The model has read what it needed."""

    def post_forward(self, finished_req_ids: set[str]) -> KVConnectorOutput | None:
        """The step is over."""
        return None

    def no_forward(self, scheduler_output: Any) -> ModelRunnerOutput:
        """A step without tokens."""
        return EMPTY_MODEL_RUNNER_OUTPUT

    def set_disabled(self, disabled: bool) -> None:
        """A forward without the connector begins or ends."""

    def reset_capture_state(self) -> None:
        """CUDA graphs have been captured."""


class ActiveKVConnector(KVConnector):
    """Where there is one."""

    def __init__(self, vllm_config: Any, kv_caches_dict: dict[str, torch.Tensor]) -> None:
        self.vllm_config = vllm_config
        self.kv_connector = get_kv_transfer_group()
        self.kv_connector.register_kv_caches(kv_caches_dict)
        self.kv_connector.set_host_xfer_buffer_ops(copy_kv_blocks)
        # Arguments of a load that has not begun.
        self._waiting: dict[str, Any] | None = None
        self._disabled = False

    def pre_forward(
        self, scheduler_output: Any, input_batch: Any = None, attn_metadata: dict[str, Any] | None = None
    ) -> None:
        """Orders are handed out; loads that this very forward reads begin."""
        if self._disabled:
            return
        metadata = scheduler_output.kv_connector_metadata
        assert metadata is not None
        self.kv_connector.handle_preemptions(metadata)
        self.kv_connector.bind_connector_metadata(metadata)
        self._waiting = {}
        if input_batch is not None:
            self._waiting = {
                "scheduler_output": scheduler_output,
                "request_state_indices": input_batch.idx_mapping,
                "request_ids": input_batch.req_ids,
                "num_tokens": input_batch.num_tokens,
            }
            if attn_metadata is not None:
                self._waiting["attn_metadata"] = attn_metadata
        if scheduler_output.has_sync_kv_loads:
            self._load()

    def _load(self) -> None:
        arguments, self._waiting = self._waiting, None
        assert arguments is not None
        if is_forward_context_available():
            self.kv_connector.start_load_kv(get_forward_context(), **arguments)
            return
        with set_forward_context(None, self.vllm_config):
            self.kv_connector.start_load_kv(get_forward_context(), **arguments)

    def finish_forward(self) -> None:
        """Passed on."""
        if not self._disabled:
            self.kv_connector.finish_forward()

    def reset_capture_state(self) -> None:
        """Passed on."""
        self.kv_connector.reset_capture_state()

    def post_forward(self, finished_req_ids: set[str]) -> KVConnectorOutput | None:
        """Other loads begin, saves end, and everything is reported."""
        if self._disabled:
            return None
        if self._waiting is not None:
            self._load()
        connector = self.kv_connector
        connector.wait_for_save()
        results = connector.get_transfer_results(finished_req_ids)
        output = KVConnectorOutput(results.finished_sending or None, results.finished_recving or None)
        output.failed_recving = results.failed_recving
        output.invalid_block_ids = connector.get_block_ids_with_load_errors()
        output.kv_connector_stats = connector.get_kv_connector_stats()
        output.kv_cache_events = connector.get_kv_connector_kv_cache_events()
        output.kv_connector_worker_meta = connector.build_connector_worker_meta()
        connector.clear_connector_metadata()
        return output

    def no_forward(self, scheduler_output: Any) -> ModelRunnerOutput:
        """A step without tokens."""
        if self._disabled:
            return EMPTY_MODEL_RUNNER_OUTPUT
        self.pre_forward(scheduler_output)
        self.finish_forward()
        return ModelRunnerOutput.with_kv_conn_output_only(self.post_forward(scheduler_output.finished_req_ids))

    def set_disabled(self, disabled: bool) -> None:
        """The slot is empty meanwhile, so that layers call no hooks."""
        kv_transfer_state._KV_CONNECTOR_AGENT = None if disabled else self.kv_connector
        self._disabled = disabled


def get_kv_connector(vllm_config: Any, kv_caches_dict: dict[str, torch.Tensor]) -> KVConnector:
    """The one in the slot."""
    return ActiveKVConnector(vllm_config, kv_caches_dict) if has_kv_transfer_group() else KVConnector()
