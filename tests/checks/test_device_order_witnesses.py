"""What was seen of the order of work on a device, on hand-made histories."""

from __future__ import annotations

from dataclasses import replace

import pytest
from histories import compared, witness

from kvconform.engine.events import Event, HeldBack, Scheduled

EARLY_SAVE = HeldBack(1, 2, "kernels", "saves", unfinished=True)
SLOW_LOAD = HeldBack(1, 2, "copies", "loads", unfinished=False)
LATE_CLEARING = HeldBack(1, 2, "kernels", "loads", unfinished=True, cleared=(4, 5))
LOADING = Scheduled(1, 2, {}, {"r1": 1}, sync_loads=True)


@pytest.mark.parametrize(
    ("events", "seen"),
    [
        ((EARLY_SAVE, compared(32, step=3)), 1 + 32),
        ((EARLY_SAVE, compared(32, step=2)), 1 + 32),
        ((EARLY_SAVE, compared(32, step=1)), 0),
        ((EARLY_SAVE, compared(32, step=1, engine=2)), 1 + 32),
        ((EARLY_SAVE, compared(32, step=3), replace(EARLY_SAVE, step=5)), 2 + 32),
        ((EARLY_SAVE, compared(32, step=3), compared(16, step=4), compared(16, step=4, request="r2")), 1 + 48),
        ((EARLY_SAVE, compared(0, step=3)), 0),
        ((EARLY_SAVE,), 0),
        ((replace(EARLY_SAVE, unfinished=False), compared(32, step=3)), 0),
        ((replace(EARLY_SAVE, before="loads"), compared(32, step=3)), 0),
    ],
    ids=[
        "loaded later", "in the same step", "loaded before", "by another engine", "saved twice", "each request once",
        "nothing was left to load", "never loaded", "the kernels had run", "before loads",
    ],
)  # fmt: skip
def test_save_before_its_kernels_counts_where_something_was_loaded_afterwards(
    events: tuple[Event, ...], seen: int
) -> None:
    assert witness("SAVE-14", *events) == seen


@pytest.mark.parametrize(
    ("events", "seen"),
    [
        ((SLOW_LOAD, compared(32, step=2)), 32),
        ((SLOW_LOAD, compared(32, step=3), replace(SLOW_LOAD, step=5)), 32),
        ((SLOW_LOAD, compared(32, step=1)), 0),
        ((replace(SLOW_LOAD, before="saves"), compared(32, step=3)), 0),
        ((replace(SLOW_LOAD, what="kernels"), compared(32, step=3)), 0),
        ((SLOW_LOAD,), 0),
    ],
    ids=["slow", "slow twice", "loaded before", "a slow save", "slow kernels", "nothing loaded"],
)
def test_tokens_that_slow_copies_have_loaded_are_counted(events: tuple[Event, ...], seen: int) -> None:
    assert witness("LOAD-12", *events) == seen


@pytest.mark.parametrize(
    ("events", "seen"),
    [
        ((LATE_CLEARING, LOADING, compared(32, step=2)), 32),
        ((LATE_CLEARING, LOADING, compared(32, step=2), compared(16, step=2, request="r2")), 48),
        ((LATE_CLEARING, LOADING, compared(32, step=3)), 0),
        ((LATE_CLEARING, LOADING, compared(32, step=2, engine=2)), 0),
        ((LATE_CLEARING, replace(LOADING, sync_loads=False), compared(32, step=2)), 0),
        ((LATE_CLEARING, replace(LOADING, step=3), compared(32, step=3)), 0),
        ((replace(LATE_CLEARING, cleared=()), LOADING, compared(32, step=2)), 0),
        ((replace(LATE_CLEARING, unfinished=False), LOADING, compared(32, step=2)), 0),
        ((replace(LATE_CLEARING, before="saves"), LOADING, compared(32, step=2)), 0),
        ((LOADING, compared(32, step=2)), 0),
    ],
    ids=[
        "into cleared blocks", "of several requests", "in another step", "by another engine", "asynchronously",
        "while nothing was loaded", "nothing to clear", "cleared in time", "before saves", "on a quick device",
    ],
)  # fmt: skip
def test_tokens_loaded_into_blocks_that_were_yet_to_be_cleared_are_counted(
    events: tuple[Event, ...], seen: int
) -> None:
    assert witness("LOAD-12", *events) == seen
