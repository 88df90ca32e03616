"""Building the scheduler as EngineCore.__init__ does, its connector's hooks recorded from the very first call on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from kvconform.engine.instrument import HookTap
from kvconform.engine.protocol import NotSimulated

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig


def demand_full_graphs(vllm_config: VllmConfig) -> None:
    """Full CUDA graphs are never run with a class that asks for piecewise ones (vllm/config/vllm.py, VllmConfig).

    Raises:
        NotSimulated: the class asks for them.
    """
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    transfer = vllm_config.kv_transfer_config
    assert transfer is not None
    connector_class: Any = KVConnectorFactory.get_connector_class(transfer)
    if connector_class.requires_piecewise_for_cudagraph(transfer.kv_connector_extra_config):
        raise NotSimulated("the class requires piecewise CUDA graphs, so vLLM never runs full ones with it")


def build_scheduler(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, recorder: HookTap) -> tuple[Any, int]:
    """vLLM's scheduler with a recorded SCHEDULER-role connector in it, and the tokens per block hash."""
    from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
    from vllm.v1.structured_output import StructuredOutputManager

    block_size, hash_block_size = resolve_kv_cache_block_sizes(kv_cache_config, vllm_config)
    scheduler_class: Any = vllm_config.scheduler_config.get_scheduler_cls()
    with _recorded_factory(recorder):
        scheduler = scheduler_class(
            vllm_config=vllm_config,
            kv_cache_config=kv_cache_config,
            structured_output_manager=StructuredOutputManager(vllm_config),
            block_size=block_size,
            hash_block_size=hash_block_size,
            log_stats=True,
        )
    return scheduler, hash_block_size


def _recorded_factory(recorder: HookTap) -> Any:
    """While the scheduler is built, whatever the factory makes is recorded from its first hook call on."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    create = KVConnectorFactory.create_connector

    def recorded(*args: Any, **kwargs: Any) -> Any:
        made = create(*args, **kwargs)
        recorder.attach(made, "scheduler")
        return made

    return patch.object(KVConnectorFactory, "create_connector", recorded)
