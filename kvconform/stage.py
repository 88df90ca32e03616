"""Where programs are played: fresh engines of one connector, a fresh store, and what breaks that store."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvconform.config import RunConfig
from kvconform.engine.events import NeverIdle
from kvconform.engine.history import History
from kvconform.engine.model_names import name_suffix
from kvconform.engine.options import STORE, STRANGER, ConnectorSpec, EngineOptions, below_multi_connector
from kvconform.engine.protocol import Engine
from kvconform.engine.router import Router
from kvconform.faults import Setting, StoreFaults
from kvconform.filling_in import engine_environment, expand_freshly
from kvconform.isolation.template import Specs, Template
from kvconform.kvcache.provenance import Provenance
from kvconform.scenario.failures_by_hook import HookedStore
from kvconform.scenario.program import BreakStore, Program, RefuseWrites
from kvconform.scenario.renaming import renamed
from kvconform.scenario.run import EngineFactory, Player, StoreFactory, play
from kvconform.target import Target

#: Seconds that an engine waits for transfers at least, once one has waited its full time in vain; and how many times
#: as long as the longest of those that ended.
PATIENCE_WITH_A_STUCK_ONE = 1.0
LONGER_THAN_ANY = 3.0


@dataclass(frozen=True)
class Manner:
    """How a program is played: on engines that do not hurry if ``patient``, and how long the store takes, seconds.

    ``models`` is a folder for models whose names end with a part of its name, and so do the ids of requests; empty for
    the names and ids that all scenarios share.
    """

    patient: bool = False
    store_delay: float = 0.0
    models: str = ""

    @property
    def suffix(self) -> str:
        """What names of models and ids of requests end with."""
        return name_suffix(self.models)


AT_ONCE = Manner()


@dataclass
class Stage:
    """Plays programs with one connector, in this process.

    Args:
        target: the connector.
        config: the run's configuration for it.
        faults: the vendor's class that breaks the store; None where files are broken.
        patience: seconds that an engine waits for transfers; None for what the configuration says.
        template: of which processes are made that end without clean-up; None copies this one as it is.
    """

    target: Target
    config: RunConfig
    faults: Callable[[Setting], StoreFaults] | None = None
    patience: float | None = None
    template: Template | None = None
    _stuck: bool = False
    _longest_wait: float = 0.0

    def connector_spec(self, directory: Path) -> ConnectorSpec:
        """The connector in vLLM's terms, with placeholders filled in for one scenario."""
        extra = expand_freshly(self.config.kv_connector_extra_config, directory)
        return ConnectorSpec(
            self.target.class_name,
            self.target.module_path,
            self.config.kv_role,
            extra,
            env=engine_environment(self.config, directory),
        )

    def play(self, program: Program, manner: Manner = AT_ONCE) -> History:
        """Run a program on fresh engines and a fresh store.

        Engines hurry once one has waited its full time in vain: what is cut short thereby is recorded as hurried, and
        a program that is played with patience waits its full time again.

        Raises:
            FaultsFailed: the vendor's class does not do what it should.
        """
        directory = Path(tempfile.mkdtemp(prefix="kvconform-"))
        program = renamed(program, manner.suffix) if manner.suffix else program
        try:
            full = self._patience_with(program)
            patience = full if manner.patient else self._hurried_patience(program, full)
            engines: list[Engine] = []
            specs = {
                second: replace(spec, models=manner.models) for second, spec in self._specs(program, directory).items()
            }
            make = self._engines(program, directory, specs, patience, engines, hurried=patience < full)
            apart = None if self.template is None else self.template.apart(specs)
            make_store = self._stores(directory, specs)
            history = play(program, make, directory, self.config.peer_timeout, make_store, apart, manner.store_delay)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        self._stuck |= any(history.of(NeverIdle))
        self._longest_wait = max((self._longest_wait, *(engine.longest_wait for engine in engines)))
        return history

    def play_part(self, program: Program, directory: Path, specs: Specs) -> Mapping[str, Any]:
        """What a process does of a program that will be killed, or fall silent, and what its engine returned.

        Directory and settings are those of whoever plays the rest.
        """
        make = self._engines(program, directory, specs, self._patience_with(program), [])
        make_store = (
            self._stores(directory, specs)
            if any(isinstance(action, BreakStore | RefuseWrites) for action in program.actions)
            else None
        )
        return Player(program, make, directory, self.config.peer_timeout, make_store).play_part()

    def _engines(
        self,
        program: Program,
        directory: Path,
        specs: Specs,
        patience: float,
        made: list[Engine],
        *,
        hurried: bool = False,
    ) -> EngineFactory:
        """What makes the engines of a program; they are put into ``made``."""

        def make(options: EngineOptions, history: History, provenance: Provenance, number: int) -> Engine:
            from kvconform.engine.vllm_engine.engine import VllmEngine

            spec = specs[(program.twin or program.pair is not None) and number % 2 == 0]
            spec = replace(spec, env=engine_environment(self.config, directory))
            router = self._router(spec) if program.pair is not None else None
            if router is not None:
                spec = replace(spec, engine_id=router.engine_id)
            spec = self._placed(spec, options, directory)
            device = self.config.resolved_device
            engine = VllmEngine(
                options, spec, history, provenance, number, device, patience, hurried=hurried, router=router
            )
            made.append(engine)
            return engine

        return make

    def _router(self, spec: ConnectorSpec) -> Router | None:
        """What stands before a producer, if the configuration says that it makes something up."""
        if not self.config.producer_params and not self.config.consumer_params:
            return None
        engine_id = spec.engine_id or str(uuid.uuid4())
        return Router(self.config.producer_params, self.config.consumer_params, engine_id, spec.env)

    def _stores(self, directory: Path, specs: Specs) -> StoreFactory | None:
        """What makes the vendor's class that breaks the store; None where files are broken."""
        faults = self.faults
        if faults is None:
            return None
        settings = specs[False].extra_config
        return lambda connectors: HookedStore(faults, Setting(directory, settings, connectors))

    def _specs(self, program: Program, directory: Path) -> Specs:
        """The connector of the first engine, and under True that of the second one of a twin or a pair."""
        specs = {False: self.connector_spec(directory)}
        if program.twin:
            (directory / "twin").mkdir()
            specs[True] = self.connector_spec(directory / "twin")
        if program.pair is not None:
            # What they share is theirs to find, ports are not.
            producer, consumer = program.pair
            specs = {
                False: replace(self.connector_spec(directory), kv_role=producer),
                True: replace(self.connector_spec(directory), kv_role=consumer),
            }
        return specs

    def _patience_with(self, program: Program) -> float:
        patience = self.patience
        if patience is None:
            patience = min(self.config.transfer_timeout, self.config.timeout / 2)
        return max(patience, self._least_patience(program))

    def _hurried_patience(self, program: Program, full: float) -> float:
        if self.patience is not None or not self._stuck:
            return full
        hurried = max(PATIENCE_WITH_A_STUCK_ONE, LONGER_THAN_ANY * self._longest_wait, self._least_patience(program))
        return min(full, hurried)

    def _least_patience(self, program: Program) -> float:
        """A peer's silence has to be waited for."""
        return 0.0 if program.pair is None else self.config.peer_timeout + 1.0

    def _placed(self, spec: ConnectorSpec, options: EngineOptions, directory: Path) -> ConnectorSpec:
        """As a child of MultiConnector, if the set-up says so."""
        if not options.place:
            return spec
        (directory / "sibling").mkdir(exist_ok=True)
        sibling = self.connector_spec(directory / "sibling")
        if options.sibling == "stranger":
            sibling = ConnectorSpec(*STRANGER, sibling.kv_role)
        elif options.sibling == "store":
            sibling = ConnectorSpec(*STORE, extra_config={"path": str(directory / "sibling" / spec.kv_role)})
        return below_multi_connector(spec, sibling, options.place)
