"""Breaking a store from outside, and mending it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvconform.scenario.apart import run_and_kill
from kvconform.scenario.failures_on_disk import FaultyDisk


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / "store" / name).mkdir(parents=True)
        (tmp_path / "store" / name / "block").write_bytes(b"12345678")
    return tmp_path / "store"


def content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


@pytest.mark.parametrize(
    ("fault", "left"),
    [("removed", None), ("truncated", b"1234"), ("emptied", b""), ("folders", None), ("unreadable", None)],
)
def test_every_second_file_is_broken(store: Path, fault: str, left: bytes | None) -> None:
    assert FaultyDisk(store).damage(fault, 2) == 2  # type: ignore[arg-type]
    assert [content(store / name / "block") for name in ("a", "b", "c")] == [left, b"12345678", left]


def test_a_file_that_is_open_keeps_its_content(store: Path) -> None:
    with (store / "a" / "block").open("rb") as file:
        FaultyDisk(store).damage("truncated", 1)
        assert file.read() == b"12345678"


@pytest.mark.parametrize("how", ["full", "no folder"])
def test_writes_are_refused_until_they_are_allowed(store: Path, how: str) -> None:
    disk = FaultyDisk(store)
    assert disk.refuse_writes(how) == 3  # type: ignore[arg-type]
    try:
        with pytest.raises(OSError):  # noqa: PT011
            (store / "new").write_bytes(b"x" * 4096)
    finally:
        disk.mend()
    (store / "new").write_bytes(b"x" * 4096)
    assert content(store / "b" / "block") == b"12345678"


def test_files_on_a_full_disk_can_be_broken_and_the_disk_stays_full(store: Path) -> None:
    (store / "a" / "block").write_bytes(b"12345678" * 1024)
    disk = FaultyDisk(store)
    disk.refuse_writes("full")
    try:
        assert disk.damage("truncated", 1) == 3
        assert content(store / "a" / "block") == b"12345678" * 512
        with pytest.raises(OSError, match="too large"):
            (store / "new").write_bytes(b"x" * 4096)
    finally:
        disk.mend()


@pytest.mark.parametrize("how", ["full", "no folder"])
def test_refusing_writes_twice_is_undone_once(store: Path, how: str) -> None:
    disk = FaultyDisk(store)
    for _ in range(2):
        disk.refuse_writes(how)  # type: ignore[arg-type]
    disk.mend()
    (store / "new").write_bytes(b"x" * 4096)
    assert content(store / "b" / "block") == b"12345678"


def test_without_a_directory_there_is_nothing_to_break() -> None:
    assert FaultyDisk(None).damage("removed", 1) == 0


def test_a_killed_process_does_not_clean_up(tmp_path: Path) -> None:
    def work() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        raise RuntimeError("nobody hears of it")

    run_and_kill(work)
    assert int((tmp_path / "pid").read_text()) != os.getpid()
