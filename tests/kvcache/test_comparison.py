"""Whether two pieces of memory hold the same bytes: in host memory, where they lie in one piece, and elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvconform.kvcache import comparison
from kvconform.kvcache.comparison import BytePair, differing, same_arrays, same_bytes

LONG = comparison._SHORT + 8


def pieces(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    one = torch.arange(size, dtype=torch.int64).to(torch.uint8)
    return one, one.clone()


@pytest.mark.parametrize("size", [1, 7, 8, 4096])
@pytest.mark.parametrize("at", [0, -1])
def test_pair_sees_every_change_of_either_side(size: int, at: int) -> None:
    one, other = pieces(size)
    pair = BytePair(one, other)
    assert pair.same()
    one[at] ^= 1
    assert not pair.same()
    other[at] ^= 1
    assert pair.same()
    other[at] ^= 128
    assert not pair.same()


def test_pair_keeps_the_memory_of_both() -> None:
    pair = BytePair(*pieces(1 << 20))
    # What is given back now would be the memory of the two.
    taken = [torch.zeros(1 << 20, dtype=torch.uint8) for _ in range(4)]
    assert pair.same()
    assert len(taken) == 4


def test_pair_of_every_second_byte_is_compared_without_the_bytes_between() -> None:
    one, other = pieces(64)
    pair = BytePair(one[::2], other[::2])
    one[1] ^= 1
    assert pair.same()
    one[2] ^= 1
    assert not pair.same()


@pytest.mark.parametrize("strided", [0, 1])
def test_pair_of_which_one_side_has_gaps_is_compared_byte_by_byte(strided: int) -> None:
    sides = list(pieces(8))
    wide = torch.full((16,), 77, dtype=torch.uint8)
    wide[::2] = sides[strided]
    sides[strided] = wide[::2]
    pair = BytePair(sides[0], sides[1])
    assert pair.same()
    assert same_bytes(sides[0], sides[1])
    sides[0][3] ^= 1
    assert not pair.same()
    assert not same_bytes(sides[0], sides[1])


def test_pair_on_a_device_is_left_to_torch() -> None:
    pair = BytePair(*(torch.empty(8, dtype=torch.uint8, device="meta") for _ in range(2)))
    assert pair._places is None, "the C library would read at no address of this process"


def test_host_memory_in_one_piece_is_left_to_the_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(comparison, "_memcmp", lambda: lambda one, other, size: asked.append(size))
    one, other = pieces(24)
    assert BytePair(one, other).same()
    assert same_bytes(one.view(2, 12), other.view(2, 12))
    assert asked == [24, 24]


def test_pair_of_two_lengths_is_refused() -> None:
    with pytest.raises(AssertionError):
        BytePair(torch.zeros(8, dtype=torch.uint8), torch.zeros(9, dtype=torch.uint8))


@pytest.mark.parametrize("size", [8, comparison._SHORT, LONG])
@pytest.mark.parametrize("at", [0, 5, -1])
def test_arrays_differ_by_any_byte(size: int, at: int) -> None:
    one, other = (np.zeros(size, dtype=np.uint8) for _ in range(2))
    assert same_arrays(one, other)
    other[at] = 1
    assert not same_arrays(one, other)
    one[at] = 1
    assert same_arrays(one, other)


def test_opaque_elements_are_compared_by_their_bytes() -> None:
    one, other = (np.zeros((3, 2, 7), dtype=np.uint8) for _ in range(2))
    other[2, 1, 6] = 1
    assert same_arrays(one[:2].view("V7"), other[:2].view("V7"))
    assert not same_arrays(one.view("V7"), other.view("V7"))


@pytest.mark.parametrize("size", [8, LONG])
def test_arrays_of_two_lengths_are_refused(size: int) -> None:
    with pytest.raises(AssertionError):
        same_arrays(np.zeros(size, dtype=np.uint8), np.zeros(size + 1, dtype=np.uint8))


@pytest.mark.parametrize("which", [0, 1])
def test_long_arrays_with_gaps_are_refused(which: int) -> None:
    sides = [np.zeros(LONG, dtype=np.uint8), np.zeros(LONG, dtype=np.uint8)]
    sides[which] = np.zeros(2 * LONG, dtype=np.uint8)[::2]
    with pytest.raises(AssertionError):
        same_arrays(*sides)


@given(
    shape=st.tuples(*[st.integers(1, 4)] * 2, st.integers(1, 12)),
    order=st.permutations([0, 1, 2]),
    change=st.integers(0, 4 * 4 * 12 - 1) | st.none(),
)
@settings(max_examples=300, deadline=None)
def test_tensors_in_any_order_are_compared_byte_by_byte(
    shape: tuple[int, int, int], order: list[int], change: int | None
) -> None:
    observed = torch.arange(shape[0] * shape[1] * shape[2]).to(torch.uint8).reshape(shape)
    expected = observed.clone()
    # The same values, but with other strides.
    back = [order.index(axis) for axis in range(3)]
    observed = observed.permute(order).contiguous().permute(back)
    if change is not None:
        place = np.unravel_index(change % expected.numel(), shape)
        observed[place] ^= 4
    assert same_bytes(observed, expected) is (change is None)
    found = differing(observed, expected)
    assert (found is None) is (change is None)
    if found is not None:
        assert found.tolist() == [index == place[0] for index in range(shape[0])]


def test_tensors_of_two_shapes_differ() -> None:
    assert not same_bytes(torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.uint8))
