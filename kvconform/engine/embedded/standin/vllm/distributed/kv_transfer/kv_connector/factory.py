"""From a configuration to a connector."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole, supports_hma
from vllm.utils.func_utils import supports_kw


class KVConnectorFactory:
    """Finds classes by registered name or by module, and builds them."""

    _registry: dict[str, Callable[[], Any]] = {}  # noqa: RUF012

    @classmethod
    def register_connector(cls, name: str, module_path: str, class_name: str) -> None:
        """Give a class a name; its module is imported when it is needed."""
        if name in cls._registry:
            raise ValueError(f"Connector '{name}' is already registered.")
        cls._registry[name] = lambda: getattr(importlib.import_module(module_path), class_name)

    @classmethod
    def create_connector(cls, config: Any, role: KVConnectorRole, kv_cache_config: Any) -> Any:
        """Build one role."""
        transfer = config.kv_transfer_config
        if transfer is None:
            raise ValueError("kv_transfer_config must be set to create a connector")
        found = cls.get_connector_class(transfer)
        if not config.scheduler_config.disable_hybrid_kv_cache_manager and not cls.supports_hma_config(transfer):
            raise ValueError(
                f"Connector {found.__name__} does not support HMA but HMA is enabled. "
                "Please set `--disable-hybrid-kv-cache-manager`."
            )
        return found(config, role, kv_cache_config)

    @classmethod
    def get_connector_class_by_name(cls, connector_name: str) -> Any:
        """The class that was given a name."""
        if connector_name not in cls._registry:
            raise ValueError(f"Connector '{connector_name}' is not registered.")
        return cls._registry[connector_name]()

    @classmethod
    def get_connector_class(cls, kv_transfer_config: Any) -> Any:
        """The class that a configuration names; a module goes before a registered name."""
        name, module_path = kv_transfer_config.kv_connector, kv_transfer_config.kv_connector_module_path
        if name is None:
            raise ValueError("Connector name is not set in KVTransferConfig")
        if module_path == "":
            raise ValueError("kv_connector_module_path cannot be an empty string.")
        if module_path is None:
            if name not in cls._registry:
                raise ValueError(f"Unsupported connector type: {name}")
            return cls._registry[name]()
        module = importlib.import_module(module_path)
        try:
            found = getattr(module, name)
        except AttributeError as error:
            raise AttributeError(f"Class {name} not found in {module_path}") from error
        if not supports_kw(found, "kv_cache_config"):
            raise ValueError(
                f"Connector {found.__name__} uses deprecated 2-argument constructor signature: kv_cache_config has to "
                "be its third argument, and has to be passed to super().__init__()."
            )
        return found

    @classmethod
    def supports_hma_config(cls, kv_transfer_config: Any) -> bool:
        """Whether the class deals with several KV cache groups."""
        return supports_hma(cls.get_connector_class(kv_transfer_config))


# vLLM's own connectors, which the stand-in does not have: asking for one says so.
for _name, _module in {
    "ExampleConnector": "example_connector",
    "ExampleHiddenStatesConnector": "example_hidden_states_connector",
    "LMCacheConnectorV1": "lmcache_connector",
    "LMCacheMPConnector": "lmcache_mp_connector",
    "NixlConnector": "nixl",
    "NixlPullConnector": "nixl",
    "NixlPushConnector": "nixl",
    "MultiConnector": "multi_connector",
    "HiSparseConnector": "hisparse.connector",
    "MoRIIOConnector": "moriio.moriio_connector",
    "OffloadingConnector": "offloading_connector",
    "DecodeBenchConnector": "decode_bench_connector",
    "MooncakeConnector": "mooncake.mooncake_connector",
    "MooncakeStoreConnector": "mooncake.store.connector",
    "FlexKVConnectorV1": "flexkv_connector",
    "SimpleCPUOffloadConnector": "simple_cpu_offload_connector",
    "HF3FSKVConnector": "hf3fs.hf3fs_connector",
}.items():
    KVConnectorFactory.register_connector(_name, f"vllm.distributed.kv_transfer.kv_connector.v1.{_module}", _name)
