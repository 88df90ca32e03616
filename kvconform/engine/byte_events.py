"""What happened to the bytes of KV, as plain data: slots that were compared, and those that held something else."""

from __future__ import annotations

from dataclasses import dataclass

from kvconform.engine.events import Event
from kvconform.engine.records import record


@record
class Compared(Event):
    """Slots of a request that were compared with the oracle before the forward read them, summed over layers."""

    request: str
    local_tokens: int
    external_tokens: int
    layers: int


@dataclass(frozen=True)
class Held:
    """What the tokens ``first`` to ``last`` hold instead; the kinds are those of kvconform.picture."""

    first: int
    last: int
    kind: str
    what: str


@record
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
    rank: int = 0
    held: tuple[Held, ...] = ()


@record
class BlockTable(Event):
    """A request with wrong slots, at a forward or when its load was reported as complete: block ids per KV cache group.

    Tokens [0, computed) were believed to be computed, those of [external_first, external_last) because the connector
    had promised them; the ``scheduled`` ones after them are computed in the step.
    """

    request: str
    block_sizes: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    computed: int
    scheduled: int
    external_first: int
    external_last: int
    rank: int = 0


@record
class Stray(Event):
    """The connector wrote where it must not: ``block`` -1 is the guard behind the last view, 0 the null block.

    ``held`` tells that the block belongs only to requests that have finished and whose blocks are held; ``barred`` that
    its one owner has yet to compute the slots, must not be served from any cache, and got its own KV there. ``late``
    are the requests whose load was reported as complete without these slots, and that this may be the load of: it is
    their KV of these tokens, or nothing that was computed in this run.
    """

    phase: str
    layer: str
    block: int
    slots: tuple[int, ...]
    owners: tuple[str, ...]
    observed: tuple[str, ...]
    held: bool = False
    block_size: int = 0
    barred: bool = False
    late: tuple[str, ...] = ()


@record
class Arrived(Event):
    """An asynchronous load was reported as complete; its slots were compared with the oracle at once.

    ``wrong`` slots of ``layer``, the first one with any, were not there; ``blocks`` are those of the load there, and
    ``observed`` says in words what the slots hold instead.
    """

    request: str
    tokens: int
    layer: str = ""
    wrong: int = 0
    blocks: tuple[int, ...] = ()
    reported_failed: bool = False
    group: int = 0
    rank: int = 0
    observed: tuple[str, ...] = ()
    held: tuple[Held, ...] = ()
