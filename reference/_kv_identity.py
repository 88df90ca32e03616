"""What a stored block means beyond its block hash.

``Request.block_hashes`` chain the tokens and what vLLM mixes into them: LoRA adapter, multimodal items, cache salt and
prompt embeddings (vllm/v1/core/kv_cache_utils.py, generate_block_hash_extra_keys). Everything else that decides which
bytes a block holds, or how a kernel reads them, has to come from the connector. Leave one item out and two engines
share a directory whose files have the right size and the wrong contents; nothing would notice.

The rule for doubtful items: a needless difference costs a cold cache, a missing one costs wrong answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vllm

from ._compat import block_granularity, shared_hash_seed

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

# Raise when the meaning of a file changes: its name, its header or the order of its bytes.
FORMAT_VERSION = 1

_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})
# Entries of a Hugging Face config that describe its origin, not the model.
_CONFIG_NOISE = frozenset({"_name_or_path", "transformers_version", "_commit_hash"})


@dataclass(frozen=True)
class KVIdentity:
    """What all blocks of one engine have in common.

    ``description`` is plain JSON data, for people who wonder why two engines don't share. ``digest`` names it.
    ``shareable`` is False where no other engine life could ever use the blocks, see :func:`describe`.
    """

    description: Mapping[str, Any]
    digest: str
    shareable: bool


def describe(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> KVIdentity:
    """The identity of the KV that an engine with these configs computes.

    Only the scheduler role calls this, with the scheduler's KVCacheConfig, and sends the resulting directory to the
    workers: a worker sees its own pipeline stage and its own process, and two opinions on one key are a bug.
    The shards of one block are told apart by rank, in the file name.
    """
    cache_config = vllm_config.cache_config
    algorithm = cache_config.prefix_caching_hash_algo
    seed = shared_hash_seed(algorithm)
    # Scales computed from the first batch differ between engine lives, and quantised KV means nothing without them.
    scales_from_traffic = bool(getattr(cache_config, "calculate_kv_scales", False))
    block_size, hash_block_size = block_granularity(vllm_config, kv_cache_config)
    description = {
        "format": FORMAT_VERSION,
        # Releases change what goes into a block hash (0.31.0 did) and what kernels store in a page.
        "vllm": vllm.__version__,
        "model": _model(vllm_config),
        "draft_model": _draft_model(vllm_config),
        "kv_cache": {
            "dtype": str(cache_config.cache_dtype),
            "skipped_layers": sorted(map(str, getattr(cache_config, "kv_cache_dtype_skip_layers", ()))),
            # Files hold pages in logical order, but packed formats put scales where the layout wants them.
            "layout": str(kv_cache_config.kv_cache_layout or cache_config.kv_cache_layout),
            "block_size": block_size,
            "hash_block_size": hash_block_size,
            "groups": _groups(kv_cache_config),
        },
        "kernels": {
            "device": str(vllm_config.device_config.device_type),
            "attention_backend": str(vllm_config.attention_config.backend),
        },
        "parallel": _parallel(vllm_config),
        # The seed is hashed because vLLM keeps seeds of weak hashes secret.
        "block_hash": {"algorithm": algorithm, "seed": None if seed is None else _sha256(seed)},
    }
    return KVIdentity(
        description=description,
        digest=_sha256(json.dumps(description, sort_keys=True))[:32],
        shareable=seed is not None and not scales_from_traffic,
    )


def _model(vllm_config: VllmConfig) -> dict[str, Any]:
    model = vllm_config.model_config
    hf_config = {key: value for key, value in model.hf_config.to_dict().items() if key not in _CONFIG_NOISE}
    hf_text = json.dumps(hf_config, sort_keys=True, default=str)
    dummy_weights = str(vllm_config.load_config.load_format) == "dummy"
    return {
        "name": str(model.model),
        "revision": model.revision,
        "commit": getattr(model.hf_config, "_commit_hash", None),
        "weight_files": _weight_files(Path(model.model)),
        "dummy_weights_seed": model.seed if dummy_weights else None,
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        # Includes command-line overrides, such as another rope scaling.
        "hf_config": _sha256(hf_text),
        # Some rope variants choose their factors by the longest sequence the engine serves
        # (vllm/model_executor/layers/rotary_embedding/phi3_long_rope_scaled_rope.py).
        "max_model_len": model.max_model_len if "longrope" in hf_text else None,
    }


def _weight_files(folder: Path) -> str | None:
    """A fingerprint of the weight files of a local checkpoint, which has no revision; None for a hub name.

    Names, sizes and modification times: reading gigabytes of weights to name a cache would be absurd.
    """
    if not folder.is_dir():
        return None
    stats = {path.name: path.stat() for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES}
    return _sha256(json.dumps(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items())))


def _draft_model(vllm_config: VllmConfig) -> dict[str, Any] | None:
    """A draft model's layers can live in the same blocks as the target's."""
    speculative = vllm_config.speculative_config
    if speculative is None:
        return None
    names = ("method", "model", "revision", "quantization")
    return {name: str(getattr(speculative, name, None)) for name in names}


def _groups(kv_cache_config: KVCacheConfig) -> list[dict[str, Any]]:
    return [
        {
            "id": group_id,
            "layers": list(group.layer_names),
            "kind": type(spec).__name__,
            "spec": {spec_field.name: str(getattr(spec, spec_field.name)) for spec_field in fields(spec)},
        }
        for group_id, group in enumerate(kv_cache_config.kv_cache_groups)
        for spec in (group.kv_cache_spec,)
    ]


def _parallel(vllm_config: VllmConfig) -> dict[str, Any]:
    """World sizes: a rank alone does not say which heads, layers and tokens it holds."""
    parallel = vllm_config.parallel_config
    names = (
        "world_size",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "prefill_context_parallel_size",
        "decode_context_parallel_size",
        "dcp_kv_cache_interleave_size",
        "cp_kv_cache_interleave_size",
    )
    # A name that a release lacks is recorded as absent; the release itself is part of the identity.
    return {name: getattr(parallel, name, None) for name in names}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
