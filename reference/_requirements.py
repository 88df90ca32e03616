"""What the reference connectors ask of their options and of the KV cache, and how they say so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.v1.kv_cache_interface import FullAttentionSpec, UniformTypeKVCacheSpecs

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

logger = init_logger(__name__)

_OPTIONS = frozenset({"path"})


def store_path(connector: str, extra_config: dict[str, Any]) -> Path:
    """The root of ``connector``'s store. Unknown options are ignored, aloud: they may be meant for another release."""
    unknown = sorted(set(extra_config) - _OPTIONS)
    if unknown:
        logger.warning("%s ignores the unknown options %s; it knows %s.", connector, unknown, sorted(_OPTIONS))
    path = extra_config.get("path")
    if not path or not isinstance(path, (str, os.PathLike)):
        raise ValueError(
            f"{connector} needs the directory of its store in kv_connector_extra_config['path'], not {path!r}."
        )
    root = Path(path).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise ValueError(f"kv_connector_extra_config['path'] of {connector} is {root}, which is no directory.")
    return root


def only_group(connector: str, kv_cache_config: KVCacheConfig) -> KVCacheGroupSpec:
    """``connector``'s KV cache group, if it is one whose blocks can be stored by prefix.

    Raises ValueError. A sliding window gives blocks back while the request runs, recurrent state is no function of one
    block, and in a non-causal layer KV depends on later tokens; each needs more than this connector does.
    """
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise ValueError(
            f"{connector} stores exactly one KV cache group, but this model has {len(groups)}. "
            "Disable the hybrid KV cache manager, or use a connector that supports several groups."
        )
    spec = groups[0].kv_cache_spec
    specs = list(spec.kv_cache_specs.values()) if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]
    for layer_spec in specs:
        if not isinstance(layer_spec, FullAttentionSpec) or getattr(layer_spec, "non_causal", False):
            raise ValueError(
                f"{connector} stores the KV of causal full attention, but this model has layers of kind {layer_spec}."
            )
    return groups[0]
