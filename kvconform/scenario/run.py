"""Playing a program on an engine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kvconform.engine.events import Event, ForwardFailed, HookCall, ProgramAction, StoreBroken
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions
from kvconform.engine.protocol import Engine, EngineStopped
from kvconform.kvcache.provenance import Provenance
from kvconform.scenario.apart import Apart, CopiesOfThisProcess, Part
from kvconform.scenario.failures_by_hook import HookedStore
from kvconform.scenario.failures_on_disk import FaultyDisk
from kvconform.scenario.pairing import CONSUMER, PRODUCER, Pair
from kvconform.scenario.program import (
    Abort,
    AbortDuringStep,
    AbortOnArrival,
    AbortOnceLoading,
    Action,
    Add,
    BreakStore,
    Drain,
    DummyRun,
    FailForward,
    FinishRequests,
    ForgetLocal,
    HandOff,
    HoldBack,
    Kill,
    Leave,
    MendStore,
    Outlast,
    Pause,
    PreemptAll,
    Program,
    RefuseWrites,
    RepeatHandshake,
    ResetConnector,
    Restart,
    Resume,
    Step,
    Turn,
    twin_of,
)
from kvconform.scenario.stretching import stretched
from kvconform.scenario.wording import describe_action

# Steps that two engines take together before each goes on alone; a twin program's requests need a dozen.
TWIN_STEP_LIMIT = 200
# Steps within which a load that a program wants to break or to abort is promised, or never.
STEPS_TO_A_LOAD = 100

# Makes an engine: options, the shared history and provenance, and the engine's number from 1.
EngineFactory = Callable[[EngineOptions, History, Provenance, int], Engine]
# Makes what breaks the store where no files are it, given what tells which connectors live.
StoreFactory = Callable[[Callable[[], tuple[Any, ...]]], HookedStore]


@dataclass
class Player:
    """Plays actions one by one; a new engine takes over at every Restart.

    A twin program has two engines all the time, which do everything in lock step.
    """

    program: Program
    make_engine: EngineFactory
    directory: Path | None = None
    peer_timeout: float = 0.0
    make_store: StoreFactory | None = None
    apart: Apart = field(default_factory=CopiesOfThisProcess)
    store_delay: float = 0.0
    history: History = field(default_factory=History)
    provenance: Provenance = field(default_factory=Provenance)
    engines: list[Engine] = field(default_factory=list)
    started: int = 0
    _waiting: BreakStore | None = None

    def __post_init__(self) -> None:
        self.program = stretched(self.program)
        make = self.make_store
        self._store = FaultyDisk(self.directory) if make is None else make(self._connectors)
        self._pair = Pair(self.history, self.peer_timeout)

    def play(self) -> History:
        """Run the whole program, audit, shut down; an engine that dies ends the program early."""
        try:
            with contextlib.suppress(EngineStopped):
                for action in self._after_the_killed():
                    self._do(action)
                self._drain()
                self._pair.drain_all()
                for engine in self._to_audit():
                    engine.audit()
        finally:
            self._store.mend()
            self._pair.close()
        self._shut_down(suppress=True)
        return self.history

    def _to_audit(self) -> list[Engine]:
        return self.engines if self.program.pair is None else list(self._pair.live.values())

    def _connectors(self) -> tuple[Any, ...]:
        engines = self.engines if self.program.pair is None else self._pair.live.values()
        return tuple(connector for engine in engines for connector in engine.connectors)

    def _acting(self) -> list[Engine]:
        """The engines that an action is done with."""
        return self.engines if self.program.pair is None else self._pair.acting

    def _after_the_killed(self) -> tuple[Action, ...]:
        """Start the engine, and what is left to do with it once a first one was killed in a process of its own."""
        actions = self.program.actions
        part = Part(self.program, self.directory, self.play_part)
        killed, silent = self._ends_of_parts()
        if killed is not None:
            self.apart.kill(part)
            self.started += 1
            self.history.add(ProgramAction(self.started, 0, "killed", {"actions": killed}))
            actions = actions[killed + 1 :]
        if silent is not None:
            self._pair.begin_silently(self.apart.silence(part))
            self.started += 1
            self.engines = [self.make_engine(self.program.options, self.history, self.provenance, 2)]
            self._pair.live = {CONSUMER: self.engines[0]}
            return actions[silent + 1 :]
        self._start(self.program.options)
        return actions

    def _ends_of_parts(self) -> tuple[int | None, int | None]:
        """How many actions are done by a process that is killed then, and by one that falls silent."""
        actions = self.program.actions
        killed = next((index for index, action in enumerate(actions) if isinstance(action, Kill)), None)
        silent = actions.index(Leave(silent=True)) if Leave(silent=True) in actions else None
        return killed, silent

    def play_part(self) -> Mapping[str, Any]:
        """What a process does of the program that will be killed, or fall silent; and what its engine returned."""
        killed, silent = self._ends_of_parts()
        if killed is None:
            return self._produce(self.program.actions[:silent])
        self._start(self.program.options)
        for action in self.program.actions[:killed]:
            self._do(action)
        return {}

    def _produce(self, actions: tuple[Action, ...]) -> Mapping[str, Any]:
        """In the process that will fall silent: the producer's part, and what it returned."""
        engine = self.make_engine(self.program.options, self.history, self.provenance, 1)
        self._pair.live = {PRODUCER: engine}
        for action in actions:
            self._do(action)
        return engine.delivered

    def _start(self, options: EngineOptions) -> None:
        self.engines = []
        for _ in range(2 if self.program.twin or self.program.pair else 1):
            self.started += 1
            self.engines.append(self.make_engine(options, self.history, self.provenance, self.started))
        if self.program.pair is not None:
            self._pair.live = dict(enumerate(self.engines))

    def _shut_down(self, *, suppress: bool) -> None:
        # The last one first: each puts back the process-wide connector that it found.
        for engine in reversed(self.engines):
            if any(engine is left for left in self._pair.left):
                continue
            with contextlib.suppress(*((EngineStopped,) if suppress else ())):
                engine.shutdown()

    def _begin_step(self) -> list[Engine]:
        """All engines schedule; those that have something to execute."""
        mark = len(self.history.events)
        begun = [engine for engine in self._acting() if engine.begin_step()]
        if self._waiting is not None and self._loads_since(mark):
            self._break(self._waiting)
            self._waiting = None
        return begun

    def _loads_since(self, mark: int) -> set[str]:
        """The requests to which loads were promised: the scheduler has told the connector which tokens to load."""
        return {
            event.args["request"]
            for event in self.history.events[mark:]
            if isinstance(event, HookCall)
            and event.hook == "update_state_after_alloc"
            and event.args["num_external_tokens"] > 0
        }

    def _step(self, aborts: tuple[str, ...] = ()) -> bool:
        """One step of every engine; all of them schedule before the first one executes."""
        begun = self._begin_step()
        for engine in begun:
            engine.finish_step(aborts)
        return bool(begun)

    def _abort_once_loading(self, request_id: str) -> None:
        """A request to which no load is promised ends by itself."""
        for _ in range(STEPS_TO_A_LOAD):
            mark = len(self.history.events)
            begun = self._begin_step()
            loading = request_id in self._loads_since(mark)
            for engine in begun:
                engine.finish_step((request_id,) if loading else ())
            if loading or not begun:
                return

    def _fail_forward(self, layers: int) -> None:
        """Step until the forward raises, and go on with new engines; these shut down as after a dead engine core."""
        for engine in self.engines:
            engine.fail_forward(layers)
        mark = len(self.history.events)
        with contextlib.suppress(EngineStopped):
            self._drain()
        if any(isinstance(event, ForwardFailed) for event in self.history.events[mark:]):
            self._shut_down(suppress=True)
            self._start(self.program.options)

    def _break(self, action: BreakStore) -> None:
        last = self.history.events[-1] if self.history.events else Event(self.started, 0)
        files = self._store.damage(action.fault, action.every)
        kind: Literal["data", "silent"] = "silent" if action.fault == "silent" else "data"
        self.history.add(StoreBroken(last.engine, last.step, kind, describe_action(action), files))

    def _drain(self) -> None:
        if self.program.pair is not None:
            self._pair.drain()
            return
        for _ in range(STEPS_TO_A_LOAD):
            if self._waiting is None or not self._step():
                break
        if len(self.engines) == 1:
            self.engines[0].drain()
        else:
            for _ in range(TWIN_STEP_LIMIT):
                if not self._step():
                    return
            for engine in self.engines:
                engine.drain()

    def _wait_for_the_store(self) -> None:
        """Before something has to be found there: what is stored in the background takes a while."""
        if self.store_delay:
            time.sleep(self.store_delay)

    def _do(self, action: Action) -> None:
        match action:
            case Step(count):
                for _ in range(count):
                    self._step()
            case AbortDuringStep(request_id):
                self._step((request_id,))
            case AbortOnceLoading(request_id):
                self._abort_once_loading(request_id)
            case FailForward(layers):
                self._fail_forward(layers)
            case Drain():
                self._drain()
            case BreakStore(at_load=True):
                self._waiting = action
            case BreakStore():
                self._break(action)
            case RefuseWrites(how):
                files = self._store.refuse_writes(how)
                self.history.add(StoreBroken(self.started, 0, "writes", describe_action(action), files))
            case MendStore():
                self._store.mend()
                self.history.add(StoreBroken(self.started, 0, "mended", describe_action(action), 0))
            case Restart(options, drain, twice):
                if drain:
                    self._drain()
                    self._wait_for_the_store()
                    for engine in self.engines:
                        engine.audit()
                self._shut_down(suppress=False)
                if twice:
                    for engine in reversed(self.engines):
                        engine.shutdown_again()
                if options is not None:
                    self.history.add(ProgramAction(self.started + 1, 0, "another set-up", {}))
                self._start(options or self.program.options)
            case Turn() | HandOff() | FinishRequests() | Outlast() | Leave():
                self._pair.act(action)
            case _:
                if isinstance(action, ForgetLocal):
                    self._wait_for_the_store()
                for index, engine in enumerate(self._acting()):
                    _act(engine, action, twin=index > 0)


def _act(engine: Engine, action: Action, *, twin: bool) -> None:
    """What needs no lock step."""
    match action:
        case Add(request):
            engine.add(twin_of(request) if twin else request)
        case Abort(request_id):
            engine.abort(request_id)
        case AbortOnArrival(request_id):
            engine.abort_on_arrival(request_id)
        case ForgetLocal():
            engine.reset_prefix_cache()
        case PreemptAll():
            engine.reset_prefix_cache(running=True)
        case ResetConnector():
            engine.reset_prefix_cache(connector=True)
        case Pause(what):
            engine.pause(what)
        case Resume():
            engine.pause(None)
        case DummyRun():
            engine.dummy_run()
        case HoldBack(what):
            engine.hold(None if what == "nothing" else what)
        case RepeatHandshake():
            engine.repeat_handshake()


def play(
    program: Program,
    make_engine: EngineFactory,
    directory: Path | None = None,
    peer_timeout: float = 0.0,
    make_store: StoreFactory | None = None,
    apart: Apart | None = None,
    store_delay: float = 0.0,
) -> History:
    """Run ``program`` on engines from ``make_engine`` and return what happened.

    ``directory`` is where the connector was told to keep its store; what breaks the store breaks what is in there.
    ``peer_timeout`` is how long it waits for a peer at most, as far as that is known. With ``make_store`` the store is
    broken by its vendor's own class instead. ``apart`` is where a part is played whose process ends without clean-up,
    by default in a copy of this one. ``store_delay`` is how many seconds it takes until what was stored can be found.
    """
    apart = apart or CopiesOfThisProcess()
    player = Player(program, make_engine, directory, peer_timeout, make_store, apart, store_delay=store_delay)
    return player.play()
