"""MemcpyOffloadingSpec: vLLM's OffloadingConnector with a worker for host memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.engine.options import EngineOptions
from kvconform.kvcache.shape import KVCacheShape, LayerShape
from kvconform.scenario import transfer
from kvconform.scenario.exploration import Refused
from kvconform.scenario.program import Add, Drain, ForgetLocal, Program, RequestSpec
from kvconform.target import parse_target

SPEC = "vllm:OffloadingConnector"
BLOCKS, PAGE = 12, 64


def connector(tmp_path: Path, **options: Any) -> Conformance:
    target = parse_target(SPEC, tmp_path)
    config = RunConfig(connector=(SPEC,)).for_target(target)
    extra = {**config.kv_connector_extra_config, **options}
    return Conformance(target, RunConfig(connector=(SPEC,), kv_connector_extra_config=extra, device="cpu"))


def reload(shape: KVCacheShape | None = None, tokens: int = 70) -> Program:
    actions: list[Any] = []
    for name in ("store", "load"):
        actions += [Add(RequestSpec(name, ((1, tokens),), max_tokens=2)), Drain(), ForgetLocal()]
    return Program("reload", EngineOptions() if shape is None else EngineOptions(shape), tuple(actions))


# A window of two blocks beside full attention: two groups, null blocks, several pages in one tensor.
WINDOW = KVCacheShape((LayerShape(2), LayerShape(2, kind="sliding_window", sliding_window=32)))


@pytest.mark.parametrize("options", [{}, {"blocks_per_chunk": 2}, {"transfer_seconds": 0.02}], ids=str)
def test_what_was_offloaded_comes_back(tmp_path: Path, options: dict[str, Any]) -> None:
    examination = connector(tmp_path, **options).examine(reload())
    assert not examination.findings
    chunk = 16 * options.get("blocks_per_chunk", 1)
    assert examination.witnesses["LOAD-01"]["external tokens compared"] == 70 // chunk * chunk


def test_chunks_that_begin_with_a_local_hit(tmp_path: Path) -> None:
    """The first block of a load lies in the middle of its chunk."""
    actions = (
        Add(RequestSpec("store", ((1, 70),))),
        Drain(),
        ForgetLocal(),
        Add(RequestSpec("short", ((1, 17),))),
        Drain(),
        Add(RequestSpec("load", ((1, 70),))),
        Drain(),
    )
    examination = connector(tmp_path, blocks_per_chunk=2).examine(Program("reload", EngineOptions(), actions))
    assert not examination.findings
    matches = [
        call for call in examination.history.calls("get_num_new_matched_tokens") if call.args["request"] == "load"
    ]
    assert (matches[0].args["num_computed_tokens"], matches[0].result) == (16, (48, True))


def test_every_group_gets_its_own_blocks(tmp_path: Path) -> None:
    examination = connector(tmp_path).examine(reload(WINDOW))
    assert not examination.findings
    assert examination.witnesses["LOAD-01"]["external tokens compared"] == 64


def test_a_negative_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"transfer_seconds is -1\.0: expected a number of seconds from 0 on"):
        connector(tmp_path, transfer_seconds=-1).examine(transfer.reload().examples[0])


def worker(blocks_per_chunk: int = 2, seconds: float = 0.0) -> tuple[Any, torch.Tensor]:
    from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor

    from kvconform.reference.cpu_offloading_spec import MemcpyWorker

    cache = torch.randint(-128, 128, (BLOCKS, PAGE), dtype=torch.int8)
    refs = [[CanonicalKVCacheRef(0, PAGE)], [CanonicalKVCacheRef(0, PAGE - 8)]]
    caches = CanonicalKVCaches([CanonicalKVCacheTensor(cache, PAGE)], refs)
    return MemcpyWorker(caches, blocks_per_chunk, 4, seconds), cache


def blocks(ids: list[int], sizes: list[int], indices: list[int]) -> Any:
    from vllm.v1.kv_offload.base import GPULoadStoreSpec

    return GPULoadStoreSpec(ids, sizes, indices)


def chunks(*ids: int) -> Any:
    from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec

    return CPULoadStoreSpec(list(ids))


def test_groups_are_copied_from_where_they_begin_in_their_chunks() -> None:
    """Group 0 has blocks 1-3 of a request, group 1 its block 4: chunks of two blocks, the first one half used."""
    copier, cache = worker()
    before = cache.clone()
    copier.submit_store(1, blocks([5, 6, 7, 8], [3, 1], [1, 4]), chunks(3, 0, 2))
    copier.wait({1})
    (result,) = copier.get_finished()
    assert (result.job_id, result.success, result.transfer_size) == (1, True, 3 * PAGE + PAGE - 8)
    cache.zero_()
    copier.submit_load(2, chunks(3, 0, 2), blocks([1, 2, 3, 4], [3, 1], [1, 4]))
    copier.wait({2})
    assert torch.equal(cache[1:4], before[5:8])
    assert torch.equal(cache[4, : PAGE - 8], before[8, : PAGE - 8])
    assert not cache[4, PAGE - 8 :].any(), "padding is nobody's"
    assert not cache[[0, *range(5, BLOCKS)]].any()
    copier.shutdown()


def test_numbers_that_do_not_fit_are_refused() -> None:
    copier, _ = worker()
    with pytest.raises(
        ValueError, match=r"3 blocks and 1 chunks were given, but the groups of \[3, 0\] blocks need 3 and 2"
    ):
        copier.submit_store(1, blocks([5, 6, 7], [3, 0], [0, 0]), chunks(1))
    copier.shutdown()


def test_a_transfer_that_fails_is_reported_as_failed() -> None:
    copier, _ = worker()
    copier.submit_store(1, blocks([BLOCKS], [1, 0], [0, 0]), chunks(0))
    copier.wait({1})
    assert [(result.job_id, result.success) for result in copier.get_finished()] == [(1, False)]
    copier.shutdown()


def test_transfers_take_their_time_and_an_expedited_one_passes_them_by() -> None:
    copier, cache = worker(blocks_per_chunk=1, seconds=0.1)
    for job in range(3):
        copier.submit_store(job, blocks([1], [1, 0], [0, 0]), chunks(job))
    copier.submit_load(3, chunks(3), blocks([2], [1, 0], [0, 0]), expedited=True)
    copier.wait({3})
    done = {result.job_id for result in copier.get_finished()}
    assert 3 in done
    assert 2 not in done
    copier.shutdown()
    assert np.array_equal(cache[2].numpy(), np.zeros(PAGE))
