"""A connector's step in model runner V1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.base import KVConnectorBase
from vllm.forward_context import get_forward_context, set_forward_context
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput


class KVConnectorModelRunnerMixin:
    """Used around a forward, or instead of one."""

    @staticmethod
    def kv_connector_no_forward(scheduler_output: Any, vllm_config: Any) -> ModelRunnerOutput:
        """A step without tokens."""
        step = KVConnectorModelRunnerMixin._get_kv_connector_output(scheduler_output)
        with set_forward_context(None, vllm_config), step as output:
            pass
        return ModelRunnerOutput.with_kv_conn_output_only(output)

    @staticmethod
    def maybe_get_kv_connector_output(
        scheduler_output: Any, defer_finalize: bool = False
    ) -> AbstractContextManager[KVConnectorOutput | None]:
        """A step with tokens, of which the forward is the body."""
        if not has_kv_transfer_group():
            return nullcontext()
        return KVConnectorModelRunnerMixin._get_kv_connector_output(scheduler_output, defer_finalize)

    @staticmethod
    def finalize_kv_connector() -> None:
        """The end of a step that was put off."""
        if has_kv_transfer_group():
            connector = get_kv_transfer_group()
            connector.wait_for_save()
            connector.clear_connector_metadata()

    @staticmethod
    @contextmanager
    def _get_kv_connector_output(scheduler_output: Any, defer_finalize: bool = False) -> Iterator[KVConnectorOutput]:
        connector, output = get_kv_transfer_group(), KVConnectorOutput()
        assert isinstance(connector, KVConnectorBase)
        assert scheduler_output.kv_connector_metadata is not None
        connector.bind_connector_metadata(scheduler_output.kv_connector_metadata)
        # Only loads that this very forward reads have to begin before it.
        before = scheduler_output.has_sync_kv_loads
        if before:
            connector.start_load_kv(get_forward_context())
        try:
            yield output
        finally:
            if not before:
                connector.start_load_kv(get_forward_context())
            if not defer_finalize:
                connector.wait_for_save()
            results = connector.get_transfer_results(scheduler_output.finished_req_ids)
            output.finished_sending = results.finished_sending
            output.finished_recving = results.finished_recving
            output.failed_recving = results.failed_recving
            output.invalid_block_ids = connector.get_block_ids_with_load_errors()
            output.kv_connector_stats = connector.get_kv_connector_stats()
            output.kv_cache_events = connector.get_kv_connector_kv_cache_events()
            output.kv_connector_worker_meta = connector.build_connector_worker_meta()
            if not defer_finalize:
                connector.clear_connector_metadata()
