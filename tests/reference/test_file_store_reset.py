"""Reset, shutdown and configuration of FileStoreConnector."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from file_store_driver import Engine, Setup, attention, block_files, prompt
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec


def _reset(engine: Engine) -> bool:
    return engine.scheduler.reset_prefix_cache(reset_connector=True)


def test_reset_drops_everything_for_this_engine_and_later_ones(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    engine = Engine(setup)
    engine.generate(prompt(40))
    assert _reset(engine)
    assert block_files(tmp_path) == []
    assert engine.generate(prompt(40), name="after") == 40
    assert Engine(setup).generate(prompt(40)) == 40


def test_after_a_reset_the_engine_keeps_its_blocks_to_itself(tmp_path: Path) -> None:
    """Its weights may be new, and nothing in its configuration says so."""
    setup = Setup(tmp_path)
    engine = Engine(setup)
    assert _reset(engine)
    engine.generate(prompt(40))
    engine.forget_local_cache()
    assert engine.generate(prompt(40), name="again") == 8
    assert Engine(setup).generate(prompt(40)) == 40
    engine.forget_local_cache()
    assert _reset(engine)
    assert engine.generate(prompt(40), name="after") == 40


def test_reset_while_a_save_is_on_its_way(tmp_path: Path) -> None:
    engine = Engine(Setup(tmp_path))
    engine.add("r", prompt(40))
    output = engine.scheduler.schedule()
    result = engine.execute(output)
    engine.connector.reset_cache()
    engine.scheduler_update(output, result)
    engine.run()
    assert block_files(tmp_path) == []
    assert list(tmp_path.rglob("*.staged")) == []
    engine.forget_local_cache()
    assert engine.generate(prompt(40), name="after") == 40


def test_reset_while_a_load_is_on_its_way(tmp_path: Path) -> None:
    setup = Setup(tmp_path, policy="fail")
    Engine(setup).generate(prompt(40))
    engine = Engine(setup)
    engine.add("r", prompt(40))
    output = engine.scheduler.schedule()
    assert engine.connector.reset_cache()
    engine.scheduler_update(output, engine.execute(output))
    engine.run()
    assert engine.errors == []
    assert block_files(tmp_path) == []


def test_requests_running_at_a_reset_are_not_stored(tmp_path: Path) -> None:
    engine = Engine(Setup(tmp_path))
    engine.add("r", prompt(20), max_tokens=40)
    engine.step()
    assert not _reset(engine), "the local reset fails while blocks are in use"
    engine.run()
    assert block_files(tmp_path) == []
    # Preempted by the reset, the request starts over and is stored again.
    engine.forget_local_cache()
    engine.add("s", prompt(20), max_tokens=40)
    engine.step()
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
    engine.run()
    assert len(block_files(tmp_path)) == 3


def test_reset_says_so_when_later_engines_could_still_hit(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    engine = Engine(setup)
    engine.generate(prompt(40))
    (home,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    (home / "generation").mkdir()
    assert engine.connector.reset_cache() is False
    engine.forget_local_cache()
    assert engine.generate(prompt(40), name="after") == 40


def test_another_running_engine_survives_a_reset(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    other = Engine(setup)
    other.generate(prompt(40))
    assert _reset(Engine(setup))
    other.forget_local_cache()
    assert other.generate(prompt(40), name="b") == 40
    other.forget_local_cache()
    assert other.generate(prompt(40), name="c") == 8


def test_shutdown_twice_removes_what_only_this_engine_could_use(tmp_path: Path) -> None:
    engine = Engine(Setup(tmp_path))
    engine.generate(prompt(40))
    assert _reset(engine)
    engine.generate(prompt(40), name="b")
    assert len(block_files(tmp_path)) == 2
    engine.shutdown()
    engine.shutdown()
    assert block_files(tmp_path) == []
    assert list(tmp_path.rglob("engines/*")) == []


def test_killed_engines_are_cleaned_up_in_the_end(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    killed = Engine(setup)
    killed.add("r", prompt(40))
    killed.execute(killed.scheduler.schedule())
    (folder,) = tmp_path.rglob("engines/*")
    Engine(setup)
    assert folder.exists()
    long_ago = time.time() - 30 * 24 * 3600
    os.utime(folder, (long_ago, long_ago))
    Engine(setup)
    assert not folder.exists()


def _connector(setup: Setup, role: KVConnectorRole = KVConnectorRole.SCHEDULER, groups: Any = None) -> Any:
    config = setup.vllm_config()
    kv_cache_config = setup.kv_cache_config(config)
    if groups is not None:
        kv_cache_config = KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)
    return KVConnectorFactory.create_connector(config, role, kv_cache_config)


@pytest.mark.parametrize("path", [None, "", 7])
def test_path_is_required(tmp_path: Path, path: Any) -> None:
    with pytest.raises(ValueError, match=r"needs the directory.*'path'"):
        _connector(Setup(tmp_path, extra_config={"path": path}))


def test_path_must_not_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="no directory"):
        _connector(Setup(tmp_path / "file"))


def test_unknown_options_are_ignored_with_a_warning(tmp_path: Path, monkeypatch: Any) -> None:
    from kvconform.reference import _requirements

    said: list[tuple[object, ...]] = []
    monkeypatch.setattr(_requirements.logger, "warning", lambda *args: said.append(args))
    _connector(Setup(tmp_path, extra_config={"colour": "blue"}))
    assert said[0][1:3] == ("FileStoreConnector", ["colour"])


@pytest.mark.parametrize("role", list(KVConnectorRole))
def test_unsupported_kv_caches_are_refused(tmp_path: Path, role: KVConnectorRole) -> None:
    full = KVCacheGroupSpec(["a"], attention())
    window = SlidingWindowSpec(block_size=16, num_kv_heads=2, head_size=8, dtype=torch.float16, sliding_window=32)
    with pytest.raises(ValueError, match="exactly one KV cache group"):
        _connector(Setup(tmp_path), role, [full, KVCacheGroupSpec(["b"], attention())])
    with pytest.raises(ValueError, match="causal full attention"):
        _connector(Setup(tmp_path), role, [KVCacheGroupSpec(["a"], window)])
    with pytest.raises(ValueError, match="causal full attention"):
        _connector(Setup(tmp_path), role, [KVCacheGroupSpec(["a"], attention(non_causal=True))])


@pytest.mark.parametrize("role", list(KVConnectorRole))
def test_shutdown_right_after_construction(tmp_path: Path, role: KVConnectorRole) -> None:
    connector = _connector(Setup(tmp_path), role)
    connector.shutdown()
    connector.shutdown()
    assert connector.get_kv_connector_stats() is None


def test_tensors_that_are_no_pages_are_refused(tmp_path: Path) -> None:
    worker = _connector(Setup(tmp_path, num_layers=1), KVConnectorRole.WORKER)
    name = "model.layers.0.attn"
    with pytest.raises(ValueError, match="No KV cache tensor was registered"):
        worker.register_kv_caches({})
    with pytest.raises(ValueError, match="multiple of 24 blocks"):
        worker.register_kv_caches({name: torch.zeros(2, 25, 16, 2, 8)})
    with pytest.raises(ValueError, match="last dimension"):
        worker.register_kv_caches({name: torch.zeros(24, 2, 16, 8).transpose(2, 3)})
    # A layer outside the group and an alias of a layer are fine; the alias is not stored twice.
    tensor = torch.zeros(24, 2, 16, 8)
    worker.register_kv_caches({name: tensor, "not.ours": torch.zeros(3, 5)})
    assert worker._worker._pages.block_bytes == 2 * 16 * 8 * 4
