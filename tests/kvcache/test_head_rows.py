"""Slots in host memory as rows of bytes: the same places as torch's, wherever a layer lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvconform.kvcache.head_rows import HeadRows, as_contents, as_tensor, of_tensor

#: [kernel blocks, heads, tokens, content bytes]
SIZE = (5, 3, 4, 6)


def numbered(size: int) -> torch.Tensor:
    return torch.arange(size).to(torch.uint8)


@given(
    order=st.permutations([0, 1, 2]),
    before=st.integers(0, 20),
    behind=st.integers(0, 20),
    between=st.integers(0, 3),
    slots=st.lists(st.tuples(st.integers(0, SIZE[0] - 1), st.integers(0, SIZE[2] - 1)), min_size=1, max_size=9),
)
@settings(max_examples=200, deadline=None)
def test_rows_are_where_torch_finds_the_slots(
    order: list[int], before: int, behind: int, between: int, slots: list[tuple[int, int]]
) -> None:
    width = SIZE[3]
    strides = [0, 0, 0, 1]
    step = width
    for axis in reversed(order):
        strides[axis] = step
        step *= SIZE[axis]
    # Pages with padding behind them.
    strides[order[0]] += between * width
    length = before + sum((size - 1) * stride for size, stride in zip(SIZE, strides, strict=True)) + 1 + behind
    raw = numbered(length)
    view, shadow = raw.as_strided(SIZE, strides, before), raw.clone()
    rows = HeadRows.of(view, raw, shadow)
    assert rows is not None
    blocks, offsets = (np.array(each) for each in zip(*slots, strict=True))
    at = (torch.from_numpy(blocks), slice(None), torch.from_numpy(offsets))
    index = rows.index(blocks, offsets)
    assert torch.equal(as_tensor(rows.take(index)), view[at])

    content = torch.randint(256, (len(set(slots)), SIZE[1], width), dtype=torch.uint8)
    blocks, offsets = (np.array(each) for each in zip(*dict.fromkeys(slots), strict=True))
    at = (torch.from_numpy(blocks), slice(None), torch.from_numpy(offsets))
    expected = raw.clone()
    expected.as_strided(SIZE, strides, before)[at] = content
    rows.put(rows.index(blocks, offsets), of_tensor(content))
    assert torch.equal(raw, expected)
    assert torch.equal(shadow, expected)


@pytest.mark.parametrize(
    "strides",
    [(72, 24, 6, 2), (73, 24, 6, 1), (72, 25, 6, 1), (72, 24, 7, 1)],
    ids=["bytes", "blocks", "heads", "tokens"],
)
def test_layer_whose_heads_lie_at_odd_places_has_no_rows(strides: tuple[int, ...]) -> None:
    raw = numbered(1000)
    assert HeadRows.of(raw.as_strided((5, 3, 4, 6), (72, 24, 6, 1), 0), raw, raw.clone()) is not None
    assert HeadRows.of(raw.as_strided((5, 3, 4, 6), strides, 0), raw, raw.clone()) is None


def test_layer_on_a_device_has_no_rows() -> None:
    raw = torch.empty(720, dtype=torch.uint8, device="meta")
    assert HeadRows.of(raw.view(5, 3, 4, 12), raw, raw) is None


def test_slot_outside_of_the_memory_is_an_error() -> None:
    raw = numbered(5 * 3 * 4 * 6)
    rows = HeadRows.of(raw.view(SIZE), raw, raw.clone())
    assert rows is not None
    with pytest.raises(IndexError):
        rows.take(rows.index(np.array([5]), np.array([0])))


@pytest.mark.parametrize("tokens", [0, 3])
def test_contents_of_a_tensor_with_other_strides_are_its_bytes(tokens: int) -> None:
    tensor = numbered(tokens * 8).reshape(2, tokens, 4).permute(1, 0, 2)
    contents = of_tensor(tensor)
    assert contents.shape == (tokens, 2)
    assert torch.equal(as_tensor(contents), tensor)


def test_contents_and_tensors_are_the_same_memory() -> None:
    raw = np.arange(24, dtype=np.uint8).reshape(2, 12)
    contents = as_contents(raw, 4)
    assert (contents.shape, contents.itemsize) == ((2, 3), 4)
    tensor = as_tensor(contents)
    assert tensor.tolist() == raw.reshape(2, 3, 4).tolist()
    tensor[1, 2, 3] = 99
    assert raw[1, 11] == 99
