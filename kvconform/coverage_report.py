"""``--kvconform-coverage``: which hooks and lines of a connector no rule has exercised.

The lines are measured in the connectors' own processes, see :mod:`kvconform.coverage_child`; here is what pytest's side
does: asking for it, saying which chapter a test belongs to, and reading the data in the end.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvconform.coverage_child import VARIABLE, folder_name
from kvconform.outcomes import rules_of

FOLDER = ".kvconform/coverage"
COVERAGE_PLUGIN = "kvconform-coverage"
MISSING = "--kvconform-coverage needs coverage.py: pip install 'kvconform[coverage]'."
#: Tests that name no rule.
NO_CHAPTER = "(no rule)"


@dataclass(frozen=True)
class HookUse:
    """One hook that the connector has code of its own for; ``chapters`` are those whose tests ran it, if any."""

    name: str
    exercised: bool
    chapters: tuple[str, ...]


@dataclass(frozen=True)
class FileUse:
    """One source file. ``missing`` are ranges of lines, both ends included, that no scenario ran."""

    file: str
    statements: int
    missing_statements: int
    missing: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CoverageEntry:
    """What was measured of one connector."""

    hooks: tuple[HookUse, ...]
    files: tuple[FileUse, ...]


class CoveragePlugin:
    """Hooks of a run with ``--kvconform-coverage``; on the controller, and on every worker of xdist.

    Raises:
        pytest.UsageError: coverage.py is not installed.
    """

    def __init__(self, config: pytest.Config) -> None:
        if importlib.util.find_spec("coverage") is None:
            raise pytest.UsageError(MISSING)
        self._entries: dict[str, CoverageEntry | None] = {}
        self._folder = config.invocation_params.dir / FOLDER
        if not hasattr(config, "workerinput"):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / ".gitignore").write_text("# made by kvconform\n*\n", encoding="utf-8")
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = str(self._folder)
        config.add_cleanup(lambda: _restore(before))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Scenarios are played once; they count for the chapter of the first test that plays them."""
        conformance = getattr(item, "funcargs", {}).get("conformance")
        if conformance is not None and conformance.room is not None:
            rules = rules_of(item)
            conformance.room.context = rules[0].rpartition("-")[0] if rules else NO_CHAPTER

    def entry(self, target_id: str) -> CoverageEntry | None:
        """What was measured of a connector; None if nothing was."""
        if target_id not in self._entries:
            self._entries[target_id] = read_coverage(self._folder / folder_name(target_id))
        return self._entries[target_id]


def coverage_of(config: pytest.Config, target_id: str) -> CoverageEntry | None:
    """What was measured of a connector, asked at the end of a run; None if nothing was."""
    plugin: CoveragePlugin | None = config.pluginmanager.get_plugin(COVERAGE_PLUGIN)
    return plugin.entry(target_id) if plugin is not None else None


def _restore(before: str | None) -> None:
    if before is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = before


def read_coverage(folder: Path) -> CoverageEntry | None:
    """Combine the data that the connector's processes left."""
    facts = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("hooks-*.json"))]
    parts = [str(file) for file in sorted(folder.glob("data.*"))]
    if not facts or not parts:
        return None
    import coverage

    measurement = coverage.Coverage(data_file=str(folder / "combined"), config_file=False, messages=False)
    measurement.combine(parts, keep=True)
    data = measurement.get_data()
    own = {hook["file"] for hook in facts[-1]["hooks"]} | {facts[-1]["module"]}
    # Of a package that is measured whole, files that ran count too; others would only be noise.
    files = sorted(
        file for file in own | set(data.measured_files()) if file and _belongs(file, facts[-1]["module"], own)
    )
    return CoverageEntry(
        hooks=tuple(_hook(hook, data) for hook in facts[-1]["hooks"]),
        files=tuple(use for file in files for use in _file(file, measurement)),
    )


def _belongs(file: str, module: str, own: Collection[str]) -> bool:
    return file in own or ("/vllm/" not in module and Path(file).suffix == ".py")


def _hook(hook: dict[str, Any], data: Any) -> HookUse:
    contexts: dict[int, list[str]] = data.contexts_by_lineno(hook["file"])
    # The line of "def" runs when the class is made; only what is below it is the hook's work.
    body = range(hook["first"] + 1, hook["last"] + 1) if hook["last"] > hook["first"] else range(0)
    chapters = sorted({chapter for line in body for chapter in contexts.get(line, ()) if chapter})
    return HookUse(hook["name"], bool(chapters), tuple(chapters))


def _file(file: str, measurement: Any) -> Iterator[FileUse]:
    from coverage.exceptions import CoverageException

    try:
        _, statements, _, missing, _ = measurement.analysis2(file)
    except CoverageException:
        return  # a file that is gone, or no Python
    if statements:
        yield FileUse(_relative(file), len(statements), len(missing), tuple(_ranges(missing, set(statements))))


def _relative(file: str) -> str:
    """As it is told: from its package on, or from where the run was started."""
    inside = file.rpartition("site-packages/")[2]
    if inside != file:
        return inside
    relative = os.path.relpath(file)
    return Path(file).name if relative.startswith("..") else relative


def _ranges(missing: Iterable[int], statements: set[int]) -> Iterator[tuple[int, int]]:
    """Missing lines with nothing but comments and blank lines between them are one range."""
    first = last = 0
    for line in sorted(missing):
        if first and not statements & set(range(last + 1, line)):
            last = line
            continue
        if first:
            yield first, last
        first = last = line
    if first:
        yield first, last


def coverage_lines(entry: CoverageEntry) -> Iterator[str]:
    """The measurement as lines of text."""
    idle = [hook.name for hook in entry.hooks if not hook.exercised]
    yield f"{len(entry.hooks) - len(idle)} of {len(entry.hooks)} hooks of the connector were exercised"
    if idle:
        yield f"not exercised by any rule: {', '.join(idle)}"
    for use in entry.files:
        share = 100 * (use.statements - use.missing_statements) // use.statements
        lines = ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in use.missing)
        yield f"{use.file}: {share}% of {use.statements} statements" + (f"; not run: {lines}" if lines else "")
