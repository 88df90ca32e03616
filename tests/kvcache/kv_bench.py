"""KV memory as an engine would allocate it, for tests that need no engine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from hypothesis import strategies as st

from kvconform.engine.options import EngineOptions
from kvconform.engine.vllm_engine.configuration import build_vllm_config
from kvconform.kvcache.build import GUARD_BYTES, allocate, plan_kv_cache
from kvconform.kvcache.memory import KVMemory, StrayWrite
from kvconform.kvcache.oracle import TokenChain, expand, slot_seeds
from kvconform.kvcache.shape import DTYPES, LAYOUTS, KVCacheShape, LayerShape, ShapeError

NEVER = np.iinfo(np.int64).max
T = TypeVar("T")


def build_memory(shape: KVCacheShape, engine: int = 1, rank: int = 0, device: str = "cpu") -> KVMemory:
    """vLLM's own plan and tensors of ``shape``; raises what vLLM raises."""
    from vllm.config import set_current_vllm_config

    vllm_config = build_vllm_config(EngineOptions(shape=shape), None)
    with set_current_vllm_config(vllm_config):
        config = plan_kv_cache(vllm_config, shape).worker
        views = allocate(vllm_config, config, shape, torch.device(device))
    return KVMemory(views, config, engine, GUARD_BYTES, rank)


def unchecked(cls: type[T], **fields: Any) -> T:
    """An instance of a frozen dataclass whose own validation is passed over."""
    instance = object.__new__(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default  # type: ignore[misc]
        object.__setattr__(instance, field.name, fields.get(field.name, default))
    return instance


def _shape(layer: dict[str, Any], layout: str, kernel: int | None) -> KVCacheShape | None:
    try:
        return KVCacheShape((LayerShape(**layer),), layout, num_blocks=6, kernel_block_size=kernel)
    except ShapeError:
        return None


@st.composite
def _layers(draw: st.DrawFn) -> dict[str, Any]:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    layer: dict[str, Any] = {
        "count": draw(st.integers(1, 3)),
        "dtype": dtype,
        "block_size": draw(st.sampled_from([8, 16, 32])),
        "head_size": draw(st.sampled_from([4, 6, 8, 16])),
        "page_padding": DTYPES[dtype] * draw(st.sampled_from([0, 0, 1, 64, 257])),
    }
    if draw(st.booleans()):
        return {**layer, "kind": "mla", "num_kv_heads": 1}
    return {
        **layer,
        "num_kv_heads": draw(st.sampled_from([1, 2, 3, 16])),
        "head_size_v": draw(st.sampled_from([None, 4, 10])),
    }


def shapes() -> st.SearchStrategy[KVCacheShape]:
    """Every kind of single-group cache that vLLM accepts: layouts, dtypes, MLA, padding, kernel blocks."""
    kernels = st.sampled_from([None, None, 1, 4, 8, 16])
    drawn = st.builds(_shape, _layers(), st.sampled_from(LAYOUTS), kernels)
    return drawn.filter(lambda shape: shape is not None)  # type: ignore[return-value]


@dataclass
class Owned:
    """A memory with what :meth:`KVMemory.audit` wants to know: every block is free until it is given to somebody."""

    memory: KVMemory

    def __post_init__(self) -> None:
        self.first_writable = np.full(self.memory.num_blocks, NEVER)
        self.group_of = np.full(self.memory.num_blocks, -1)

    def own(self, block: int, first_writable: int = 0, group: int = 0) -> None:
        """``block`` belongs to a request of ``group``; its slots from ``first_writable`` on may be written."""
        self.first_writable[block] = first_writable
        self.group_of[block] = group

    def audit(self) -> list[StrayWrite]:
        return self.memory.audit(self.first_writable, self.group_of)


def places(blocks: list[int], block_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Block ids and token offsets of positions [0, length) of a request whose block table is ``blocks``."""
    positions = np.arange(length)
    return np.asarray(blocks)[positions // block_size], positions % block_size


def compute(
    memory: KVMemory, chain: TokenChain, blocks: list[int], length: int, *, rank: int = 0, taint: int = 0
) -> None:
    """The engine computes ``length`` tokens into ``blocks``, in all layers."""
    for name, layer in memory.layers.items():
        at = places(blocks, layer.block_size, length)
        seeds = slot_seeds(chain.chain(0, length), name, rank) ^ np.uint64(taint)
        memory.write(name, *at, expand(seeds, layer.content))


def connector_view(memory: KVMemory, layer: str) -> torch.Tensor:
    """What the connector holds: the registered view as bytes, [kernel blocks, heads, tokens, content bytes]."""
    return memory.views[layer].view(torch.uint8)
