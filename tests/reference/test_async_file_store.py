"""AsyncFileStoreConnector on the real scheduler: several ranks, steps in flight, slow storage, lost requests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import file_store_driver
import pytest
from file_store_driver import Engine, Setup, block_files, prompt
from vllm.v1.request import RequestStatus

sys.path.append(str(Path(__file__).parents[1] / "odd"))


@pytest.fixture(params=["stepwise:Stepwise", "kvconform.reference.async_file_store:AsyncFileStoreConnector"])
def connector(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A storage that takes a fixed number of steps, and one with threads."""
    return use(monkeypatch, request.param)


def use(monkeypatch: pytest.MonkeyPatch, spec: str) -> str:
    module, _, name = spec.partition(":")
    monkeypatch.setattr(file_store_driver, "MODULE", module)
    monkeypatch.setattr(file_store_driver, "CONNECTOR", name)
    return name


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """A storage that takes a fixed number of steps, and its class."""
    use(monkeypatch, "stepwise:Stepwise")
    import stepwise

    return stepwise.Stepwise


def run(engine: Engine) -> None:
    """To the end, with as many empty steps as threads may need."""
    engine.run(limit=20000)


def generate(engine: Engine, tokens: list[int], name: str, max_tokens: int = 1) -> int:
    before = engine.scheduled_tokens
    engine.add(name, tokens, max_tokens)
    run(engine)
    return engine.scheduled_tokens - before


@pytest.mark.parametrize("runner", ["v1", "v2"])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("depth", [1, 2])
def test_what_is_stored_comes_back(tmp_path: Path, connector: str, runner: str, world_size: int, depth: int) -> None:
    setup = Setup(tmp_path, runner=runner, world_size=world_size, depth=depth)
    first = Engine(setup)
    assert generate(first, prompt(55), "a") == 55
    first.assert_clean()
    assert len(block_files(tmp_path)) == 3 * world_size
    first.forget_local_cache()
    assert generate(first, prompt(55), "b") == 55 - 48
    second = Engine(setup)
    assert generate(second, prompt(55), "c") == 55 - 48
    assert second.wrong == []
    second.assert_clean()
    first.shutdown()
    second.shutdown()


def test_synchronous_sister_reads_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "kvconform.reference.async_file_store:AsyncFileStoreConnector")
    generate(Engine(Setup(tmp_path)), prompt(55), "a")
    use(monkeypatch, "kvconform.reference.file_store:FileStoreConnector")
    assert generate(Engine(Setup(tmp_path)), prompt(55), "b") == 55 - 48


def test_finished_request_keeps_its_blocks_until_its_saves_are_done(tmp_path: Path, slow: type[Any]) -> None:
    engine = Engine(Setup(tmp_path))
    engine.add("a", prompt(48))
    engine.step()
    assert engine.requests["a"].is_finished()
    assert "a" in engine.scheduler.requests
    steps = 1
    while engine.scheduler.has_requests():
        engine.step()
        steps += 1
    # Saved for 4 steps, the first one included; the report frees the blocks in the same step.
    assert steps == slow.save_steps
    engine.assert_clean()
    assert len(block_files(tmp_path)) == 3


def test_aborted_load_is_reported_as_received_and_its_blocks_are_free_afterwards(
    tmp_path: Path, slow: type[Any]
) -> None:
    engine = Engine(Setup(tmp_path))
    generate(engine, prompt(48), "a")
    engine.forget_local_cache()
    engine.add("b", prompt(48))
    engine.step()
    engine.scheduler.finish_requests(["b"], RequestStatus.FINISHED_ABORTED)
    assert "b" in engine.scheduler.requests
    run(engine)
    assert "b" not in engine.scheduler.requests
    engine.assert_clean()


def test_preempted_request_is_saved_as_it_was(tmp_path: Path, slow: type[Any]) -> None:
    engine = Engine(Setup(tmp_path))
    engine.add("a", prompt(48), 4)
    engine.step()
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    for worker in engine.workers:
        assert worker.connector._worker._saves
    engine.add("taker", prompt(200, seed=2), 2)
    run(engine)
    engine.forget_local_cache()
    assert generate(engine, prompt(55), "again") == 55 - 48


def test_broken_file_is_reported_and_computed_again(tmp_path: Path, connector: str) -> None:
    engine = Engine(Setup(tmp_path))
    generate(engine, prompt(55), "a")
    engine.forget_local_cache()
    middle = block_files(tmp_path)[1]
    middle.write_bytes(middle.read_bytes()[:-1])
    generate(engine, prompt(55), "b")
    assert engine.finish_reasons.keys() == {"a", "b"}
    engine.forget_local_cache()
    # It was stored once more.
    assert generate(engine, prompt(55), "c") == 55 - 48
    engine.assert_clean()


def test_failed_save_ends_the_hold_all_the_same(
    tmp_path: Path, connector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvconform.reference import _async_transfers

    def refuse(*_: Any) -> None:
        raise MemoryError("planted")

    monkeypatch.setattr(_async_transfers, "write_block_file", refuse)
    engine = Engine(Setup(tmp_path))
    generate(engine, prompt(48), "a")
    engine.assert_clean()
    assert block_files(tmp_path) == []


def test_shutdown_with_transfers_under_way_waits_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    use(monkeypatch, "kvconform.reference.async_file_store:AsyncFileStoreConnector")
    before = set(threading.enumerate())
    engine = Engine(Setup(tmp_path))
    engine.add("a", prompt(200))
    engine.step()
    engine.shutdown()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("threads", [0, "4", True])
def test_unusable_number_of_threads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Any) -> None:
    use(monkeypatch, "kvconform.reference.async_file_store:AsyncFileStoreConnector")
    with pytest.raises(ValueError, match=r"'threads'.*must be 1 or more"):
        Engine(Setup(tmp_path, extra_config={"threads": threads}))
