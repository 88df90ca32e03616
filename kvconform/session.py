"""The pytest hooks of a run of the kit: parametrising over the connectors, and gathering verdicts.

Registered by :mod:`kvconform.set_up` only when the kit was asked for. Results travel in ``report.user_properties``, so
that they reach the controller from xdist's workers.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from kvconform import collection, target_fixtures
from kvconform.api import release_of
from kvconform.capabilities import Capability, Shown
from kvconform.census import Census
from kvconform.config import RunConfig
from kvconform.coverage_report import coverage_of
from kvconform.errors import EngineUnusableError, UsageError
from kvconform.judgement import BASELINE, explain_outcome
from kvconform.outcomes import PROPERTY, entries_in, results_in, rules_of, target_of
from kvconform.report.model import RunReport, build_report, describe_environment
from kvconform.report.spent import Spent
from kvconform.target import Target, parse_target
from kvconform.target_fixtures import UnusableTargetError
from kvconform.trials.traits import StoreTraits
from kvconform.verdicts import RuleResult, Verdict

_WORKER_OUTPUT = "kvconform"


def _end_of(text: str, lines: int = 20) -> str:
    """The end of what a test printed or logged: a connector may write gigabytes, and the first lines repeat."""
    all_lines = text.splitlines()
    if len(all_lines) <= lines:
        return text
    return "\n".join([f"({len(all_lines) - lines} earlier lines cut)", *all_lines[-lines:]])


class ConformanceSession:
    """State and hooks of one run, on the controller, on each xdist worker, or without xdist on the one process."""

    def __init__(
        self, config: pytest.Config, run_config: RunConfig, targets: tuple[Target, ...], unusable: dict[str, str]
    ) -> None:
        self._config = config
        self._run_config = run_config
        self._targets = targets
        self._unusable = unusable
        #: (target id, rule id) of all collected tests, as an ordered set.
        self._named: dict[tuple[str, str], None] = {}
        #: What was collected and left out, test by test.
        self._census = Census()
        #: By test id: a later report of a test (call, teardown) repeats what an earlier one said.
        self._results: dict[str, list[RuleResult]] = {}
        self._tests: dict[str, dict[str, Any]] = {}
        self._crashed: list[str] = []
        self._failed: set[str] = set()
        self._loud: set[str] = set()
        #: By target id: what was said of it last, and what all tests have said of its capabilities and of its store.
        self._told: dict[str, dict[str, Any]] = {}
        self._shown: dict[str, Shown] = {}
        self._traits: dict[str, StoreTraits] = {}
        #: By process: what it told of the time it spent; and what this one has told.
        self._spent: dict[int, Spent] = {}
        self._told_time = Spent()
        self._began = time.monotonic()

    # --- collection ---------------------------------------------------------------------------------------------------

    def pytest_report_header(self) -> list[str]:
        names = ", ".join(target.id for target in self._targets)
        return [f"kvconform: {names}", self._environment()]

    def pytest_collect_file(self, file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return collection.collect_suite_file(file_path, parent)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "kvconform_target" in metafunc.fixturenames:
            ids = [target.id for target in self._targets]
            metafunc.parametrize("kvconform_target", self._targets, indirect=True, ids=ids, scope="session")

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._census.deselected(items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        collection.share_conftest_hooks(self._config, session.items)
        self._named.update(dict.fromkeys((target_of(item), rule) for item in session.items for rule in rules_of(item)))
        self._census.collected(session.items)
        worker_output = getattr(self._config, "workeroutput", None)
        if worker_output is not None:
            worker_output[_WORKER_OUTPUT] = {"named": [list(p) for p in self._named], "census": self._census.to_data()}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        told = (getattr(node, "workeroutput", None) or {}).get(_WORKER_OUTPUT)
        if told is not None:
            self._named.update(dict.fromkeys((target, rule) for target, rule in told["named"]))
            self._census.learn(told["census"])

    # --- running ------------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        # Runs inside pytest's own wrapper, so that a vendor's "-W error" is for the vendor's code and for ours.
        with warnings.catch_warnings():
            for package in ("vllm", "torch"):
                warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
            return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        # Said before anything can crash, so that the controller knows what a dead worker was at.
        rules = rules_of(item)
        if rules:
            self._say(item, "test", {"target": target_of(item), "rules": rules})

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        error = call.excinfo.value if call.excinfo is not None else None
        if isinstance(error, EngineUnusableError) and target_of(item):
            error = UnusableTargetError(target_of(item), str(error))
        if isinstance(error, UnusableTargetError):
            self._report_unusable(item, report, error)
        else:
            for result in explain_outcome(item, report, error):
                self._say(item, "result", result.to_dict())
            if report.when == "call":
                self._tell_capabilities(item)
            if report.when == "teardown":
                self._tell_time(item)
            if rules_of(item):
                report.sections = [(title, _end_of(text)) for title, text in report.sections]
        report.user_properties = list(item.user_properties)
        return report

    def _say(self, item: pytest.Item, kind: str, entry: dict[str, Any]) -> None:
        item.user_properties.append((PROPERTY, json.dumps({"type": kind, **entry}, sort_keys=True)))

    def _tell_capabilities(self, item: pytest.Item) -> None:
        """What the connector was seen to be able to do, and what trials have shown, if a test has learned more."""
        conformance = getattr(item, "funcargs", {}).get("conformance")
        if conformance is None:
            return
        seen = {
            "detected": dict(conformance.seen.detected),
            "exercised": dict(conformance.seen.exercised),
            "traits": asdict(conformance.traits),
        }
        target = target_of(item)
        if self._told.get(target) != seen:
            self._told[target] = seen
            self._say(item, "capabilities", {"target": target, **seen})

    def _tell_time(self, item: pytest.Item) -> None:
        """The time that went into the connectors' processes since a test told of it last."""
        rooms = getattr(item, "funcargs", {}).get("_rooms")
        if isinstance(rooms, target_fixtures.Rooms):
            now = rooms.spent
            if now != self._told_time:
                self._say(item, "spent", {"by": os.getpid(), **asdict(now - self._told_time)})
                self._told_time = now

    def _report_unusable(self, item: pytest.Item, report: pytest.TestReport, error: UnusableTargetError) -> None:
        """The first test says the sentence, the others of the target are skipped and point to it."""
        path, line, _ = item.location
        if error.target in self._loud:
            report.outcome = "skipped"
            report.longrepr = (path, (line or 0) + 1, f"Skipped: {error.target} cannot be tested, see the first error")
        else:
            self._loud.add(error.target)
            report.outcome = "failed"
            report.longrepr = str(error)
            self._say(item, "unusable", {"target": error.target, "sentence": str(error)})

    def pytest_report_teststatus(
        self, report: pytest.TestReport
    ) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
        if report.when == "call" and getattr(report, "kvconform_warned", False):
            return "warned", "w", ("WARN", {"yellow": True})
        if report.when == "call" and getattr(report, "kvconform_known", False):
            return "known", "k", ("KNOWN", {"yellow": True})
        return None

    # --- the end ------------------------------------------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        nodeid = report.nodeid
        if report.failed:
            self._failed.add(nodeid)
        for entry in entries_in(report.user_properties, "unusable"):
            self._unusable.setdefault(entry["target"], entry["sentence"])
        for entry in entries_in(report.user_properties, "capabilities"):
            target = entry["target"]
            self._shown.setdefault(target, Shown()).add(entry["detected"], entry["exercised"])
            self._traits[target] = self._traits.get(target, StoreTraits()) | StoreTraits(**entry["traits"])
        if report.when == "teardown":
            for entry in entries_in(report.user_properties, "spent"):
                by = entry.pop("by")
                self._spent[by] = self._spent.get(by, Spent()) + Spent(**entry)
        for entry in entries_in(report.user_properties, "test"):
            self._tests[nodeid] = entry
        results = results_in(report.user_properties)
        if results:
            self._results[nodeid] = [r if r.duration else replace(r, duration=report.duration) for r in results]
        # What xdist reports for the test that a worker process died in; there is no constant for it.
        if getattr(report, "when", None) == "???" and report.failed:
            self._crashed.append(nodeid)

    def all_results(self) -> Iterator[RuleResult]:
        """What all tests found out so far."""
        for results in self._results.values():
            yield from results
        for nodeid in self._crashed:
            test = self._tests.get(nodeid, {"target": "", "rules": ()})
            for rule in test["rules"]:
                message = "the process that ran the test died"
                yield RuleResult(rule, test["target"], Verdict.CRASH, nodeid=nodeid, message=message)

    def capabilities(self, target: str) -> tuple[Capability, ...]:
        """What is known of a target's capabilities."""
        declared = next(self._run_config.for_target(t).capabilities for t in self._targets if t.id == target)
        return self._shown.get(target, Shown()).table(declared)

    def trials(self, target: str) -> tuple[str, ...]:
        """What trials have shown of a target's store, in sentences."""
        shown = self._shown.get(target, Shown()).exercised
        loading = any(shown.get(name) for name in ("sync-load", "async-load", "pd"))
        return self._traits.get(target, StoreTraits()).sentences(loading=loading)

    def _environment(self) -> str:
        config = self._run_config
        return describe_environment(
            engine=config.resolved_engine, device=config.resolved_device, budget=config.budget, seed=config.seed
        )

    def _required(self) -> tuple[str, ...]:
        """The rules that hold for the installed vLLM and that the suites check."""
        from kvconform.report.building import expected_rules
        from kvconform.report.suite_tests import checked_rules
        from kvconform.rules import load_catalogue

        checked = checked_rules(collection.suites_directory())
        release = release_of(self._run_config.resolved_engine)
        return tuple(rule.id for rule in expected_rules(load_catalogue(), release) if rule.id in checked)

    def _report(self) -> RunReport:
        from kvconform.report.suite_tests import checked_rules
        from kvconform.rules import load_catalogue

        spent = sum(self._spent.values(), Spent())
        return build_report(
            presets={target.id: self._run_config.for_target(target).preset for target in self._targets},
            named=self._named,
            results=self.all_results(),
            unusable=self._unusable,
            environment=self._environment(),
            catalogue=load_catalogue(),
            failed_tests=self._failed,
            baseline=self._config.stash[BASELINE],
            coverage={target.id: coverage_of(self._config, target.id) for target in self._targets},
            capabilities={target.id: self.capabilities(target.id) for target in self._targets},
            required=self._required(),
            checked=checked_rules(collection.suites_directory()),
            incomplete=self._census.incomplete({*self._results, *self._crashed}, [t.id for t in self._targets]),
            no_such_target=self.no_such_target,
            spent=spent.sentence(time.monotonic() - self._began, len(self._spent)),
            trials=tuple(f"{target.id} {sentence}" for target in self._targets for sentence in self.trials(target.id)),
        )

    def no_such_target(self, target: str) -> str | None:
        """Why a connector that a baseline names cannot be one, as far as can be told without importing it."""
        folders = [self._config.invocation_params.dir, *(t.search_path for t in self._targets)]
        folders += [self._run_config.connector_directory, Path(self._run_config.baseline or ".").parent]
        problem = None
        for folder in dict.fromkeys(filter(None, folders)):
            try:
                parse_target(target, folder)
            except UsageError as error:
                problem = problem or str(error)
            else:
                return None
        return problem

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(self._config, "workerinput"):
            return
        ended = session.exitstatus
        if self._unusable and ended in (
            pytest.ExitCode.OK,
            pytest.ExitCode.TESTS_FAILED,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        elif ended == pytest.ExitCode.OK and not self._config.option.collectonly:
            report = self._report()
            if report.has_bad_verdict or report.not_set_up or report.baseline_problems:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        from kvconform.report.terminal import render

        if self._config.option.collectonly and not self._unusable:
            return
        terminalreporter.section("kvconform")
        # The markup and width are those that pytest decided on (--color, a pipe, the window).
        writer = terminalreporter._tw
        terminalreporter.write_line(render(self._report(), width=writer.fullwidth, color=writer.hasmarkup))
