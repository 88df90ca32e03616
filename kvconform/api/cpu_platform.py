"""The out-of-tree CPU platform under which the simulated engine runs.

A vLLM built for an accelerator, or for none, has no platform that lets an engine start on a plain CPU: the build for
``VLLM_TARGET_DEVICE=empty`` resolves to ``UnspecifiedPlatform`` (vllm/platforms/__init__.py, 0.32.0), under which the
hybrid KV cache manager is switched off and several connectors refuse to start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms.interface import Platform, PlatformEnum

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class ConformanceCpuPlatform(Platform):
    """Plain CPU memory, gloo, and every KV cache feature that needs no kernel."""

    _enum = PlatformEnum.OOT
    device_name: str = "cpu"
    device_type: str = "cpu"
    dispatch_key: str = "CPU"
    dist_backend: str = "gloo"
    device_control_env_var: str = "CPU_VISIBLE_MEMORY_NODES"

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """A name for logs."""
        return "cpu (kvconform)"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """Bytes; only ever compared with what the tiny KV caches of a scenario need."""
        return 4 << 30

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """One device only: nothing to set."""

    @classmethod
    def inference_mode(cls) -> Any:
        """No autograd anywhere."""
        return torch.no_grad()

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """Pinning needs a CUDA context."""
        return False

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        """vLLM's own CPU communicator."""
        return "vllm.distributed.device_communicators.cpu_communicator.CpuCommunicator"

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        """Several KV cache groups are part of the contract under test."""
        return True

    @classmethod
    def discover_numa_topology(cls) -> list[list[int]]:
        """No cores to set apart, as CpuPlatform answers where it sees no nodes: they would be the whole test run's."""
        return []

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Nothing is compiled and no worker class is started from the configuration."""
        if vllm_config.parallel_config.worker_cls == "auto":
            vllm_config.parallel_config.worker_cls = "vllm.v1.worker.worker_base.WorkerBase"

    @classmethod
    def check_runner_kv_caches_multi_layer(cls) -> None:
        """Several layers may share a layer index."""
