"""What differs between vLLM releases is hidden in one module, and works on the installed one."""

from __future__ import annotations

import inspect
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from bench import Bench, request, run, stored_then_asked_again
from packaging.version import Version

from kvconform.api import VllmRuntime
from kvconform.engine import compat
from kvconform.engine.events import EngineRaised, HookCall
from kvconform.engine.options import EngineOptions
from kvconform.engine.vllm_engine.configuration import build_vllm_config
from kvconform.engine.vllm_engine.requests import build_request, hash_function
from kvconform.kvcache.build import layer_specs, plan_kv_cache
from kvconform.kvcache.shape import KVCacheShape

pytestmark = pytest.mark.usefixtures("vllm_cpu")


def test_the_release_is_the_installed_one(vllm_cpu: VllmRuntime) -> None:
    import vllm

    assert compat.release() == vllm_cpu.release
    assert vllm.__version__.startswith(str(compat.release()))
    assert compat.release() >= Version("0.29.0")


def planned(shape: KVCacheShape) -> tuple[Any, Any, Any]:
    from vllm.config import set_current_vllm_config

    vllm_config = build_vllm_config(EngineOptions(shape), None)
    with set_current_vllm_config(vllm_config):
        configs = plan_kv_cache(vllm_config, shape)
    return vllm_config, configs.worker, configs.scheduler


def test_planning_gives_groups_tensors_and_granularity() -> None:
    shape = KVCacheShape(num_blocks=9)
    vllm_config, worker, scheduler = planned(shape)
    assert worker is not scheduler
    for config in (worker, scheduler):
        assert config.num_blocks == 9
        assert [sorted(group.layer_names) for group in config.kv_cache_groups] == [sorted(layer_specs(shape))]
        assert config.kv_cache_tensors[0].size == 9 * 2 * shape.layers[0].page_bytes
    if compat.release() >= Version("0.32.0"):
        assert (worker.hash_block_size, worker.cache_hit_alignment_tokens) == (16, 16)
        assert (scheduler.hash_block_size, scheduler.cache_hit_alignment_tokens) == (16, 16)
    assert vllm_config.cache_config.num_gpu_blocks == 9
    assert str(getattr(worker.kv_cache_layout, "name", worker.kv_cache_layout)) == "LBNHC"


def test_a_config_for_given_groups() -> None:
    from vllm.config import set_current_vllm_config
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec

    vllm_config, _, _ = planned(KVCacheShape(num_blocks=9))
    specs = layer_specs(KVCacheShape())
    groups = [KVCacheGroupSpec(list(specs), next(iter(specs.values())))]
    with set_current_vllm_config(vllm_config):
        config = compat.get_kv_cache_config_from_groups(vllm_config, groups, 1 << 40)
    assert config.num_blocks == 9
    assert len(config.kv_cache_tensors) == 1


def test_block_hashes_follow_the_prefix() -> None:
    from kvconform.scenario.program import RequestSpec

    vllm_config, _, _ = planned(KVCacheShape())
    hasher = compat.request_block_hasher(vllm_config, 16, hash_function())
    hashes = [
        build_request(RequestSpec(f"r{i}", prompt, lora=lora), "model", hasher).block_hashes
        for i, (prompt, lora) in enumerate([
            (((1, 50),), None),
            (((1, 32), (2, 18)), None),
            (((1, 50),), "adapter"),
        ])
    ]  # fmt: skip
    assert [len(of) for of in hashes] == [3, 3, 3]
    assert hashes[0][:2] == hashes[1][:2]
    assert hashes[0][2] != hashes[1][2]
    assert hashes[0][0] != hashes[2][0]


def test_handshake_metadata_of_all_workers_is_delivered_as_one() -> None:
    seen: list[Any] = []
    connector = SimpleNamespace(set_xfer_handshake_metadata_pp_aware=seen.append)
    compat.deliver_handshake(connector, [{(0, 0): "a"}, None, {(0, 1): "b"}])
    compat.deliver_handshake(connector, [None])
    assert seen == [{(0, 0): "a", (0, 1): "b"}, {}]


def test_sync_loads_are_assumed_where_a_release_does_not_tell() -> None:
    output: Any = SimpleNamespace()
    assert compat.has_sync_kv_loads(output) is True
    assert compat.has_sync_kv_loads(SimpleNamespace(has_sync_kv_loads=False)) is False  # type: ignore[arg-type]


def test_what_a_scheduler_tracks_under_any_releases_names() -> None:
    old = SimpleNamespace(
        requests={"r2": 1, "r1": 2},
        waiting=deque([SimpleNamespace(request_id="r1")]),
        skipped_waiting=[SimpleNamespace(request_id="r2")],
        running=[],
        finished_req_ids=set(),
    )
    assert compat.tracked_request_ids(old) == {
        "requests": ("r1", "r2"),
        "waiting": ("r1",),
        "skipped_waiting": ("r2",),
    }
    assert compat.tracked_request_ids(SimpleNamespace()) == {}


def test_every_container_of_the_installed_scheduler_is_watched(bench: Bench) -> None:
    """A release that renames one of them must not make the audit blind."""
    engine = bench.engine()
    engine.add(request("a", 20, 3))
    assert {"requests", "waiting"} <= set(compat.tracked_request_ids(engine.scheduler))
    engine.step()
    assert {"requests", "running"} <= set(compat.tracked_request_ids(engine.scheduler))
    names = {"kv_holding_waiting", "deferred_waiting", "finished_recving_kv_req_ids", "failed_recving_kv_req_ids"}
    if compat.release() >= Version("0.31.0"):
        assert all(hasattr(engine.scheduler, name) for name in names)
    engine.drain()
    assert compat.tracked_request_ids(engine.scheduler) == {}


def test_the_v2_wrapper_is_called_as_its_release_wants_it(bench: Bench) -> None:
    from vllm.v1.worker.gpu.kv_connector import ActiveKVConnector

    parameters = list(inspect.signature(ActiveKVConnector.pre_forward).parameters)
    if compat.release() >= Version("0.32.0"):
        assert parameters[1:] == ["scheduler_output", "input_batch", "attn_metadata"]
    stored_then_asked_again(bench.engine(options=EngineOptions(runner="v2")))
    assert sum(call.hook == "start_load_kv" for call in bench.of(HookCall)) == bench.engines[0].steps


@pytest.mark.parametrize(
    ("release", "drafts", "calls"),
    [
        ("0.32.0", True, ["post_forward {}"]),
        ("0.33.0", False, ["post_forward {}"]),
        ("0.33.0", True, ["post_forward {'defer_finalize': True}", "finalize_step"]),
    ],
)
def test_the_v2_wrapper_ends_a_step_behind_the_draft_model_from_0_33_0_on(
    monkeypatch: pytest.MonkeyPatch, release: str, drafts: bool, calls: list[str]
) -> None:
    seen: list[str] = []

    def post_forward(finished: set[str], **options: bool) -> str:
        seen.append(f"post_forward {options}")
        return f"output after {finished}"

    active = SimpleNamespace(post_forward=post_forward, finalize_step=lambda: seen.append("finalize_step"))
    monkeypatch.setattr(compat, "at_least", lambda oldest: Version(release) >= Version(oldest))
    assert compat.v2_post_forward(active, {"a"}, drafts) == "output after {'a'}"
    assert seen == calls


#: What ActiveKVConnector.pre_forward takes in a release, besides the step (vllm/v1/worker/gpu/kv_connector.py).
BATCH = SimpleNamespace(idx_mapping="indices", req_ids=["a"], num_tokens=3)
KEYWORDS = {"request_state_indices": "indices", "request_ids": ["a"], "num_tokens": 3}


@pytest.mark.parametrize("metadata", [None, {"layer": "metadata"}])
@pytest.mark.parametrize("release", ["0.29.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0"])
def test_the_v2_wrapper_is_called_as_its_release_declares_it(
    monkeypatch: pytest.MonkeyPatch, release: str, metadata: dict[str, str] | None
) -> None:
    class Until029:
        def pre_forward(self, scheduler_output: str) -> None:
            seen.append((scheduler_output,))

    class Until031:
        def pre_forward(self, scheduler_output: str, **kwargs: Any) -> None:
            seen.append((scheduler_output, kwargs))

        def finish_forward(self) -> None:
            seen.append(("finish_forward",))

    class From032(Until031):
        def pre_forward(  # type: ignore[override]
            self, scheduler_output: str, input_batch: Any = None, attn_metadata: Any = None
        ) -> None:
            seen.append((scheduler_output, input_batch, attn_metadata))

    seen: list[tuple[Any, ...]] = []
    version = Version(release)
    newer = From032 if version >= Version("0.32.0") else Until031
    active = newer() if version >= Version("0.30.0") else Until029()
    monkeypatch.setattr(compat, "at_least", lambda oldest: version >= Version(oldest))
    compat.v2_pre_forward(active, "step", BATCH, metadata)
    compat.v2_finish_forward(active)
    keywords = KEYWORDS if metadata is None else {**KEYWORDS, "attn_metadata": metadata}
    expected = {"0.29.0": [("step",)], "0.30.0": [("step", keywords), ("finish_forward",)]}
    expected["0.31.0"] = expected["0.30.0"]
    assert seen == expected.get(release, [("step", BATCH, metadata), ("finish_forward",)])


def test_the_installed_v2_wrapper_takes_what_it_is_given(bench: Bench) -> None:
    """Both ways through a step: with layer hooks, and with a replayed graph that gets the batch's metadata."""
    for runner in ("v2", "v2-full-graph"):
        run(bench.engine(options=EngineOptions(runner=runner)), request("a", 33, 2))  # type: ignore[arg-type]
        bench.engines[-1].shutdown()
    steps = [call.hook for call in bench.of(HookCall) if call.hook in ("start_load_kv", "wait_for_save")]
    assert steps.count("start_load_kv") == steps.count("wait_for_save") > 2
    assert not bench.of(EngineRaised)


def test_the_hooks_of_the_installed_base_class_are_all_recorded() -> None:
    """A hook that a release adds is one that the history must show, or the call order has a hole."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    from kvconform.engine.instrument import SCHEDULER_HOOKS, WORKER_HOOKS

    methods = {
        name
        for name, member in vars(KVConnectorBase_V1).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }
    # Accessors for connectors themselves, no hooks of the engine.
    own = {"has_connector_metadata", "set_connector_metadata"}
    assert methods - own - set(SCHEDULER_HOOKS) - set(WORKER_HOOKS) == set()
    run_by_class = {name for name, member in vars(KVConnectorBase_V1).items() if isinstance(member, classmethod)}
    assert not run_by_class & (set(SCHEDULER_HOOKS) | set(WORKER_HOOKS))


def test_a_run_needs_no_other_place_of_vllm(bench: Bench) -> None:
    run(bench.engine(options=EngineOptions(runner="v1")), request("a", 33, 2))
    bench.engines[0].audit()
    assert not [call for call in bench.of(HookCall) if call.error]
