"""A vLLM that is installed and cannot be imported: said once, in a sentence, and nothing else is lost."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvconform.config import RunConfig
from kvconform.errors import EngineUnusableError
from kvconform.isolation.nursery import Nursery
from kvconform.isolation.room import Room
from kvconform.target import parse_target

if TYPE_CHECKING:
    from conftest import Project

ASKED = "asked.txt"
BROKEN = f"""
    from pathlib import Path

    with Path({ASKED!r}).open("a") as file:
        file.write("imported\\n")
    raise ImportError("libcudart.so.13: cannot open shared object file")
    """
SENTENCE = "cannot be imported as an engine needs it: ImportError: libcudart.so.13: cannot open shared object file ("


@pytest.fixture
def broken(project: Project) -> Project:
    """A project with a vLLM of which only the connector's base class can be imported."""
    project.write({"vllm/platforms/__init__.py": BROKEN})
    return project


@pytest.fixture
def here(broken: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The same, and what is imported here is imported from it."""
    monkeypatch.chdir(broken.path)
    monkeypatch.syspath_prepend(str(broken.path))
    return broken


def test_it_is_said_once_and_other_tests_run(broken: Project) -> None:
    broken.write({"test_own.py": "def test_own(): pass", "test_kit.py": """
        def test_one(conformance): conformance.demand_capability("pd")
        def test_two(conformance): conformance.demand_capability("pd")
        def test_three(conformance): conformance.demand_capability("pd")
        """})  # fmt: skip
    ended = broken.run(
        "--kvconform=connector:MyConnector", "--kvconform=connector:OtherConnector", "--kvconform-engine=vllm",
        "--kvconform-report=report.json", "test_kit.py", "test_own.py",
    )  # fmt: skip
    assert ended.ret == pytest.ExitCode.USAGE_ERROR
    ended.assert_outcomes(failed=1, errors=1, skipped=4, passed=1)
    ended.stdout.fnmatch_lines(["NOT TESTED connector:MyConnector: vLLM 0.32.0 " + SENTENCE + "*"])
    text = ended.stdout.str()
    assert text.count("NOT TESTED") == 2
    assert "Traceback" not in text
    assert (broken.path / ASKED).read_text() == "imported\n"
    assert (broken.path / "report.json").is_file()


@pytest.mark.usefixtures("here")
def test_a_nursery_does_not_import_again_what_could_not_be_imported() -> None:
    with contextlib.closing(Nursery("cpu")) as nursery:
        for _ in range(2):
            with pytest.raises(EngineUnusableError, match="libcudart"):
                nursery.start({"target": {}, "config": {}})
            assert nursery._process is None
    assert Path(ASKED).read_text() == "imported\n"


@pytest.mark.usefixtures("here")
def test_it_is_said_to_whoever_asks_while_it_is_warmed_up() -> None:
    """Neither of them waits for the other: the one imports, and the other hears of it."""
    with contextlib.closing(Nursery("cpu")) as nursery:
        with nursery._at_work:
            nursery.warm_up()
            with pytest.raises(EngineUnusableError, match="libcudart"):
                nursery.start({"target": {}, "config": {}})
        assert nursery._warming is not None
        nursery._warming.join(10)
        assert not nursery._warming.is_alive()
    assert Path(ASKED).read_text() == "imported\n"


def test_a_process_that_ends_while_it_imports_is_not_started_again(here: Project) -> None:
    here.write({"vllm/platforms/__init__.py": "import os\nprint('out of memory', flush=True)\nos._exit(3)"})
    with contextlib.closing(Nursery("cpu")) as nursery:
        for _ in range(2):
            with pytest.raises(EngineUnusableError, match="has ended; the last that it printed:\nout of memory"):
                nursery.start({"target": {}, "config": {}})
            assert nursery._process is None


def test_the_embedded_engine_names_its_extra(here: Project) -> None:
    here.write({"msgspec.py": "raise ImportError('no msgspec here')"})
    embedded = contextlib.closing(Nursery("cpu", engine="embedded"))
    with embedded as nursery, pytest.raises(EngineUnusableError) as caught:
        nursery.start({"target": {}, "config": {}})
    assert "The engine 'embedded' cannot be imported here: ImportError: no msgspec here (" in str(caught.value)
    assert str(caught.value).endswith("Install kvconform[embedded].")


@pytest.mark.usefixtures("here")
def test_the_first_failure_is_told_and_not_what_a_second_attempt_stumbles_over(broken: Project) -> None:
    """A package that could be imported in part, such as torch's compiler, fails otherwise the next time."""
    broken.write({
        "vllm/distributed/kv_transfer/kv_connector/v1/base.py": """
            import sys

            if hasattr(sys, "half_done"):
                raise AssertionError("duplicate name")
            sys.half_done = True
            raise OSError("the first failure")
            """,
    })  # fmt: skip
    for start in (
        lambda nursery: Room(parse_target("connector:MyConnector", broken.path), RunConfig(), nursery).load(),
        lambda nursery: nursery.start({"target": {}, "config": {}}),
    ):
        again = contextlib.closing(Nursery("cpu"))
        with again as nursery, pytest.raises(EngineUnusableError, match="needs it: OSError: the first failure"):
            start(nursery)
