"""A small engine for the reference connector's own tests: vLLM's scheduler, factory, tensors and hooks, no model.

The "forward" writes bytes that are a function of layer, rank and all tokens up to a position. Before it, every slot
that the scheduler counts as computed is compared with what it must hold.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    KVTransferConfig,
    ModelConfig,
    SchedulerConfig,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.distributed.kv_transfer import kv_transfer_state
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.forward_context import set_forward_context
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import (
    get_request_block_hasher,
    init_none_hash,
    resolve_kv_cache_block_sizes,
)
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheSpec, MLAAttentionSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.worker.gpu.kv_connector import ActiveKVConnector
from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin
from vllm.v1.worker.utils import allocate_kv_cache

try:
    from vllm.v1.core.kv_cache_planning import get_kv_cache_config_from_groups
except ImportError:  # up to 0.32.0
    from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups

CONNECTOR = "FileStoreConnector"
MODULE = "kvconform.reference.file_store"
POISON = 0xA5
# Tiny tensors: threads would only wait for each other.
torch.set_num_threads(1)


def attention(**changes: Any) -> FullAttentionSpec:
    return FullAttentionSpec(**{"block_size": 16, "num_kv_heads": 2, "head_size": 8, "dtype": torch.float16, **changes})


def mla(**changes: Any) -> MLAAttentionSpec:
    shape = {"block_size": 16, "num_kv_heads": 1, "head_size": 40, "dtype": torch.bfloat16}
    return MLAAttentionSpec(**{**shape, **changes})


@cache
def model_folder(name: str = "model") -> str:
    folder = Path(tempfile.mkdtemp()) / name
    folder.mkdir()
    config = {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@cache
def _model_config(folder: str) -> ModelConfig:
    return ModelConfig(model=folder, skip_tokenizer_init=True, dtype="float16", seed=0, max_model_len=1024)


@dataclass(frozen=True)
class Setup:
    """One engine. ``connectors`` turns it into a MultiConnector of these children."""

    path: Path
    spec: KVCacheSpec = field(default_factory=attention)
    num_layers: int = 2
    layout: str = "LBNHC"
    kernel_block_size: int | None = None
    num_blocks: int = 24
    token_budget: int = 1024
    role: str = "kv_both"
    policy: str = "recompute"
    runner: str = "v1"
    world_size: int = 1
    depth: int = 1
    prefix_caching: bool = True
    extra_config: dict[str, Any] = field(default_factory=dict)
    connectors: tuple[dict[str, Any], ...] = ()
    model: str = field(default_factory=model_folder)

    def vllm_config(self) -> VllmConfig:
        name, module, extra = CONNECTOR, MODULE, {"path": str(self.path), **self.extra_config}
        if self.connectors:
            name, module, extra = "MultiConnector", None, {"connectors": list(self.connectors)}
        config = VllmConfig(
            model_config=copy.deepcopy(_model_config(self.model)),
            scheduler_config=SchedulerConfig(
                max_num_seqs=8,
                max_num_batched_tokens=self.token_budget,
                max_model_len=1024,
                enable_chunked_prefill=True,
                is_encoder_decoder=False,
                async_scheduling=self.depth > 1,
            ),
            cache_config=CacheConfig(block_size=self.spec.block_size, enable_prefix_caching=self.prefix_caching),
            kv_transfer_config=KVTransferConfig(
                kv_connector=name,
                kv_connector_module_path=module,
                kv_role=self.role,
                kv_connector_extra_config=extra,
                kv_load_failure_policy=self.policy,
                kv_buffer_device="cpu",
            ),
            device_config=DeviceConfig("cpu"),
        )
        config.cache_config.kv_cache_layout = self.layout
        config.cache_config.num_gpu_blocks_override = self.num_blocks
        config.cache_config.num_gpu_blocks = self.num_blocks
        config.parallel_config.world_size = self.world_size
        return config

    def kv_cache_config(self, config: VllmConfig) -> KVCacheConfig:
        from vllm.v1.kv_cache_interface import KVCacheGroupSpec

        layers = [f"model.layers.{index}.attn" for index in range(self.num_layers)]
        result = get_kv_cache_config_from_groups(config, [KVCacheGroupSpec(layers, self.spec)], 1 << 40)
        result.kv_cache_layout = self.layout
        if hasattr(result, "hash_block_size"):
            result.hash_block_size = resolve_kv_cache_block_sizes(result, config)[1]
        return result


def expected(layer: str, rank: int, tokens: Sequence[int], position: int, size: int) -> torch.Tensor:
    """What the slot of ``position`` holds: uint8 [size], every bit pattern possible."""
    seed = json.dumps([layer, rank, list(tokens[: position + 1])]).encode()
    return torch.frombuffer(bytearray(hashlib.shake_128(seed).digest(size)), dtype=torch.uint8)


class Worker:
    """One rank: connector, tensors, and the forward that isn't one."""

    def __init__(self, setup: Setup, config: VllmConfig, kv_cache_config: KVCacheConfig, rank: int) -> None:
        self.setup, self.rank = setup, rank
        self.config = copy.copy(config)
        self.config.parallel_config = copy.copy(config.parallel_config)
        self.config.parallel_config.rank = rank
        with set_current_vllm_config(self.config):
            self.connector = KVConnectorFactory.create_connector(self.config, KVConnectorRole.WORKER, kv_cache_config)
        kernel = None if setup.kernel_block_size is None else [setup.kernel_block_size]
        layout = config.cache_config.get_resolved_kv_cache_layout()
        self.caches = allocate_kv_cache(kv_cache_config, torch.device("cpu"), layout, kernel)
        self.octets = {name: tensor.view(torch.uint8) for name, tensor in self.caches.items()}
        self.scribble()
        kv_transfer_state._KV_CONNECTOR_AGENT = self.connector
        self.hooks = ActiveKVConnector(self.config, self.caches)
        self.loads_seen: list[Any] = []
        self.saves_seen: list[Any] = []

    def scribble(self) -> None:
        """Overwrite the whole allocation, padding included."""
        self.backing().fill_(POISON)

    def backing(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8).set_(next(iter(self.octets.values())).untyped_storage())

    def slot(self, layer: str, table: list[int], position: int) -> torch.Tensor:
        block_size = self.setup.spec.block_size
        kernel = self.setup.kernel_block_size or block_size
        block, offset = table[position // block_size], position % block_size
        return self.octets[layer][block * (block_size // kernel) + offset // kernel, :, offset % kernel, :]

    def run(self, output: Any, batch: list[tuple[list[int], list[int], int, int]]) -> tuple[Any, list[str]]:
        """Drive the hooks as vLLM's model runner does; returns the connector's output and wrong slots."""
        kv_transfer_state._KV_CONNECTOR_AGENT = self.connector
        wrong: list[str] = []
        metadata = output.kv_connector_metadata
        for part in getattr(metadata, "metadata", (metadata,)):
            self.loads_seen += part.loads
            self.saves_seen += part.saves
        if not output.total_num_scheduled_tokens:
            if self.setup.runner == "v2":
                return self.hooks.no_forward(output).kv_connector_output, wrong
            self.connector.handle_preemptions(metadata)
            result = KVConnectorModelRunnerMixin.kv_connector_no_forward(output, self.config)
            return result.kv_connector_output, wrong
        if self.setup.runner == "v2":
            batch_view = SimpleNamespace(idx_mapping=None, req_ids=list(output.num_scheduled_tokens), num_tokens=1)
            self.hooks.pre_forward(output, batch_view)
            self.forward(batch, wrong)
            self.hooks.finish_forward()
            return self.hooks.post_forward(output.finished_req_ids), wrong
        self.connector.handle_preemptions(metadata)
        with (
            set_forward_context(None, self.config),
            KVConnectorModelRunnerMixin.maybe_get_kv_connector_output(
                output, defer_finalize=self.setup.runner == "v1-deferred"
            ) as result,
        ):
            self.forward(batch, wrong)
        if self.setup.runner == "v1-deferred":  # with speculative decoding: after the draft model's forward
            KVConnectorModelRunnerMixin.finalize_kv_connector()
        return result, wrong

    def forward(self, batch: list[tuple[list[int], list[int], int, int]], wrong: list[str]) -> None:
        for layer in self.caches:
            self.connector.wait_for_layer_load(layer)
            for tokens, table, computed, count in batch:
                for position in range(computed + count):
                    slot = self.slot(layer, table, position)
                    content = expected(layer, self.rank, tokens, position, slot.numel()).view(slot.shape)
                    if position >= computed:
                        slot.copy_(content)
                    elif not torch.equal(slot, content):
                        wrong.append(f"rank {self.rank} {layer} block {table[position // 16]} position {position}")
            self.connector.save_kv_layer(layer, self.caches[layer], None)


class Engine:
    def __init__(self, setup: Setup) -> None:
        init_none_hash(sha256)
        self.setup = setup
        self.config = setup.vllm_config()
        kv_cache_config = setup.kv_cache_config(self.config)
        self.workers = [Worker(setup, self.config, kv_cache_config, rank) for rank in range(setup.world_size)]
        block_size, hash_block_size = resolve_kv_cache_block_sizes(kv_cache_config, self.config)
        with set_current_vllm_config(self.config):
            self.scheduler = (AsyncScheduler if setup.depth > 1 else Scheduler)(
                vllm_config=self.config,
                kv_cache_config=copy.deepcopy(kv_cache_config),
                structured_output_manager=StructuredOutputManager(self.config),
                block_size=block_size,
                hash_block_size=hash_block_size,
                log_stats=True,
            )
        self.scheduler.use_v2_model_runner = setup.runner == "v2"
        self.connector = self.scheduler.get_kv_connector()
        self.connector.set_xfer_handshake_metadata_pp_aware({})
        self.aggregator = KVOutputAggregator.from_connector(self.connector, setup.world_size)
        self.hasher = get_request_block_hasher(hash_block_size, sha256)
        self.tokens: dict[str, list[int]] = {}
        self.requests: dict[str, Request] = {}
        self.tables: dict[str, list[int]] = {}
        self.in_flight: deque[tuple[Any, Any]] = deque()
        self.wrong: list[str] = []
        self.errors: list[set[int]] = []
        self.matched: list[int] = []
        self.scheduled_tokens = 0
        self.finish_reasons: dict[str, Any] = {}
        # A fault can be placed between scheduling and execution.
        self.before_execute: Callable[[], object] = lambda: None
        original = self.connector.get_num_new_matched_tokens

        def recording(request: Request, computed: int) -> tuple[int | None, bool]:
            answer = original(request, computed)
            self.matched.append(answer[0])
            return answer

        self.connector.get_num_new_matched_tokens = recording

    def add(self, name: str, prompt: Sequence[int], max_tokens: int = 1, **kwargs: Any) -> Request:
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        params.update_from_generation_config({}, 2)
        request = Request(
            request_id=name,
            prompt_token_ids=list(prompt),
            sampling_params=params,
            pooling_params=None,
            block_hasher=self.hasher,
            **kwargs,
        )
        self.tokens[name] = list(prompt)
        self.requests[name] = request
        self.scheduler.add_request(request)
        return request

    def step(self) -> Any:
        """Schedule a step and process the oldest one once the pipeline is full (or has run dry)."""
        output = self.scheduler.schedule()
        self.before_execute()
        self.in_flight.append((output, self.execute(output)))
        if len(self.in_flight) >= self.setup.depth or not output.total_num_scheduled_tokens:
            while self.in_flight:
                self.scheduler_update(*self.in_flight.popleft())
                if output.total_num_scheduled_tokens:
                    break
        return output

    def scheduler_update(self, output: Any, result: ModelRunnerOutput) -> None:
        for engine_outputs in self.scheduler.update_from_output(output, result).values():
            for item in engine_outputs.outputs:
                if item.finish_reason is not None:
                    self.finish_reasons[item.request_id] = item.finish_reason
        if self.setup.depth == 1:
            for name, request in self.requests.items():
                self.tokens[name] = list(request.all_token_ids)

    def execute(self, output: Any) -> ModelRunnerOutput:
        crossing = pickle.loads(pickle.dumps(output))
        names = list(output.num_scheduled_tokens)
        batch = []
        for new in crossing.scheduled_new_reqs:
            self.tables[new.req_id] = list(new.block_ids[0])
        cached = crossing.scheduled_cached_reqs
        computed = {new.req_id: new.num_computed_tokens for new in crossing.scheduled_new_reqs}
        for name, ids, count in zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True):
            computed[name] = count
            added = [] if ids is None else ids[0]
            self.tables[name] = added if name in cached.resumed_req_ids else self.tables[name] + added
        for name in names:
            count = output.num_scheduled_tokens[name]
            self.scheduled_tokens += count
            batch.append((self.tokens[name], self.tables[name], computed[name], count))
        outputs = []
        for worker in self.workers:
            result, wrong = worker.run(crossing, batch)
            result = pickle.loads(pickle.dumps(result))
            errors = set() if result is None else set(result.invalid_block_ids)
            if errors:
                self.errors.append(errors)
            outputs.append((result, wrong))
        if not any(result and result.invalid_block_ids for result, _ in outputs):
            self.wrong += [text for _, wrong in outputs for text in wrong]
        sampled = []
        for name, (tokens, _, start, count) in zip(names, batch, strict=True):
            if start + count < len(tokens):
                sampled.append([])
                continue
            token = (sum(tokens) * 31 + len(tokens)) % 50000
            sampled.append([token])
            if self.setup.depth > 1:
                self.tokens[name].append(token)
        results = [self._model_output(names, sampled, result) for result, _ in outputs]
        return results[0] if len(results) == 1 else self.aggregator.aggregate(results, 0)

    @staticmethod
    def _model_output(names: list[str], sampled: list[list[int]], connector_output: Any) -> ModelRunnerOutput:
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=None,
            kv_connector_output=connector_output,
        )

    def run(self, limit: int = 200) -> None:
        """Step until nothing is left; wrong KV anywhere fails."""
        for _ in range(limit):
            if not self.scheduler.has_requests() and not self.in_flight:
                break
            self.step()
        else:
            raise AssertionError(f"not idle after {limit} steps")
        assert self.wrong == []

    def generate(self, prompt: Sequence[int], max_tokens: int = 1, name: str = "r") -> int:
        """Run one request to its end; the number of tokens that were computed rather than loaded."""
        before = self.scheduled_tokens
        self.add(name, prompt, max_tokens)
        self.run()
        return self.scheduled_tokens - before

    def forget_local_cache(self) -> None:
        """Empty the local prefix cache and scribble over all pages."""
        assert self.scheduler.reset_prefix_cache()
        for worker in self.workers:
            worker.scribble()

    def shutdown(self) -> None:
        for worker in self.workers:
            worker.connector.shutdown()
        self.connector.shutdown()
        kv_transfer_state._KV_CONNECTOR_AGENT = None

    def assert_clean(self) -> None:
        pool = self.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == self.setup.num_blocks - 1
        assert all(block.ref_cnt == 0 for block in pool.blocks[1:])


def prompt(length: int, seed: int = 1) -> list[int]:
    return [(seed * 7919 + index * 31) % 50000 for index in range(length)]


def block_files(path: Path) -> list[Path]:
    """Published parts of blocks, oldest first."""
    found = [file for file in path.rglob("*") if file.is_file() and file.suffix[1:].isdigit()]
    return sorted(found, key=lambda file: file.stat().st_mtime_ns)
