"""The values of vLLM's configuration objects that the stand-in has in its table; run it to write the table anew."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parents[2] / "kvconform/engine/embedded/standin/vllm/config/values.json"

# What the kit gives them, and what depends on the machine.
_GIVEN = {
    "ModelConfig": {
        "model",
        "tokenizer",
        "served_model_name",
        "max_model_len",
        "seed",
        "dtype",
        "hf_config",
        "hf_text_config",
    },
    "CacheConfig": {"block_size", "enable_prefix_caching", "gpu_memory_utilization", "cache_dtype"},
    "SchedulerConfig": {
        "max_num_seqs",
        "max_num_batched_tokens",
        "async_scheduling",
        "enable_chunked_prefill",
        "disable_hybrid_kv_cache_manager",
        "max_num_encoder_input_tokens",
        "encoder_cache_size",
    },
    "KVTransferConfig": {
        "kv_connector",
        "kv_connector_module_path",
        "kv_role",
        "kv_connector_extra_config",
        "kv_load_failure_policy",
        "engine_id",
        "kv_buffer_device",
    },
    "ParallelConfig": {
        "tensor_parallel_size",
        "distributed_executor_backend",
        "world_size",
        "master_port",
        "data_parallel_rpc_port",
        "data_parallel_master_port",
    },
    "DeviceConfig": {"device", "device_type"},
    "VllmConfig": {"instance_id"},
}
UNKNOWN = {"unknown": True}


def plain(value: Any) -> Any:
    """The value as JSON, or UNKNOWN."""
    try:
        again = json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return UNKNOWN
    return again if again == value and type(value) in (type(None), bool, int, float, str, list, dict) else UNKNOWN


def default_of(field: Any) -> Any:
    """The default of a field of a pydantic dataclass; ``required`` if there is none."""
    default, factory = field.default, field.default_factory
    if type(default).__name__ == "FieldInfo":
        default, factory = default.default, default.default_factory or dataclasses.MISSING
        if type(default).__name__ == "PydanticUndefinedType":
            default = dataclasses.MISSING
    if factory is not dataclasses.MISSING:
        return plain(factory())
    return {"required": True} if default is dataclasses.MISSING else plain(default)


def describe(config: Any, classes: dict[str, Any]) -> None:
    """Add a configuration object and those in it to ``classes``."""
    name = type(config).__name__
    entry: dict[str, Any] = {"module": type(config).__module__, "fields": {}, "resolved": {}, "parts": {}}
    classes[name] = entry
    for field in dataclasses.fields(config):
        default, value = default_of(field), getattr(config, field.name, None)
        entry["fields"][field.name] = default
        if dataclasses.is_dataclass(value) and type(value).__module__.startswith("vllm.config"):
            entry["parts"][field.name] = type(value).__name__
            describe(value, classes)
        elif field.name not in _GIVEN.get(name, set()) and plain(value) not in (UNKNOWN, default):
            entry["resolved"][field.name] = plain(value)


def collect() -> dict[str, Any]:
    """The table, from the installed vLLM."""
    from kvconform.api import prepare
    from kvconform.engine.options import ConnectorSpec, EngineOptions
    from kvconform.engine.vllm_engine.configuration import build_vllm_config, ensure_parallel_state

    prepare("cpu")
    from vllm.config.kv_events import KVEventsConfig

    ensure_parallel_state()
    spec = ConnectorSpec("FileStoreConnector", "kvconform.reference.file_store", extra_config={"path": "store"})
    classes: dict[str, Any] = {}
    describe(build_vllm_config(EngineOptions(), spec), classes)
    describe(KVEventsConfig(), classes)
    return dict(sorted(classes.items()))


if __name__ == "__main__":
    TABLE.write_text(json.dumps(collect(), indent=1, sort_keys=False) + "\n")
