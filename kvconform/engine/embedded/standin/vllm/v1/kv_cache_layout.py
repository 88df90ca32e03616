"""The orders in which a KV cache can be stored."""

from __future__ import annotations

from enum import Enum

_L, _B, _H, _N, _C = range(5)


class KVCacheLayout(Enum):
    """Layers, blocks, heads, token slots and content, the slowest first; the value holds their logical numbers."""

    LBHNC = (_L, _B, _H, _N, _C)
    LBNHC = (_L, _B, _N, _H, _C)
    LHBNC = (_L, _H, _B, _N, _C)
    BLHNC = (_B, _L, _H, _N, _C)
    BLNHC = (_B, _L, _N, _H, _C)
    BHLNC = (_B, _H, _L, _N, _C)

    @property
    def stride_order(self) -> tuple[int, ...]:
        """Logical axes from the slowest to the fastest."""
        return self.value

    @property
    def layer_view_order(self) -> tuple[int, ...]:
        """The same for the view of one layer."""
        return tuple(axis - 1 for axis in self.value if axis != _L)

    @property
    def is_layer_compact(self) -> bool:
        """Whether a layer is one run of bytes."""
        return self.value[0] == _L

    @property
    def is_block_contiguous(self) -> bool:
        """Whether heads, slots and content of a block follow each other in this order."""
        return self.value[2:] == (_H, _N, _C)

    @property
    def is_block_compact(self) -> bool:
        """Whether a block of a layer is one run of bytes."""
        return {_L, _B} == set(self.value[:2])

    @property
    def is_block_outermost(self) -> bool:
        """Whether a block of all layers is one run of bytes."""
        return self.value[0] == _B


def _layout_from_name(name: str) -> KVCacheLayout:
    """A layout by its name or by one of the two old names.

    Raises:
        ValueError: there is no such layout.
    """
    name = {"NHD": "LBNHC", "HND": "LBHNC"}.get(name, name)
    if name not in KVCacheLayout.__members__:
        raise ValueError(f"Unknown KV cache layout {name!r}; known are {', '.join(KVCacheLayout.__members__)}.")
    return KVCacheLayout[name]
