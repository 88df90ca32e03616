"""FileStoreConnector when the store is broken: no garbage, no exception, no endless retry, nothing bad stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from file_store_driver import POISON, Engine, Setup, block_files, prompt
from vllm.v1.engine import FinishReason


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _swap(path: Path) -> None:
    other = next(file for file in block_files(path.parents[1]) if file != path and file.suffix == path.suffix)
    path.write_bytes(other.read_bytes())


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    "missing": Path.unlink,
    "truncated": _truncate,
    "appended": _append,
    "bit flipped": _flip,
    "empty": _empty,
    "another block's": _swap,
    "a folder": _replace_by_folder,
}


def _file_of(path: Path, engine: Engine, request: str, index: int, rank: int = 0) -> Path:
    name = f"{engine.requests[request].block_hashes[index].hex()}.{rank}"
    return next(file for file in block_files(path) if file.name == name)


def _damage_before_load(engine: Engine, path: Path, damage: Any, index: int, rank: int = 0) -> None:
    """Break the stored block ``index`` after it has matched."""

    def strike() -> None:
        engine.before_execute = lambda: None
        damage(_file_of(path, engine, "r", index, rank))

    engine.before_execute = strike


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_broken_block_is_recomputed_and_the_store_heals(tmp_path: Path, damage: Any, index: int) -> None:
    setup = Setup(tmp_path, runner="v2" if index else "v1")
    Engine(setup).generate(prompt(60))
    engine = Engine(setup)
    _damage_before_load(engine, tmp_path, damage, index)
    request = engine.add("r", prompt(60))
    engine.step()
    assert request.num_output_tokens == 0, "a token was sampled from bad KV"
    for octets in engine.workers[0].octets.values():
        assert torch.all(octets[engine.tables["r"][index]] == POISON), "garbage was written into the block"
    assert engine.errors == [{engine.tables["r"][index]}]
    engine.run()
    assert engine.scheduled_tokens == 12 + 60 - 16 * index
    assert len(engine.errors) == 1
    engine.assert_clean()
    if damage is not _replace_by_folder:  # which nothing but a person can repair
        again = Engine(setup)
        assert again.generate(prompt(60)) == 12
        assert again.errors == []


def test_policy_fail_ends_the_request_and_stores_nothing_of_it(tmp_path: Path) -> None:
    setup = Setup(tmp_path, policy="fail")
    Engine(setup).generate(prompt(40))
    before = set(block_files(tmp_path))
    engine = Engine(setup)
    _damage_before_load(engine, tmp_path, _truncate, 1)
    engine.add("r", prompt(40) + prompt(40, 2))
    engine.run()
    assert engine.finish_reasons == {"r": FinishReason.ERROR}
    assert set(block_files(tmp_path)) < before
    engine.assert_clean()


@pytest.mark.parametrize("failing_rank", [0, 1])
def test_blocks_computed_from_bad_kv_are_not_published(tmp_path: Path, failing_rank: int) -> None:
    """Only one rank knows of the failure; the other one has staged its part of every new block."""
    setup = Setup(tmp_path, world_size=2)
    Engine(setup).generate(prompt(40))
    before = set(block_files(tmp_path))
    engine = Engine(setup)
    _damage_before_load(engine, tmp_path, _flip, 1, failing_rank)
    engine.add("r", prompt(80))
    engine.step()
    assert len(engine.workers[0].saves_seen) == 3
    assert set(block_files(tmp_path)) < before, "a block computed from garbage was published"
    engine.run()
    assert len(block_files(tmp_path)) == 2 * 5
    assert Engine(setup).generate(prompt(80)) == 16


def test_a_siblings_load_failure_taints_our_saves(tmp_path: Path) -> None:
    children = tuple(
        {
            "kv_connector": "FileStoreConnector",
            "kv_connector_module_path": "kvconform.reference.file_store",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"path": str(tmp_path / name)},
        }
        for name in ("one", "two")
    )
    Engine(Setup(tmp_path / "one")).generate(prompt(40))
    engine = Engine(Setup(tmp_path, connectors=children))
    _damage_before_load(engine, tmp_path / "one", _flip, 0)
    engine.add("r", prompt(80))
    engine.step()
    assert len(engine.errors) == 1
    assert block_files(tmp_path / "two") == []
    engine.run()
    assert len(block_files(tmp_path / "two")) == 5


def test_a_request_that_shares_a_bad_block_is_not_stored(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    Engine(setup).generate(prompt(40))
    engine = Engine(setup)
    _damage_before_load(engine, tmp_path, _flip, 0)
    engine.add("r", prompt(40))
    engine.add("other", prompt(40)[:33] + prompt(40, 3))
    engine.run()
    names = {file.stem for file in block_files(tmp_path)}
    assert {block_hash.hex() for block_hash in engine.requests["r"].block_hashes} == names
    assert len(engine.requests["other"].block_hashes) > 2


def test_a_bad_block_left_in_the_local_cache_spoils_nothing(tmp_path: Path) -> None:
    """Aborted before it could compute the block again, the first request leaves it behind as a local hit."""
    from vllm.v1.request import RequestStatus

    setup = Setup(tmp_path)
    Engine(setup).generate(prompt(40))
    engine = Engine(setup)
    _damage_before_load(engine, tmp_path, _flip, 1)
    engine.add("r", prompt(40))
    engine.step()
    engine.scheduler.finish_requests("r", RequestStatus.FINISHED_ABORTED)
    before = set(block_files(tmp_path))
    assert engine.matched == [32]
    engine.add("other", prompt(40)[:33] + prompt(40, 3))
    while engine.scheduler.has_requests():
        engine.step()
    assert engine.matched == [32, 0], "vLLM no longer offers the bad block as a local hit; this test shows nothing"
    assert engine.wrong != [], "the engine itself computed from the bad block"
    assert set(block_files(tmp_path)) == before
    # Once the GPU block has been written again, it is as good as any other, also as somebody's local hit.
    engine.forget_local_cache()
    engine.wrong.clear()
    engine.generate(prompt(23 * 16 - 1, 9), name="fills all blocks")
    assert engine.generate(prompt(23 * 16, 9), name="later") == 16
    assert len(block_files(tmp_path)) == len(before) + 23


def test_a_file_that_cannot_be_removed_is_not_offered_again(tmp_path: Path, monkeypatch: Any) -> None:
    setup = Setup(tmp_path, prefix_caching=False)
    Engine(setup).generate(prompt(40))
    engine = Engine(setup)
    worker: Any = engine.workers[0].connector
    monkeypatch.setattr(worker._worker._store, "remove", lambda *_: None)
    monkeypatch.setattr(worker._worker, "_write", lambda *_: False)
    _damage_before_load(engine, tmp_path, _flip, 0)
    engine.generate(prompt(40))
    engine.generate(prompt(40), name="again")
    assert len(engine.errors) == 1
    assert engine.matched == [32, 0]


@pytest.mark.parametrize("blocked", ["engines", "generation-0"])
def test_failed_writes_are_dropped(tmp_path: Path, blocked: str) -> None:
    setup = Setup(tmp_path)
    engine = Engine(setup)
    (home,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    (home / blocked).write_text("in the way")
    assert engine.generate(prompt(60)) == 60
    assert block_files(tmp_path) == []
    engine.assert_clean()
    assert list(tmp_path.rglob("*.staged")) == []
    (home / blocked).unlink()
    assert engine.generate(prompt(60, 2), name="later") == 60
    assert len(block_files(tmp_path)) == 3


def test_the_store_vanishes_and_comes_back(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "store", prefix_caching=False)
    engine = Engine(setup)
    engine.generate(prompt(40))
    (tmp_path / "store").rename(tmp_path / "gone")
    assert engine.generate(prompt(40), name="b") == 40
    assert Engine(setup).generate(prompt(40)) == 8


def test_a_crash_before_publication_leaves_nothing_visible(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    killed = Engine(setup)
    killed.add("r", prompt(40))
    killed.execute(killed.scheduler.schedule())
    assert len(list(tmp_path.rglob("*.staged"))) == 2
    engine = Engine(setup)
    assert engine.generate(prompt(40)) == 40
    assert engine.errors == []


def test_a_step_that_vllm_never_ended_publishes_nothing(tmp_path: Path) -> None:
    """A pipeline stage before the last gets no wait_for_save with speculative decoding; bind follows bind."""
    engine = Engine(Setup(tmp_path))
    engine.add("r", prompt(40), max_tokens=3)
    connector: Any = engine.workers[0].connector
    wait_for_save = connector.wait_for_save
    connector.wait_for_save = lambda: None
    engine.step()
    connector.wait_for_save = wait_for_save
    engine.run()
    assert block_files(tmp_path) == []
    assert engine.connector._scheduler._steps == {}


def test_aborts_in_every_phase_leave_no_state(tmp_path: Path) -> None:
    from vllm.v1.request import RequestStatus

    setup = Setup(tmp_path)
    Engine(setup).generate(prompt(40))
    for steps in range(4):
        engine = Engine(setup)
        engine.add("r", prompt(40) + prompt(40, 2), max_tokens=5)
        for _ in range(steps):
            engine.step()
        engine.scheduler.finish_requests("r", RequestStatus.FINISHED_ABORTED)
        engine.add("r", prompt(40), max_tokens=2)
        engine.run()
        side = engine.connector._scheduler
        assert (side._requests, side._planned_loads, side._steps, side._being_saved) == ({}, {}, {}, {})
        engine.assert_clean()


def test_abort_between_execution_and_output_still_publishes(tmp_path: Path) -> None:
    from vllm.v1.request import RequestStatus

    engine = Engine(Setup(tmp_path))
    engine.add("r", prompt(40))
    output = engine.scheduler.schedule()
    result = engine.execute(output)
    engine.scheduler.finish_requests("r", RequestStatus.FINISHED_ABORTED)
    engine.scheduler_update(output, result)
    engine.run()
    assert len(block_files(tmp_path)) == 2
    assert Engine(Setup(tmp_path)).generate(prompt(40)) == 8
