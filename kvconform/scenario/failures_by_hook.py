"""Breaking a connector's store by the class that its vendor named for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

from kvconform.faults import Fault, FaultsFailed, Setting, StoreFaults
from kvconform.scenario.program import StoreFault

T = TypeVar("T")

#: What a scenario wants, and what stands for it, the best first.
STAND_INS: Mapping[StoreFault, tuple[Fault, ...]] = {
    "removed": ("missing", "truncated", "failing"),
    "truncated": ("truncated", "missing", "failing"),
    "emptied": ("truncated", "missing", "failing"),
    "folders": ("failing", "missing", "truncated"),
    "unreadable": ("failing", "missing", "truncated"),
    "silent": ("silent",),
}


class HookedStore:
    """Faults of one scenario, made by the vendor's class.

    Args:
        make: the class.
        setting: what it is constructed with, at the first fault.

    Raises:
        FaultsFailed: in every method, if the vendor's class raises or answers with no number.
    """

    def __init__(self, make: Callable[[Setting], StoreFaults], setting: Setting) -> None:
        self._make = make
        self._setting = setting
        self._faults: StoreFaults | None = None

    def damage(self, fault: StoreFault, every: int) -> int:
        """Break every n-th entry, as much like ``fault`` as the class can; how many were broken."""
        return self._do(STAND_INS[fault], every)

    def refuse_writes(self, how: Literal["full", "no folder"]) -> int:
        """Make every write fail; how many entries there were by then."""
        return self._do(("unwritable",), 1)

    def mend(self) -> None:
        """Undo what can be undone; nothing if there was no fault."""
        if self._faults is not None:
            self._call("mend()", self._faults.mend)

    def _do(self, wanted: tuple[Fault, ...], every: int) -> int:
        faults = self._faults
        if faults is None:
            faults = self._faults = self._call("__init__", lambda: self._make(self._setting))
        chosen = next((kind for kind in wanted if kind in faults.faults), None)
        if chosen is None:
            return 0
        broken = self._call(f"damage({chosen!r}, {every})", lambda: faults.damage(chosen, every))
        if not isinstance(broken, int) or broken < 0:
            raise FaultsFailed(
                f"{_name(self._make)}.damage({chosen!r}, {every}) returned {broken!r}, but expected is how many "
                "entries of the store are broken."
            )
        return broken

    def _call(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as error:
            raise FaultsFailed(
                f"{_name(self._make)}.{what} raised {type(error).__name__}: {error}. It is the class that the "
                "configuration names under 'faults'; nothing can be said while it does not work."
            ) from error


def _name(make: object) -> str:
    return getattr(make, "__qualname__", repr(make))
