"""Plays scenarios with one connector, and examines what happened, here or in the connector's own process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from kvconform import capabilities
from kvconform.api import release_of
from kvconform.capabilities import Shown
from kvconform.checks import Examination, examine
from kvconform.checks.calls import offered_by_request
from kvconform.checks.class_model import ClassObservation
from kvconform.config import RunConfig
from kvconform.engine.byte_events import WrongBytes
from kvconform.engine.events import EngineRaised, Unsimulated
from kvconform.engine.history import History
from kvconform.engine.model_names import fresh_models
from kvconform.faults import Setting, StoreFaults
from kvconform.isolation.leftovers import Leftover, leftovers
from kvconform.isolation.room import CrashedError, HungError, Room
from kvconform.kvcache.shape import BLOCK_SIZE, KVCacheShape
from kvconform.outcomes import Inconclusive
from kvconform.placeholders import placeholders
from kvconform.scenario.exploration import RULED_OUT, Refused
from kvconform.scenario.program import Program
from kvconform.stage import Manner, Stage
from kvconform.target import Target
from kvconform.trials.needs import Needs, find, said
from kvconform.trials.traits import StoreTraits

#: How many scenarios in a row are waited for once more and in vain before the rest of a process' run is spared that.
PATIENT_IN_VAIN = 5


@dataclass
class Examiner:
    """Plays and examines programs.

    They are deterministic, so the examination of a program is kept for the session and shared by tests.
    """

    target: Target
    config: RunConfig
    room: Room | None = None
    #: The vendor's class that breaks the store, in the connector's own process; None where files are broken.
    faults: Callable[[Setting], StoreFaults] | None = None
    #: What trials have shown of the connector's store, once they are over.
    traits: StoreTraits = field(default_factory=StoreTraits, init=False)
    #: Plays programs in this process.
    stage: Stage = field(init=False)
    _examined: dict[str, Examination | str] = field(default_factory=dict)
    _observation: ClassObservation | None = None
    _shown: Shown = field(default_factory=Shown)
    _in_vain: int = 0

    def __post_init__(self) -> None:
        self.stage = Stage(self.target, self.config, self.faults)

    def play(self, program: Program) -> History:
        """Run a program on fresh engines and a fresh store, in this process."""
        return self.stage.play(program)

    def examine(self, program: Program) -> Examination:
        """Play and judge a program, in the connector's own process if there is one.

        What was found broken where an engine hurried is doubted, and the program is played again with patience: a slow
        connector is not a broken one. Where that was in vain five times in a row, the rest is taken as it is, and says
        that its wait was short.

        Raises:
            Refused: the connector refused to start with this set-up, or its settings rule it out.
            HungError, CrashedError: what became of the connector's process.
        """
        examination = self.glance(program)
        if examination.hurried and self._in_vain < PATIENT_IN_VAIN:
            self._in_vain += 1
            examination = self._keep(program, patient=True)
            if examination.clean:
                self._in_vain = 0
        return examination

    def glance(self, program: Program) -> Examination:
        """As :meth:`examine`, but nothing is waited for once more.

        Raises: as :meth:`examine` does.
        """
        self._demand_ports(program)
        known = self._examined.get(repr(program))
        if isinstance(known, str):
            raise Refused(known)
        if known is None:
            known = self._keep(program, patient=False)
            self._shown.count(known.capabilities)
        return known

    def _keep(self, program: Program, *, patient: bool) -> Examination:
        try:
            with self.models(fresh=self.needs.fresh_model_names) as models:
                new = self.examine_anew(program, Manner(patient, self.needs.store_delay, models))
        except Refused as error:
            self._examined[repr(program)] = str(error)
            raise
        self._examined[repr(program)] = new
        return new

    def _demand_ports(self, program: Program) -> None:
        """Raises Refused for two connectors of the class in an engine if its variables have one port for both."""
        twins = program.options.place and program.options.sibling == "twin"
        if twins and any(name.startswith("port") for name in placeholders(self.config.engine_env)):
            raise Refused(
                f"{RULED_OUT} engine_env names one port for an engine, and two connectors of this class would share it"
            )

    def fitted(self, program: Program) -> Program:
        """A program of the suites for chunks of the size that this connector has.

        One that is for another size already is left as it is.
        """
        if program.chunk_size != BLOCK_SIZE:
            return program
        return replace(program, chunk_size=self.needs.chunk_size)

    @cached_property
    def needs(self) -> Needs:
        """What the suites' scenarios have to be like for this connector."""
        try:
            found = find(self.config, self._offered)
        except (Refused, HungError, CrashedError):
            # As the scenarios will show.
            return said(self.config)
        self.traits = found.shown
        return found

    def _offered(self, program: Program, delay: float, fresh: bool) -> Mapping[str, int]:
        with self.models(fresh=fresh) as models:
            return self.examine_anew(program, Manner(store_delay=delay, models=models)).offered

    def models(self, *, fresh: bool) -> AbstractContextManager[str]:
        """A folder for models that have other names than those of all other scenarios; empty for the usual ones."""
        return fresh_models() if fresh else nullcontext("")

    def examine_anew(self, program: Program, manner: Manner) -> Examination:
        """As :meth:`glance`, but play it whatever is known of it."""
        if self.room is not None:
            return self.room.examine(program, manner)
        history = self.stage.play(program, manner)
        examination = replace(
            self._fair(examine(history, self._release)),
            capabilities=capabilities.exercised(history),
            offered={
                request.removesuffix(manner.suffix): tokens for request, tokens in offered_by_request(history).items()
            },
        )
        refusal = refused(history)
        # A refusal is legal, unless a rule about starting was broken.
        if refusal is not None and (examination.clean or _stumbles_anyway(program, examination)):
            raise Refused(refusal)
        return examination

    @cached_property
    def _release(self) -> str:
        return release_of(self.config.resolved_engine) or ""

    @property
    def observation(self) -> ClassObservation:
        """How the class is imported and built, seen in processes of its own; the same object all the time.

        Raises:
            Inconclusive: the connector asked for something that the kit does not simulate.
        """
        seen = self._seen_class
        if seen.not_simulated:
            raise Inconclusive(seen.not_simulated)
        return seen

    @property
    def _seen_class(self) -> ClassObservation:
        if self._observation is None:
            self._observation = self._observe()
        return self._observation

    def _observe(self) -> ClassObservation:
        from kvconform.isolation.observing import observe_class

        directory = Path(tempfile.mkdtemp(prefix="kvconform-"))
        try:
            specs = []
            for name in ("both", "scheduler"):
                (directory / name).mkdir()
                specs.append(self.stage.connector_spec(directory / name))
            nursery = None if self.room is None else self.room.nursery
            return observe_class(nursery, self.target, specs[0], specs[1], self.config.resolved_device)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def leftovers(self, program: Program) -> tuple[tuple[Leftover, ...], str]:
        """What each round of a program leaves behind after shutdown, or why it cannot be played."""
        try:
            self.examine(program)
        except Refused as error:
            return (), str(error)
        found = leftovers(lambda: self.play(program)) if self.room is None else self.room.leftovers(program)
        return found, ""

    @property
    def transfers_true_bytes(self) -> bool:
        """Whether the connector is to be judged by the bytes it delivers; one declared a filler or lossy is not."""
        return not {"dummy-fill", "lossy"} & set(self.config.capabilities)

    def _fair(self, examination: Examination) -> Examination:
        if self.transfers_true_bytes:
            return examination
        kept = tuple(finding for finding in examination.findings if not isinstance(finding.at, WrongBytes))
        return replace(examination, findings=kept)


def _stumbles_anyway(program: Program, examination: Examination) -> bool:
    """Whether it fails to register even plain layers: it may look for classes of layers that a simulation has not."""
    broken = {finding.rule for finding in examination.findings}
    return broken == {"LAY-01"} and program.options.shape.layers == KVCacheShape().layers


def refused(history: History) -> str | None:
    """Why the first engine did not start, or what the kit can't simulate for this connector, or None."""
    for missing_part in history.of(Unsimulated):
        return missing_part.what
    for event in history.of(EngineRaised):
        if event.during == "start-up" and event.engine == 1:
            return event.error
    return None
