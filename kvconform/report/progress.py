"""How far a run is, at the end of the line that pytest is writing; only on a terminal.

The line of progress stands behind the cursor and is wiped away before anything else is written, so pytest's own
output is what it always is: dots, names of files, percentages. Nothing of it in a pipe, in a file, or with ``-q``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from kvconform.judgement import BASELINE
from kvconform.outcomes import results_in
from kvconform.rules import load_catalogue
from kvconform.verdicts import judge

if TYPE_CHECKING:
    from kvconform.target import Target

#: Saves the cursor's place and makes what follows faint; the reverse; and wipes the line behind the cursor.
_BEGIN, _END, _WIPE = "\x1b7\x1b[2m", "\x1b[0m\x1b8", "\x1b[K"
#: Columns between what pytest has written and the line of progress.
_GAP = 2


class StatusFile:
    """A terminal with a text behind the cursor that goes away as soon as somebody writes."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._shown = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> Any:
        """Write as if there were no text behind the cursor."""
        self.wipe()
        return self._file.write(text)

    def show(self, text: str) -> None:
        """Show a text behind the cursor; it has to fit into the line."""
        self.wipe()
        self._file.write(f"{_BEGIN}{' ' * _GAP}{text}{_END}")
        self._file.flush()
        self._shown = True

    def wipe(self) -> None:
        """Take the text away."""
        if self._shown:
            self._shown = False
            self._file.write(_WIPE)


class Progress:
    """Counts the tests of a run by connector and suite."""

    def __init__(self, config: pytest.Config, targets: Iterable[Target]) -> None:
        self._config = config
        self._targets = sorted((target.id for target in targets), key=len, reverse=True)
        self._tests: dict[str, tuple[str, str]] = {}
        self._total: Counter[tuple[str, str]] = Counter()
        self._done: dict[str, None] = {}
        self._done_of: Counter[tuple[str, str]] = Counter()
        self._broken: set[tuple[str, str]] = set()
        self._running: dict[str, None] = {}
        self._writer: Any = None
        self._file: StatusFile | None = None

    # -- where it is shown -----------------------------------------------------------------------------------------

    def pytest_sessionstart(self) -> None:
        reporter: Any = self._config.pluginmanager.getplugin("terminalreporter")
        self._writer = getattr(reporter, "_tw", None)
        file = getattr(self._writer, "_file", None)
        if file is not None and self._is_wanted(file):
            self._file = self._writer._file = StatusFile(file)

    def _is_wanted(self, file: Any) -> bool:
        option = self._config.option
        return (
            file.isatty()
            and bool(self._writer.hasmarkup)
            and os.environ.get("TERM", "dumb") != "dumb"
            and option.verbose >= 0
            and not option.collectonly
            and not option.usepdb
            # What tests print then stands between pytest's own words.
            and option.capture != "no"
            and not self._config.getini("log_cli")
            and option.log_cli_level is None
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        if self._file is not None:
            self._file.wipe()
            self._writer._file = self._file._file
            self._file = None

    # -- what is counted -------------------------------------------------------------------------------------------

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._expect(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Iterable[str]) -> None:
        self._expect(ids)

    def _expect(self, ids: Iterable[str]) -> None:
        for nodeid in ids:
            if nodeid not in self._tests:
                key = self._tests[nodeid] = (self._target_of(nodeid), suite_of(nodeid))
                self._total[key] += 1

    def _target_of(self, nodeid: str) -> str:
        parameters = nodeid.partition("[")[2]
        return next((target for target in self._targets if target in parameters), "")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logstart(self, nodeid: str) -> Generator[None, object, object]:
        result = yield
        self._running[nodeid] = None
        self._show()
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None, object, object]:
        result = yield
        baseline, catalogue = self._config.stash[BASELINE], load_catalogue()
        for found in results_in(report.user_properties):
            level = catalogue.rule(found.rule).level if found.rule in catalogue else "MUST"
            verdict = judge(found, level).verdict
            if verdict.is_bad and baseline.excuse(found.target, found.rule, verdict) is None:
                self._broken.add((found.target, found.rule))
        self._show()
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> Generator[None, object, object]:
        result = yield
        self._running.pop(nodeid, None)
        if nodeid in self._tests and nodeid not in self._done:
            self._done[nodeid] = None
            self._done_of[self._tests[nodeid]] += 1
        self._show()
        return result

    # -- what is shown ---------------------------------------------------------------------------------------------

    def _show(self) -> None:
        if self._file is None:
            return
        room = self._writer.fullwidth - self._writer.width_of_current_line - _GAP - 1
        text = next((text for text in self.texts() if len(text) <= room), "")
        if text:
            self._file.show(text)
        else:
            self._file.wipe()

    def texts(self) -> list[str]:
        """How far the run is, from the longest form to the shortest."""
        whole = f"{len(self._done)}/{len(self._tests)}"
        broken = f"{len(self._broken)} rule{'' if len(self._broken) == 1 else 's'} broken" if self._broken else ""
        short = ", ".join(filter(None, [whole, broken]))
        running = next(reversed(self._running), None) if self._running else None
        if running is None:
            return [short, whole]
        target, suite = key = self._tests.get(running, ("", suite_of(running)))
        place = f"{suite} {self._done_of[key]}/{self._total[key]}" if self._total[key] else suite
        name = target.rpartition(":")[2] if len(self._targets) > 1 else ""
        where = f"{name}, {place}" if name else place
        all_tests = ", ".join(filter(None, [f"all {whole}", broken]))
        return [f"{where} ({all_tests}): {title_of(running)}", f"{where} ({all_tests})", f"{place}, {short}", whole]


def suite_of(nodeid: str) -> str:
    """``"asynchronous"`` for a test of ``suites/test_asynchronous.py``."""
    file = nodeid.partition("::")[0].replace("\\", "/").rpartition("/")[2]
    return file.removesuffix(".py").removeprefix("test_").replace("_", " ")


def title_of(nodeid: str) -> str:
    """What a test is about, in the words of its name."""
    return nodeid.partition("[")[0].rpartition("::")[2].removeprefix("test_").replace("_", " ")
