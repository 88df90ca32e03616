"""The connector's hooks around a layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group, is_v1_kv_transfer_group
from vllm.model_executor.layers.attention.attention import get_attention_context


def maybe_transfer_kv_layer(func: Callable[..., Any]) -> Callable[..., Any]:
    """Wait for the layer's load before ``func``, and let it be saved after it; it has an argument ``layer_name``."""
    names = list(inspect.signature(func).parameters)
    if "layer_name" not in names:
        raise TypeError(f"{func.__name__} must have a 'layer_name' parameter")
    place = names.index("layer_name")

    @wraps(func)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        if not has_kv_transfer_group() or not is_v1_kv_transfer_group():
            return func(*args, **kwargs)
        name = args[place]
        metadata, _, kv_cache, _ = get_attention_context(name)
        connector = get_kv_transfer_group()
        if metadata is None or not connector.has_connector_metadata():
            return func(*args, **kwargs)
        connector.wait_for_layer_load(name)
        result = func(*args, **kwargs)
        connector.save_kv_layer(name, kv_cache, metadata)
        return result

    return hooked
