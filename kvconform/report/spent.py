"""Where the time of a run went: playing scenarios, importing torch and vLLM, and all else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """Seconds that pytest's processes waited, added up over them.

    ``starting`` is for torch and vLLM to be imported, ``playing`` for scenarios to be played and judged in the
    connectors' processes.
    """

    scenarios: int = 0
    playing: float = 0.0
    starting: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.scenarios + other.scenarios, self.playing + other.playing, self.starting + other.starting)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.scenarios - other.scenarios, self.playing - other.playing, self.starting - other.starting)

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
