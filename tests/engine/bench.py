"""Engines for tests, with whatever they leave behind put away."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvconform.engine.events import HookCall
from kvconform.engine.history import History
from kvconform.engine.options import ConnectorSpec, EngineOptions
from kvconform.engine.protocol import EngineStopped
from kvconform.engine.vllm_engine.engine import VllmEngine
from kvconform.kvcache.provenance import Provenance
from kvconform.scenario.program import RequestSpec

REFERENCE = "kvconform.reference.file_store"
PLANTED = "planted_connectors"


@dataclass
class Bench:
    """One store, one history, any number of engines."""

    path: Path
    history: History = field(default_factory=History)
    provenance: Provenance = field(default_factory=Provenance)
    engines: list[VllmEngine] = field(default_factory=list)

    def connector(self, name: str = "FileStoreConnector", **extra: Any) -> ConnectorSpec:
        module = REFERENCE if name == "FileStoreConnector" else PLANTED
        return ConnectorSpec(name, module, extra_config={"path": str(self.path), **extra})

    def engine(
        self, name: str = "FileStoreConnector", options: EngineOptions | None = None, **extra: Any
    ) -> VllmEngine:
        number = len(self.engines) + 1
        engine = VllmEngine(
            options or EngineOptions(), self.connector(name, **extra), self.history, self.provenance, number
        )
        self.engines.append(engine)
        return engine

    def of(self, kind: type) -> list[Any]:
        return list(self.history.of(kind))

    def close(self) -> None:
        for engine in reversed(self.engines):
            with contextlib.suppress(EngineStopped):
                engine.shutdown()


def request(name: str, length: int, max_tokens: int = 1, seed: int = 1) -> RequestSpec:
    """A request whose prompt is ``length`` tokens of ``seed``."""
    return RequestSpec(name, ((seed, length),), max_tokens)


def run(engine: VllmEngine, *specs: RequestSpec) -> None:
    """Each request alone, until the engine is idle."""
    for spec in specs:
        engine.add(spec)
        engine.drain()


def stored_then_asked_again(engine: VllmEngine, length: int = 49, max_tokens: int = 1, seed: int = 1) -> None:
    """A prompt is stored, forgotten locally, and asked for again."""
    run(engine, request("store", length, max_tokens, seed))
    engine.reset_prefix_cache()
    run(engine, request("reload", length, max_tokens, seed))


def hooks_of_step(history: History, step: int, engine: int = 1) -> list[str]:
    """The hook calls of one step, in order, layer hooks with their layer's number."""

    def name(call: HookCall) -> str:
        layer = call.args.get("layer")
        return call.hook if layer is None else f"{call.hook} {layer.split('.')[2]}"

    return [name(call) for call in history.of(HookCall) if (call.engine, call.step) == (engine, step)]


def steps_where(history: History, test: Callable[[Any], bool], kind: type) -> list[int]:
    """The steps of the events of ``kind`` that pass ``test``."""
    return [event.step for event in history.of(kind) if test(event)]
