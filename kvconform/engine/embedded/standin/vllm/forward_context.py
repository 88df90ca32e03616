"""What a forward knows about its batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from vllm.config.compilation import CUDAGraphMode


@dataclass(frozen=True)
class BatchDescriptor:
    """Which CUDA graph fits a batch."""

    num_tokens: int
    num_reqs: int | None = None
    uniform: bool = False
    has_lora: bool = False
    num_active_loras: int = 0


@dataclass
class ForwardContext:
    """Layers by name, and per layer its attention metadata and the slots of the tokens."""

    no_compile_layers: dict[str, Any]
    attn_metadata: Any
    slot_mapping: Any
    dp_metadata: Any = None
    cudagraph_runtime_mode: CUDAGraphMode = CUDAGraphMode.NONE
    batch_descriptor: BatchDescriptor | None = None
    ubatch_slices: Any = None
    is_padding: torch.Tensor | None = None
    skip_compiled: bool = False
    all_moe_layers: list[str] | None = None
    moe_layer_index: int = 0
    additional_kwargs: dict[str, Any] = field(default_factory=dict)


_forward_context: ForwardContext | None = None


def get_forward_context() -> ForwardContext:
    """That of the forward under way."""
    assert _forward_context is not None, "there is no forward: use set_forward_context"
    return _forward_context


def is_forward_context_available() -> bool:
    """Whether there is one."""
    return _forward_context is not None


@contextmanager
def override_forward_context(forward_context: ForwardContext | None) -> Iterator[None]:
    """While this is open, another one."""
    global _forward_context
    before, _forward_context = _forward_context, forward_context
    try:
        yield
    finally:
        _forward_context = before


@contextmanager
def set_forward_context(
    attn_metadata: Any,
    vllm_config: Any,
    num_tokens: int | None = None,
    num_tokens_across_dp: torch.Tensor | None = None,
    cudagraph_runtime_mode: CUDAGraphMode = CUDAGraphMode.NONE,
    batch_descriptor: BatchDescriptor | None = None,
    ubatch_slices: Any = None,
    slot_mapping: Any = None,
    skip_compiled: bool = False,
    is_padding: torch.Tensor | None = None,
) -> Iterator[None]:
    """While this is open, a forward of this batch."""
    context = ForwardContext(
        no_compile_layers=vllm_config.compilation_config.static_forward_context,
        attn_metadata=attn_metadata,
        slot_mapping=slot_mapping or {},
        cudagraph_runtime_mode=cudagraph_runtime_mode,
        batch_descriptor=batch_descriptor,
        ubatch_slices=ubatch_slices,
        skip_compiled=skip_compiled,
        is_padding=is_padding,
    )
    with override_forward_context(context):
        yield
