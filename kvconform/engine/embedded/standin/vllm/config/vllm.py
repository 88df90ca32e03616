"""All of them together."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import vllm.envs as envs
from kvconform.engine.protocol import NotSimulated
from vllm.config._tables import fields_of, resolved


class VllmConfig(fields_of("VllmConfig")):  # type: ignore[misc]
    """An engine's configuration."""

    instance_id: Any

    def __post_init__(self) -> None:
        for name in ("lora_config", "speculative_config", "ec_transfer_config"):
            if getattr(self, name, None) is not None:
                raise NotSimulated(f"{name} is not simulated by the engine 'embedded'")
        for name in ("cache_config", "parallel_config", "scheduler_config"):
            resolved(getattr(self, name))
        self.instance_id = self.instance_id or uuid.uuid4().hex[:5]
        # Several KV cache groups only for connectors that say that they can deal with them.
        scheduler, transfer = self.scheduler_config, self.kv_transfer_config
        if scheduler.disable_hybrid_kv_cache_manager is None:
            scheduler.disable_hybrid_kv_cache_manager = False
            if transfer is not None:
                from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

                scheduler.disable_hybrid_kv_cache_manager = not KVConnectorFactory.supports_hma_config(transfer)

    @property
    def use_v2_model_runner(self) -> bool:
        """What the environment says."""
        return bool(envs.VLLM_USE_V2_MODEL_RUNNER)

    @property
    def max_concurrent_batches(self) -> int:
        """Steps that can be under way at once."""
        return 2 if self.scheduler_config.async_scheduling else 1

    @property
    def max_in_flight_tokens(self) -> int:
        """Tokens of these steps."""
        return self.max_concurrent_batches * int(self.scheduler_config.max_num_batched_tokens)

    @property
    def num_speculative_tokens(self) -> int:
        """No drafts."""
        return 0

    @property
    def num_lookahead_tokens(self) -> int:
        """No drafts."""
        return 0

    @property
    def num_prefill_lookahead_tokens(self) -> int:
        """No drafts."""
        return 0

    def adjust_dcp_kv_cache_interleave_size(self, kv_cache_config: Any) -> None:
        """Nothing to adjust without context parallelism."""


_current: VllmConfig | None = None


@contextmanager
def set_current_vllm_config(
    vllm_config: VllmConfig, check_compile: bool = False, prefix: str | None = None
) -> Iterator[None]:
    """While this is open, ``get_current_vllm_config`` gives it."""
    global _current
    before, _current = _current, vllm_config
    try:
        yield
    finally:
        _current = before


def get_current_vllm_config() -> VllmConfig:
    """The one that is set."""
    assert _current is not None, "Current vLLM config is not set: use set_current_vllm_config."
    return _current


def get_current_vllm_config_or_none() -> VllmConfig | None:
    """The same, if there is one."""
    return _current


def get_layers_from_vllm_config(
    vllm_config: VllmConfig, layer_type: type[Any], layer_names: Iterable[str] | None = None
) -> dict[str, Any]:
    """Layers of a kind, by name."""
    layers = vllm_config.compilation_config.static_forward_context
    names = layers if layer_names is None else layer_names
    return {name: layers[name] for name in names if isinstance(layers.get(name), layer_type)}
