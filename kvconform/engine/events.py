"""What can happen in a run, as plain data: hook calls, decisions of the scheduler, answers of the engine.

What happens to bytes of KV stands in :mod:`kvconform.engine.byte_events`. Events hold numbers, strings, lists and
tables only, so that they can be written to JSON and read back.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from kvconform.engine.records import record

Role = Literal["scheduler", "worker"]

#: What ends a request: the second one with SupportsHMA (Scheduler._connector_finished, 0.32.0).
FINISH_HOOKS = ("request_finished", "request_finished_all_groups")


@record
class Event:
    """When: the engine's number in this history and its step, counted from 1 (0 is start-up)."""

    engine: int
    step: int


@record
class HookCall(Event):
    """The engine called a hook. ``error`` is "Type: message" if it raised, ``where`` the raising line.

    ``rank`` is the worker's; each worker of a step is called in turn.
    """

    role: Role
    hook: str
    args: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    error: str | None = None
    where: str | None = None
    rank: int = 0


@record
class ChildCall(Event):
    """MultiConnector called a hook of the connector under test, which is one of its children."""

    call: HookCall


@record
class EngineStarted(Event):
    """An engine is up: tokens per block of each KV cache group, and what it does when a load fails.

    ``recurrent`` are the groups whose blocks hold a state instead of slots for tokens; ``sibling`` is the other child
    of the MultiConnector, if there is one (kvconform.engine.options.Sibling). ``cache`` describes its KV cache.
    """

    block_sizes: tuple[int, ...]
    load_failure_policy: str
    recurrent: tuple[int, ...] = ()
    sibling: str = ""
    cache: str = ""


@record
class DivergentHit(Event):
    """The local prefix cache was searched for a request, and full attention found more than the recurrent groups.

    The connector is asked for what lies behind the ``tokens`` that full attention has; if it has nothing, the scheduler
    falls back to what all groups have.
    """

    request: str
    tokens: int


@record
class CacheReset(Event):
    """The local prefix cache was reset, or could not be; ``idle`` tells that no request was left.

    ``connector`` tells that the connector was asked as well; one that ``inherits`` the base class's reset_cache keeps
    what it has.
    """

    succeeded: bool
    idle: bool
    running: bool = False
    connector: bool = False
    inherits: bool = False


@record
class StoreBroken(Event):
    """The scenario broke stored data, or made writes fail or reads wait for ever, or mended that.

    ``files`` is how many files, or entries of another store, it found for that.
    """

    kind: Literal["data", "writes", "silent", "mended"]
    what: str
    files: int


@record
class HeldBack(Event):
    """A worker's hooks were called while the device was made slow.

    ``unfinished`` tells that the engine's kernels had yet to run: what clears the blocks in ``cleared`` when the step's
    loads could begin, what writes the step's KV when its saves could.
    """

    what: Literal["kernels", "copies"]
    before: Literal["loads", "saves"]
    unfinished: bool
    cleared: tuple[int, ...] = ()
    rank: int = 0


@record
class Scheduled(Event):
    """One schedule(): per request the computed tokens before the step and the tokens of the step."""

    computed: dict[str, int]
    scheduled: dict[str, int]
    new: tuple[str, ...] = ()
    resumed: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    sync_loads: bool = False


@record
class Tokens(Event):
    """What the engine delivered for a request in this step, and how the request ended if it did."""

    request: str
    token_ids: tuple[int, ...]
    finish_reason: str | None


@record
class ProgramAction(Event):
    """The scenario did something: added or aborted a request, dropped the local prefix cache, restarted the engine."""

    action: str
    detail: dict[str, Any] = field(default_factory=dict)


@record
class EngineRaised(Event):
    """vLLM's own code raised; ``cause_hook`` is the connector hook that raised, if the error came out of one.

    ``stumbled`` tells that a look-up failed which nobody meant to fail, as opposed to a ``raise`` statement.
    """

    during: str
    error: str
    where: str
    cause_hook: str | None = None
    stumbled: bool = False


@record
class KitFailed(Event):
    """The kit's own code raised where it plays vLLM's part, and the engine ended with it; ``trace`` are its last lines.

    It may have stumbled over an answer of the connector that breaks a rule; by itself it says nothing of the connector.
    """

    during: str
    error: str
    where: str
    trace: str = ""


@record
class ForwardFailed(Event):
    """The scenario made a forward raise, which ends an engine; no fault of the connector."""


@record
class Unsimulated(Event):
    """The connector asked for ``what``, which the kit can't give it; this engine shows nothing more."""

    what: str


@record
class ReportsMerged(Event):
    """Copies of two workers' metadata were aggregated in both orders; ``problem`` is what was wrong with that."""

    problem: str = ""


@record
class ReportTested(Event):
    """A worker's statistics, events or metadata were tested for truth; ``lost`` is what a false one carries."""

    what: str
    rank: int
    lost: str = ""


@record
class MetadataBound(Event):
    """What has_connector_metadata answered right after ``hook``, which binds or clears metadata."""

    hook: str
    answer: str


@record
class BlockStateKept(Event):
    """kv_connector_block_state was alive after build_connector_meta had returned and the scheduler had dropped it."""

    where: str


@record
class NeverIdle(Event):
    """The engine still had work after ``limit`` steps and ``seconds`` of them without work: these never ended.

    With ``hurried`` it would have waited longer, had not an earlier engine waited its full time in vain.
    """

    limit: int
    unfinished: tuple[str, ...]
    seconds: float = 0.0
    hurried: bool = False

    @property
    def waited(self) -> str:
        """How long the engine waited, in words."""
        if not self.seconds:
            return f"{self.limit} steps"
        setting = (
            "less than transfer_timeout, which passed in vain before" if self.hurried else "setting: transfer_timeout"
        )
        return f"{self.limit} steps and {self.seconds:g} s ({setting})"


@record
class Outlasted(Event):
    """The engine was stepped until it was idle, or for as long as its connector may wait for a peer.

    ``limit`` is the longest time-out that the configuration names, 0 if it names none; ``seconds`` is what it took.
    ``unfinished`` requests were left, and finished ones that were still ``held``; others had been ``held_for`` so many
    seconds since they were delivered. ``hurried`` is as in NeverIdle.
    """

    seconds: float
    limit: float
    unfinished: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    held_for: dict[str, float] = field(default_factory=dict)
    hurried: bool = False


@record
class Leaked(Event):
    """Something the scheduler still holds although every request has ended."""

    what: str
    detail: str


@record
class Audited(Event):
    """The end audit ran: how many blocks are free of how many usable ones."""

    free_blocks: int
    usable_blocks: int


@record
class Crossing(Event):
    """Something that crosses the process boundary in a real engine was put through real serialisation."""

    what: str
    size_bytes: int
    error: str | None = None


@record
class BorrowedChanged(Event):
    """A scheduler-role hook changed what is the engine's; ``what`` is "request or block", "scheduler output" or
    "returned parameters", which are the engine's from then on.
    """

    hook: str
    what: str
    changes: tuple[str, ...]


@record
class MetadataHeld(Event):
    """A step was scheduled while the metadata of the one before was kept: what was taken out of it or replaced."""

    changes: tuple[str, ...]


@record
class ForeignState(Event):
    """A hook raised for want of something that only the other role has."""

    role: Role
    hook: str
    state: str


@record
class TransferParams(Event):
    """A finished request's kv_transfer_params, and what in them is no JSON value."""

    request: str
    problems: tuple[str, ...]


@record
class RolesInspected(Event):
    """Both instances of an idle engine were searched for objects of the other side: where there were any."""

    found: tuple[str, ...]


@record
class EndedIdsHeld(Event):
    """An idle engine's instances were searched for ids of requests that have ended: those that they still hold."""

    ended: int
    held: tuple[str, ...]


@record
class MetricsObserved(Event):
    """Prometheus metrics were built by the class and given ``payloads``, as they left the scheduler."""

    payloads: int
    problems: tuple[tuple[str, str, str], ...] = ()


@record
class StatisticsTaken(Event):
    """A role handed out statistics, with something in them if ``filled``; copies were merged, reduced and reset.

    ``problems`` are (rule, expected, observed).
    """

    role: Role
    filled: bool
    problems: tuple[tuple[str, str, str], ...] = ()


@record
class StatisticsRead(Event):
    """A payload of statistics was put through msgpack, rebuilt by the class, merged and logged, as in the front-end."""

    problems: tuple[tuple[str, str, str], ...] = ()


@record
class EventsPublished(Event):
    """The scheduler published a batch of KV cache events: blocks said to be stored and removed, and what is wrong."""

    stored: int
    removed: int
    problems: tuple[tuple[str, str, str], ...] = ()
