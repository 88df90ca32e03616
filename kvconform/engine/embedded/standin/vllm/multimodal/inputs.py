"""Where an item is in the prompt, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PlaceholderRange:
    """Token positions of an item."""

    offset: int
    length: int
    is_embed: Any = None

    def get_num_embeds(self) -> int:
        """How many of them get an embedding."""
        return self.length if self.is_embed is None else int(self.is_embed.sum())


@dataclass
class MultiModalFeatureSpec:
    """One item; ``identifier`` tells contents apart."""

    data: Any
    modality: str
    identifier: str
    mm_position: PlaceholderRange
    mm_hash: str | None = None
