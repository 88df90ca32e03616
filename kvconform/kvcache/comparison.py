"""Whether two pieces of memory hold the same bytes, at the speed of the memory.

In host memory the C library's memcmp answers: it needs no copy, no array of booleans, and stops at the first
difference. On a device torch compares integers that are as wide as the alignment allows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy.typing as npt
import torch

_SHORT = 1 << 15


@cache
def _memcmp() -> Callable[[int, int, int], int]:
    """memcmp(one, other, bytes); other threads go on while it runs, as ctypes lets go of the interpreter."""
    function = ctypes.CDLL(None).memcmp
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    function.restype = ctypes.c_int
    return function


class BytePair:
    """Two flat uint8 tensors that are compared again and again; both stay where they are."""

    def __init__(self, one: torch.Tensor, other: torch.Tensor) -> None:
        assert one.shape == other.shape
        # Kept, as only they keep the memory.
        self._words = _wide_pair(one, other)
        on_host = _in_one_piece(one) and _in_one_piece(other)
        self._places = (one.data_ptr(), other.data_ptr(), one.numel()) if on_host else None

    def same(self) -> bool:
        """Whether every byte is the same now."""
        return torch.equal(*self._words) if self._places is None else not _memcmp()(*self._places)


def same_arrays(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two arrays that lie in one piece each hold the same bytes."""
    assert one.nbytes == other.nbytes
    if one.nbytes <= _SHORT:
        # Two copies take less time than numpy takes to say where an array lies.
        return one.tobytes() == other.tobytes()
    assert one.flags.c_contiguous
    assert other.flags.c_contiguous
    return not _memcmp()(one.ctypes.data, other.ctypes.data, one.nbytes)


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two uint8 tensors of one shape hold the same bytes."""
    if one.shape == other.shape and _in_one_piece(one) and _in_one_piece(other):
        return not _memcmp()(one.data_ptr(), other.data_ptr(), one.numel())
    return torch.equal(*_wide_pair(one, other))


def differing(observed: torch.Tensor, expected: torch.Tensor) -> torch.Tensor | None:
    """Which of T slots differ, bool [T]; None if none does, which is found out at the speed of the memory.

    Args:
        observed: [T, heads, content bytes], uint8.
        expected: the same shape.
    """
    if same_bytes(observed, expected):
        return None
    return differing_slots(observed, expected)


def differing_slots(observed: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """:func:`differing` where the host must not wait for the answer: always a tensor, on the device of both."""
    return (observed != expected).reshape(len(observed), -1).any(dim=1)


def widest(view: torch.Tensor) -> torch.Tensor:
    """A uint8 tensor as the widest integers that its last dimension and its alignment allow."""
    *outer, last = view.stride()
    if last == 1:
        # One bit of every number that has to be a multiple: this is called for each comparison, small ones too.
        places = view.shape[-1] | view.storage_offset()
        for stride in outer:
            places |= stride
        if not places & 7:
            return view.view(torch.int64)
        if not places & 3:
            return view.view(torch.int32)
        if not places & 1:
            return view.view(torch.int16)
    return view


def _wide_pair(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the same integers; tensors with other strides may allow for other ones, which torch calls different."""
    wide, other_wide = widest(one), widest(other)
    return (wide, other_wide) if wide.dtype == other_wide.dtype else (one, other)


def _in_one_piece(view: torch.Tensor) -> bool:
    return view.is_cpu and view.is_contiguous()
