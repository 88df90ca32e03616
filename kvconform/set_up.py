"""Setting a run of the kit up: its targets are found, options are checked, and its pytest plugins are registered."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvconform import collection, target_fixtures
from kvconform.baseline import Baseline, read_baseline
from kvconform.bench.plugin import BENCH_PLUGIN, start_bench
from kvconform.cases.folder import cases_folder
from kvconform.config import RunConfig
from kvconform.coverage_report import COVERAGE_PLUGIN, CoveragePlugin
from kvconform.errors import UsageError
from kvconform.faults import find_faults
from kvconform.isolation.sharing import SharedNursery
from kvconform.judgement import BASELINE
from kvconform.session import ConformanceSession
from kvconform.target import Target, parse_target
from kvconform.target_fixtures import RUN_CONFIG

if TYPE_CHECKING:
    from kvconform.report.recorder import ReportRecorder


def start_session(config: pytest.Config, run_config: RunConfig) -> None:
    """Check the targets and register the hooks and fixtures.

    Raises:
        pytest.UsageError: none of the targets can be used, or an option's path is of the wrong kind.
    """
    cases_folder(config)
    if config.option.kvconform_coverage:
        config.pluginmanager.register(CoveragePlugin(config), COVERAGE_PLUGIN)
    recorder = _recorder(config, run_config)
    targets, unusable = _parse_targets(config, run_config)
    if not targets:
        raise pytest.UsageError("\n".join(unusable.values()))
    collection.collect_suites_by_default(config)
    collection.share_conftest_fixtures(config)
    config.stash[RUN_CONFIG] = run_config
    _check_faults(config, run_config)
    config.stash[BASELINE] = _baseline(run_config)
    # Not import_plugin(): it warns about modules that are imported already (pytest 8), as this one is.
    config.pluginmanager.register(target_fixtures, "kvconform-target-fixtures")
    bench = start_bench(config, run_config, targets)
    if bench is not None:
        bench.unusable = unusable
        config.pluginmanager.register(bench, BENCH_PLUGIN)
    session = ConformanceSession(config, run_config, targets, unusable)
    config.pluginmanager.register(session, "kvconform-session")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SharedNursery(run_config), "kvconform-shared-nursery")
        from kvconform.report.progress import Progress

        config.pluginmanager.register(Progress(config, targets), "kvconform-progress")
    if recorder is not None:
        recorder.start(targets, session.all_results, unusable, session)
        config.pluginmanager.register(recorder, "kvconform-report")
    if importlib.util.find_spec("kvconform.fixtures") is not None:
        config.pluginmanager.register(importlib.import_module("kvconform.fixtures"), "kvconform-fixtures")


def _check_faults(config: pytest.Config, run_config: RunConfig) -> None:
    """Say early what is wrong with the class that breaks the connector's store."""
    if run_config.faults:
        try:
            find_faults(run_config.faults, config.invocation_params.dir)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None


def _baseline(run_config: RunConfig) -> Baseline:
    if not run_config.baseline:
        return Baseline()
    try:
        return read_baseline(Path(run_config.baseline), os.path.relpath(run_config.baseline))
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None


def _recorder(config: pytest.Config, run_config: RunConfig) -> ReportRecorder | None:
    """What writes ``--kvconform-report``; None without that option."""
    given: list[str] = config.option.kvconform_report
    if not given:
        return None
    from kvconform.report.files import ReportFiles
    from kvconform.report.recorder import ReportRecorder

    recorder = ReportRecorder(config, run_config, ReportFiles.named(given, config.invocation_params.dir))
    recorder.remove_old_files()
    return recorder


def _parse_targets(config: pytest.Config, run_config: RunConfig) -> tuple[tuple[Target, ...], dict[str, str]]:
    targets: dict[str, Target] = {}
    unusable: dict[str, str] = {}
    for spec in run_config.connector:
        try:
            target = parse_target(spec, run_config.connector_directory or config.invocation_params.dir)
            targets.setdefault(target.id, target)
        except UsageError as error:
            unusable[spec] = str(error)
    return tuple(targets.values()), unusable
