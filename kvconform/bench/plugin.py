"""pytest's side of ``--kvconform-bench``: when it is measured, on whom, and what is said if it cannot be.

Everything is measured once all tests are over, by the process that gathers the verdicts: under xdist the workers have
ended then. Nothing here changes a verdict, and nothing but a connector that cannot be imported changes the exit code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from kvconform.bench.figures import Measured, Measurement, not_measured
from kvconform.bench.plan import Case, parse_blocks, parse_layouts
from kvconform.config import RunConfig
from kvconform.coverage_child import VARIABLE
from kvconform.errors import UsageError
from kvconform.target import Target
from kvconform.target_fixtures import Rooms

if TYPE_CHECKING:
    from kvconform.isolation.room import Room

BENCH_PLUGIN = "kvconform-bench"
OPTION = "--kvconform-bench"
ONLY = f"{OPTION}-only"
PAIR = (
    "not measured: with kv_role = {role!r} the connector is one half of a pair, and only one that stores and loads by "
    "itself (kv_both) is measured"
)
STOPPED = "not measured: the run was stopped before its end"
UNMEASURED = "not measured: "


def start_bench(config: pytest.Config, run_config: RunConfig, targets: tuple[Target, ...]) -> BenchPlugin | None:
    """What measures, if it was asked for.

    Raises:
        pytest.UsageError: an option has a value that it cannot have, or does nothing.
    """
    option = config.option
    if not option.kvconform_bench and not option.kvconform_bench_only:
        typed = [str(arg).partition("=")[0] for arg in config.invocation_params.args]
        idle = next((name for name in typed if name.startswith(f"{OPTION}-")), None)
        if idle is not None:
            raise pytest.UsageError(f"{idle} does nothing without {OPTION}: add {OPTION}, or {ONLY}.")
        return None
    try:
        blocks = parse_blocks(option.kvconform_bench_blocks)
        layouts = parse_layouts(option.kvconform_bench_layouts)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    return BenchPlugin(config, run_config, targets, layouts, blocks)


class BenchPlugin:
    """Hooks of a run with ``--kvconform-bench``.

    Args:
        config: pytest's.
        run_config: the kit's.
        targets: the connectors.
        layouts: what is measured, see :mod:`kvconform.bench.plan`.
        blocks: numbers of blocks.
    """

    def __init__(
        self,
        config: pytest.Config,
        run_config: RunConfig,
        targets: tuple[Target, ...],
        layouts: tuple[str, ...],
        blocks: tuple[int, ...],
    ) -> None:
        self._config, self._run_config, self._targets = config, run_config, targets
        self._layouts, self._blocks = layouts, blocks
        self._only = bool(config.option.kvconform_bench_only)
        self._measured: dict[str, Measurement] = {}
        #: By target id, why it cannot be tested; shared with the session.
        self.unusable: MutableMapping[str, str] = {}

    def measurement(self, target_id: str) -> Measurement | None:
        """What was measured of a connector; None before that."""
        return self._measured.get(target_id)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if self._only and items:
            config.hook.pytest_deselected(items=list(items))
            items.clear()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(self._config, "workerinput") or self._config.option.collectonly:
            return
        usual = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
        stopped = session.exitstatus not in usual or session.shouldstop or session.shouldfail
        rooms = Rooms(self._config)
        try:
            for target in self._targets:
                device = self._run_config.resolved_device
                self._measured[target.id] = not_measured(STOPPED, device) if stopped else self._measure(target, rooms)
        finally:
            rooms.close()
        if self._only and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        from kvconform.report.bench_section import terminal_lines

        if not self._measured:
            return
        terminalreporter.section("kvconform bench")
        for target, measurement in self._measured.items():
            for line in terminal_lines(target, measurement):
                terminalreporter.write_line(line)

    # -- one connector -----------------------------------------------------------------------------------------------

    def _measure(self, target: Target, rooms: Rooms) -> Measurement:
        config = self._run_config.for_target(target)
        device = config.resolved_device
        if target.id in self.unusable:
            return not_measured(f"{UNMEASURED}the connector cannot be tested", device)
        if config.kv_role != "kv_both":
            return not_measured(PAIR.format(role=config.kv_role), device)
        self._tell(target)
        room = rooms.room(target)
        try:
            with _without_coverage():
                return self._measure_in(room, device)
        except KeyboardInterrupt:
            return not_measured(f"{UNMEASURED}interrupted", device)
        except UsageError as error:
            if self._only:
                self.unusable[target.id] = str(error)
            return not_measured(f"{UNMEASURED}{str(error).splitlines()[0]}", device)
        finally:
            room.close()

    def _tell(self, target: Target) -> None:
        """What goes on, where pytest would only seem to hang."""
        reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and self._config.option.verbose >= 0:
            cases = len(self._layouts) * len(self._blocks)
            reporter.ensure_newline()
            reporter.write_line(f"kvconform bench: {target.id}, {cases} measurements, up to some seconds each")

    def _measure_in(self, room: Room, device: str) -> Measurement:
        room.load()
        cases: list[Measured] = []
        facts: list[dict[str, Any]] = []
        for layout in self._layouts:
            for blocks in self._blocks:
                measured, told = _measure_case(room, Case(layout, blocks))
                cases.append(measured)
                facts += told
                if measured.problem:
                    # More blocks will not help, and each hang takes its time.
                    break
        others = [fact["others"] for fact in facts if fact["others"] is not None]
        return Measurement(
            reason="",
            device=device,
            threads=facts[-1]["threads"] if facts else 0,
            cores=facts[-1]["cores"] if facts else 0,
            clock=min((fact["clock"] for fact in facts), default=0.0),
            others=round(sum(others) / len(others), 2) if others else None,
            cases=tuple(cases),
        )


def _measure_case(room: Room, case: Case) -> tuple[Measured, list[dict[str, Any]]]:
    """One case, and facts on the process if it lived."""
    from kvconform.isolation.room import CrashedError, HungError, KitError

    nothing = Measured(case.layout, case.blocks)
    try:
        measured, facts = room.measure(case)
    except HungError as error:
        return replace(nothing, problem=f"did not end within {error.limit:g} s (--kvconform-timeout)"), []
    except CrashedError as error:
        return replace(nothing, problem=f"the connector's process {error.how}"), []
    except KitError as error:
        return replace(nothing, problem=f"the kit itself failed: {str(error).strip().splitlines()[-1]}"), []
    return measured, [facts]


@contextmanager
def _without_coverage() -> Iterator[None]:
    """Tracing the connector's lines would be measured, too."""
    asked = os.environ.pop(VARIABLE, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[VARIABLE] = asked


def bench_of(config: pytest.Config, target_id: str) -> Measurement | None:
    """What was measured of a connector, asked at the end of a run; None if nothing was to be."""
    plugin: BenchPlugin | None = config.pluginmanager.get_plugin(BENCH_PLUGIN)
    return plugin.measurement(target_id) if plugin is not None else None
