"""The process from which connectors' processes are forked."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvconform.isolation.nursery import Nursery


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    with contextlib.closing(Nursery("cpu", engine="embedded")) as made:
        yield made


def test_nursery_that_was_warmed_up_is_the_one_that_is_used(nursery: Nursery) -> None:
    """The kernel ends it with the thread that started it, which must not be the one in the background."""
    nursery.warm_up()
    assert nursery._warming is not None
    assert nursery._process is not None
    nursery._warming.join(60)
    warm = nursery._process.pid
    time.sleep(0.2)
    began = time.monotonic()
    pid, pipe = nursery.start({"target": {}, "config": {}})
    pipe.close()
    nursery.kill(pid)
    assert nursery._process.pid == warm
    assert nursery.waited <= time.monotonic() - began


def test_closing_a_nursery_takes_its_process_and_its_folder_with_it(nursery: Nursery) -> None:
    nursery.warm_up()
    assert nursery._process is not None
    assert nursery._folder is not None
    process, folder = nursery._process, Path(nursery._folder.name)
    assert folder.is_dir()
    nursery.close()
    assert process.poll() is not None
    assert not folder.exists()
    nursery.close()


def test_closing_a_nursery_that_was_never_started_removes_nothing(
    nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").touch()
    monkeypatch.chdir(tmp_path)
    nursery.close()
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
