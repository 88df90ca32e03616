"""A layer's slots in host memory, moved as what they are there: a few rows of bytes each, one for each head.

Where a layer lies decides nothing here, so that layers which are laid out alike share one index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

#: Rows of a layer, [T, heads] for T slots.
Index = npt.NDArray[np.int64]
#: Rows themselves: an opaque element of numpy's ("V32") is the content of one head.
Contents = npt.NDArray[np.void]


@dataclass(frozen=True)
class HeadRows:
    """The rows of one layer in the memory and in its shadow, both from the layer's first byte on.

    ``steps`` are how many rows lie between two kernel blocks, two heads and two tokens.
    """

    memory: Contents
    shadow: Contents
    steps: tuple[int, int, int]
    heads: int

    @classmethod
    def of(cls, view: torch.Tensor, raw: torch.Tensor, shadow: torch.Tensor) -> HeadRows | None:
        """The rows of ``view``, uint8 [kernel blocks, heads, tokens, content bytes] of ``raw``.

        None on a device, and where heads do not lie at multiples of their size.
        """
        *steps, last = view.stride()
        width = view.shape[3]
        if not view.is_cpu or last != 1 or any(step % width for step in steps):
            return None
        first = view.storage_offset()
        blocks, heads, tokens = (step // width for step in steps)

        def rows(side: torch.Tensor) -> Contents:
            flat = side.numpy()[first:]
            return as_contents(flat[: len(flat) // width * width], width)

        return cls(rows(raw), rows(shadow), (blocks, heads, tokens), view.shape[1])

    def index(self, kernel_blocks: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> Index:
        """Kernel block ids [T] and token offsets in them [T] -> the rows of T slots."""
        block, head, token = self.steps
        index: Index = (kernel_blocks * block + offsets * token)[:, None] + np.arange(self.heads) * head
        return index

    def take(self, index: Index) -> Contents:
        """The content of T slots, [T, heads], in one piece."""
        return self.memory.take(index)

    def put(self, index: Index, contents: Contents) -> None:
        """Write the content of T slots into the memory and into the shadow."""
        self.memory[index] = contents
        self.shadow[index] = contents


def as_contents(of_bytes: npt.NDArray[Any], width: int) -> Contents:
    """uint8 [..., n * width] in one piece -> [..., n]."""
    return of_bytes.view(f"V{width}")


def of_tensor(content: torch.Tensor) -> Contents:
    """uint8 [T, heads, content bytes] in host memory -> [T, heads], the same memory if it is in one piece."""
    tokens, heads, width = content.shape
    return as_contents(np.ascontiguousarray(content.numpy()).reshape(tokens, heads * width), width)


def as_tensor(contents: Contents) -> torch.Tensor:
    """[T, heads] in one piece -> uint8 [T, heads, content bytes], the same memory."""
    return torch.from_numpy(contents.view(np.uint8)).view(*contents.shape, contents.itemsize)
