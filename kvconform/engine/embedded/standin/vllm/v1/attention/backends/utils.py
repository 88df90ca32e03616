"""Which layout a KV cache gets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import vllm.envs as envs
from vllm.distributed.kv_transfer.kv_connector.utils import get_kv_connector_cache_layout
from vllm.logger import init_logger
from vllm.v1.kv_cache_layout import KVCacheLayout, _layout_from_name

logger = init_logger(__name__)

NULL_BLOCK_ID = 0


def resolve_kv_cache_layout(
    vllm_config: Any, supported_layouts: list[list[str]], kv_cache_specs: Iterable[Any] | None = None
) -> KVCacheLayout:
    """What is set already, else what the environment or the connector wants, else the first that backends support."""
    config = vllm_config.cache_config
    if config.kv_cache_layout is not None:
        layout: KVCacheLayout = config.get_resolved_kv_cache_layout()
        return layout
    candidates = [_layout_from_name(name) for name in supported_layouts[0]]
    specs = tuple(kv_cache_specs or ())
    if len({(spec.num_heads, spec.num_states, spec.page_size_bytes) for spec in specs}) > 1:
        # Pages of different shapes can share bytes only if each is one run of them.
        candidates = [layout for layout in candidates if layout.is_block_compact]
        if not candidates:
            raise ValueError(
                f"Specs with mixed HNC shapes need a block-compact layout; there is none in {supported_layouts}."
            )
    names = ", ".join(layout.name for layout in candidates)
    chosen, wanted = candidates[0], get_kv_connector_cache_layout(vllm_config)
    if envs.VLLM_KV_CACHE_LAYOUT is not None:
        chosen = _layout_from_name(envs.VLLM_KV_CACHE_LAYOUT)
        if chosen not in candidates:
            raise ValueError(f"VLLM_KV_CACHE_LAYOUT={envs.VLLM_KV_CACHE_LAYOUT} is none of {names}.")
    elif wanted is not None:
        if _layout_from_name(wanted) in candidates:
            chosen = _layout_from_name(wanted)
        else:
            logger.warning_once("The connector's layout %s is none of %s: using %s.", wanted, names, chosen.name)
    config.kv_cache_layout = chosen.name
    return chosen
