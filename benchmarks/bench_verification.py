"""Comparing blocks: the kit beside torch.equal on integer views, torch.testing.assert_close and memcpy.

Two sizes: 8 MiB of a layer as a small model has it (8 heads x 128, float16, 2048 tokens), and 128 KiB as the suites use
it (2 heads x 8). Integers and not floats everywhere, because KV may hold any bit pattern and NaN equals nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
from subjects import label

from kvconform.api import prepare

prepare("cpu")
import torch  # noqa: E402
from kv_bench import build_memory, compute, places  # noqa: E402

from kvconform.kvcache.comparison import differing  # noqa: E402
from kvconform.kvcache.memory import KVMemory  # noqa: E402
from kvconform.kvcache.oracle import TokenChain, expand, prompt_tokens, slot_seeds  # noqa: E402
from kvconform.kvcache.shape import KVCacheShape, LayerShape  # noqa: E402

SIZES = {"8 MiB": (8, 128), "128 KiB": (2, 8)}
BLOCKS = 128


class Subject:
    """One layer full of one request's KV, and what the oracle says of it."""

    def __init__(self, size: str) -> None:
        heads, head_size = SIZES[size]
        shape = KVCacheShape((LayerShape(1, num_kv_heads=heads, head_size=head_size),), num_blocks=BLOCKS + 1)
        self.memory: KVMemory = build_memory(shape)
        self.name, self.layer = next(iter(self.memory.layers.items()))
        self.chain = TokenChain(prompt_tokens(((1, BLOCKS * shape.block_size),)))
        table, tokens = list(range(1, BLOCKS + 1)), BLOCKS * shape.block_size
        compute(self.memory, self.chain, table, tokens)
        self.places = places(table, shape.block_size, tokens)
        self.expected = self.oracle()
        self.observed = self.memory.read(self.name, *self.places).contiguous()
        # Not the very same memory: torch.equal answers at once for that.
        assert differing(self.observed, self.expected) is None
        assert self.observed.data_ptr() != self.expected.data_ptr()

    def oracle(self) -> torch.Tensor:
        """The expected bytes, computed anew."""
        tokens = BLOCKS * self.layer.block_size
        return expand(slot_seeds(self.chain.chain(0, tokens), self.name), self.layer.content)

    def verify(self) -> Any:
        """What a step does for one layer: read the slots, ask the oracle, compare."""
        return differing(self.memory.read(self.name, *self.places), self.oracle())


@pytest.fixture(params=SIZES, scope="module")
def size(request: pytest.FixtureRequest) -> str:
    torch.set_num_threads(1)
    return str(request.param)


@pytest.fixture(scope="module")
def subject(size: str) -> Subject:
    return Subject(size)


def measure_kit_compares(benchmark: Any, subject: Subject, size: str) -> None:
    label(benchmark, f"Verification, {size}", "kit", "comparison alone")
    assert benchmark(differing, subject.observed, subject.expected) is None


def measure_kit_reads_and_compares(benchmark: Any, subject: Subject, size: str) -> None:
    label(benchmark, f"Verification, {size}", "kit, read", "slots gathered from the cache, and compared")
    assert benchmark(lambda: differing(subject.memory.read(subject.name, *subject.places), subject.expected)) is None


def measure_kit_verifies(benchmark: Any, subject: Subject, size: str) -> None:
    label(benchmark, f"Verification, {size}", "kit, oracle", "gathered, expected bytes computed anew, and compared")
    assert benchmark(subject.verify) is None


def measure_integer_views(benchmark: Any, subject: Subject, size: str) -> None:
    label(benchmark, f"Verification, {size}", "torch.equal", "on int64 views")
    observed, expected = (side.reshape(-1).view(torch.int64) for side in (subject.observed, subject.expected))
    assert benchmark(torch.equal, observed, expected)


def measure_assert_close(benchmark: Any, subject: Subject, size: str) -> None:
    label(benchmark, f"Verification, {size}", "assert_close", "on float16, equal_nan, no tolerance")
    observed, expected = (side.reshape(-1).view(torch.float16) for side in (subject.observed, subject.expected))
    benchmark(torch.testing.assert_close, observed, expected, rtol=0, atol=0, equal_nan=True)


def measure_memcpy(benchmark: Any, subject: Subject, size: str) -> None:
    label(benchmark, f"Verification, {size}", "memcpy", "a copy of as many bytes")
    benchmark(torch.empty_like(subject.expected).copy_, subject.observed)


def measure_audit(benchmark: Any, subject: Subject, size: str) -> None:
    label(benchmark, f"Audit, {size}", "kit", "whole cache against its shadow")
    writable = torch.full((BLOCKS + 1,), 1 << 30).numpy()
    nobody = torch.full((BLOCKS + 1,), -1).numpy()
    assert benchmark(subject.memory.audit, writable, nobody) == []


def measure_audit_with_integer_views(benchmark: Any, subject: Subject, size: str) -> None:
    label(benchmark, f"Audit, {size}", "torch.equal", "on int64 views")
    assert benchmark(torch.equal, *(side.view(torch.int64) for side in (subject.memory.raw, subject.memory.shadow)))
