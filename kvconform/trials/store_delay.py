"""How long it takes until what a connector has stored can be found, where it stores in the background.

Saves that no hook tells of (a queue, a thread, a server that takes its time) are not waited for when an engine becomes
idle, so whether a reload right after finds them is a matter of luck. The configuration may say how long they take; else
it is found by trial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvconform.scenario.family import BLOCK, program, store_then_reload
from kvconform.scenario.program import Program

#: Prompts of the trial, and the whole blocks of each.
PROMPTS, BLOCKS = 3, 6
#: Seconds that are tried. What is long enough in a trial is not always: what is waited is a multiple of it.
LONG = 0.2
SHORTER = (0.02, 0.08)
MARGIN = 3

# Plays the trial's program, waiting so many seconds for what was stored; request id -> tokens offered.
Offers = Callable[[float], Mapping[str, int]]


def trial() -> Program:
    """Prompts that are asked for again at once when they have been stored, before others can give the store time."""
    actions = [
        action
        for index in range(PROMPTS)
        for action in store_then_reload([((index, BLOCKS * BLOCK + 1),)], first=index)
    ]
    return program("store and reload at once", actions)


def find_store_delay(offers: Offers, chunk_size: int = BLOCK) -> float:
    """Seconds to wait for what was stored; 0 if all of it is found at once, or no more of it for waiting.

    ``chunk_size`` is that of the program that is played.
    """
    at_once = offers(0.0)
    if all(at_once.get(f"reload{index}", 0) >= BLOCKS * chunk_size for index in range(PROMPTS)):
        return 0.0
    late = offers(LONG)
    if sum(late.values()) <= sum(at_once.values()):
        return 0.0
    enough = (delay for delay in SHORTER if sum(offers(delay).values()) >= sum(late.values()))
    return round(MARGIN * next(enough, LONG), 3)
