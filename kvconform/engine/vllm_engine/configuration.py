"""VllmConfig objects for simulated engines, and the process-wide state that vLLM needs once."""

from __future__ import annotations

import atexit
import copy
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvconform.engine.instrument import described
from kvconform.engine.model_names import name_suffix
from kvconform.engine.options import ConnectorSpec, EngineOptions
from kvconform.errors import EngineUnusableError
from kvconform.kvcache.shape import LARGEST_CHUNK, KVCacheShape

if TYPE_CHECKING:
    from vllm.config import ParallelConfig, SpeculativeConfig, VllmConfig
    from vllm.config.kv_transfer import KVTransferConfig

MAX_MODEL_LEN = 8 * LARGEST_CHUNK
# What the model on paper has besides the geometry, which is that of the scenario's KV cache, see model_geometry.
_MODEL_CONFIG = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "vocab_size": 50272,
    "hidden_size": 32,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_MODEL_LEN,
    "word_embed_proj_dim": 64,
    "do_layer_norm_before": True,
    "torch_dtype": "float16",
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
}


def _model_folder(model: str, models: str) -> str:
    """A folder with nothing but a config.json; its name is the model's name in the configuration.

    In ``models``, and with its name as a part of its own; else the same one in every process of a user: to a store, a
    model in another place may be another model.
    """
    text = json.dumps(_MODEL_CONFIG)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"kvconform-models-{os.getuid()}" / digest / model
    if models:
        folder = Path(models) / (model + name_suffix(models))
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.json"
    if not config.exists():
        # Other processes may be at it, too.
        new = folder / f"{os.getpid()}.new"
        new.write_text(text)
        new.replace(config)
    return str(folder)


def kv_transfer_config(connector: ConnectorSpec, policy: str, device: str = "cpu") -> KVTransferConfig:
    """vLLM's KVTransferConfig of the connector under test; the buffer device is the platform's, as by default."""
    from vllm.config.kv_transfer import KVTransferConfig

    return KVTransferConfig(
        kv_connector=connector.class_name,
        kv_connector_module_path=connector.module_path,
        kv_role=connector.kv_role,
        kv_connector_extra_config=copy.deepcopy(connector.extra_config),
        kv_load_failure_policy=policy,
        engine_id=connector.engine_id or str(uuid.uuid4()),
        kv_buffer_device=device,
    )


Geometry = tuple[tuple[str, int | str], ...]


def model_geometry(shape: KVCacheShape, workers: int = 1) -> Geometry:
    """What a model says in its config.json to have this KV cache, as far as such a file can say it.

    Connectors of models whose layers are all alike may size their pages by it (ModelConfig.get_num_kv_heads,
    get_head_size, get_num_layers and use_mla, vllm/config/model.py, 0.32.0). Of layers that differ it has the first
    that is no recurrent one.
    """
    attention = [layer for layer in shape.layers if layer.kind != "recurrent"]
    geometry: dict[str, int | str] = {"num_hidden_layers": sum(layer.count for layer in shape.layers)}
    if attention and attention[0].kind == "mla":
        rope = max(1, attention[0].head_size // 4)
        geometry |= {
            "model_type": "deepseek_v2",
            "kv_lora_rank": attention[0].head_size - rope,
            "qk_rope_head_dim": rope,
        }
    elif attention:
        heads, size = attention[0].num_kv_heads * workers, attention[0].head_size
        geometry |= {
            "num_key_value_heads": heads,
            # Two queries for each head of K and V, so that nobody can take one number for the other.
            "num_attention_heads": 2 * heads,
            "head_dim": size,
            "hidden_size": 2 * heads * size,
        }
    return tuple(geometry.items())


@lru_cache(maxsize=256)
def _model_config(model: str, max_model_len: int, seed: int, dtype: Any, geometry: Geometry, models: str) -> object:
    from vllm.config import ModelConfig

    return ModelConfig(
        model=_model_folder(model, models),
        skip_tokenizer_init=True,
        dtype=dtype,
        seed=seed,
        max_model_len=max_model_len,
        hf_overrides=dict(geometry),
    )


def _model_dtype(options: EngineOptions) -> str:
    """The dtype that a KV cache of cache_dtype "auto" follows; caches of raw bytes say nothing about it."""
    dtype = options.shape.layers[0].dtype
    return dtype if dtype in ("float16", "bfloat16", "float32") else "float16"


def _cache_dtype(options: EngineOptions) -> Literal["auto", "fp8"]:
    """Quantised KV is kept as raw bytes (STR_DTYPE_TO_TORCH_DTYPE, vllm/utils/torch_utils.py, 0.32.0)."""
    return "fp8" if options.shape.layers[0].dtype == "uint8" else "auto"


def inspect_model() -> None:
    """Let vLLM look at the model's class, which it does in a process of its own and notes for the user's next runs.

    The first time takes as long as an import of vLLM (_LazyRegisteredModel.inspect_model_cls, 0.32.0); no scenario is
    to wait for that.
    """
    options = EngineOptions()
    _model_config(
        options.model, MAX_MODEL_LEN, options.model_seed, _model_dtype(options), model_geometry(options.shape), ""
    )


def build_vllm_config(options: EngineOptions, connector: ConnectorSpec | None, device: str = "cpu") -> VllmConfig:
    """A fresh VllmConfig for one engine.

    Constructing it makes vLLM import and check the connector class (VllmConfig.__post_init__), so a class that vLLM
    refuses fails here, with vLLM's own words.
    """
    from vllm.config import CacheConfig, DeviceConfig, SchedulerConfig, VllmConfig

    max_model_len = min(MAX_MODEL_LEN, options.shape.usable_tokens)
    scheduler_config = SchedulerConfig(
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=max_model_len,
        enable_chunked_prefill=True,
        is_encoder_decoder=False,
        async_scheduling=options.async_scheduling,
    )
    cache_config = CacheConfig(
        block_size=options.shape.block_size,
        gpu_memory_utilization=0.9,
        cache_dtype=_cache_dtype(options),
        enable_prefix_caching=options.enable_prefix_caching,
    )
    if options.shape.recurrent:
        # What vLLM does for models with such layers and prefix caching (MambaModelConfig, 0.32.0).
        cache_config.mamba_cache_mode = "align"
        cache_config.mamba_block_size = options.shape.block_size
    geometry = model_geometry(options.shape, options.workers)
    models = "" if connector is None else connector.models
    dtype, seed = _model_dtype(options), options.model_seed
    model_config = _model_config(options.model, max_model_len, seed, dtype, geometry, models)
    return VllmConfig(
        model_config=copy.deepcopy(model_config),
        scheduler_config=scheduler_config,
        cache_config=cache_config,
        kv_transfer_config=None
        if connector is None
        else kv_transfer_config(connector, options.load_failure_policy, device),
        device_config=DeviceConfig(device),
        parallel_config=_parallel_config(options.workers),
        speculative_config=_speculative_config(options.drafts),
    )


def _speculative_config(drafts: int) -> SpeculativeConfig | None:
    """Drafts that need no draft model of their own; the engine proposes them."""
    if not drafts:
        return None
    # Late: the engine 'embedded' has no such class.
    from vllm.config import SpeculativeConfig

    return SpeculativeConfig(method="ngram", num_speculative_tokens=drafts, prompt_lookup_max=2, prompt_lookup_min=2)


def _parallel_config(workers: int) -> ParallelConfig:
    """With several workers as the multi-process executor has it."""
    from vllm.config import ParallelConfig

    if workers == 1:
        return ParallelConfig()
    return ParallelConfig(tensor_parallel_size=workers, distributed_executor_backend="mp")


def _remove(folder: str, owner: int) -> None:
    """Copies of the process leave it to the process that made it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


@cache
def ensure_parallel_state(directory: str | None = None) -> None:
    """A gloo world of one rank with vLLM's model-parallel groups, once per process; engines share it.

    Args:
        directory: where its rendezvous goes, which has to last as long as the process: a connector may make groups of
            its own. By default a new folder among the temporary ones, removed when the interpreter ends.

    Raises:
        EngineUnusableError: there can be none in this environment.
    """
    import torch
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed.parallel_state import ensure_model_parallel_initialized, init_distributed_environment

    # Whatever directory an earlier call was given; the stand-in of the engine 'embedded' has no such world to ask.
    if ensure_parallel_state.cache_info().currsize or torch.distributed.is_initialized():
        return
    folder = tempfile.mkdtemp(prefix="kvconform-gloo-", dir=directory)
    if directory is None:
        atexit.register(_remove, folder, os.getpid())
    rendezvous = Path(folder) / "store"
    try:
        with set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu"))):
            init_distributed_environment(
                world_size=1, rank=0, distributed_init_method=f"file://{rendezvous}", local_rank=0, backend="gloo"
            )
            ensure_model_parallel_initialized(1, 1)
    except Exception as error:
        raise EngineUnusableError(
            "an engine needs torch.distributed with the backend gloo, as vLLM's workers do, and it cannot be had in "
            f"this environment: {described(error)}. Gloo needs a network interface that is up (the loopback interface "
            "will do; the variable GLOO_SOCKET_IFNAME names one) and free file descriptors (ulimit -n)."
        ) from error
