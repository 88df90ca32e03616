"""Where a hit came from."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class CacheHitSource(str, Enum):
    """From the nearest to the farthest."""

    DEVICE = "device"
    HOST = "host"
    P2P = "p2p"
    DISK = "disk"
    EXTERNAL_UNSPECIFIED = "external_unspecified"

    @classmethod
    def outermost(cls, sources: Iterable[CacheHitSource]) -> CacheHitSource:
        """The farthest of them."""
        return max(sources, key=list(cls).index)
