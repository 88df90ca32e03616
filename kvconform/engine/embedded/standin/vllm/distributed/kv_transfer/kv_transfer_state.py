"""The slot that holds the connector of a worker process."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.base import KVConnectorBaseType
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorBase_V1, KVConnectorRole

_KV_CONNECTOR_AGENT: Any = None


def get_kv_transfer_group() -> KVConnectorBaseType:
    """The connector; there has to be one."""
    assert _KV_CONNECTOR_AGENT is not None, "there is no connector in this process"
    agent: KVConnectorBaseType = _KV_CONNECTOR_AGENT
    return agent


def has_kv_transfer_group() -> bool:
    """Whether there is one."""
    return _KV_CONNECTOR_AGENT is not None


def is_v1_kv_transfer_group(connector: Any = None) -> bool:
    """Whether a connector, or the one in the slot, is of this API."""
    return isinstance(_KV_CONNECTOR_AGENT if connector is None else connector, KVConnectorBase_V1)


def ensure_kv_transfer_initialized(vllm_config: Any, kv_cache_config: Any) -> None:
    """Build the worker role if the slot is empty; before that the ranks agree on the engine id."""
    from vllm.distributed.parallel_state import get_tp_group

    global _KV_CONNECTOR_AGENT
    transfer = vllm_config.kv_transfer_config
    if _KV_CONNECTOR_AGENT is None and transfer is not None and transfer.is_kv_transfer_instance:
        transfer.engine_id = get_tp_group().broadcast_object(transfer.engine_id, src=0)
        _KV_CONNECTOR_AGENT = KVConnectorFactory.create_connector(
            config=vllm_config, role=KVConnectorRole.WORKER, kv_cache_config=kv_cache_config
        )


def ensure_kv_transfer_shutdown() -> None:
    """Shut it down and empty the slot."""
    global _KV_CONNECTOR_AGENT
    if _KV_CONNECTOR_AGENT is not None:
        _KV_CONNECTOR_AGENT.shutdown()
        _KV_CONNECTOR_AGENT = None
