"""Progress while a run goes on: on a terminal only, and pytest's own output is what it always is."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from kvconform.report.progress import Progress, StatusFile, suite_of, title_of
from kvconform.target import Target

if TYPE_CHECKING:
    from conftest import Project

TESTS = """
    import pytest
    from kvconform.outcomes import ConformanceFailure, record

    @pytest.mark.kvconform_rules("LOAD-01")
    @pytest.mark.parametrize("number", range(30))
    def test_load_of_a_prompt(request, kvconform_target, number):
        record(request, "LOAD-01", witnesses={"loads": 1})

    @pytest.mark.kvconform_rules("SIG-02")
    def test_class_is_built(kvconform_target):
        raise ConformanceFailure("SIG-02 is broken")
    """


def screen(output: str, width: int = 80) -> list[str]:
    """The lines that a terminal ends up with."""
    lines, row, column = [[" "] * width], 0, 0
    saved: tuple[int, int] | None = None
    for match in re.finditer(r"\x1b7|\x1b8|\x1b\[K|\x1b\[[0-9;]*m|\x1b\][^\x1b\x07]*(?:\x1b\\|\x07)|[\s\S]", output):
        token = match.group()
        if token == "\x1b7":
            saved = (row, column)
        elif token == "\x1b8":
            assert saved is not None
            (row, column), saved = saved, None
        elif token == "\x1b[K":
            lines[row][column:] = [" "] * (width - column)
        elif token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, 0
            lines += [[" "] * width] if row == len(lines) else []
        elif len(token) == 1:
            if column == width:
                assert saved is None, "the line of progress is too long for the window"
                row, column = row + 1, 0
                lines += [[" "] * width] if row == len(lines) else []
            lines[row][column] = token
            column += 1
    return ["".join(line).rstrip() for line in lines]


def on_a_terminal(folder: Path, *args: str) -> str:
    """What pytest writes to a terminal of 80 columns."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    for name in ("NO_COLOR", "PY_COLORS", "CI", "PYTEST_XDIST_WORKER"):  # pytester sets PY_COLORS
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", "test_progressing.py"]
    process = subprocess.Popen([*command, *args], cwd=folder, env=environment, stdout=slave, stderr=slave)
    os.close(slave)
    parts: list[bytes] = []
    while True:
        try:
            parts.append(os.read(master, 65536))
        except OSError:  # the other side has ended (Linux)
            break
        if not parts[-1]:
            break
    os.close(master)
    process.wait(60)
    return b"".join(parts).decode()


def run_progress(*targets: str) -> Progress:
    made = [Target(target, "module", target.partition(":")[0], target.rpartition(":")[2], target) for target in targets]
    progress = Progress(None, made)  # type: ignore[arg-type]
    progress._expect(f"suites/test_{name}.py::test_a_thing[{t}]" for t in targets for name in ("transfer", "finish"))
    return progress


def finish(progress: Progress, nodeid: str) -> None:
    for hook in (progress.pytest_runtest_logstart, progress.pytest_runtest_logfinish):
        steps: Any = hook(nodeid)
        next(steps)
        with pytest.raises(StopIteration):
            steps.send(None)


def test_each_form_says_connector_suite_and_how_far() -> None:
    progress = run_progress("a:One", "b:OneMore")
    finish(progress, "suites/test_transfer.py::test_a_thing[a:One]")
    progress._running["suites/test_transfer.py::test_a_thing[b:OneMore]"] = None
    progress._broken = {("b:OneMore", "SIG-01")}
    assert progress.texts() == [
        "OneMore, transfer 0/1 (all 1/4, 1 rule broken): a thing",
        "OneMore, transfer 0/1 (all 1/4, 1 rule broken)",
        "transfer 0/1, 1/4, 1 rule broken",
        "1/4",
    ]
    single = run_progress("a:One")
    single._running["suites/test_finish.py::test_a_thing[a:One]"] = None
    assert single.texts()[0] == "finish 0/1 (all 0/2): a thing"
    assert run_progress("a:One").texts() == ["0/2", "0/2"]


def test_names_of_suites_and_tests_are_words() -> None:
    assert suite_of("suites/test_hybrid_groups.py::TestX::test_y[a:B]") == "hybrid groups"
    assert title_of("suites/test_x.py::TestX::test_reload_of_every_length[a:B-1]") == "reload of every length"


def test_the_text_goes_away_before_anything_is_written() -> None:
    file = io.StringIO()
    status = StatusFile(file)
    status.write("....")
    status.show("one two three")
    assert screen(file.getvalue()) == ["....  one two three"]
    status.show("four")
    assert screen(file.getvalue()) == ["....  four"]
    status.write("F\n")
    status.wipe()
    assert screen(file.getvalue()) == ["....F", ""]


@pytest.mark.parametrize("more", [(), ("-n", "1")])
def test_a_terminal_shows_progress_and_ends_up_with_pytests_own_output(project: Project, more: tuple[str, ...]) -> None:
    project.write({"test_progressing.py": TESTS})
    output = on_a_terminal(project.path, "--kvconform=connector:MyConnector", *more)
    assert "progressing 0/31 (all 0/31): load of a prompt" in output or "progressing 1/31" in output
    assert "30/31" in output
    shown = "\n".join(screen(output))
    assert "/31" not in shown, "the last one is wiped away"
    dots = Counter("".join(re.findall(r"^(?:test_progressing\.py )?([.F]{2,}) *(?:\[ *\d+%\])?$", shown, re.MULTILINE)))
    assert dots == {".": 30, "F": 1}
    assert "1 failed, 30 passed" in shown


class _File(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, True),
        ({"terminal": False}, False),
        ({"hasmarkup": False}, False),
        ({"verbose": -1}, False),
        ({"verbose": 1}, True),
        ({"capture": "no"}, False),
        ({"usepdb": True}, False),
        ({"collectonly": True}, False),
        ({"log_cli_level": "INFO"}, False),
        ({"log_cli": True}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_it_is_shown_only_where_it_is_not_in_the_way(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], wanted: bool
) -> None:
    facts = {"verbose": 0, "capture": "fd", "usepdb": False, "collectonly": False, "log_cli_level": None, **change}
    monkeypatch.setenv("TERM", change.get("TERM", "xterm"))
    file = _File(change.get("terminal", True))
    writer = SimpleNamespace(_file=file, hasmarkup=change.get("hasmarkup", True), fullwidth=80)
    config = SimpleNamespace(
        option=SimpleNamespace(**facts),
        getini=lambda _: change.get("log_cli", False),
        pluginmanager=SimpleNamespace(getplugin=lambda _: SimpleNamespace(_tw=writer)),
    )
    progress = Progress(config, [])  # type: ignore[arg-type]
    progress.pytest_sessionstart()
    assert (writer._file is not file) is wanted
    progress.pytest_sessionfinish()
    assert writer._file is file


def test_a_terminal_without_pytests_writer_is_left_alone() -> None:
    config = SimpleNamespace(pluginmanager=SimpleNamespace(getplugin=lambda _: None))
    progress = Progress(config, [])  # type: ignore[arg-type]
    progress.pytest_sessionstart()
    progress._show()
    progress.pytest_sessionfinish()
    assert progress._file is None
