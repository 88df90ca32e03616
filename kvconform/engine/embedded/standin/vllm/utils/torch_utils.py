"""dtypes by name."""

from __future__ import annotations

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
