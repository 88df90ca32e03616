"""What several workers report becomes one report; blocks are copied between tensors; what connectors look up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch

from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

EngineId = str
BlockIds = tuple[list[int], ...] | list[list[int]]


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


def yield_req_data(scheduler_output: Any) -> Iterator[tuple[str, tuple[list[int], ...] | None, bool]]:
    """Request, its new blocks per group, and whether it was preempted; new requests first."""
    for new in scheduler_output.scheduled_new_reqs:
        yield new.req_id, new.block_ids, False
    cached = scheduler_output.scheduled_cached_reqs
    for request_id, blocks in zip(cached.req_ids, cached.new_block_ids, strict=False):
        yield request_id, blocks, request_id in cached.resumed_req_ids


def get_current_attn_backends(vllm_config: Any, layer_names: list[str] | None = None) -> list[type[AttentionBackend]]:
    """The kernels of these layers, or of all, each once."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    layers = get_layers_from_vllm_config(vllm_config, AttentionLayerBase, layer_names)
    found = {backend.full_cls_name(): backend for backend in (layer.get_attn_backend() for layer in layers.values())}
    return list(found.values()) or [CPUAttentionBackend]


def get_current_attn_backend(vllm_config: Any, layer_names: list[str] | None = None) -> type[AttentionBackend]:
    """The first of them."""
    return get_current_attn_backends(vllm_config, layer_names)[0]


def get_current_attn_backends_and_specs(
    vllm_config: Any, kv_cache_config: Any, fallback: list[type[AttentionBackend]]
) -> tuple[list[type[AttentionBackend]], list[Any]]:
    """Kernels with the specs that they serve, of all layers that connectors move; ``fallback`` if there are none."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.v1.kv_cache_interface import AttentionSpec

    pairs: dict[tuple[type[AttentionBackend], Any], None] = {}
    for group in kv_cache_config.transfer_groups:
        specs = getattr(group.kv_cache_spec, "kv_cache_specs", {})
        for name, layer in get_layers_from_vllm_config(vllm_config, AttentionLayerBase, group.layer_names).items():
            spec = specs.get(name, group.kv_cache_spec)
            pairs[layer.get_attn_backend(), spec if isinstance(spec, AttentionSpec) else None] = None
    if not pairs:
        return fallback, [None] * len(fallback)
    return [backend for backend, _ in pairs], [spec for _, spec in pairs]
