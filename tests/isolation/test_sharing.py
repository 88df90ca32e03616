"""One nursery for all processes of a run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvconform.config import RunConfig
from kvconform.isolation.nursery import Nursery
from kvconform.isolation.room import Room
from kvconform.isolation.sharing import SharedNursery, shared_with
from kvconform.target import Target, parse_target

TELLS_ITS_ENVIRONMENT = """
import os, time
print("printed by", os.environ["WHO"])
with open(os.environ["WHO_FILE"], "a") as file:
    file.write(f"{os.environ['WHO']} {os.getppid()}\\n")
if os.environ["WHO"] == "crashes":
    os._exit(3)
class Connector: pass
"""


@pytest.fixture
def owner() -> Iterator[Nursery]:
    with contextlib.closing(Nursery("cpu", engine="embedded")) as made:
        yield made


@pytest.fixture
def client(owner: Nursery) -> Iterator[Callable[[], Nursery]]:
    told = owner.share()
    with contextlib.ExitStack() as clients:
        yield lambda: clients.enter_context(contextlib.closing(Nursery("cpu", engine="embedded", shared=told)))


def start(nursery: Nursery) -> tuple[int, Any]:
    return nursery.start({"target": {}, "config": {}})


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_all_get_their_processes_from_the_nursery_that_one_has_started(
    owner: Nursery, client: Callable[[], Nursery]
) -> None:
    first, second = client(), client()
    parents = {parent_of(start(nursery)[0]) for nursery in (first, second, owner)}
    assert owner._process is not None
    assert parents == {owner._process.pid}
    assert first._process is None


def test_one_that_hashes_otherwise_is_shared_as_well(owner: Nursery, client: Callable[[], Nursery]) -> None:
    nursery = client()
    pid, _ = start(nursery.otherwise_hashing())
    process = owner.otherwise_hashing()._process
    assert process is not None
    assert parent_of(pid) == process.pid
    seeds = [
        dict(entry.partition("=")[::2] for entry in Path(f"/proc/{of}/environ").read_text().split("\0"))
        for of in (process.pid, parent_of(start(nursery)[0]))
    ]
    assert seeds[0]["PYTHONHASHSEED"] != seeds[1].get("PYTHONHASHSEED")


def test_processes_of_somebody_who_is_gone_are_ended_and_no_others(client: Callable[[], Nursery]) -> None:
    leaves, stays = client(), client()
    target = parse_target("kvconform.reference.file_store:FileStoreConnector", Path())
    config = RunConfig(engine="embedded").for_target(target)
    for room in (rooms := [Room(target, config, nursery) for nursery in (leaves, stays)]):
        room.enter()
    gone, kept = (room._pid for room in rooms)
    leaves.close()
    until = time.monotonic() + 10
    while is_there(gone) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_there(gone)
    assert stays.ended(kept) is None
    stays.kill(kept)


def test_shared_nursery_that_is_gone_is_replaced_by_an_own_one(owner: Nursery, client: Callable[[], Nursery]) -> None:
    nursery = client()
    pid, _ = start(nursery)
    owner.close()
    assert nursery.ended(pid) is not None
    again, _ = start(nursery)
    assert nursery._process is not None
    assert parent_of(again) == nursery._process.pid


def test_process_has_the_environment_and_the_output_of_who_asked_for_it(
    client: Callable[[], Nursery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tells.py").write_text(TELLS_ITS_ENVIRONMENT)
    monkeypatch.setenv("WHO_FILE", str(tmp_path / "who"))
    target = parse_target("tells.py:Connector", tmp_path)
    nurseries = {who: client() for who in ("one", "another")}
    for who, nursery in nurseries.items():
        monkeypatch.setenv("WHO", who)
        load(target, nursery)
    assert [line.split()[0] for line in (tmp_path / "who").read_text().splitlines()] == ["one", "another"]
    assert {who: nursery.output() for who, nursery in nurseries.items()} == {
        "one": "printed by one",
        "another": "printed by another",
    }


def load(target: Target, nursery: Nursery) -> None:
    """Loading says that it is no connector, which is not what is asked here."""
    with contextlib.suppress(Exception):
        Room(target, RunConfig(engine="embedded"), nursery).load()


def test_folder_with_too_long_a_name_for_a_socket_shares_nothing(
    owner: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert owner.share() == ()
    assert owner._process is None
    assert not list(long.iterdir())


def test_controller_starts_one_pair_for_all_nodes_and_ends_it() -> None:
    class Node:
        def __init__(self) -> None:
            self.workerinput: dict[str, Any] = {}

    class Config:
        def __init__(self, node: Node) -> None:
            self.workerinput = node.workerinput

    plugin, nodes = SharedNursery(RunConfig(engine="embedded", device="cpu")), (Node(), Node())
    for node in nodes:
        plugin.pytest_configure_node(node)
    told = {shared_with(Config(node)) for node in nodes}  # type: ignore[arg-type]
    (folders,) = told
    assert len(folders) == 2
    assert all(Path(folder).is_dir() for folder in folders)
    plugin.pytest_unconfigure()
    assert not any(Path(folder).is_dir() for folder in folders)


WHERE_ITS_PROCESS_IS_FROM = """
import time
from pathlib import Path

import pytest

@pytest.mark.parametrize("number", range(2))
def test_process(conformance, worker_id, number):
    conformance.room.enter()
    parent = Path(f"/proc/{conformance.room._pid}/stat").read_text().rpartition(")")[2].split()[1]
    Path(worker_id).write_text(parent)
    time.sleep(1)
"""


def test_processes_of_xdist_share_the_nursery_of_their_run(tmp_path: Path) -> None:
    (tmp_path / "test_where.py").write_text(WHERE_ITS_PROCESS_IS_FROM)
    command = [
        sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "--kvconform-engine=embedded",
        "--kvconform=kvconform.reference.file_store:FileStoreConnector", "test_where.py",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len({(tmp_path / worker).read_text() for worker in ("gw0", "gw1")}) == 1
