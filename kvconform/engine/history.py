"""What happened in a run, as plain data: the only thing that checks look at.

A history holds every hook call with the essentials of its arguments, what the scheduler decided, which slots were
compared with the oracle, and every byte that was not as it should be. It can be written to JSON and read back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Role = Literal["scheduler", "worker"]


@dataclass(frozen=True)
class Event:
    """When: the engine's number in this history and its step, counted from 1 (0 is start-up)."""

    engine: int
    step: int


@dataclass(frozen=True)
class HookCall(Event):
    """The engine called a hook. ``error`` is "Type: message" if it raised, ``where`` the raising line."""

    role: Role
    hook: str
    args: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    error: str | None = None
    where: str | None = None


@dataclass(frozen=True)
class Scheduled(Event):
    """One schedule(): per request the computed tokens before the step and the tokens of the step."""

    computed: dict[str, int]
    scheduled: dict[str, int]
    new: tuple[str, ...] = ()
    resumed: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    sync_loads: bool = False


@dataclass(frozen=True)
class Compared(Event):
    """Slots of a request that were compared with the oracle before the forward read them, summed over layers."""

    request: str
    local_tokens: int
    external_tokens: int
    layers: int


@dataclass(frozen=True)
class WrongBytes(Event):
    """A slot that the engine believes to be computed holds other bytes than the oracle's.

    ``positions`` are token positions of the request; ``external`` tells that they were promised by the connector;
    ``observed`` says in words what the bytes are, run by run.
    """

    request: str
    layer: str
    group: int
    positions: tuple[int, ...]
    blocks: tuple[int, ...]
    external: bool
    observed: tuple[str, ...]
    reported_failed: bool = False


@dataclass(frozen=True)
class Stray(Event):
    """The connector wrote where it must not: ``block`` -1 is the guard behind the last view, 0 the null block."""

    phase: str
    layer: str
    block: int
    slots: tuple[int, ...]
    owners: tuple[str, ...]
    observed: tuple[str, ...]


@dataclass(frozen=True)
class Tokens(Event):
    """What the engine delivered for a request in this step, and how the request ended if it did."""

    request: str
    token_ids: tuple[int, ...]
    finish_reason: str | None


@dataclass(frozen=True)
class ProgramAction(Event):
    """The scenario did something: added or aborted a request, dropped the local prefix cache, restarted the engine."""

    action: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineRaised(Event):
    """vLLM's own code raised; ``cause_hook`` is the connector hook that raised, if the error came out of one."""

    during: str
    error: str
    where: str
    cause_hook: str | None = None


@dataclass(frozen=True)
class NeverIdle(Event):
    """The engine still had work after the step limit: these requests never ended."""

    limit: int
    unfinished: tuple[str, ...]


@dataclass(frozen=True)
class Leaked(Event):
    """Something the scheduler still holds although every request has ended."""

    what: str
    detail: str


@dataclass(frozen=True)
class Audited(Event):
    """The end audit ran: how many blocks are free of how many usable ones."""

    free_blocks: int
    usable_blocks: int


@dataclass(frozen=True)
class Crossing(Event):
    """Something that crosses the process boundary in a real engine was put through real serialisation."""

    what: str
    size_bytes: int
    error: str | None = None


@dataclass(frozen=True)
class BorrowedChanged(Event):
    """A scheduler-role hook changed what is the engine's; ``what`` is "request or block" or "scheduler output"."""

    hook: str
    what: str
    changes: tuple[str, ...]


@dataclass(frozen=True)
class MetadataHeld(Event):
    """A step was scheduled while the metadata of the one before was kept: what was taken out of it or replaced."""

    changes: tuple[str, ...]


@dataclass(frozen=True)
class ForeignState(Event):
    """A hook raised for want of something that only the other role has."""

    role: Role
    hook: str
    state: str


@dataclass(frozen=True)
class TransferParams(Event):
    """A finished request's kv_transfer_params, and what in them is no JSON value."""

    request: str
    problems: tuple[str, ...]


@dataclass(frozen=True)
class RolesInspected(Event):
    """Both instances of an idle engine were searched for objects of the other side: where there were any."""

    found: tuple[str, ...]


E = TypeVar("E", bound=Event)


@dataclass
class History:
    """Events in the order in which they happened."""

    events: list[Event] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Append one event."""
        self.events.append(event)

    def of(self, kind: type[E]) -> Iterator[E]:
        """The events of one kind, in order."""
        return (event for event in self.events if isinstance(event, kind))

    def calls(self, *hooks: str) -> Iterator[HookCall]:
        """The calls of these hooks, in order; of all hooks when none is named."""
        return (call for call in self.of(HookCall) if not hooks or call.hook in hooks)
