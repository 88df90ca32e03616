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
    ForgetLocal,
    PreemptAll,
    Program,
    ResetConnector,
    Restart,
    Step,
)

# Makes an engine: options, the shared history and provenance, and the engine's number from 1.
EngineFactory = Callable[[EngineOptions, History, Provenance, int], Engine]


@dataclass
class Player:
    """Plays actions one by one; a new engine takes over at every Restart."""

    program: Program
    make_engine: EngineFactory
    history: History = field(default_factory=History)
    provenance: Provenance = field(default_factory=Provenance)
    engine: Engine | None = None
    engines: int = 0

    def play(self) -> History:
        """Run the whole program, audit, shut down; an engine that dies ends the program early."""
        with contextlib.suppress(EngineStopped):
            self._start(self.program.options)
            for action in self.program.actions:
                self._do(action)
            assert self.engine is not None
            self.engine.drain()
            self.engine.audit()
        if self.engine is not None:
            with contextlib.suppress(EngineStopped):
                self.engine.shutdown()
        return self.history

    def _start(self, options: EngineOptions) -> None:
        self.engines += 1
        self.engine = None
        self.engine = self.make_engine(options, self.history, self.provenance, self.engines)

    def _do(self, action: Action) -> None:
        engine = self.engine
        assert engine is not None
        match action:
            case Add(request):
                engine.add(request)
            case Abort(request_id):
                engine.abort(request_id)
            case Step(count):
                for _ in range(count):
                    engine.step()
            case Drain():
                engine.drain()
            case ForgetLocal():
                engine.reset_prefix_cache()
            case PreemptAll():
                engine.reset_prefix_cache(running=True)
            case ResetConnector():
                engine.reset_prefix_cache(connector=True)
            case Restart(options):
                engine.drain()
                engine.audit()
                engine.shutdown()
                self._start(options or self.program.options)


def play(program: Program, make_engine: EngineFactory) -> History:
    """Run ``program`` on engines from ``make_engine`` and return what happened."""
    return Player(program, make_engine).play()
