"""The platform of this process: what the kit asked for."""

from __future__ import annotations

from kvconform.api.platform_plugin import _Request
from vllm.platforms.interface import Platform, PlatformEnum

__all__ = ["Platform", "PlatformEnum", "current_platform"]


class _CudaPlatform(Platform):
    _enum = PlatformEnum.CUDA
    device_name = "cuda"
    device_type = "cuda"
    dist_backend = "nccl"


current_platform: Platform = _CudaPlatform() if _Request.device == "cuda" else Platform()
