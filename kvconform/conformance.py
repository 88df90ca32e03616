"""One connector on trial: what its scenarios show is turned into verdicts on rules."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from kvconform import capabilities
from kvconform.capabilities import Capability, Shown
from kvconform.cases.commands import replay_command, rerun_command
from kvconform.cases.model import How
from kvconform.cases.writer import CaseWriter
from kvconform.checks import Examination, Finding
from kvconform.engine.history import History
from kvconform.examiner import Examiner
from kvconform.isolation.room import CrashedError, HungError
from kvconform.outcomes import ConformanceFailure, Inconclusive, NotApplicable, record, rules_of
from kvconform.report.failure_text import crashed_text, failure_text, hung_text
from kvconform.report.picturing import pictures_of
from kvconform.rules import load_catalogue
from kvconform.scenario import transfer
from kvconform.scenario.capabilities import Demonstrator
from kvconform.scenario.exploration import (
    Budget,
    Explorer,
    Outcome,
    Refused,
    missing,
    refusal_words,
    seen_of,
    witness_rule,
)
from kvconform.scenario.family import Family
from kvconform.scenario.program import Program
from kvconform.verdicts import NOT_SET_UP, Verdict

DRAWN = {"quick": 3, "full": 25}
#: Capabilities that a connector shows when it transfers something, which some do between two engines only.
SHOWN_BY_TRANSFERS = frozenset({"sync-load", "async-load", "async-save", "delayed-free"})
ALONE = "; the connector hands KV from one engine to another, and these scenarios have one engine only"


@dataclass
class Conformance(Examiner):
    """Everything a suite needs to try one connector."""

    #: Where failing scenarios are kept; None in the connector's own process.
    cases: CaseWriter | None = None
    _demonstrator: Demonstrator = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demonstrator = Demonstrator(self._glance)

    # -- what the connector can do ---------------------------------------------------------------------------------

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
        """Try a family within the run's budget; the seed depends on the run's seed and the test only.

        Wherever that is: pytest's id of the same test begins with other folders in other places.
        """
        file, _, test = nodeid.partition("::")
        seed = self.config.seed ^ zlib.crc32(f"{file.rpartition('/')[2]}::{test}".encode())
        return Explorer(family, frozenset(rules), self._glance, self._examine).explore(
            Budget(DRAWN[self.config.budget] * family.more, seed)
        )

    def _glance(self, program: Program) -> Examination:
        return self.glance(self.fitted(program))

    def _examine(self, program: Program) -> Examination:
        return self.examine(self.fitted(program))

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
            self.glance(transfer.reload().examples[0])
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
            self.fitted(program),
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
                self.target,
                self.config,
                nodeid,
                family,
                self.fitted(program),
                rules=rules,
                how=how,
                findings=findings,
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
