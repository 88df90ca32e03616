"""Copies of a process from before anything was played in it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvconform.engine.options import ConnectorSpec
from kvconform.isolation.template import Specs, Template
from kvconform.scenario.apart import Part
from kvconform.scenario.program import Program

SPECS = {False: ConnectorSpec("One", "one", extra_config={"port": 1}), True: ConnectorSpec("Two", "two")}


class ServesTheProcess:
    """What a connector may keep for the whole process; a copy has none of its threads."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)

    def play(self, program: Program, directory: Path, specs: Specs) -> Mapping[str, Any]:
        known = {str(number): spec.extra_config for number, spec in specs.items()}
        said = self.pool.submit(lambda: {"name": program.name, "specs": known, "pid": os.getpid()}).result(10)
        (directory / "said").write_text(str(said))
        return said


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Template, ServesTheProcess]]:
    service = ServesTheProcess()
    template = Template(service.play)
    yield template, service
    template.close()


def part(tmp_path: Path) -> Part:
    return Part(Program("a part"), tmp_path, lambda: pytest.fail("nothing is played in a copy of this process"))


def test_a_part_finds_the_process_as_it_was_whatever_runs_in_it_by_now(
    served: tuple[Template, ServesTheProcess], tmp_path: Path
) -> None:
    template, service = served
    # The one thread of the pool runs here, and in no copy of this process: there, work is queued for ever.
    service.play(Program("before"), tmp_path, {})
    started = time.monotonic()
    template.apart(SPECS).kill(part(tmp_path))
    assert time.monotonic() - started < 5
    said = (tmp_path / "said").read_text()
    assert "'a part'" in said
    assert "{'False': {'port': 1}, 'True': {}}" in said
    assert str(os.getpid()) not in said


def test_one_that_falls_silent_answers_and_is_stopped_until_it_is_released(
    served: tuple[Template, ServesTheProcess], tmp_path: Path
) -> None:
    template, _ = served
    first, *silent = [template.apart(SPECS).silence(part(tmp_path)) for _ in range(2)]
    first.kill()
    silent.append(template.apart(SPECS).silence(part(tmp_path)))
    pids = [each.answer["pid"] for each in silent]
    assert len({*pids, os.getpid()}) == 3
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids]
    assert states == ["T", "T"]
    for each, pid in zip(silent, pids, strict=True):
        each.kill()
        assert not Path(f"/proc/{pid}").exists()
        each.kill()


def test_a_template_that_is_gone_leaves_the_part_to_a_copy_of_this_process(tmp_path: Path) -> None:
    def work() -> Mapping[str, Any]:
        (tmp_path / "done").write_text("")
        return {"pid": os.getpid()}

    template = Template(lambda *_: {})
    template.close()
    here = Part(Program("a part"), tmp_path, work)
    template.apart(SPECS).kill(here)
    assert (tmp_path / "done").exists()
    silent = template.apart(SPECS).silence(here)
    assert silent.answer["pid"] != os.getpid()
    silent.kill()


def test_a_part_that_fails_is_over_and_the_template_serves_on(tmp_path: Path) -> None:
    def play(program: Program, directory: Path, specs: Specs) -> Mapping[str, Any]:
        raise SystemExit(f"{program.name} fails")

    template = Template(play)
    assert template.apart(SPECS).silence(part(tmp_path)).answer == {}
    template.apart(SPECS).kill(part(tmp_path))
    assert template.apart(SPECS).silence(part(tmp_path)).answer == {}
    template.close()


def test_the_template_ends_with_its_process() -> None:
    def live(answers: Any) -> None:
        template = Template(lambda *_: {"pid": os.getppid()})
        answers.send(template.apart(SPECS).silence(Part(Program("a part"), Path(), dict)).answer["pid"])
        os._exit(0)

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=live, args=(theirs,))
    process.start()
    template = Path(f"/proc/{ours.recv()}")
    process.join(10)
    for _ in range(100):
        if not template.exists():
            break
        time.sleep(0.05)
    assert not template.exists()
