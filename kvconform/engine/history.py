"""What happened in a run, in order: the only thing that checks look at.

A history holds every hook call with the essentials of its arguments, what the scheduler decided, which slots were
compared with the oracle, and every byte that was not as it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, TypeVar

from kvconform.engine.events import Event, HookCall

E = TypeVar("E", bound=Event)
T = TypeVar("T")


@dataclass
class History:
    """Events in the order in which they happened."""

    events: list[Event] = field(default_factory=list)
    _derived: dict[Callable[[History], Any], tuple[int, Any]] = field(default_factory=dict, repr=False, compare=False)
    #: Events by type, calls by hook with their place, and by set of hooks, as far as ``_sorted`` events: hundreds of
    #: checks ask for them.
    _by_type: dict[type[Event], list[Any]] = field(default_factory=dict, repr=False, compare=False)
    _by_hook: dict[str, list[tuple[int, HookCall]]] = field(default_factory=dict, repr=False, compare=False)
    _by_hooks: dict[tuple[str, ...], list[HookCall]] = field(default_factory=dict, repr=False, compare=False)
    _sorted: int = field(default=0, repr=False, compare=False)

    def add(self, event: Event) -> None:
        """Append one event."""
        self.events.append(event)

    def of(self, kind: type[E]) -> Iterator[E]:
        """The events of one kind, in order; no kind of event derives from another."""
        self._sort()
        return iter(self._by_type.get(kind, ()))

    def calls(self, *hooks: str) -> Iterator[HookCall]:
        """The calls of these hooks, in order; of all hooks when none is named."""
        self._sort()
        if not hooks:
            return iter(self._by_type.get(HookCall, ()))
        if hooks not in self._by_hooks:
            places = [place for hook in dict.fromkeys(hooks) for place in self._by_hook.get(hook, ())]
            self._by_hooks[hooks] = [call for _, call in sorted(places, key=itemgetter(0))]
        return iter(self._by_hooks[hooks])

    def _sort(self) -> None:
        if self._sorted == len(self.events):
            return
        self._by_hooks.clear()
        for place, event in enumerate(self.events[self._sorted :], self._sorted):
            self._by_type.setdefault(type(event), []).append(event)
            if isinstance(event, HookCall):
                self._by_hook.setdefault(event.hook, []).append((place, event))
        self._sorted = len(self.events)

    def derived(self, of: Callable[[History], T]) -> T:
        """What ``of`` makes of this history; worked out once as long as nothing is added."""
        known = self._derived.get(of)
        if known is None or known[0] != len(self.events):
            known = self._derived[of] = (len(self.events), of(self))
        value: T = known[1]
        return value
