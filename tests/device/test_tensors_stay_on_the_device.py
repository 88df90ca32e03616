"""The hot path on a device: everything is made there, and nothing comes back but the result of a comparison.

A GPU is not needed to see it. On "meta" tensors an operation that mixes devices fails, and a function mode reports
tensors that are made without saying where, and what makes the host wait: on CUDA each of those is a synchronisation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from kvconform.device import DeviceWork
from kvconform.engine.options import EngineOptions
from kvconform.engine.vllm_engine.configuration import build_vllm_config
from kvconform.engine.vllm_engine.forward import LayerForward
from kvconform.engine.vllm_engine.held_forward import HeldForward
from kvconform.engine.vllm_engine.rows import ScheduledRequest
from kvconform.kvcache import comparison
from kvconform.kvcache.build import GUARD_BYTES, allocate, plan_kv_cache
from kvconform.kvcache.head_rows import HeadRows
from kvconform.kvcache.kept_contents import KeptContents
from kvconform.kvcache.memory import KVMemory
from kvconform.kvcache.oracle import PageContent, TokenChain, expand, expand_tensor
from kvconform.kvcache.provenance import Provenance
from kvconform.kvcache.shape import DTYPES, LAYOUTS, KVCacheShape, LayerShape

FACTORIES = {"arange", "empty", "full", "ones", "rand", "randint", "tensor", "zeros"}
# What the host has to wait for; a boolean mask needs the number of its true elements, too.
WAITS = {
    "__bool__",
    "__int__",
    "__index__",
    "__float__",
    "cpu",
    "equal",
    "item",
    "nonzero",
    "numpy",
    "tolist",
    "unique",
}


class Watch(TorchFunctionMode):
    """Counts factories without a device, and what makes the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.homeless: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in FACTORIES and (kwargs or {}).get("device") is None:
            self.homeless[name] += 1
        if name in WAITS or (name in ("__getitem__", "__setitem__") and _has_mask(args[1])):
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


class AtOnce:
    """A stream that is always done."""

    def run(self, work: Callable[[], None]) -> None:
        work()

    def hold(self, what: Any) -> None:
        pass

    def pending(self) -> bool:
        return False

    def settle(self) -> None:
        pass


def memory_on(device: str, shape: KVCacheShape) -> KVMemory:
    from vllm.config import set_current_vllm_config

    vllm_config = build_vllm_config(EngineOptions(shape=shape), None)
    with set_current_vllm_config(vllm_config):
        config = plan_kv_cache(vllm_config, shape).worker
        views = allocate(vllm_config, config, shape, torch.device(device))
    return KVMemory(views, config, 1, GUARD_BYTES)


def memory_as_on_a_device(shape: KVCacheShape, monkeypatch: pytest.MonkeyPatch) -> KVMemory:
    """In host memory, but nothing of what is quicker there is used."""
    monkeypatch.setattr(comparison, "_in_one_piece", lambda _: False)
    monkeypatch.setattr(HeadRows, "of", lambda *_: None)
    return memory_on("cpu", shape)


def forward(kind: type[LayerForward], memory: KVMemory, chains: dict[str, TokenChain], **more: Any) -> LayerForward:
    return kind(memory, Provenance(), chains, {}, {}, lambda _: None, lambda body: body, KeptContents(0), **more)


SHAPES = [
    *(KVCacheShape((LayerShape(dtype=dtype),), layout, 6) for layout in LAYOUTS for dtype in sorted(DTYPES)),
    KVCacheShape((LayerShape(kind="mla", num_kv_heads=1, head_size=72),), num_blocks=6),
    KVCacheShape((LayerShape(head_size_v=4, page_padding=64),), num_blocks=6),
    KVCacheShape(num_blocks=6, kernel_block_size=4),
]
CHAINS = {"a": TokenChain(tuple(range(300, 340))), "b": TokenChain(tuple(range(500, 540)))}
STEP = [ScheduledRequest("a", [[2, 4, 1]], 20, 13), ScheduledRequest("b", [[3, 5]], 0, 20)]


@given(
    seeds=st.lists(st.integers(0, (1 << 64) - 1), max_size=40),
    content=st.builds(PageContent, st.integers(1, 5), st.integers(1, 80)),
)
@settings(max_examples=200, deadline=None)
def test_contents_computed_in_torch_are_those_of_numpy(seeds: list[int], content: PageContent) -> None:
    unsigned = np.array([0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, *seeds], dtype=np.uint64)
    computed = expand_tensor(torch.from_numpy(unsigned.view(np.int64)), content)
    assert torch.equal(computed, expand(unsigned, content))


def test_contents_for_another_device_are_computed_there() -> None:
    content = PageContent(heads=2, content_bytes=9)
    made = expand(np.arange(7, dtype=np.uint64), content, "meta")
    assert (made.device.type, made.shape, made.dtype) == ("meta", (7, 2, 9), torch.uint8)


@pytest.mark.usefixtures("vllm_cpu")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.layout}-{shape.layers[0].dtype}")
def test_every_access_to_a_cache_on_a_device_stays_there(shape: KVCacheShape) -> None:
    memory = memory_on("meta", shape)
    assert {memory.raw.device.type, memory.shadow.device.type} == {"meta"}
    memory.poison([1, 2], 0)
    memory.clearing([3])()
    blocks, offsets = np.array([1, 1, 4]), np.array([0, shape.block_size - 1, 5])
    for name, layer in memory.layers.items():
        content = expand(np.arange(3, dtype=np.uint64), layer.content, memory.raw.device)
        memory.write(name, blocks, offsets, content)
        assert memory.read(name, blocks, offsets).device.type == "meta"
        assert {index.device.type for index in layer.slots(blocks, offsets)} == {"meta"}
        assert layer.rows([1, 2]).device.type == "meta"


@pytest.mark.usefixtures("vllm_cpu")
def test_a_forward_takes_one_boolean_per_comparison_and_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_as_on_a_device(SHAPES[0], monkeypatch)
    # What "a" has computed by now.
    forward(LayerForward, memory, CHAINS).run_without_hooks([ScheduledRequest("a", [[2, 4, 1]], 0, 20)])
    run = forward(LayerForward, memory, CHAINS)
    with Watch() as watch:
        run.run_without_hooks(STEP)
    assert run.findings == []
    assert watch.homeless == {}
    assert watch.waits == {"equal": len(memory.layers)}, "only 'a' has computed tokens to compare"


@pytest.mark.usefixtures("vllm_cpu")
def test_a_forward_that_is_held_back_makes_the_host_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_as_on_a_device(SHAPES[0], monkeypatch)
    forward(LayerForward, memory, CHAINS).run_without_hooks([ScheduledRequest("a", [[2, 4, 1]], 0, 20)])
    work: DeviceWork = AtOnce()
    run = forward(HeldForward, memory, CHAINS, work=work, queued=lambda _: None)
    assert isinstance(run, HeldForward)
    run.prepare(STEP)
    with Watch() as watch, monkeypatch.context() as patched:
        # Page-locked memory is asked of the driver, which may wait for the device.
        patched.setattr("kvconform.kvcache.memory.to_device", None)
        patched.setattr("kvconform.kvcache.placing.to_device", None)
        run.run_without_hooks(STEP)
    assert (watch.homeless, watch.waits) == ({}, {})
    with Watch() as watch:
        run.settle()
    assert watch.waits == {"__bool__": len(memory.layers)}
    assert run.findings == []


@pytest.mark.usefixtures("vllm_cpu")
@pytest.mark.parametrize("kind", ["in host memory", "at once", "held back"])
def test_wrong_slots_are_found_and_named_in_all_ways(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_on("cpu", SHAPES[0]) if kind == "in host memory" else memory_as_on_a_device(SHAPES[0], monkeypatch)
    forward(LayerForward, memory, CHAINS).run_without_hooks([ScheduledRequest("a", [[2, 4, 1]], 0, 20)])
    name = list(memory.layers)[1]
    memory.layers[name].bytes[4, 0, 1, 0] ^= 1
    if kind == "held back":
        held = forward(HeldForward, memory, CHAINS, work=AtOnce(), queued=lambda _: None)
        assert isinstance(held, HeldForward)
        held.prepare(STEP)
        held.run_without_hooks(STEP)
        held.settle()
        run: LayerForward = held
    else:
        run = forward(LayerForward, memory, CHAINS)
        run.run_without_hooks(STEP)
    (finding,) = run.findings
    assert (finding.layer.name, finding.positions.tolist(), finding.blocks.tolist()) == (name, [17], [4])


@pytest.mark.usefixtures("vllm_cpu")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.layout}-{shape.layers[0].dtype}")
@pytest.mark.parametrize("rejected", [0, 2])
def test_host_memory_takes_a_short_cut_to_the_same_bytes_and_findings(
    shape: KVCacheShape, rejected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [
        [ScheduledRequest("a", [[2, 4, 1]], 0, 20)],
        [ScheduledRequest("a", [[2, 4, 1]], 20, 13, rejected), ScheduledRequest("b", [[3, 5]], 0, 20)],
        [ScheduledRequest("a", [[2, 4, 1]], 33 - rejected, 1), ScheduledRequest("b", [[3, 5]], 20, 1)],
    ]
    memories = [memory_on("cpu", shape), memory_as_on_a_device(shape, monkeypatch)]
    found = []
    for memory in memories:
        memory.poison([2, 4, 1, 3, 5], 0)
        for step in steps:
            run = forward(LayerForward, memory, CHAINS)
            # What was worked out of a block table belongs to one memory.
            run.run_without_hooks([replace(request, known={}) for request in step])
            found.append([(f.layer.name, f.positions.tolist(), f.contents) for f in run.findings])
            # The third step reads what this one spoils.
            last = list(memory.layers.values())[-1]
            last.bytes[4 * last.kernel_blocks_per_block] ^= 1
    assert found[:3] == found[3:]
    assert found[0] == []
    assert found[1] != []
    assert torch.equal(*(memory.raw for memory in memories))
    assert torch.equal(*(memory.shadow for memory in memories))
    assert {heads is None for heads in memories[1].head_rows.values()} == {True}


@pytest.mark.usefixtures("vllm_cpu")
def test_an_audit_of_an_unchanged_cache_takes_one_boolean(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_as_on_a_device(SHAPES[0], monkeypatch)
    with Watch() as watch:
        assert memory.audit(np.full(6, 1 << 40), np.full(6, -1)) == []
    assert (watch.homeless, watch.waits) == ({}, {"equal": 1})


@pytest.mark.usefixtures("vllm_cpu")
def test_the_watch_sees_what_it_is_for() -> None:
    memory = memory_on("cpu", SHAPES[0])
    with Watch() as watch:
        assert torch.zeros(3).sum().item() == 0
        assert memory.raw[memory.raw == 1].tolist() is not None
    assert watch.homeless == {"zeros": 1}
    assert {"item", "__getitem__", "tolist"} <= set(watch.waits)
