"""One engine step with the oracle, beside vLLM's bare scheduler step of the same requests.

Four requests of 64 tokens that generate 64 more each: one step that computes the prompts, then 63 of decoding. The
connector does nothing. The bare step is Scheduler.schedule and update_from_output, with the same connector in it.
The second peer is all that vLLM itself does in such a step, but for the model: beside the scheduler, pickling, and the
calls of the worker role's hooks in vLLM's own wrappers.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from subjects import label

from kvconform.api import prepare

prepare("cpu")
from kvconform.engine import compat  # noqa: E402
from kvconform.engine.byte_events import WrongBytes  # noqa: E402
from kvconform.engine.events import Scheduled  # noqa: E402
from kvconform.engine.history import History  # noqa: E402
from kvconform.engine.options import ConnectorSpec, EngineOptions  # noqa: E402
from kvconform.engine.vllm_engine.configuration import build_vllm_config, ensure_parallel_state  # noqa: E402
from kvconform.engine.vllm_engine.engine import VllmEngine  # noqa: E402
from kvconform.engine.vllm_engine.layers import with_layer_hooks  # noqa: E402
from kvconform.engine.vllm_engine.requests import build_request, hash_function  # noqa: E402
from kvconform.engine.vllm_engine.startup import build_scheduler  # noqa: E402
from kvconform.engine.vllm_engine.worker import SimulatedWorker  # noqa: E402
from kvconform.kvcache.build import plan_kv_cache  # noqa: E402
from kvconform.kvcache.provenance import Provenance  # noqa: E402
from kvconform.kvcache.shape import KVCacheShape  # noqa: E402
from kvconform.scenario.program import RequestSpec  # noqa: E402

STEPS = 64
ROUNDS = 25
REQUESTS = tuple(RequestSpec(f"r{index}", ((index, 64),), STEPS) for index in range(4))
CONNECTOR = ConnectorSpec("InertConnector", "inert_connector")
FIGURE = "Engine step"


def options(crossing: str) -> EngineOptions:
    """A pool with room for all requests: nobody is preempted, so that all subjects take the same steps."""
    return EngineOptions(shape=KVCacheShape(num_blocks=64), crossing=crossing)  # type: ignore[arg-type]


def engine_with_requests(crossing: str) -> tuple[tuple[VllmEngine], dict[str, Any]]:
    made = VllmEngine(options(crossing), CONNECTOR, History(), Provenance())
    for spec in REQUESTS:
        made.add(spec)
    return (made,), {}


def run(engine: VllmEngine) -> None:
    for _ in range(STEPS):
        assert engine.step()


class NothingRecorded:
    """Leaves the hooks as they are."""

    attach: Callable[..., None] = staticmethod(lambda *_: None)


def vllm_with_requests() -> tuple[tuple[Any, Any], dict[str, Any]]:
    """vLLM's scheduler and worker role as the kit's engine builds them, with nothing of the kit around the hooks."""
    import torch
    from vllm.config import set_current_vllm_config

    made = options("pickle")
    ensure_parallel_state()
    config = build_vllm_config(made, CONNECTOR)
    with set_current_vllm_config(config):
        plans = plan_kv_cache(config, made.shape)
        nothing: Any = NothingRecorded()
        worker = SimulatedWorker(config, plans.worker, made, nothing, torch.device("cpu"), 1)
        scheduler, hash_block_size = build_scheduler(config, plans.scheduler, nothing)
    hasher = compat.request_block_hasher(config, hash_block_size, hash_function())
    for spec in REQUESTS:
        scheduler.add_request(build_request(spec, made.kv_model, hasher))
    return (scheduler, worker), {}


def scheduler_with_requests() -> tuple[tuple[Any], dict[str, Any]]:
    """The same without a worker role."""
    (scheduler, worker), _ = vllm_with_requests()
    worker.shutdown()
    return (scheduler,), {}


def result_of(output: Any, connector_output: Any = None) -> Any:
    from vllm.v1.outputs import ModelRunnerOutput

    ids = list(output.num_scheduled_tokens)
    return ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
        sampled_token_ids=[[11]] * len(ids),
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=None,
        kv_connector_output=connector_output,
    )


def run_bare(scheduler: Any) -> None:
    for _ in range(STEPS):
        output = scheduler.schedule()
        scheduler.update_from_output(output, result_of(output))


def run_vllm(scheduler: Any, worker: Any) -> None:
    """What EngineCore.step and GPUModelRunner.execute_model (V2) do around a model with these layers."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.forward_context import set_forward_context

    config, active, layers = worker.vllm_config, worker._active, worker.layer_names
    attention = with_layer_hooks(lambda _: None)
    for _ in range(STEPS):
        output = scheduler.schedule()
        crossed = pickle.loads(pickle.dumps(output, pickle.HIGHEST_PROTOCOL))
        tokens = crossed.total_num_scheduled_tokens
        mapping = torch.zeros(tokens, dtype=torch.int64)
        slots = dict.fromkeys(layers, mapping)
        metadata = {name: SimpleNamespace(slot_mapping=mapping, num_actual_tokens=tokens) for name in layers}
        ids = list(crossed.num_scheduled_tokens)
        batch = SimpleNamespace(idx_mapping=mapping[: len(ids)], req_ids=ids, num_tokens=tokens, num_reqs=len(ids))
        with set_current_vllm_config(config), torch.no_grad():
            with set_forward_context(metadata, config, num_tokens=tokens, slot_mapping=slots):
                compat.v2_pre_forward(active, crossed, batch, None)
                for name in layers:
                    attention(name)
            active.finish_forward()
            reported = compat.v2_post_forward(active, crossed.finished_req_ids, False)
        returned = pickle.loads(pickle.dumps(reported, pickle.HIGHEST_PROTOCOL))
        scheduler.update_from_output(output, result_of(output, returned))


def timed(run: Callable[..., None], *subject: Any) -> float:
    started = time.perf_counter()
    run(*subject)
    return time.perf_counter() - started


def check_engine(engine: VllmEngine) -> None:
    """All took the steps that they were meant to take, and nothing was wrong."""
    tokens = [sum(event.scheduled.values()) for event in engine.history.of(Scheduled)]
    assert tokens == [4 * 64] + [4] * (STEPS - 1)
    assert not engine.scheduler.requests
    assert not list(engine.history.of(WrongBytes))
    engine.shutdown()


def measure_steps(benchmark: Any) -> None:
    """The kit turn by turn with its peers: a processor that changes its speed meanwhile changes it for all of them."""
    peers: dict[str, list[float]] = {role: [] for role in ("kit, no pickling", "vLLM alone", "bare scheduler")}
    used: list[VllmEngine] = []

    def setup() -> tuple[tuple[VllmEngine], dict[str, Any]]:
        if used:
            check_engine(used.pop())
        (unpickled,), _ = engine_with_requests("reference")
        peers["kit, no pickling"].append(timed(run, unpickled))
        check_engine(unpickled)
        (scheduler, worker), _ = vllm_with_requests()
        peers["vLLM alone"].append(timed(run_vllm, scheduler, worker))
        assert not scheduler.requests
        worker.shutdown()
        (scheduler,), _ = scheduler_with_requests()
        peers["bare scheduler"].append(timed(run_bare, scheduler))
        assert not scheduler.requests
        arguments = engine_with_requests("pickle")
        used.append(arguments[0][0])
        return arguments

    benchmark.pedantic(run, setup=setup, rounds=ROUNDS, warmup_rounds=1)
    check_engine(used.pop())
    what = "schedule, hooks, oracle, audit, history, update"
    # The first round of the peers was before the warm-up.
    label(benchmark, FIGURE, "kit", what, per=STEPS, beside={role: taken[1:] for role, taken in peers.items()})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
