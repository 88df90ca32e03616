"""FileStoreConnector on the real scheduler: what is stored comes back, byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from file_store_driver import POISON, Engine, Setup, attention, block_files, mla, prompt

LAYOUTS = ["LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC"]
SPECS: dict[str, Any] = {
    "float16": attention(),
    "bfloat16": attention(dtype=torch.bfloat16, num_kv_heads=3, head_size=5),
    "float32": attention(dtype=torch.float32, num_kv_heads=1),
    "uint8": attention(dtype=torch.uint8, num_kv_heads=4, head_size=7),
    "k-wider-than-v": attention(head_size=8, head_size_v=3),
    "mla": mla(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_round_trip_across_engines(tmp_path: Path, layout: str, spec: Any) -> None:
    setup = Setup(tmp_path, spec=spec, layout=layout, runner="v2" if layout < "LA" else "v1", num_blocks=8)
    first = Engine(setup)
    assert first.generate(prompt(55)) == 55
    first.assert_clean()
    second = Engine(setup)
    assert second.generate(prompt(55)) == 55 - 48
    assert second.wrong == []
    assert len(second.workers[0].loads_seen) == 3
    second.assert_clean()


@pytest.mark.parametrize("layout", ["LBNHC", "LBHNC", "BLNHC"])
def test_padding_is_neither_stored_nor_touched(tmp_path: Path, layout: str) -> None:
    spec = attention(page_size_padded=1536)
    setup = Setup(tmp_path, spec=spec, layout=layout, num_blocks=6)
    Engine(setup).generate(prompt(40))
    assert spec.page_size_bytes == 1536
    assert all(2 * 1024 < file.stat().st_size < 2 * 1024 + 400 for file in block_files(tmp_path))
    second = Engine(setup)
    assert second.generate(prompt(40)) == 8
    pages = second.workers[0].backing().view(-1, 1536)
    assert torch.all(pages[:, 1024:] == POISON)


@pytest.mark.parametrize("layout", ["LBNHC", "LBHNC"])
@pytest.mark.parametrize("kernel_block_size", [4, 8])
def test_kernel_blocks_smaller_than_blocks(tmp_path: Path, layout: str, kernel_block_size: int) -> None:
    setup = Setup(tmp_path, layout=layout, kernel_block_size=kernel_block_size, num_blocks=6)
    first = Engine(setup)
    assert next(iter(first.workers[0].caches.values())).shape[0] == 6 * 16 // kernel_block_size
    first.generate(prompt(40))
    assert Engine(setup).generate(prompt(40)) == 8


def test_another_kernel_block_size_does_not_read_the_same_files(tmp_path: Path) -> None:
    Engine(Setup(tmp_path, kernel_block_size=8)).generate(prompt(40))
    other = Engine(Setup(tmp_path, kernel_block_size=4))
    other.generate(prompt(40))
    assert len(other.errors) == 1
    assert other.wrong == []


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 48, 49])
def test_hits_equal_what_was_stored_and_leave_one_token(tmp_path: Path, length: int) -> None:
    setup = Setup(tmp_path)
    Engine(setup).generate(prompt(length))
    assert len(block_files(tmp_path)) == length // 16
    second = Engine(setup)
    second.generate(prompt(length))
    assert second.matched == [(length - 1) // 16 * 16]


@pytest.mark.parametrize("local", [16, 32, 48])
def test_local_hit_then_external_hit(tmp_path: Path, local: int) -> None:
    Engine(Setup(tmp_path)).generate(prompt(70))
    engine = Engine(Setup(tmp_path))
    engine.generate(prompt(70)[: local + 1], name="local")
    cached = {load.block_id for load in engine.workers[0].loads_seen}
    assert engine.generate(prompt(70)) == 6
    assert engine.matched == [local, 64 - local]
    loads = engine.workers[0].loads_seen[local // 16 :]
    assert len(loads) == (64 - local) // 16
    assert cached.isdisjoint(load.block_id for load in loads)


@pytest.mark.parametrize("budget", [16, 17, 20, 33])
@pytest.mark.parametrize("runner", ["v1", "v1-deferred", "v2"])
def test_chunked_prefill_stores_every_block_once(tmp_path: Path, budget: int, runner: str) -> None:
    setup = Setup(tmp_path, token_budget=budget, runner=runner)
    first = Engine(setup)
    assert first.generate(prompt(90)) == 90
    saves = first.workers[0].saves_seen
    assert len(saves) == len({save.block_hash for save in saves}) == 90 // 16
    assert Engine(setup).generate(prompt(90)) == 90 - 80


@pytest.mark.parametrize("depth", [1, 2])
def test_blocks_filled_while_decoding_are_stored(tmp_path: Path, depth: int) -> None:
    setup = Setup(tmp_path, depth=depth)
    first = Engine(setup)
    first.generate(prompt(20), max_tokens=50)
    tokens = first.tokens["r"]
    # 70 tokens, the last one never computed: 4 blocks. With a pipeline, the step that would store a block whose last
    # token is still being sampled stores it one step later.
    assert len(block_files(tmp_path)) == 4
    second = Engine(setup)
    assert second.generate([*tokens, 7]) == 71 - 64


def test_the_last_sampled_token_is_never_stored(tmp_path: Path) -> None:
    first = Engine(Setup(tmp_path))
    first.generate(prompt(30), max_tokens=2)
    assert len(first.tokens["r"]) == 32
    assert len(block_files(tmp_path)) == 1


def test_preemption_and_resume(tmp_path: Path) -> None:
    for runner in ("v1", "v2"):
        path = tmp_path / runner
        engine = Engine(Setup(path, num_blocks=7, runner=runner, prefix_caching=False))
        engine.add("a", prompt(40, 1), max_tokens=30)
        engine.add("b", prompt(40, 2), max_tokens=30)
        engine.run()
        # The resumed request finds its own KV, generated tokens included.
        assert max(engine.matched[2:]) >= 48
        engine.assert_clean()
        for name in ("a", "b"):
            fresh = Engine(Setup(path, num_blocks=7, runner=runner))
            assert fresh.generate([*engine.tokens[name], 5], name=name) < 20


def test_forced_preemption_of_everything(tmp_path: Path) -> None:
    engine = Engine(Setup(tmp_path))
    request = engine.add("a", prompt(40), max_tokens=20)
    for _ in range(5):
        engine.step()
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    for worker in engine.workers:
        worker.scribble()
    engine.run()
    assert request.num_preemptions == 1
    assert engine.matched == [0, 32]


def test_two_identical_prompts_in_one_step(tmp_path: Path) -> None:
    Engine(Setup(tmp_path)).generate(prompt(60))
    engine = Engine(Setup(tmp_path))
    engine.add("a", prompt(60))
    engine.add("b", prompt(60))
    engine.run()
    assert engine.scheduled_tokens == 2 * 12
    assert len(engine.workers[0].loads_seen) == 3


def test_two_identical_prompts_are_stored_once(tmp_path: Path) -> None:
    engine = Engine(Setup(tmp_path, prefix_caching=False))
    engine.add("a", prompt(60))
    engine.add("b", prompt(60))
    engine.run()
    assert len(engine.workers[0].saves_seen) == len(block_files(tmp_path)) == 3


def test_ranks_have_files_of_their_own(tmp_path: Path) -> None:
    setup = Setup(tmp_path, world_size=2)
    Engine(setup).generate(prompt(40))
    assert sorted(file.suffix for file in block_files(tmp_path)) == [".0", ".0", ".1", ".1"]
    assert Engine(setup).generate(prompt(40)) == 8
    # A block counts only while every rank has its part.
    victims = [file for file in block_files(tmp_path) if file.suffix == ".1"]
    victims[0].unlink()
    engine = Engine(setup)
    engine.generate(prompt(40))
    assert engine.errors == []
    assert engine.matched == [0 if victims[0].stem == engine.requests["r"].block_hashes[0].hex() else 16]


@pytest.mark.parametrize(("role", "stores", "loads"), [("kv_producer", True, False), ("kv_consumer", False, True)])
def test_kv_role(tmp_path: Path, role: str, stores: bool, loads: bool) -> None:
    Engine(Setup(tmp_path)).generate(prompt(40, 1))
    files = len(block_files(tmp_path))
    engine = Engine(Setup(tmp_path, role=role))
    assert engine.generate(prompt(40, 1)) == (8 if loads else 40)
    engine.generate(prompt(40, 2), name="other")
    assert (len(block_files(tmp_path)) > files) == stores
    assert engine.connector.requires_kv_delivery is False


def test_prompt_logprobs_are_not_served_from_the_store(tmp_path: Path) -> None:
    Engine(Setup(tmp_path)).generate(prompt(40))
    engine = Engine(Setup(tmp_path))
    request = engine.add("r", prompt(40))
    request.skip_reading_prefix_cache = True
    engine.run()
    assert engine.matched == [0]
    assert engine.scheduled_tokens == 40


def test_child_of_multi_connector(tmp_path: Path) -> None:
    children = tuple(
        {
            "kv_connector": "FileStoreConnector",
            "kv_connector_module_path": "kvconform.reference.file_store",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"path": str(tmp_path / name)},
        }
        for name in ("one", "two")
    )
    setup = Setup(tmp_path, connectors=children)
    Engine(setup).generate(prompt(40))
    assert len(block_files(tmp_path / "one")) == len(block_files(tmp_path / "two")) == 2
    engine = Engine(setup)
    assert engine.generate(prompt(40)) == 8
    assert len(engine.workers[0].loads_seen) == 2
    # The second child alone can serve what the first one lost.
    for file in block_files(tmp_path / "one"):
        file.unlink()
    assert Engine(setup).generate(prompt(40)) == 8
