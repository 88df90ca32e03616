"""The machine, as far as connectors ask."""

from __future__ import annotations

import enum
from typing import Any

import torch


class PlatformEnum(enum.Enum):
    """Kinds of machines."""

    CUDA = enum.auto()
    ROCM = enum.auto()
    TPU = enum.auto()
    XPU = enum.auto()
    CPU = enum.auto()
    OOT = enum.auto()
    UNSPECIFIED = enum.auto()


class Platform:
    """One of them."""

    _enum: PlatformEnum = PlatformEnum.OOT
    device_name: str = "kvconform"
    device_type: str = "cpu"
    dist_backend: str = "gloo"
    simple_compile_backend: str = "eager"

    def is_cuda(self) -> bool:
        """NVIDIA."""
        return self._enum is PlatformEnum.CUDA

    def is_rocm(self) -> bool:
        """AMD."""
        return self._enum is PlatformEnum.ROCM

    def is_tpu(self) -> bool:
        """Google."""
        return self._enum is PlatformEnum.TPU

    def is_xpu(self) -> bool:
        """Intel."""
        return self._enum is PlatformEnum.XPU

    def is_cpu(self) -> bool:
        """None of them."""
        return self._enum is PlatformEnum.CPU

    def is_out_of_tree(self) -> bool:
        """Somebody else's."""
        return self._enum is PlatformEnum.OOT

    def is_unspecified(self) -> bool:
        """Unknown."""
        return self._enum is PlatformEnum.UNSPECIFIED

    def is_cuda_alike(self) -> bool:
        """NVIDIA or AMD."""
        return self.is_cuda() or self.is_rocm()

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """Whether host memory can be pinned."""
        return cls.device_type == "cuda"

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """Choose a device."""
        if device.type == "cuda":
            torch.cuda.set_device(device)

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """What it is called."""
        return cls.device_name

    @classmethod
    def inference_mode(cls) -> Any:
        """No gradients."""
        return torch.no_grad()

    @classmethod
    def insert_blocks_to_device(
        cls,
        src_cache: torch.Tensor,
        dst_cache: torch.Tensor,
        src_block_indices: torch.Tensor,
        dst_block_indices: torch.Tensor,
    ) -> None:
        """Blocks from host memory into the KV cache."""
        dst_cache[dst_block_indices] = src_cache[src_block_indices].to(dst_cache.device)

    @classmethod
    def swap_out_blocks_to_host(
        cls,
        src_cache: torch.Tensor,
        dst_cache: torch.Tensor,
        src_block_indices: torch.Tensor,
        dst_block_indices: torch.Tensor,
    ) -> None:
        """Blocks from the KV cache into host memory."""
        dst_cache[dst_block_indices] = src_cache[src_block_indices].cpu()
