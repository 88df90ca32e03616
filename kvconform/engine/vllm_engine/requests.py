"""vLLM requests for a scenario."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any

from kvconform.kvcache.oracle import TokenChain, key64
from kvconform.scenario.program import RequestSpec

if TYPE_CHECKING:
    import torch
    from vllm.v1.request import Request

#: Numbers per prompt embedding: enough to tell any two apart, whatever the model's hidden size.
EMBEDDING_WIDTH = 8


@cache
def _initialised_hash() -> Any:
    """vLLM's sha256 and its root hash, set once per process as EngineCore.__init__ does."""
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import init_none_hash

    hash_fn = get_hash_fn_by_name("sha256")
    init_none_hash(hash_fn)
    return hash_fn


def hash_function() -> Any:
    """The prefix caching hash function of every simulated engine (CacheConfig's default algorithm)."""
    return _initialised_hash()


def token_chain(spec: RequestSpec, model: str) -> TokenChain:
    """The oracle's chain for a request on a model."""
    return TokenChain(spec.prompt_ids(model), spec.identity(model))


def build_request(spec: RequestSpec, model: str, block_hasher: Any) -> Request:
    """A vLLM Request as the engine core would queue it."""
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    extra = None if spec.kv_transfer_params is None else {"kv_transfer_params": dict(spec.kv_transfer_params)}
    stops = [token_chain(spec, model).next_token(spec.prompt_length)] if spec.stops else None
    sampling = SamplingParams(
        max_tokens=spec.max_tokens,
        ignore_eos=True,
        extra_args=extra,
        stop_token_ids=stops,
        prompt_logprobs=spec.prompt_logprobs,
        # None leaves it to vLLM, which looks at prompt_logprobs.
        skip_reading_prefix_cache=spec.skip_reading_prefix_cache or None,
    )
    sampling.update_from_generation_config({}, 2)
    lora = None
    if spec.lora is not None:
        name, _, path = spec.lora.partition("@")
        lora = LoRARequest(lora_name=name, lora_int_id=1 + len(path), lora_path=path or f"/adapters/{name}")
    return Request(
        request_id=spec.id,
        prompt_token_ids=None if spec.embeds else list(spec.prompt_ids(model)),
        prompt_embeds=_embeddings(spec) if spec.embeds else None,
        mm_features=_features(spec),
        sampling_params=sampling,
        pooling_params=None,
        lora_request=lora,
        cache_salt=spec.salt,
        block_hasher=block_hasher,
    )


def _embeddings(spec: RequestSpec) -> torch.Tensor:
    """One row per token; segments of one seed begin with the same rows."""
    import numpy as np
    import torch

    rows = [
        np.random.default_rng(key64("embeddings", index, seed)).integers(-128, 128, size=(length, EMBEDDING_WIDTH))
        for index, (seed, length) in enumerate(spec.prompt)
    ]
    return torch.from_numpy(np.concatenate(rows)).to(torch.float16)


def _features(spec: RequestSpec) -> list[Any] | None:
    """Multimodal items as the front-end hands them over; their data is of no use to anybody here."""
    if not spec.items:
        return None
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    features = []
    for item in spec.items:
        digest = hashlib.sha256(item.name.encode()).hexdigest()
        position = PlaceholderRange(offset=item.start, length=item.length)
        features.append(
            MultiModalFeatureSpec(data=None, modality="image", identifier=digest, mm_position=position, mm_hash=digest)
        )
    return features
