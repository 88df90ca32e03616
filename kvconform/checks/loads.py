"""The loads of a history: which blocks the connector was to fill for whom, when, and what it reported of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from kvconform.checks.asynchronous_lives import is_report, reported
from kvconform.checks.calls import failed_blocks, is_asynchronous
from kvconform.engine.events import EngineStarted, HookCall
from kvconform.engine.history import History


@dataclass(frozen=True)
class Load:
    """One load that the scheduler committed to.

    ``blocks`` are those it fills, ``local`` those before them that came from the local prefix cache. ``step`` counts
    the engine's schedules; a worker works on the n-th metadata in its n-th step. ``received`` are (rank, step) of the
    workers that have reported an asynchronous load in finished_recving by then: each does so when its own part is done.
    """

    engine: int
    request: str
    blocks: tuple[int, ...]
    local: tuple[int, ...]
    asynchronous: bool
    step: int
    received: tuple[tuple[int, int], ...] = ()

    def received_by(self, rank: int) -> int | None:
        """The step in which this worker reported it in finished_recving."""
        return dict(self.received).get(rank)

    def open_at(self, step: int, rank: int) -> bool:
        """Whether this worker may report a failure for it in its n-th step."""
        if not self.asynchronous:
            return self.step == step
        received = self.received_by(rank)
        return self.step <= step and (received is None or step <= received)


@dataclass(frozen=True)
class Report:
    """What a worker handed out as failed in its n-th step; ``loads`` are the engine's, as they stood then."""

    call: HookCall
    step: int
    blocks: tuple[int, ...]
    requests: tuple[str, ...]
    loads: tuple[Load, ...]

    @property
    def rank(self) -> int:
        """Of the worker."""
        return self.call.rank


@dataclass
class _Engine:
    """What is known of one engine while its events are read. Tokens per block, by KV cache group."""

    block_sizes: tuple[int, ...] = (16,)
    schedules: int = 1
    steps: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    matched: dict[str, tuple[int, bool]] = field(default_factory=dict)
    loads: list[Load] = field(default_factory=list)


def reports(history: History) -> tuple[Report, ...]:
    """Every report of failed blocks or failed requests, empty ones left out, with the loads known by then."""
    return history.derived(_followed)[0]


def loads(history: History) -> tuple[Load, ...]:
    """Every load of every engine, as it stands at the end."""
    return history.derived(_followed)[1]


def _followed(history: History) -> tuple[tuple[Report, ...], tuple[Load, ...]]:
    found: list[Report] = []
    engines: dict[int, _Engine] = defaultdict(_Engine)
    for event in history.events:
        engine = engines[event.engine]
        if isinstance(event, EngineStarted):
            engine.block_sizes = event.block_sizes
        elif isinstance(event, HookCall) and event.error is None:
            if is_report(history, event):
                found += _results(engine, event, engine.steps[event.rank])
            else:
                found += _follow(engine, event)
    return tuple(found), tuple(load for engine in engines.values() for load in engine.loads)


def block_sizes(history: History, engine: int) -> tuple[int, ...]:
    """Tokens per block of an engine's KV cache groups; one group of 16 if the engine never got that far."""
    return next((event.block_sizes for event in history.of(EngineStarted) if event.engine == engine), (16,))


def _follow(engine: _Engine, call: HookCall) -> Iterator[Report]:
    step = engine.steps[call.rank]
    match call.hook:
        case "build_connector_meta":
            engine.schedules += 1
        case "bind_connector_metadata":
            engine.steps[call.rank] += 1
        case "get_num_new_matched_tokens":
            engine.matched[call.args["request"]] = (call.args["num_computed_tokens"], is_asynchronous(call))
        case "update_state_after_alloc" if call.args["num_external_tokens"] > 0:
            engine.loads.append(_load(engine, call))
        case "get_block_ids_with_load_errors":
            failed = failed_blocks(call)
            if failed:
                yield Report(call, step, failed, (), tuple(engine.loads))


def _load(engine: _Engine, call: HookCall) -> Load:
    request, external = call.args["request"], call.args["num_external_tokens"]
    local, asynchronous = engine.matched.get(request, (0, False))
    table, size = call.args["block_ids"][0], engine.block_sizes[0]
    first, last = local // size, -(-(local + external) // size)
    return Load(call.engine, request, tuple(table[first:last]), tuple(table[:first]), asynchronous, engine.schedules)


def _results(engine: _Engine, call: HookCall, step: int) -> Iterator[Report]:
    failed = tuple(reported(call, "failed_recving"))
    if failed:
        yield Report(call, step, (), failed, tuple(engine.loads))
    for request in reported(call, "finished_recving"):
        engine.loads = [
            replace(load, received=(*load.received, (call.rank, step)))
            if load.request == request and load.asynchronous and load.received_by(call.rank) is None
            else load
            for load in engine.loads
        ]
