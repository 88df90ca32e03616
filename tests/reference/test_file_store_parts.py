"""The parts of FileStoreConnector on their own: file format, identity, planning from hand-made outputs."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from file_store_driver import Engine, Setup, attention, mla
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.outputs import KVConnectorOutput

from kvconform.reference._block_store import BlockFileError, BlockStore, block_label, read_block_file, write_block_file
from kvconform.reference._file_store_messages import FileStoreReport, StepResult
from kvconform.reference._file_store_scheduler import Granularity, SchedulerSide
from kvconform.reference._kv_identity import describe
from kvconform.reference._kv_pages import KVPages
from kvconform.reference._store_namespace import StoreNamespace

# ---- File format ----

LABEL = block_label(b"\x01\x02", 0, 1, "shard")
PAYLOAD = bytes(range(256))


def _written(path: Path) -> Path:
    file = path / "sub" / "block"
    write_block_file(file, LABEL, memoryview(PAYLOAD))
    return file


def _read(file: Path, label: bytes = LABEL, size: int = len(PAYLOAD)) -> bytes:
    out = bytearray(size)
    read_block_file(file, label, memoryview(out))
    return bytes(out)


def test_file_round_trip(tmp_path: Path) -> None:
    assert _read(_written(tmp_path)) == PAYLOAD


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    file = _written(tmp_path)
    data = file.read_bytes()
    for size in range(len(data)):
        file.write_bytes(data[:size])
        with pytest.raises(BlockFileError):
            _read(file)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    file = _written(tmp_path)
    data = file.read_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(BlockFileError):
            _read(file)


@pytest.mark.parametrize(
    "label",
    [
        block_label(b"\x01\x03", 0, 1, "shard"),
        block_label(b"\x01\x02", 1, 1, "shard"),
        block_label(b"\x01\x02", 0, 2, "shard"),
        block_label(b"\x01\x02", 0, 1, "other"),
    ],
)
def test_a_file_of_something_else_is_noticed(tmp_path: Path, label: bytes) -> None:
    with pytest.raises(BlockFileError, match="another block, rank or shape"):
        _read(_written(tmp_path), label)


def test_a_payload_of_another_size_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(BlockFileError, match="256 bytes of KV, expected 255"):
        _read(_written(tmp_path), size=255)


def test_a_name_is_written_once(tmp_path: Path) -> None:
    file = _written(tmp_path)
    with pytest.raises(FileExistsError):
        write_block_file(file, LABEL, memoryview(PAYLOAD))


# ---- Pages ----


def test_pages_keep_every_bit_pattern() -> None:
    octets = torch.arange(256, dtype=torch.uint8).repeat(8)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.uint8):
        cache = octets.clone().view(dtype).view(4, 2, 8, -1)
        pages = KVPages({"a": cache}, {"a"}, 4)
        target = torch.zeros_like(octets).view(dtype).view(4, 2, 8, -1)
        KVPages({"a": target}, {"a"}, 4).write([3, 0, 1, 2], pages.read([3, 0, 1, 2]))
        assert torch.equal(target.view(torch.uint8), cache.view(torch.uint8))


def test_layers_sharing_memory_are_stored_once() -> None:
    cache = torch.zeros(4, 1, 2, 8, dtype=torch.uint8)
    assert KVPages({"a": cache, "b": cache}, {"a", "b"}, 4).block_bytes == 16


def test_a_stage_without_layers_has_empty_blocks() -> None:
    pages = KVPages({}, set(), 4)
    assert pages.read([1, 2]).shape == (2, 0)


# ---- Identity ----


def _digest(setup: Setup, change: Any = None) -> str:
    config = setup.vllm_config()
    config.model_config = copy.deepcopy(config.model_config)
    kv_cache_config = setup.kv_cache_config(config)
    if change is not None:
        change(config, kv_cache_config)
    return describe(config, kv_cache_config).digest


def _set(path: str, value: Any) -> Any:
    def change(config: Any, kv_cache_config: Any) -> None:
        *parents, name = path.split(".")
        target = SimpleNamespace(config=config, kv=kv_cache_config)
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, name, value)

    return change


CHANGES = {
    "model": _set("config.model_config.model", "other/model"),
    "revision": _set("config.model_config.revision", "abc"),
    "quantization": _set("config.model_config.quantization", "fp8"),
    "model dtype": _set("config.model_config.dtype", torch.bfloat16),
    "hf config": _set("config.model_config.hf_config.ffn_dim", 7),
    "cache dtype": _set("config.cache_config.cache_dtype", "fp8"),
    "layout": _set("kv.kv_cache_layout", "BHLNC"),
    "world size": _set("config.parallel_config.world_size", 2),
    "tensor parallel size": _set("config.parallel_config.tensor_parallel_size", 2),
    "pipeline parallel size": _set("config.parallel_config.pipeline_parallel_size", 2),
    "hash algorithm": _set("config.cache_config.prefix_caching_hash_algo", "sha256_cbor"),
    "layer names": _set("kv.kv_cache_groups", []),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_block_hashes_do_not_contain_is_in_the_identity(tmp_path: Path, change: Any) -> None:
    setup = Setup(tmp_path)
    assert _digest(setup) == _digest(setup)
    assert _digest(setup, change) != _digest(setup)


def test_the_shape_of_the_cache_is_in_the_identity(tmp_path: Path) -> None:
    specs = [
        attention(),
        attention(num_kv_heads=4),
        attention(num_kv_heads=1, head_size=16),
        attention(head_size=4, head_size_v=12),
        attention(dtype=torch.bfloat16),
        attention(block_size=32),
        mla(head_size=32, dtype=torch.float16),
    ]
    setups = [Setup(tmp_path, spec=spec) for spec in specs] + [Setup(tmp_path, num_layers=3)]
    digests = [_digest(setup) for setup in setups]
    assert len(set(digests)) == len(digests)


def test_what_does_not_matter_is_not_in_the_identity(tmp_path: Path) -> None:
    base = _digest(Setup(tmp_path))
    other = Setup(tmp_path / "elsewhere", num_blocks=99, token_budget=64, policy="fail", role="kv_consumer")
    assert _digest(other) == base
    assert _digest(Setup(tmp_path), _set("config.parallel_config.rank", 3)) == base
    assert _digest(Setup(tmp_path), _set("config.model_config.seed", 3)) == base
    assert _digest(Setup(tmp_path), _set("config.model_config.max_model_len", 77)) == base


def test_weight_files_of_a_local_model_are_in_the_identity(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    weights = Path(setup.model) / "model.safetensors"
    before = _digest(setup)
    try:
        weights.write_bytes(b"1")
        first = _digest(setup)
        weights.write_bytes(b"22")
        assert len({before, first, _digest(setup)}) == 3
    finally:
        weights.unlink()


def test_dummy_weights_differ_by_seed(tmp_path: Path) -> None:
    def dummy(seed: int) -> str:
        def change(config: Any, kv_cache_config: Any) -> None:
            config.load_config.load_format = "dummy"
            config.model_config.seed = seed

        return _digest(Setup(tmp_path), change)

    assert dummy(1) != dummy(2)


def test_the_hash_seed_is_in_the_identity(tmp_path: Path, monkeypatch: Any) -> None:
    setup = Setup(tmp_path)
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    base = _digest(setup)
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    assert _digest(setup) != base


def test_randomly_seeded_hashes_are_kept_private(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    config = Setup(tmp_path).vllm_config()
    config.cache_config.prefix_caching_hash_algo = "xxhash"
    identity = describe(config, Setup(tmp_path).kv_cache_config(config))
    assert not identity.shareable
    assert "engines" in StoreNamespace(tmp_path, identity).blocks
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    assert describe(config, Setup(tmp_path).kv_cache_config(config)).shareable


def test_the_identity_is_readable_and_the_same_in_every_process(tmp_path: Path) -> None:
    Engine(Setup(tmp_path))
    (file,) = tmp_path.rglob("identity.json")
    text = file.read_text()
    assert json.loads(text)["kv_cache"]["block_size"] == 16
    assert " at 0x" not in text


# ---- Planning ----


class Plan:
    """A SchedulerSide with one rank, fed by hand."""

    def __init__(
        self, path: Path, tokens: int = 100, *, block_tokens: int = 16, hash_tokens: int = 16, world_size: int = 1
    ) -> None:
        config = Setup(path).vllm_config()
        self.store = BlockStore(path)
        self.namespace = StoreNamespace(path, describe(config, Setup(path).kv_cache_config(config)))
        self.side = SchedulerSide(
            self.store, self.namespace, Granularity(block_tokens, hash_tokens), world_size, may_load=True, may_save=True
        )
        hashes = [index.to_bytes(4, "big") for index in range(tokens // hash_tokens)]
        self.request: Any = SimpleNamespace(
            request_id="r",
            num_tokens=tokens,
            num_computed_tokens=0,
            block_hashes=hashes,
            skip_reading_prefix_cache=False,
        )

    def store_blocks(self, *indices: int) -> None:
        for index in indices:
            path = self.store.block_path(self.namespace.blocks, index.to_bytes(4, "big"), 0)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    def build(self, scheduled: int, *, new: Any = None, cached: Any = None, drafts: int = 0) -> list[int]:
        """One step with the request; the GPU blocks that it saves."""
        output = SchedulerOutput.make_empty()
        output.num_scheduled_tokens = {"r": scheduled}
        output.total_num_scheduled_tokens = scheduled
        if drafts:
            output.scheduled_spec_decode_tokens = {"r": [-1] * drafts}
        if new is not None:
            table, computed = new
            output.scheduled_new_reqs = [SimpleNamespace(req_id="r", block_ids=(table,), num_computed_tokens=computed)]
        if cached is not None:
            table, computed, resumed = cached
            output.scheduled_cached_reqs = CachedRequestData(
                req_ids=["r"],
                resumed_req_ids={"r"} if resumed else set(),
                new_token_ids=[],
                all_token_ids={},
                new_block_ids=[None if table is None else (table,)],
                num_computed_tokens=[computed],
                num_output_tokens=[0],
            )
        before = pickle.dumps(output)
        metadata = self.side.build_metadata(output)
        assert pickle.dumps(output) == before
        assert pickle.loads(pickle.dumps(metadata)) == metadata
        return [save.block_id for save in metadata.saves]


def test_matching_is_capped_aligned_and_repeatable(tmp_path: Path) -> None:
    plan = Plan(tmp_path, tokens=64)
    plan.store_blocks(0, 1, 2, 3)
    assert [plan.side.match(plan.request, 0) for _ in range(3)] == [48, 48, 48]
    assert plan.side.match(plan.request, 32) == 16
    assert plan.side.match(plan.request, 48) == 0
    assert plan.side.match(plan.request, 64) == 0
    assert plan.side.match(plan.request, 96) == 0
    assert plan.side.match(plan.request, 8) == 0


def test_matching_stops_at_the_first_hole(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    plan.store_blocks(0, 1, 3, 4)
    assert plan.side.match(plan.request, 0) == 32
    assert plan.side.match(plan.request, 32) == 0
    assert plan.side.match(plan.request, 48) == 32


def test_loads_follow_the_allocation_not_the_match(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    plan.store_blocks(*range(6))
    plan.side.match(plan.request, 0)
    plan.side.match(plan.request, 32)
    plan.side.allocated(plan.request, [10, 11, 12, 13, 14, 15, 16], 32)
    metadata = plan.side.build_metadata(SchedulerOutput.make_empty())
    assert [(load.block_id, load.block_hash[-1]) for load in metadata.loads] == [(12, 2), (13, 3)]
    assert plan.side.build_metadata(SchedulerOutput.make_empty()).loads == ()
    plan.side.match(plan.request, 0)
    plan.side.allocated(plan.request, [10, 11, 12], 0)
    assert plan.side.build_metadata(SchedulerOutput.make_empty()).loads == ()


def test_hashes_finer_than_blocks(tmp_path: Path) -> None:
    plan = Plan(tmp_path, tokens=70, block_tokens=32, hash_tokens=16)
    plan.store_blocks(1, 3)
    assert plan.side.match(plan.request, 0) == 64
    with pytest.raises(ValueError, match="multiple of"):
        Granularity(16, 32)


def test_saves_in_chunks_and_none_for_new_blocks(tmp_path: Path) -> None:
    plan = Plan(tmp_path, tokens=50)
    plan.side.allocated(plan.request, [5, 6], 0)
    assert plan.build(20, new=([5, 6], 0)) == [5]
    assert plan.build(11, cached=(None, 20, False)) == []
    assert plan.build(3, cached=([7], 31, False)) == [6]
    assert plan.build(16, cached=([8], 34, False)) == [7]


def test_resumed_requests_get_a_new_table(tmp_path: Path) -> None:
    for resumed_as_new in (False, True):
        plan = Plan(tmp_path / str(resumed_as_new), tokens=50)
        plan.side.allocated(plan.request, [5, 6], 0)
        assert plan.build(30, new=([5, 6], 0)) == [5]
        # The block is already on its way, so only the second one is new.
        table = ([9, 10, 11], 0)
        kwargs: Any = {"new": table} if resumed_as_new else {"cached": (*table, True)}
        assert plan.build(40, **kwargs) == [10]


def test_draft_tokens_count_once_they_are_verified(tmp_path: Path) -> None:
    plan = Plan(tmp_path, tokens=30)
    plan.side.allocated(plan.request, [5, 6, 7], 0)
    assert plan.build(30, new=([5, 6, 7], 0)) == [5]
    plan.request.num_tokens = 31
    assert plan.build(4, cached=(None, 30, False), drafts=3) == []
    plan.request.num_tokens = 34
    plan.request.block_hashes.append((1).to_bytes(4, "big"))
    assert plan.build(4, cached=(None, 33, False), drafts=3) == [6]


def test_blocks_without_a_hash_wait(tmp_path: Path) -> None:
    """Async scheduling: the token that fills the block is still being sampled."""
    plan = Plan(tmp_path, tokens=31)
    plan.side.allocated(plan.request, [5, 6], 0)
    assert plan.build(31, new=([5, 6], 0)) == [5]
    assert plan.build(1, cached=(None, 31, False)) == []
    plan.request.num_tokens = 32
    plan.request.block_hashes.append((1).to_bytes(4, "big"))
    assert plan.build(1, cached=([7], 32, False)) == [6]


def test_a_session_that_goes_on_with_other_tokens(tmp_path: Path) -> None:
    plan = Plan(tmp_path, tokens=64)
    plan.side.allocated(plan.request, [5, 6, 7, 8], 0)
    assert plan.build(64, new=([5, 6, 7, 8], 0)) == [5, 6, 7, 8]
    # The last block's tokens change; hash 9 stands for the new ones.
    plan.request.num_tokens = 70
    plan.request.num_computed_tokens = 50
    plan.request.block_hashes[3] = (9).to_bytes(4, "big")
    plan.side.allocated(plan.request, [5, 6, 7, 8, 9], 0)
    assert plan.build(20, new=([5, 6, 7, 8, 9], 50)) == [8]


def test_reports_of_all_ranks_are_needed() -> None:
    one = FileStoreReport({1: StepResult(1), 2: StepResult(1, frozenset({7}))})
    two = FileStoreReport({2: StepResult(1), 3: StepResult(1)})
    for merged in (one.aggregate(two), two.aggregate(one)):
        assert merged.steps == {1: StepResult(1), 2: StepResult(2, frozenset({7})), 3: StepResult(1)}


def _stage(plan: Plan, rank: int) -> None:
    for step in plan.side._steps.values():
        for save_id in step.saves:
            path = plan.store.staged_path(plan.namespace.staging, save_id, rank)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")


def _report(plan: Plan, **result: Any) -> None:
    report = FileStoreReport({1: StepResult(**{"votes": 1, **result})})
    plan.side.step_reported(KVConnectorOutput(kv_connector_worker_meta=report))


@pytest.mark.parametrize("late_failure", [False, True])
def test_blocks_appear_when_the_last_rank_has_reported(tmp_path: Path, late_failure: bool) -> None:
    plan = Plan(tmp_path, tokens=40, world_size=2)
    plan.side.allocated(plan.request, [5, 6, 7], 0)
    assert plan.build(40, new=([5, 6, 7], 0)) == [5, 6]
    _stage(plan, 0)
    _stage(plan, 1)
    _report(plan)
    assert plan.side.match(plan.request, 0) == 0
    _report(plan, failed=frozenset({1}) if late_failure else frozenset())
    assert plan.side.match(plan.request, 0) == (0 if late_failure else 32)
    assert plan.side.match(plan.request, 16) == 16
    assert list(tmp_path.rglob("*.staged")) == []


def test_a_reset_does_not_wait_for_saves_of_the_time_before(tmp_path: Path) -> None:
    plan = Plan(tmp_path, tokens=40)
    plan.side.allocated(plan.request, [5, 6, 7], 0)
    assert plan.build(40, new=([5, 6, 7], 0)) == [5, 6]
    plan.side.reset()
    plan.side.finished(plan.request)
    plan.side.allocated(plan.request, [8, 9, 10], 0)
    assert plan.build(40, new=([8, 9, 10], 0)) == [8, 9]


def test_foreign_output_is_ignored(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    plan.side.step_reported(KVConnectorOutput(finished_recving={"x"}, invalid_block_ids={1, 2}))
    plan.side.step_reported(KVConnectorOutput(kv_connector_worker_meta=FileStoreReport({99: StepResult(1)})))
    assert plan.side.match(plan.request, 0) == 0
