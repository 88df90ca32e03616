"""What was measured, as plain data with the keys of the JSON report, and the statistics behind it.

Seconds and bytes everywhere; 1 GB is 10**9 bytes. Imports neither torch nor vLLM.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

#: Beyond this, half of the rounds lie so far from each other that the median says little.
LARGE_SPREAD = 0.25
#: With fewer rounds, which slow transfers may have, nobody knows how far they spread.
FEWEST_ROUNDS = 3
#: More than memory can do: beyond this share of memcpy the bytes cannot have moved in that time.
TOO_FAST = 1.5
#: Cores that other processes took on average, from which on all figures are doubtful.
BUSY_CORES = 0.5

#: What the engine was doing: computing a prompt that is stored, loading one, or decoding with nothing to transfer.
When = Literal["store", "load", "decode"]


@dataclass(frozen=True)
class Rate:
    """How fast bytes were moved. Without rounds nothing could be measured, and ``note`` says why."""

    rounds: int = 0
    #: Of one round: those that were seen to arrive.
    bytes: int = 0
    #: Median over the rounds.
    bytes_per_second: float = 0.0
    #: Distance between the quartiles, over the median.
    spread: float = 0.0
    #: Median over the rounds of this rate over that of the memcpy beside it; 0 where there is none.
    share_of_memcpy: float = 0.0
    #: What to know about the figure, or why there is none.
    note: str = ""

    @property
    def gb_per_second(self) -> float:
        """The figure."""
        return self.bytes_per_second / 1e9

    @property
    def doubtful(self) -> bool:
        """Whether the rounds differ too much for their median to say a lot, are too few, or the figure cannot be."""
        return 0 < self.rounds < FEWEST_ROUNDS or self.spread > LARGE_SPREAD or self.too_fast

    @property
    def too_fast(self) -> bool:
        """Whether a copy within memory would have taken longer."""
        return self.share_of_memcpy > TOO_FAST


@dataclass(frozen=True)
class Cost:
    """What calls took: of one hook, or of all worker-side hooks of a step together (``what`` is "worker hooks")."""

    what: str
    when: When
    #: How many calls, or steps.
    count: int
    #: Seconds.
    median: float
    p95: float


@dataclass(frozen=True)
class Measured:
    """One layout with one number of blocks."""

    #: As in :mod:`kvconform.bench.plan`.
    layout: str
    #: Blocks of one request that are saved, and loaded.
    blocks: int
    #: Of KV, over all layers.
    bytes_per_block: int = 0
    #: Whether loads were asynchronous, and whether the blocks of a finished request were held until they were saved.
    asynchronous_load: bool = False
    held_for_save: bool = False
    save: Rate = field(default_factory=Rate)
    load: Rate = field(default_factory=Rate)
    memcpy: Rate = field(default_factory=Rate)
    #: Per engine step, on its critical path.
    steps: tuple[Cost, ...] = ()
    #: Of the scheduler role, each hook by itself.
    hooks: tuple[Cost, ...] = ()
    #: Why this was not measured, or not to its end.
    problem: str = ""


@dataclass(frozen=True)
class Measurement:
    """Everything that was measured of one connector."""

    #: Why nothing was; otherwise empty.
    reason: str
    #: "cpu" or "cuda", threads that torch computes with, cores of the machine.
    device: str
    threads: int
    cores: int
    #: Seconds that taking the time adds to each hook call; they are in the figures.
    clock: float
    #: Cores that other processes took on average meanwhile; None where that is not known.
    others: float | None
    cases: tuple[Measured, ...] = ()

    @property
    def busy(self) -> bool:
        """Whether the machine had other work to do."""
        return self.others is not None and self.others > BUSY_CORES


def not_measured(reason: str, device: str) -> Measurement:
    """Nothing, and why."""
    return Measurement(reason, device, 0, 0, 0.0, None)


def rate(rates: Sequence[float], moved: Sequence[int], beside: Sequence[float] = (), note: str = "") -> Rate:
    """A rate from its rounds.

    Args:
        rates: bytes per second of each round.
        moved: bytes of each round.
        beside: bytes per second of the memcpy of each round; empty for memcpy itself.
        note: see :class:`Rate`.
    """
    if not rates:
        return Rate(note=note)
    median = statistics.median(rates)
    shares = [own / other for own, other in zip(rates, beside, strict=bool(beside))]
    return Rate(
        len(rates),
        int(statistics.median_low(moved)),
        median,
        spread(rates),
        statistics.median(shares) if shares else 0.0,
        note,
    )


def spread(values: Sequence[float]) -> float:
    """The distance between the quartiles over the median; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return (third - first) / median


def cost(what: str, when: When, seconds: Sequence[float]) -> Cost:
    """The cost of calls that took so long each; there must be one."""
    ordered = sorted(seconds)
    # The smallest value that at least 95 of 100 do not exceed.
    p95 = ordered[max(0, -(-95 * len(ordered) // 100) - 1)]
    return Cost(what, when, len(ordered), statistics.median(ordered), p95)
