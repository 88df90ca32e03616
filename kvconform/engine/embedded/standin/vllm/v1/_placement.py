"""Where the bytes of a layer's blocks are."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheTensor
from vllm.v1.kv_cache_layout import KVCacheLayout


def layer_shape(spec: AttentionSpec, num_blocks: int, kernel_block_size: int | None = None) -> tuple[int, ...]:
    """Blocks, heads, slots, bytes of a slot."""
    size = spec.block_size if kernel_block_size is None else kernel_block_size
    assert spec.block_size % size == 0, f"blocks of {spec.block_size} tokens cannot be split into {size}"
    slots = spec.get_num_kernel_states(size)
    return num_blocks * (spec.block_size // size), spec.num_heads, slots, spec.state_content_size_bytes


def strides(
    spec: AttentionSpec,
    num_blocks: int,
    num_layers: int,
    layout: KVCacheLayout,
    kernel_block_size: int | None = None,
    layer_stride: int | None = None,
    block_stride: int | None = None,
) -> tuple[int, ...]:
    """Bytes per step along layer, block, head, slot and byte; the strides that are given stay as they are."""
    shape = (num_layers, *layer_shape(spec, num_blocks, kernel_block_size))
    given = {0: layer_stride, 1: block_stride}
    order = layout.stride_order
    padded = spec.page_size_padded
    # A page ends where the slower one of layers and blocks begins to count.
    page_begins = max(order.index(0), order.index(1)) + 1
    if padded is not None:
        assert kernel_block_size in (None, spec.block_size), "padded pages cannot be split into kernel blocks"
        assert prod(shape[axis] for axis in order[:page_begins]) == num_layers * num_blocks, (
            f"{layout.name} cannot pad pages of the shape {shape}"
        )
    result, step = [0] * 5, 1
    for place in reversed(range(5)):
        axis = order[place]
        if padded is not None and place == page_begins - 1:
            step = max(step, padded)
        result[axis] = given.get(axis) or step
        step = result[axis] * shape[axis]
    return tuple(result)


def views(
    raw: torch.Tensor,
    spec: AttentionSpec,
    num_blocks: int,
    layout: KVCacheLayout,
    tensor: KVCacheTensor,
    kernel_block_size: int | None = None,
) -> list[torch.Tensor]:
    """One tensor of blocks, heads, slots and content per layer."""
    shape = layer_shape(spec, num_blocks, kernel_block_size)
    parts = shape[0] // num_blocks
    block_stride = tensor.block_stride
    if parts > 1:
        page = prod(layer_shape(spec, 1)[1:])
        if block_stride != page:
            raise ValueError(
                f"{layout.name} stores blocks {block_stride} bytes apart that have {page}: they cannot be split into "
                f"kernel blocks of {kernel_block_size} tokens"
            )
        block_stride //= parts
    steps = strides(spec, num_blocks, len(tensor.layers), layout, kernel_block_size, tensor.layer_stride, block_stride)
    whole = torch.as_strided(
        raw, (len(tensor.layers), *shape), steps, storage_offset=raw.storage_offset() + tensor.offset
    )
    dtype: Any = spec.dtype
    return [whole[layer].view(dtype) for layer in range(len(tensor.layers))]
