"""One connector on trial: plays scenarios with it, and turns what they show into verdicts on rules."""

from __future__ import annotations

import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pytest

from kvconform import capabilities
from kvconform.api import release_of
from kvconform.capabilities import Capability, Shown
from kvconform.cases.commands import replay_command, rerun_command
from kvconform.cases.model import How
from kvconform.cases.writer import CaseWriter
from kvconform.checks import Examination, Finding, examine
from kvconform.checks.calls import offered_by_request
from kvconform.checks.class_model import ClassObservation
from kvconform.config import RunConfig, placeholders
from kvconform.engine.byte_events import WrongBytes
from kvconform.engine.events import EngineRaised, Unsimulated
from kvconform.engine.history import History
from kvconform.faults import Setting, StoreFaults
from kvconform.isolation.leftovers import Leftover, leftovers
from kvconform.isolation.room import CrashedError, HungError, Room
from kvconform.kvcache.shape import KVCacheShape
from kvconform.outcomes import ConformanceFailure, Inconclusive, NotApplicable, record, rules_of
from kvconform.report.failure_text import crashed_text, failure_text, hung_text
from kvconform.report.picturing import pictures_of
from kvconform.rules import load_catalogue
from kvconform.scenario import transfer
from kvconform.scenario.capabilities import Demonstrator
from kvconform.scenario.exploration import (
    RULED_OUT,
    Budget,
    Explorer,
    Outcome,
    Refused,
    missing,
    refusal_words,
    seen_of,
    witness_rule,
)
from kvconform.scenario.program import Program
from kvconform.scenario.transfer import Family
from kvconform.stage import Stage
from kvconform.target import Target
from kvconform.verdicts import NOT_SET_UP, Verdict

DRAWN = {"quick": 3, "full": 25}
#: Capabilities that a connector shows when it transfers something, which some do between two engines only.
SHOWN_BY_TRANSFERS = frozenset({"sync-load", "async-load", "async-save", "delayed-free"})
ALONE = "; the connector hands KV from one engine to another, and these scenarios have one engine only"


@dataclass
class Conformance:
    """Everything a suite needs to try one connector.

    Programs are deterministic, so the examination of a program is kept for the session and shared by tests.
    """

    target: Target
    config: RunConfig
    room: Room | None = None
    #: Where failing scenarios are kept; None in the connector's own process.
    cases: CaseWriter | None = None
    #: The vendor's class that breaks the store, in the connector's own process; None where files are broken.
    faults: Callable[[Setting], StoreFaults] | None = None
    #: Plays programs in this process.
    stage: Stage = field(init=False)
    _examined: dict[str, Examination | str] = field(default_factory=dict)
    _observation: ClassObservation | None = None
    _shown: Shown = field(default_factory=Shown)
    _demonstrator: Demonstrator = field(init=False)

    def __post_init__(self) -> None:
        self.stage = Stage(self.target, self.config, self.faults)
        self._demonstrator = Demonstrator(self.examine)

    # -- playing ---------------------------------------------------------------------------------------------------

    def play(self, program: Program) -> History:
        """Run a program on fresh engines and a fresh store, in this process."""
        return self.stage.play(program)

    def examine(self, program: Program) -> Examination:
        """Play and judge a program, in the connector's own process if there is one.

        Raises:
            Refused: the connector refused to start with this set-up, or its settings rule it out.
            HungError, CrashedError: what became of the connector's process.
        """
        self._demand_ports(program)
        key = repr(program)
        if key not in self._examined:
            try:
                new = self._examine_here(program) if self.room is None else self.room.examine(program)
                self._examined[key] = new
                self._shown.count(new.capabilities)
            except Refused as error:
                self._examined[key] = str(error)
        known = self._examined[key]
        if isinstance(known, str):
            raise Refused(known)
        return known

    def _demand_ports(self, program: Program) -> None:
        """Raises Refused for two connectors of the class in an engine if its variables have one port for both."""
        twins = program.options.place and program.options.sibling == "twin"
        if twins and any(name.startswith("port") for name in placeholders(self.config.engine_env)):
            raise Refused(
                f"{RULED_OUT} engine_env names one port for an engine, and two connectors of this class would share it"
            )

    def _examine_here(self, program: Program) -> Examination:
        history = self.play(program)
        examination = replace(
            self._fair(examine(history, self._release)),
            capabilities=capabilities.exercised(history),
            offered=offered_by_request(history),
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

    @property
    def seen(self) -> Shown:
        """What the connector was seen to be able to do so far: for reports, since it depends on what was played."""
        return self._shown

    @property
    def _detected(self) -> Mapping[str, str]:
        if not self._shown.detected:
            self._shown.add(capabilities.of_class(self._seen_class.shape), {})
        return self._shown.detected

    def capability(self, name: str) -> Capability:
        """What configuration, class and the scenarios that call for it say of one capability, whatever else was played.

        Raises:
            Inconclusive: nothing shows it, and some of these scenarios had no end.
        """
        exercised, lost = self._demonstrator.count(name)
        if lost:
            raise Inconclusive(f"whether the connector has {name} could not be seen: {lost}")
        return Capability(name, name in self.config.capabilities, self._detected.get(name, ""), exercised)

    def demand_capability(self, name: str) -> None:
        """Ask for a capability that the rules of a test are about.

        Raises:
            NotApplicable: the connector neither declares nor shows it.
            Inconclusive: see :meth:`capability`.
        """
        if name in capabilities.OF_EVERY_CONNECTOR or name in self._detected or name in self.config.capabilities:
            return
        if name in capabilities.BY_CLASS_ALONE or not self.capability(name).exercised:
            beyond = self._demonstrator.beyond.get(name)
            why = refusal_words(beyond) if beyond else capabilities.why_not(name)
            raise NotApplicable(why + self.alone if name in SHOWN_BY_TRANSFERS else why)

    @property
    def alone(self) -> str:
        """What is to be added to the reason why one engine alone showed nothing: another one may have been needed."""
        return ALONE if self._demonstrator.count("pd")[0] else ""

    def _lacking(self, rule: str, family: Family, outcome: Outcome) -> str:
        pair = any(program.pair is not None for program in family.examples)
        loaded = any(outcome.witness("LOAD-01").values())
        return missing(rule, family) + ("" if pair or loaded else self.alone)

    def demand_streams(self) -> None:
        """Raises NotApplicable where the KV caches are in host memory."""
        if self.config.resolved_device != "cuda":
            raise NotApplicable(
                "the KV caches are in host memory here, where work is done in the order in which it is called; "
                "run it with --kvconform-device=cuda on a machine with a GPU"
            )

    def demand(self, rule: str) -> None:
        """Raises NotApplicable if ``rule`` is none of the installed vLLM's release."""
        if other := self._of_another_release(rule):
            raise NotApplicable(other)

    def _of_another_release(self, rule: str) -> str:
        known, version = load_catalogue().rule(rule), self._release
        if not version or known.applies_to(version):
            return ""
        last = f" until {known.until}" if known.until else ""
        return f"a rule of vLLM from {known.since} on{last}; installed is {version}"

    # -- judging ---------------------------------------------------------------------------------------------------

    def explore(self, family: Family, rules: Sequence[str], nodeid: str) -> Outcome:
        """Try a family within the run's budget; the seed depends on the run's seed and the test only."""
        seed = self.config.seed ^ zlib.crc32(nodeid.encode())
        return Explorer(family, frozenset(rules), self.examine).explore(
            Budget(DRAWN[self.config.budget] * family.more, seed)
        )

    def judge(self, request: pytest.FixtureRequest, family: Family) -> Outcome:
        """Try a family and settle every rule that the test names; findings of other rules are recorded as theirs.

        Raises:
            ConformanceFailure: a rule that the test names was found broken.
            Inconclusive: nothing was witnessed for the first of them.
            NotApplicable: the connector refuses every set-up of the family, in its own words.
        """
        rules = rules_of(request.node)
        try:
            outcome = self.explore(family, rules, request.node.nodeid)
        except HungError as error:
            reproduce = self._reproduce(request, family, error.program, (family.rule,), how="timeout")
            raise ConformanceFailure(
                hung_text(error, family.name, target=self.target.id, reproduce=reproduce),
                rules=(family.rule,),
                verdict=Verdict.TIMEOUT,
            ) from None
        except CrashedError as error:
            reproduce = self._reproduce(request, family, error.program, (family.rule,), how="crash")
            raise ConformanceFailure(
                crashed_text(error, family.name, target=self.target.id, reproduce=reproduce),
                rules=(family.rule,),
                verdict=Verdict.CRASH,
            ) from None
        for rule, (program, examination) in outcome.elsewhere.items():
            pictures = pictures_of(examination.findings, examination.history)
            text = self._text(request, family, examination, program)
            record(request, rule, Verdict.FAIL, message=text, pictures=pictures.get(rule, ()))
        if outcome.failed is not None:
            program, examination = outcome.failed
            broken = tuple(dict.fromkeys(finding.rule for finding in examination.findings))
            for rule in rules:
                if rule not in broken:
                    lacking = f"the scenario broke {', '.join(broken)} before this was shown"
                    self._settle(request, rule, family, outcome, lacking)
            text = self._text(request, family, examination, program, outcome.contrast)
            pictures = pictures_of(examination.findings, examination.history)
            raise ConformanceFailure(text, rules=broken, pictures=pictures)
        if outcome.refused and not outcome.programs:
            self._demand_start()
            raise NotApplicable(refusal_words(outcome.refused[0]))
        for rule in rules:
            self._settle(request, rule, family, outcome, self._lacking(rule, family, outcome))
        if not self.transfers_true_bytes and witness_rule(rules[0]) == "LOAD-01":
            raise NotApplicable("the connector is declared not to transfer true bytes (dummy-fill or lossy)")
        self.demand(rules[0])
        if rules[0] in outcome.excused:
            raise Inconclusive(outcome.engine_bug)
        if not any(seen_of(family, outcome, rules[0]).values()):
            raise Inconclusive(outcome.engine_bug or self._lacking(rules[0], family, outcome))
        return outcome

    def conclude(
        self,
        request: pytest.FixtureRequest,
        findings: Iterable[Finding],
        witnesses: Mapping[str, Mapping[str, int]],
        lacking: str,
    ) -> None:
        """Settle the rules that a test names from findings that need no scenario.

        Args:
            request: of the test.
            findings: of rules that the test names.
            witnesses: per rule what was seen; a named rule without one is inconclusive.
            lacking: why nothing was seen.

        Raises:
            ConformanceFailure: there are findings.
            Inconclusive: there is no witness for the first named rule.
        """
        found = tuple(findings)
        broken = tuple(dict.fromkeys(finding.rule for finding in found))
        rules = rules_of(request.node)
        seen = {rule: {what: n for what, n in witnesses.get(rule, {}).items() if n} for rule in rules}
        for rule in rules:
            if rule not in broken:
                verdict = Verdict.PASS if seen[rule] else Verdict.INCONCLUSIVE
                record(request, rule, verdict, witnesses=seen[rule], message="" if seen[rule] else lacking)
        if found:
            reproduce = rerun_command(request.node.nodeid, self.target, self.config)
            text = failure_text(found, History(), None, target=self.target.id, reproduce=reproduce)
            raise ConformanceFailure(text, rules=broken)
        if not seen[rules[0]]:
            raise Inconclusive(lacking)

    def demand_faults(self, purpose: str) -> None:
        """Leave the test inconclusive if nothing can ``purpose``, as the sentence goes on.

        Raises:
            Inconclusive: the configuration names no class that breaks the connector's store.
        """
        if not self.config.faults:
            raise Inconclusive(f"only a class that the configuration names under 'faults' can {purpose}")

    def _demand_start(self) -> None:
        """A connector that refuses one layout has its reasons; one that refuses the plainest set-up was never tried."""
        try:
            self.examine(transfer.reload().examples[0])
        except Refused as error:
            raise Inconclusive(f"{NOT_SET_UP}: {error}") from None

    def _text(
        self,
        request: pytest.FixtureRequest,
        family: Family,
        examination: Examination,
        program: Program,
        contrast: str = "",
    ) -> str:
        rules = [finding.rule for finding in examination.findings]
        return failure_text(
            examination.findings,
            examination.history,
            program,
            target=self.target.id,
            reproduce=self._reproduce(request, family, program, rules, findings=examination.findings),
            contrast=contrast,
        )

    def _reproduce(
        self,
        request: pytest.FixtureRequest,
        family: Family,
        program: Program | None,
        rules: Sequence[str],
        *,
        how: How = "fail",
        findings: Sequence[Finding] = (),
    ) -> tuple[str, ...]:
        """Commands that show a failure again: its test, and the scenario alone if it could be kept as a case file."""
        nodeid = request.node.nodeid
        commands = [rerun_command(nodeid, self.target, self.config)]
        if self.cases is not None and program is not None:
            file = self.cases.save(
                self.target, self.config, nodeid, family, program, rules=rules, how=how, findings=findings
            )
            if file is not None:
                commands.append(replay_command(file, self.target, self.config))
        return tuple(commands)

    def _settle(
        self, request: pytest.FixtureRequest, rule: str, family: Family, outcome: Outcome, lacking: str
    ) -> None:
        if not self.transfers_true_bytes and witness_rule(rule) == "LOAD-01":
            declared = " and ".join(sorted({"dummy-fill", "lossy"} & set(self.config.capabilities)))
            record(request, rule, Verdict.NOT_APPLICABLE, message=f"the connector is declared {declared}")
            return
        if other := self._of_another_release(rule):
            record(request, rule, Verdict.NOT_APPLICABLE, message=other)
            return
        if rule in outcome.excused:
            record(request, rule, Verdict.INCONCLUSIVE, message=outcome.engine_bug)
            return
        seen = {what: count for what, count in seen_of(family, outcome, rule).items() if count}
        verdict = Verdict.PASS if seen else Verdict.INCONCLUSIVE
        record(request, rule, verdict, witnesses=seen, message="" if seen else outcome.engine_bug or lacking)


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
