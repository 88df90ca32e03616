"""Plugin for pytest that tries mutations: one forked child each, which runs the tests that reach the changed lines.

The suite runs once as it is, and coverage.py notes which test ran which line of the files at hand. Then, for every
mutation, a child of this warm process exchanges the code of the functions concerned and runs those tests, those that
reach most of the file first, until one fails. A child that uses far more processor time than the unchanged tests did
has failed, too.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import resource
import signal
import sys
import time
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import coverage
import pytest
from _pytest.runner import runtestprotocol
from operators import Mutation, mutations

KILLED, SURVIVED, UNREACHED, ENDLESS, UNTRIED = "killed", "survived", "unreached", "endless", "untried"
#: How a child says so.
_STATUS = {0: SURVIVED, 1: KILLED, 2: UNTRIED}
_Cached = type(lru_cache(ord))
#: A child may use so many times the seconds of processor time that its tests took, and so many more.
PATIENCE, GRACE = 10.0, 5.0


class Trial:
    """Instead of one run of the suite: one, and one more per mutation. Results go to ``output`` line by line."""

    def __init__(self, files: Sequence[tuple[Path, str]], jobs: int, slow: float, output: Path) -> None:
        self.files = files
        self.jobs = jobs
        self.slow = slow
        self.output = output
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        self._data: coverage.CoverageData | None = None
        self._shares: dict[Path, Counter[str]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """The whole of it."""
        if session.testsfailed:
            raise session.Failed(f"{session.testsfailed} errors while collecting")
        self._measure(session.items)
        if self.failed:
            raise session.Failed(f"tests fail without any mutation: {', '.join(sorted(self.failed))}")
        found = [(module, mutation) for file, module in self.files for mutation in mutations(file, module)]
        with self.output.open("w", encoding="utf-8") as stream:
            for module, mutation, result in self._try_all(found, session.items):
                stream.write(json.dumps([module, *mutation.key, mutation.lines.start, result]) + "\n")
                stream.flush()
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """For the first run; in a child, for the verdict."""
        if report.failed:
            self.failed.add(report.nodeid)

    # -- the suite as it is --------------------------------------------------------------------------------------------

    def _measure(self, items: Sequence[pytest.Item]) -> None:
        measurement = coverage.Coverage(
            data_file=None, config_file=False, include=[str(file) for file, _ in self.files]
        )
        measurement.start()
        for item, following in zip(items, [*items[1:], None], strict=True):
            # What is remembered from a test before runs no line that this one reaches.
            for file, _ in self.files:
                _forget(file)
            measurement.switch_context(item.nodeid)
            before = time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            self.seconds[item.nodeid] = time.process_time() - before
        measurement.stop()
        self._data = measurement.get_data()

    def _reaching(self, mutation: Mutation, file: Path, items: Sequence[pytest.Item]) -> list[pytest.Item]:
        assert self._data is not None
        contexts = self._data.contexts_by_lineno(str(file))
        tests = {test for line in mutation.lines for test in contexts.get(line, ())}
        reaching = [item for item in items if item.nodeid in tests and self.seconds[item.nodeid] <= self.slow]
        return sorted(reaching, key=lambda item: (-self._share(file, item.nodeid), self.seconds[item.nodeid]))

    def _share(self, file: Path, test: str) -> int:
        """How many lines of the file a test reaches: those that are about it come first."""
        if file not in self._shares:
            assert self._data is not None
            contexts = self._data.contexts_by_lineno(str(file)).values()
            self._shares[file] = Counter(test for tests in contexts for test in tests)
        return self._shares[file][test]

    # -- one mutation --------------------------------------------------------------------------------------------------

    def _try_all(
        self, found: Sequence[tuple[str, Mutation]], items: Sequence[pytest.Item]
    ) -> Iterator[tuple[str, Mutation, str]]:
        where = {module: file for file, module in self.files}
        running: dict[int, tuple[str, Mutation]] = {}
        # A collection in a child would only copy the pages of everything that is alive here.
        gc.collect()
        living = {module: list(functions_of(file)) for file, module in self.files}
        for module, mutation in found:
            tests = self._reaching(mutation, where[module], items)
            if not tests:
                yield module, mutation, UNREACHED
                continue
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                self._be_child(mutation, where[module], living[module], tests)
            running[child] = (module, mutation)
            if len(running) >= self.jobs:
                yield _ended(running)
        while running:
            yield _ended(running)

    def _be_child(
        self, mutation: Mutation, file: Path, living: Sequence[types.FunctionType], tests: Sequence[pytest.Item]
    ) -> None:
        """Never returns."""
        status = 2
        try:
            gc.disable()
            used = resource.getrusage(resource.RUSAGE_SELF)
            limit = PATIENCE * sum(self.seconds[item.nodeid] for item in tests) + GRACE
            seconds = int(used.ru_utime + used.ru_stime + limit) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
            _be_silent()
            exchange(mutation, file, living)
            status = int(self._fails(tests))
        finally:
            os._exit(status)

    def _fails(self, tests: Sequence[pytest.Item]) -> bool:
        for item, following in zip(tests, [*tests[1:], None], strict=True):
            reports = runtestprotocol(item, log=False, nextitem=following)
            if any(report.failed for report in reports):
                return True
        return False


def _ended(running: dict[int, tuple[str, Mutation]]) -> tuple[str, Mutation, str]:
    child, status = os.wait()
    module, mutation = running.pop(child)
    if os.WIFSIGNALED(status):
        return module, mutation, ENDLESS if os.WTERMSIG(status) == signal.SIGXCPU else KILLED
    return module, mutation, _STATUS[os.WEXITSTATUS(status)]


def _be_silent() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def exchange(mutation: Mutation, file: Path, functions: Iterable[types.FunctionType] | None = None) -> None:
    """Give all living functions of ``file`` the code that the mutation makes of them; all modules hold the same ones.

    Raises:
        LookupError: the mutation changes no function that is alive.
    """
    living = list(functions_of(file) if functions is None else functions)
    source = ast.parse(file.read_text(encoding="utf-8"))
    try:
        _exchange(living, file, source, mutation.applied(source))
    except ValueError:  # the new code needs fewer names from around it, which Python does not allow
        _exchange(living, file, source, mutation.applied(source, beside=True))
    _forget(file)


def _forget(file: Path) -> None:
    """Empty the caches of the file's functions: they hold what the code made before."""
    modules = [module for module in list(sys.modules.values()) if getattr(module, "__file__", None) == str(file)]
    for thing in (thing for module in modules for thing in vars(module).values()):
        if isinstance(thing, _Cached):
            thing.cache_clear()


def functions_of(file: Path) -> Iterator[types.FunctionType]:
    """The functions of a file that are alive."""
    for thing in gc.get_objects():
        # By its very type: isinstance would ask lazy objects for their class, and wake them.
        if type(thing) is types.FunctionType and thing.__code__.co_filename == str(file):
            yield thing


def _exchange(living: Iterable[types.FunctionType], file: Path, source: ast.Module, mutated: ast.Module) -> None:
    before, after = (_by_name(compile(tree, str(file), "exec")) for tree in (source, mutated))
    new = {_place(code): after[name] for name, code in before.items() if name in after and after[name] != code}
    concerned = [function for function in living if _place(function.__code__) in new]
    if not concerned:
        raise LookupError(f"the mutation changes no function of {file} that is alive")
    for function in concerned:
        function.__code__ = new[_place(function.__code__)]


def _place(code: types.CodeType) -> tuple[str, int, bytes]:
    """Tells code objects of a file apart. They can't be compared: Python 3.11 adapts those that have run."""
    return code.co_qualname, code.co_firstlineno, code.co_linetable


def _by_name(code: types.CodeType) -> dict[tuple[str, int, int], types.CodeType]:
    """All code objects in one of a module. Several of a line (lambdas) are told apart by their order."""
    found: dict[tuple[str, int, int], types.CodeType] = {}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            number = 0
            while (constant.co_qualname, constant.co_firstlineno, number) in found:
                number += 1
            found[constant.co_qualname, constant.co_firstlineno, number] = constant
            found.update(_by_name(constant))
    return found


def lines_of(results: Path) -> Iterable[tuple[str, tuple[str, str, str], int, str]]:
    """Module, key, line and result of each mutation that was tried."""
    for line in results.read_text(encoding="utf-8").splitlines():
        module, where, before, after, number, result = json.loads(line)
        yield module, (where, before, after), number, result
