"""Putting small host arrays beside the KV cache, without waiting for what its device is doing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def to_device(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """``values`` as a tensor on ``device``; on the CPU the array's own memory.

    A copy from pageable memory makes the host wait for everything queued on the current stream (torch synchronises it
    in ``copy_`` unless non_blocking, and CUDA stages pageable memory). From pinned memory it is queued like a kernel.
    """
    if values.dtype == np.uint64:
        values = values.view(np.int64)
    host = torch.from_numpy(values if values.flags.c_contiguous else np.ascontiguousarray(values))
    if device.type == "cpu":
        return host
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
