"""Which connector, and what for."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from vllm.utils.hashing import safe_hash

KVProducer = Literal["kv_producer", "kv_both"]
KVConsumer = Literal["kv_consumer", "kv_both"]
KVRole = Literal[KVProducer, KVConsumer]


def kv_buffer_device_default_factory() -> str:
    """The device of this process."""
    from vllm.platforms import current_platform

    return current_platform.device_type


@dataclass
class KVTransferConfig:
    """A connector's configuration."""

    kv_connector: str | None = None
    engine_id: str | None = None
    kv_buffer_device: str = field(default_factory=kv_buffer_device_default_factory)
    kv_role: KVRole | None = None
    kv_port: int = 14579
    kv_connector_extra_config: dict[str, Any] = field(default_factory=dict)
    kv_connector_module_path: str | None = None
    enable_permute_local_kv: bool = False
    kv_load_failure_policy: Literal["recompute", "fail"] = "fail"

    def __post_init__(self) -> None:
        roles = get_args(KVRole)
        if self.engine_id is None:
            self.engine_id = str(uuid.uuid4())
        if self.kv_role is not None and self.kv_role not in roles:
            raise ValueError(f"Unsupported kv_role: {self.kv_role}. Supported roles are {roles}")
        if self.kv_connector is not None and self.kv_role is None:
            raise ValueError(f"Please specify kv_role when kv_connector is set, supported roles are {roles}")

    def compute_hash(self) -> str:
        """The model does not depend on it."""
        return str(safe_hash(b"[]", usedforsecurity=False).hexdigest())

    @property
    def is_kv_transfer_instance(self) -> bool:
        """Whether there is a connector."""
        return self.kv_connector is not None and self.kv_role in get_args(KVRole)

    @property
    def is_kv_producer(self) -> bool:
        """Whether it saves."""
        return self.kv_connector is not None and self.kv_role in get_args(KVProducer)

    @property
    def is_kv_consumer(self) -> bool:
        """Whether it loads."""
        return self.kv_connector is not None and self.kv_role in get_args(KVConsumer)

    def get_from_extra_config(self, key: str, default: Any) -> Any:
        """One of the connector's own options."""
        return self.kv_connector_extra_config.get(key, default)

    def has_connector(self, connector_name: str) -> bool:
        """Whether this is the connector, or one of several."""
        children = self.kv_connector_extra_config.get("connectors", [])
        several = self.kv_connector == "MultiConnector"
        return self.kv_connector == connector_name or (
            several and any(child.get("kv_connector") == connector_name for child in children)
        )
