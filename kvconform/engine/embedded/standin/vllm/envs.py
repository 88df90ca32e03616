"""vLLM's environment variables, those that matter here."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

environment_variables: dict[str, Callable[[], Any]] = {
    "VLLM_HOST_IP": lambda: os.environ.get("VLLM_HOST_IP", ""),
    "VLLM_PORT": lambda: int(os.environ["VLLM_PORT"]) if "VLLM_PORT" in os.environ else None,
    "VLLM_LOGGING_LEVEL": lambda: os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper(),
    "VLLM_KV_CACHE_LAYOUT": lambda: os.environ.get("VLLM_KV_CACHE_LAYOUT"),
    "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": lambda: bool(
        int(os.environ.get("VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", "1"))
    ),
    "VLLM_USE_V2_MODEL_RUNNER": lambda: os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "0") == "1",
    "VLLM_RPC_BASE_PATH": lambda: os.environ.get("VLLM_RPC_BASE_PATH", "/tmp"),
    "VLLM_PP_LAYER_PARTITION": lambda: os.environ.get("VLLM_PP_LAYER_PARTITION"),
    "VLLM_NIXL_SIDE_CHANNEL_HOST": lambda: os.environ.get("VLLM_NIXL_SIDE_CHANNEL_HOST", "localhost"),
    "VLLM_NIXL_SIDE_CHANNEL_PORT": lambda: int(os.environ.get("VLLM_NIXL_SIDE_CHANNEL_PORT", "5600")),
}


def __getattr__(name: str) -> Any:
    if name in environment_variables:
        return environment_variables[name]()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
