"""Playing a program on an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions
from kvconform.engine.protocol import Engine, EngineStopped
from kvconform.kvcache.provenance import Provenance
from kvconform.scenario.program import (
    Abort,
    Action,
    Add,
    Drain,
    DummyRun,
    ForgetLocal,
    PreemptAll,
    Program,
    RepeatHandshake,
    ResetConnector,
    Restart,
    Step,
    twin_of,
)

# Steps that two engines take together before each goes on alone; a twin program's requests need a dozen.
TWIN_STEP_LIMIT = 200

# Makes an engine: options, the shared history and provenance, and the engine's number from 1.
EngineFactory = Callable[[EngineOptions, History, Provenance, int], Engine]


@dataclass
class Player:
    """Plays actions one by one; a new engine takes over at every Restart.

    A twin program has two engines all the time, which do everything in lock step.
    """

    program: Program
    make_engine: EngineFactory
    history: History = field(default_factory=History)
    provenance: Provenance = field(default_factory=Provenance)
    engines: list[Engine] = field(default_factory=list)
    started: int = 0

    def play(self) -> History:
        """Run the whole program, audit, shut down; an engine that dies ends the program early."""
        with contextlib.suppress(EngineStopped):
            self._start(self.program.options)
            for action in self.program.actions:
                self._do(action)
            self._drain()
            for engine in self.engines:
                engine.audit()
        self._shut_down(suppress=True)
        return self.history

    def _start(self, options: EngineOptions) -> None:
        self.engines = []
        for _ in range(2 if self.program.twin else 1):
            self.started += 1
            self.engines.append(self.make_engine(options, self.history, self.provenance, self.started))

    def _shut_down(self, *, suppress: bool) -> None:
        # The last one first: each puts back the process-wide connector that it found.
        for engine in reversed(self.engines):
            with contextlib.suppress(*((EngineStopped,) if suppress else ())):
                engine.shutdown()

    def _step(self) -> bool:
        """One step of every engine; all of them schedule before the first one executes."""
        begun = [engine for engine in self.engines if engine.begin_step()]
        for engine in begun:
            engine.finish_step()
        return bool(begun)

    def _drain(self) -> None:
        if len(self.engines) == 1:
            self.engines[0].drain()
        else:
            for _ in range(TWIN_STEP_LIMIT):
                if not self._step():
                    return
            for engine in self.engines:
                engine.drain()

    def _do(self, action: Action) -> None:
        match action:
            case Step(count):
                for _ in range(count):
                    self._step()
            case Drain():
                self._drain()
            case Restart(options):
                self._drain()
                for engine in self.engines:
                    engine.audit()
                self._shut_down(suppress=False)
                self._start(options or self.program.options)
            case _:
                for index, engine in enumerate(self.engines):
                    _act(engine, action, twin=index > 0)


def _act(engine: Engine, action: Action, *, twin: bool) -> None:
    """What needs no lock step."""
    match action:
        case Add(request):
            engine.add(twin_of(request) if twin else request)
        case Abort(request_id):
            engine.abort(request_id)
        case ForgetLocal():
            engine.reset_prefix_cache()
        case PreemptAll():
            engine.reset_prefix_cache(running=True)
        case ResetConnector():
            engine.reset_prefix_cache(connector=True)
        case DummyRun():
            engine.dummy_run()
        case RepeatHandshake():
            engine.repeat_handshake()


def play(program: Program, make_engine: EngineFactory) -> History:
    """Run ``program`` on engines from ``make_engine`` and return what happened."""
    return Player(program, make_engine).play()
