"""dtypes by name, and tensors."""

from __future__ import annotations

from typing import Any

import torch

STR_DTYPE_TO_TORCH_DTYPE = {
    "float32": torch.float32,
    "half": torch.half,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float,
    "fp8": torch.uint8,
    "fp8_e4m3": torch.uint8,
    "fp8_e5m2": torch.uint8,
    "int8": torch.int8,
    "fp8_inc": torch.float8_e4m3fn,
    "fp8_ds_mla": torch.uint8,
}


def get_dtype_size(dtype: torch.dtype) -> int:
    """Bytes of an element."""
    return dtype.itemsize


def get_kv_cache_torch_dtype(
    cache_dtype: str | torch.dtype, model_dtype: str | torch.dtype | None = None
) -> torch.dtype:
    """The dtype of a KV cache; "auto" is the model's."""
    wanted = model_dtype if cache_dtype == "auto" else cache_dtype
    if isinstance(wanted, torch.dtype):
        return wanted
    if wanted not in STR_DTYPE_TO_TORCH_DTYPE:
        raise ValueError(f"Invalid kv cache dtype: {wanted}")
    return STR_DTYPE_TO_TORCH_DTYPE[wanted]


def is_non_overlapping_and_dense(t: torch.Tensor) -> bool:
    """Whether its elements fill one range of bytes, in whatever order of the dimensions."""
    step = 1
    for stride, size in sorted((stride, size) for size, stride in zip(t.shape, t.stride(), strict=True) if size != 1):
        if stride != step:
            return False
        step *= size
    return True


def async_tensor_h2d(
    data: Any,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """A list, array or tensor on a device, or in ``out``."""
    made = torch.as_tensor(data, dtype=dtype if dtype is not None or out is None else out.dtype)
    return made.to(device=device, non_blocking=True) if out is None else out.copy_(made, non_blocking=True)
