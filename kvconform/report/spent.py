"""Where the time of a run went: playing scenarios, importing torch and vLLM, and all else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_OUTLIVING = {
    "one model": "each scenario's model has a name of its own, which has helped in a trial (fresh_model_names = true "
    "in the configuration does without it)",
    "any model": "what is said to be broken may come from that; other names of models do not help (docs/guide.md, "
    "Stores that outlive a scenario)",
}


@dataclass(frozen=True)
class Spent:
    """Seconds that pytest's processes waited, added up over them.

    ``starting`` is for torch and vLLM to be imported, ``playing`` for scenarios to be played and judged in the
    connectors' processes. ``store_delays`` is, by target id, how long each reload waits for what the connector
    stores in the background, and ``chunk_sizes`` in chunks of how many tokens it keeps KV, where a trial has shown
    that scenarios have to go by it; 0 tokens where nothing was found. ``outliving`` says of connectors that find what
    earlier scenarios have stored for which models they do (kvconform.trials.outliving).
    """

    scenarios: int = 0
    playing: float = 0.0
    starting: float = 0.0
    store_delays: Mapping[str, float] = field(default_factory=dict)
    chunk_sizes: Mapping[str, int] = field(default_factory=dict)
    outliving: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: Spent) -> Spent:
        delays = dict(self.store_delays)
        for target, delay in other.store_delays.items():
            delays[target] = max(delay, delays.get(target, 0.0))
        return Spent(
            self.scenarios + other.scenarios,
            self.playing + other.playing,
            self.starting + other.starting,
            delays,
            {**self.chunk_sizes, **other.chunk_sizes},
            {**self.outliving, **other.outliving},
        )

    def __sub__(self, other: Spent) -> Spent:
        return Spent(
            self.scenarios - other.scenarios,
            self.playing - other.playing,
            self.starting - other.starting,
            self.store_delays,
            self.chunk_sizes,
            self.outliving,
        )

    def trials(self, target: str, *, loading: bool) -> tuple[str, ...]:
        """What trials have shown of one connector, in a sentence each, whose subject is the connector.

        Args:
            target: its id.
            loading: whether it was seen to load something after all.
        """
        found = []
        size, delay = self.chunk_sizes.get(target), self.store_delays.get(target)
        if size:
            found.append(
                f"keeps KV in chunks of {size} tokens: prompts have a chunk wherever others have a block, as a trial "
                f"has shown (chunk_size = {size} in the configuration does without the trial)"
            )
        if delay:
            found.append(
                f"stores in the background: scenarios wait {delay:g} s before they look for what it stored, as a trial "
                f"has shown (store_delay = {delay:g} in the configuration does without the trial)"
            )
        if target in self.outliving:
            found.append(f"finds what earlier scenarios have stored: {_OUTLIVING[self.outliving[target]]}")
        if size == 0 and not loading:
            found.append(
                "has found nothing of any prompt that was computed before: what only loads can show is inconclusive "
                "(docs/guide.md, Stores that find nothing, says why that may be)"
            )
        return tuple(found)

    def sentence(self, total: float, processes: int = 1) -> str:
        """One line.

        Args:
            total: seconds from the run's start to now.
            processes: of pytest that played scenarios; what they did is added up, the total is not.
        """
        if not self.scenarios and not self.starting:
            return ""
        parts = [
            f"{self.scenarios} scenarios {self.playing:.0f} s",
            f"starting {self.starting:.0f} s",
        ]
        if processes == 1:
            parts.append(f"the rest {max(0.0, total - self.playing - self.starting):.0f} s")
        where = "" if processes == 1 else f" in {processes} processes"
        return f"Time: {total:.0f} s; {', '.join(parts)}{where}"
