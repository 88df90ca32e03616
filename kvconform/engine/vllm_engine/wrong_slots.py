"""What wrong slots hold: in words, and as data for the picture of a block table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvconform.engine.history import Held
from kvconform.kvcache.oracle import TokenChain
from kvconform.kvcache.provenance import Provenance, describe, held_kind, held_words, stretches


@dataclass(frozen=True)
class Contents:
    """What the wrong slots of one layer hold instead: a sentence for each run of slots, and the same as data."""

    observed: tuple[str, ...]
    held: tuple[Held, ...]


def contents(
    provenance: Provenance,
    chain: TokenChain,
    positions: Sequence[int],
    observed: npt.NDArray[np.uint8],
    layer: str,
    rank: int,
) -> Contents:
    """Identify the bytes [T, heads, content bytes] that stand at T token positions of the request with ``chain``."""
    origins = provenance.identify(observed)
    held = tuple(
        Held(
            positions[first],
            positions[last],
            held_kind(origins[first], positions[first], layer, rank, own=provenance.is_of(origins[first], chain)),
            held_words(origins[first], origins[last], layer, rank),
        )
        for first, last in stretches(positions, origins)
    )
    return Contents(describe(positions, origins, layer, rank), held)
