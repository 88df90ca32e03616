"""vLLM requests for calls of the scheduler role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvconform.scenario.program import RequestSpec
from kvconform.testing.connector import ConnectorFactory

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from kvconform.testing.cache import KVCachePlan


@dataclass(frozen=True, repr=False)
class RequestFactory:
    """Makes requests; what the fixture ``make_request`` returns."""

    make_connector: ConnectorFactory

    def __call__(self, spec: RequestSpec, cache: KVCachePlan | None = None, *, model: str = "model") -> Request:
        """A vLLM Request as the engine core would queue it, with its ``block_hashes``.

        Args:
            spec: id, prompt, LoRA and the like.
            cache: the KV cache whose hash block size counts; by default that of ``make_connector``.
            model: name of the model; only of importance to a request that ``continues`` another.
        """
        from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

        from kvconform.engine import compat
        from kvconform.engine.vllm_engine.requests import build_request, hash_function

        plan = self.make_connector.default_cache if cache is None else cache
        hash_fn = hash_function()
        _, hash_block_size = resolve_kv_cache_block_sizes(plan.scheduler, plan.vllm_config)
        return build_request(spec, model, compat.request_block_hasher(plan.vllm_config, hash_block_size, hash_fn))
