"""What a layer looks up in the forward context."""

from __future__ import annotations

from typing import Any

from vllm.forward_context import get_forward_context


def get_attention_context(layer_name: str) -> tuple[Any, Any, Any, Any]:
    """The metadata of a layer, the layer, its tensor, and the slots of the tokens."""
    context = get_forward_context()
    metadata = context.attn_metadata[0] if isinstance(context.attn_metadata, list) else context.attn_metadata
    layer = context.no_compile_layers[layer_name]
    own = metadata[layer_name] if isinstance(metadata, dict) else metadata
    return own, layer, layer.kv_cache, context.slot_mapping.get(layer_name)
