"""What several workers report becomes one report; blocks are copied between tensors."""

from __future__ import annotations

from typing import Any, Literal

import torch

from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput


def get_kv_connector_cache_layout(vllm_config: Any = None) -> str | None:
    """The layout that the connector asks for."""
    from vllm.config import get_current_vllm_config_or_none
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    config = get_current_vllm_config_or_none() if vllm_config is None else vllm_config
    if config is None or config.kv_transfer_config is None:
        return None
    found = KVConnectorFactory.get_connector_class(config.kv_transfer_config)
    layout: str | None = found.get_required_kvcache_layout(config)
    return layout


class KVOutputAggregator:
    """A transfer is complete once as many workers as expected have said so."""

    def __init__(self, expected_finished_count: int) -> None:
        self._expected_finished_count = expected_finished_count
        self._receiving: dict[str, int] = {}
        self._sending: dict[str, int] = {}
        self._failed: set[str] = set()

    @classmethod
    def from_connector(cls, connector: Any, world_size: int) -> KVOutputAggregator:
        """As many as the connector says, or all."""
        return cls(connector.get_finished_count() or world_size)

    def aggregate(self, outputs: list[ModelRunnerOutput | None], output_rank: int = 0) -> ModelRunnerOutput | None:
        """The output of one rank, with the reports of all in it."""
        chosen = outputs[output_rank]
        if not chosen:
            return None
        merged = KVConnectorOutput(set(), set())
        for output in outputs:
            assert output is not None
            report = output.kv_connector_output
            if not report:
                continue
            if report.expected_finished_count > 0:
                self._expected_finished_count = report.expected_finished_count
            merged.finished_sending = self._complete(report.finished_sending, self._sending, merged.finished_sending)
            merged.finished_recving = self._complete(report.finished_recving, self._receiving, merged.finished_recving)
            merged.invalid_block_ids |= report.invalid_block_ids
            self._failed |= report.failed_recving
            _merge_objects(merged, report)
        arrived = merged.finished_recving or set()
        merged.failed_recving = self._failed & arrived
        self._failed -= merged.failed_recving
        chosen.kv_connector_output = KVConnectorOutput(
            finished_sending=merged.finished_sending or None,
            finished_recving=arrived or None,
            kv_connector_stats=merged.kv_connector_stats or None,
            kv_cache_events=merged.kv_cache_events or None,
            kv_connector_worker_meta=merged.kv_connector_worker_meta or None,
            invalid_block_ids=merged.invalid_block_ids,
            failed_recving=merged.failed_recving,
            expected_finished_count=self._expected_finished_count,
        )
        return chosen

    def _complete(self, told: set[str] | None, missing: dict[str, int], done: set[str] | None) -> set[str]:
        done = set() if done is None else done
        for request_id in told or ():
            missing[request_id] = missing.get(request_id, self._expected_finished_count) - 1
            if missing[request_id] == 0:
                done.add(request_id)
                del missing[request_id]
        return done


def _merge_objects(merged: KVConnectorOutput, report: KVConnectorOutput) -> None:
    """Statistics, metadata and events; the first worker's object takes in the others'."""
    stats, meta, events = report.kv_connector_stats, report.kv_connector_worker_meta, report.kv_cache_events
    if merged.kv_connector_stats is None:
        merged.kv_connector_stats = stats
    elif stats:
        assert isinstance(merged.kv_connector_stats, type(stats))
        merged.kv_connector_stats = merged.kv_connector_stats.aggregate(stats)
    if merged.kv_connector_worker_meta is None:
        merged.kv_connector_worker_meta = meta
    elif meta:
        merged.kv_connector_worker_meta = merged.kv_connector_worker_meta.aggregate(meta)
    if merged.kv_cache_events is None:
        merged.kv_cache_events = events
    elif events:
        assert isinstance(merged.kv_cache_events, type(events))
        merged.kv_cache_events.add_events(events.get_all_events())
        merged.kv_cache_events.increment_workers(1)


def copy_kv_blocks(
    src_kv_caches: dict[str, torch.Tensor],
    dst_kv_caches: dict[str, torch.Tensor],
    src_block_ids: list[int],
    dst_block_ids: list[int],
    direction: Literal["h2d", "d2h"],
) -> None:
    """Copy blocks of every layer; nothing if the lists are empty or do not match."""
    if not src_kv_caches or not dst_kv_caches or not src_block_ids or len(src_block_ids) != len(dst_block_ids):
        return
    for name, source in src_kv_caches.items():
        target = dst_kv_caches[name]
        blocks = source[torch.tensor(src_block_ids, device=source.device)]
        target[torch.tensor(dst_block_ids, device=target.device)] = blocks.to(target.device)
