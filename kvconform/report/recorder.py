"""The pytest plugin behind ``--kvconform-report``: notes which tests there were, and writes the report at the end.

Workers of xdist tell the controller what they collected with their first test report, so that the controller knows it
even if it never hears of them again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import pytest

from kvconform.bench.plugin import ONLY, bench_of
from kvconform.capabilities import Capability
from kvconform.census import shipped_name
from kvconform.collection import suites_directory
from kvconform.config import RunConfig
from kvconform.coverage_report import coverage_of
from kvconform.judgement import BASELINE
from kvconform.outcomes import rules_of, target_of
from kvconform.report.building import RunFacts, SeenTest, State, TargetFacts, build_document
from kvconform.report.document import Options, plural
from kvconform.report.files import ReportFiles
from kvconform.report.masking import mask_settings, secrets_in
from kvconform.target import Target
from kvconform.verdicts import RuleResult, Verdict

_COLLECTED = "kvconform_collected"
_WORKER_OUTPUT = "kvconform-collected"
#: How the skips of :mod:`kvconform.outcomes` and :mod:`kvconform.session` begin: these tests did speak.
_VERDICTS_BY_SKIP = ("inconclusive: ", "not applicable: ")
_CANNOT_BE_TESTED = "cannot be tested, see the first error"


@dataclass
class _Test:
    """What is known about one test; the first three travel from worker to controller."""

    target: str
    rules: list[str]
    shipped: str
    deselected: bool
    state: State = "not run"
    duration: float = 0.0


class Known(Protocol):
    """What a session knows of the connectors by the end of a run, by target id."""

    def capabilities(self, target: str) -> tuple[Capability, ...]:
        """What they declare and were seen to do."""

    def trials(self, target: str) -> tuple[str, ...]:
        """What trials have shown, in sentences."""

    def no_such_target(self, target: str) -> str | None:
        """Why a target that a baseline names cannot be one."""


@dataclass(eq=False)
class ReportRecorder:
    """Hooks of one run; on xdist's workers only those that collect."""

    config: pytest.Config
    run_config: RunConfig
    files: ReportFiles
    _targets: tuple[Target, ...] = ()
    _results: Callable[[], Iterable[RuleResult]] = tuple
    _unusable: Mapping[str, str] = field(default_factory=dict)
    _known: Known | None = None
    _tests: dict[str, _Test] = field(default_factory=dict)
    _crashed: set[str] = field(default_factory=set)
    _skip_reasons: set[str] = field(default_factory=set)
    _broken_files: set[str] = field(default_factory=set)
    _interrupted_by: str = ""
    _told: bool = False
    _problem: str = ""
    _started: float = field(default_factory=time.time)

    @property
    def _is_worker(self) -> bool:
        return hasattr(self.config, "workerinput")

    def remove_old_files(self) -> None:
        """Remove what an earlier run wrote, unless this process writes nothing."""
        if not self._is_worker and not self.config.option.collectonly:
            self.files.remove()

    def start(
        self,
        targets: tuple[Target, ...],
        results: Callable[[], Iterable[RuleResult]],
        unusable: Mapping[str, str],
        known: Known,
    ) -> None:
        """Say what is tested, and where to ask for findings and all else at the end."""
        self._targets, self._results, self._unusable, self._known = targets, results, unusable, known

    # --- collection ---------------------------------------------------------------------------------------------------

    def pytest_deselected(self, items: Iterable[pytest.Item]) -> None:
        for item in items:
            self._tests[item.nodeid] = _describe(item, deselected=True)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self._tests[item.nodeid] = _describe(item, deselected=False)
        if self._is_worker:
            self.config.workeroutput[_WORKER_OUTPUT] = self._collected()  # type: ignore[attr-defined]  # xdist's

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._broken_files.add(report.nodeid)

    def _collected(self) -> dict[str, dict[str, Any]]:
        return {nodeid: asdict(test) for nodeid, test in self._tests.items()}

    def _learn(self, collected: Mapping[str, Mapping[str, Any]]) -> None:
        for nodeid, facts in collected.items():
            known = self._tests.get(nodeid)
            if known is None:
                self._tests[nodeid] = _Test(**facts)
            elif not known.rules:  # only its name was known
                known.target, known.rules, known.shipped = facts["target"], facts["rules"], facts["shipped"]

    # --- running ------------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if self._is_worker and not self._told:
            self._told = True
            setattr(report, _COLLECTED, self._collected())  # reports may carry any plain data; xdist sends it along
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._learn(getattr(report, _COLLECTED, {}))
        test = self._tests.setdefault(report.nodeid, _Test("", [], "", False))
        test.duration += report.duration
        if getattr(report, "when", None) == "???":  # xdist's report of a test that its process died in
            self._crashed.add(report.nodeid)
            test.state = "ran"
        elif report.when == "call" or report.outcome != "passed":
            test.state = self._state(report)

    def _state(self, report: pytest.TestReport) -> State:
        if hasattr(report, "wasxfail"):
            self._skip_reasons.add(f"xfail: {report.wasxfail}")
            return "skipped"
        if report.outcome != "skipped":
            return "ran"
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if reason.startswith(_VERDICTS_BY_SKIP):
            return "ran"
        if reason.endswith(_CANNOT_BE_TESTED):
            return "not run"
        self._skip_reasons.add(reason.removeprefix("Skipped: "))
        return "skipped"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._learn((getattr(node, "workeroutput", None) or {}).get(_WORKER_OUTPUT, {}))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Iterable[str]) -> None:
        # The only word of a worker that dies in its first test: names, without rules.
        for nodeid in ids:
            self._tests.setdefault(nodeid, _Test("", [], "", False))

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # pytest and xdist end a run by subclasses of KeyboardInterrupt that say why; a user's Ctrl-C says nothing.
        self._interrupted_by = str(excinfo.value) if type(excinfo.value) is not KeyboardInterrupt else "Ctrl-C"

    # --- the end ------------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        # After all others: they may still change the exit status. Before the terminal's summary.
        try:
            return (yield)
        finally:
            if not self._is_worker and not self.config.option.collectonly:
                self._write(session)

    def _write(self, session: pytest.Session) -> None:
        from kvconform.rules import load_catalogue

        self._problem = self.files.write(build_document(self._facts(session), load_catalogue()))
        if self._problem and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.config.option.collectonly:
            return
        terminalreporter.write_line(f"report: {self.files} {self._problem}".rstrip(), red=bool(self._problem))

    def _facts(self, session: pytest.Session) -> RunFacts:
        from kvconform.report.suite_tests import rules_by_test
        from kvconform.report.versions import environment

        return RunFacts(
            targets=tuple(map(self._target, self._targets)),
            results=(*self._results(), *self._crashes_in_setup()),
            tests=tuple(
                SeenTest(
                    nodeid,
                    test.target,
                    tuple(test.rules),
                    test.shipped,
                    "deselected" if test.deselected else test.state,
                    test.duration,
                )
                for nodeid, test in sorted(self._tests.items())
            ),
            shipped=rules_by_test(suites_directory()),
            unusable=self._unusable,
            environment=environment(self.run_config.resolved_engine),
            started=datetime.fromtimestamp(self._started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            duration=time.time() - self._started,
            command=tuple(map(str, self.config.invocation_params.args)),
            exit_status=int(session.exitstatus),
            deselected_by=self._deselected_by(),
            not_collected_by=self._not_collected_by(),
            stopped_by=self._stopped_by(session),
            skip_reasons=tuple(sorted(self._skip_reasons)),
            broken_files=tuple(sorted(self._broken_files)),
            baseline=self.config.stash[BASELINE],
            no_such_target=(lambda _: None) if self._known is None else self._known.no_such_target,
            secrets=secrets_in(dict(self.run_config.kv_connector_extra_config))
            | secrets_in({**self.run_config.env, **self.run_config.engine_env}),
        )

    def _crashes_in_setup(self) -> Iterable[RuleResult]:
        """Tests whose process died before they said which rules they are about."""
        known = {result.nodeid for result in self._results()}
        for nodeid in sorted(self._crashed - known):
            test = self._tests[nodeid]
            for rule in test.rules:
                message = "the process that ran the test died"
                yield RuleResult(rule, test.target, Verdict.CRASH, nodeid=nodeid, message=message)

    def _target(self, target: Target) -> TargetFacts:
        from kvconform.report.versions import distribution_of

        config = self.run_config.for_target(target)
        options = Options(
            kv_role=config.kv_role,
            engine=config.resolved_engine,
            device=config.resolved_device,
            budget=config.budget,
            seed=config.seed,
            timeout=config.timeout,
            capabilities=config.capabilities,
            kv_connector_extra_config=mask_settings(dict(config.kv_connector_extra_config)),
            env=mask_settings({**config.env, **config.engine_env}),
        )
        known = self._known
        return TargetFacts(
            target.id,
            config.preset,
            distribution_of(target),
            options,
            () if known is None else known.capabilities(target.id),
            () if known is None else known.trials(target.id),
            coverage_of(self.config, target.id),
            bench_of(self.config, target.id),
        )

    def _deselected_by(self) -> str:
        option = self.config.option
        given = (("-k", option.keyword), ("-m", option.markexpr))
        parts = [f"{name} {value!r}" for name, value in given if value]
        parts += ["--deselect"] if option.deselect else []
        parts += ["--lf"] if getattr(option, "lf", False) else []
        parts += [ONLY] if option.kvconform_bench_only else []
        return ", ".join(parts)

    def _not_collected_by(self) -> str:
        if self._broken_files:
            return f"{plural(len(self._broken_files), 'file')} could not be collected"
        if not self._tests and self._interrupted_by:
            return self._interrupted_by
        wanted = str(suites_directory())
        # Without a path on the command line this is what kvconform.collection makes pytest collect.
        return "" if self.config.args == [wanted] else "tests were named on the command line"

    def _stopped_by(self, session: pytest.Session) -> str:
        stopped = self._interrupted_by or session.shouldfail or session.shouldstop
        if "received keyboard-interrupt" in str(stopped):  # xdist's words, with an object's repr
            return "the process that ran a test was interrupted"
        if stopped:
            return str(stopped)
        return "the processes that ran the tests died" if self._crashed else ""


def _describe(item: pytest.Item, *, deselected: bool) -> _Test:
    return _Test(target_of(item), list(rules_of(item)), shipped_name(item), deselected)
