"""One engine step with the oracle, beside vLLM's bare scheduler step of the same requests.

Four requests of 64 tokens that generate 64 more each: one step that computes the prompts, then 63 of decoding. The
connector does nothing. The bare step is Scheduler.schedule and update_from_output, with the same connector in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from subjects import label

from kvconform.api import prepare

prepare("cpu")
from kvconform.engine import compat  # noqa: E402
from kvconform.engine.history import History, Scheduled, WrongBytes  # noqa: E402
from kvconform.engine.options import ConnectorSpec, EngineOptions  # noqa: E402
from kvconform.engine.vllm_engine.configuration import build_vllm_config, ensure_parallel_state  # noqa: E402
from kvconform.engine.vllm_engine.engine import VllmEngine  # noqa: E402
from kvconform.engine.vllm_engine.requests import build_request, hash_function  # noqa: E402
from kvconform.engine.vllm_engine.startup import build_scheduler  # noqa: E402
from kvconform.kvcache.build import plan_kv_cache  # noqa: E402
from kvconform.kvcache.provenance import Provenance  # noqa: E402
from kvconform.kvcache.shape import KVCacheShape  # noqa: E402
from kvconform.scenario.program import RequestSpec  # noqa: E402

STEPS = 64
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


def scheduler_with_requests() -> tuple[tuple[Any], dict[str, Any]]:
    """vLLM's scheduler as the kit's engine builds it, with nothing of the kit in it."""
    from vllm.config import set_current_vllm_config

    class NothingRecorded:
        attach: Callable[..., None] = staticmethod(lambda *_: None)

    made = options("reference")
    ensure_parallel_state()
    config = build_vllm_config(made, CONNECTOR)
    with set_current_vllm_config(config):
        plan = plan_kv_cache(config, made.shape).scheduler
        scheduler, hash_block_size = build_scheduler(config, plan, NothingRecorded())  # type: ignore[arg-type]
    hasher = compat.request_block_hasher(config, hash_block_size, hash_function())
    for spec in REQUESTS:
        scheduler.add_request(build_request(spec, made.kv_model, hasher))
    return (scheduler,), {}


def run_bare(scheduler: Any) -> None:
    from vllm.v1.outputs import ModelRunnerOutput

    for _ in range(STEPS):
        output = scheduler.schedule()
        ids = list(output.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
            sampled_token_ids=[[11]] * len(ids),
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=None,
        )
        scheduler.update_from_output(output, result)


@pytest.mark.parametrize(("role", "crossing"), [("kit", "pickle"), ("kit, no pickling", "reference")])
def measure_kit(benchmark: Any, role: str, crossing: str) -> None:
    label(benchmark, FIGURE, role, "schedule, hooks, oracle, audit, history, update", per=STEPS)
    used: list[VllmEngine] = []

    def setup() -> tuple[tuple[VllmEngine], dict[str, Any]]:
        arguments = engine_with_requests(crossing)
        used.append(arguments[0][0])
        return arguments

    benchmark.pedantic(run, setup=setup, rounds=5, warmup_rounds=1)
    for engine in used:
        tokens = [sum(event.scheduled.values()) for event in engine.history.of(Scheduled)]
        assert tokens == [4 * 64] + [4] * (STEPS - 1)
        assert not engine.scheduler.requests
        assert not list(engine.history.of(WrongBytes))


def measure_bare_scheduler(benchmark: Any) -> None:
    label(benchmark, FIGURE, "bare scheduler", "schedule and update_from_output", per=STEPS)
    used: list[Any] = []

    def setup() -> tuple[tuple[Any], dict[str, Any]]:
        arguments = scheduler_with_requests()
        used.append(arguments[0][0])
        return arguments

    benchmark.pedantic(run_bare, setup=setup, rounds=5, warmup_rounds=1)
    assert not any(scheduler.requests for scheduler in used)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
