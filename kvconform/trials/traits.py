"""What trials have shown of a connector's store that makes a difference, and its sentences for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: For which models a scenario finds what an earlier one has stored.
Outlives = Literal["no", "one model", "any model"]

_OUTLIVING = {
    "one model": "each scenario's model has a name of its own, which has helped in a trial (fresh_model_names = true "
    "in the configuration does without it)",
    "any model": "what is said to be broken may come from that; other names of models do not help (docs/guide.md, "
    "Stores that outlive a scenario)",
}


@dataclass(frozen=True)
class StoreTraits:
    """What is unusual in a store, as trials have shown it.

    ``chunk_size`` are the tokens of its chunks: None where it keeps single blocks, and 0 where it found nothing of any
    prompt. ``store_delay`` are the seconds that scenarios wait for what is stored in the background.
    """

    chunk_size: int | None = None
    store_delay: float = 0.0
    outlives: Outlives = "no"

    def __or__(self, other: StoreTraits) -> StoreTraits:
        """What two processes have shown of the same store: the longer delay, and chunks if one has found some."""
        sizes = (size for size in (self.chunk_size, other.chunk_size) if size is not None)
        return StoreTraits(
            max(sizes, default=None),
            max(self.store_delay, other.store_delay),
            self.outlives if other.outlives == "no" else other.outlives,
        )

    def sentences(self, *, loading: bool) -> tuple[str, ...]:
        """One for each trait, whose subject is the connector.

        Args:
            loading: whether it was seen to load something after all.
        """
        found = []
        if self.chunk_size:
            found.append(
                f"keeps KV in chunks of {self.chunk_size} tokens: prompts have a chunk wherever others have a block, "
                f"as a trial has shown (chunk_size = {self.chunk_size} in the configuration does without the trial)"
            )
        if self.store_delay:
            found.append(
                f"stores in the background: scenarios wait {self.store_delay:g} s before they look for what it stored, "
                f"as a trial has shown (store_delay = {self.store_delay:g} in the configuration does without the trial)"
            )
        if self.outlives != "no":
            found.append(f"finds what earlier scenarios have stored: {_OUTLIVING[self.outlives]}")
        if self.chunk_size == 0 and not loading:
            found.append(
                "has found nothing of any prompt that was computed before: what only loads can show is inconclusive "
                "(docs/guide.md, Stores that find nothing, says why that may be)"
            )
        return tuple(found)
