"""What a layer's hooks are told of the batch: an object of the class that vLLM's kernels for such a layer take.

Connectors ask it for the slot mapping, and some tell layers apart by its class (ExampleConnector.save_kv_layer,
vllm/distributed/kv_transfer/kv_connector/v1/example_connector.py, 0.32.0, asks for MLACommonMetadata).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kvconform.kvcache.placing import to_device

if TYPE_CHECKING:
    from kvconform.engine.vllm_engine.rows import ScheduledRequest
    from kvconform.kvcache.memory import LayerMemory


class Batch:
    """The fields that the kernels' classes have in common; most are worked out when somebody asks for them.

    ``slot_mapping`` is int64 [tokens of the step]; ``block_table`` int32 [requests, kernel blocks] with 0 behind a
    request's last one, ``query_start_loc`` int32 [requests + 1], ``seq_lens`` int32 [requests]; all on the device of
    the cache. The layers of a KV cache group share one object, as in vLLM (GPUModelRunner._build_attention_metadata).
    """

    def __init__(self, requests: Sequence[ScheduledRequest], layer: LayerMemory, slot_mapping: torch.Tensor) -> None:
        self._requests = requests
        self._layer = layer
        self.slot_mapping = slot_mapping
        self.num_actual_tokens = sum(request.scheduled for request in requests)

    # A dataclass that it derives from would look at fields that nothing here fills.
    __repr__ = object.__repr__
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def num_reqs(self) -> int:
        """Requests of the step."""
        return len(self._requests)

    @property
    def max_query_len(self) -> int:
        """The most tokens of the step that one request has."""
        return max(request.scheduled for request in self._requests)

    @property
    def max_seq_len(self) -> int:
        """The most tokens that one request has behind the step."""
        return max(request.computed + request.scheduled for request in self._requests)

    @property
    def num_prefills(self) -> int:
        """Requests with more than one token in the step."""
        return sum(request.scheduled > 1 for request in self._requests)

    @property
    def num_decodes(self) -> int:
        """The others."""
        return self.num_reqs - self.num_prefills

    @property
    def num_decode_tokens(self) -> int:
        """One for each."""
        return self.num_decodes

    @cached_property
    def query_start_loc(self) -> torch.Tensor:
        """Where in the batch each request's tokens begin, and their number."""
        return self._placed(np.cumsum([0, *(request.scheduled for request in self._requests)]))

    @cached_property
    def seq_lens(self) -> torch.Tensor:
        """Tokens of each request behind the step."""
        return self._placed([request.computed + request.scheduled for request in self._requests])

    @cached_property
    def block_table(self) -> torch.Tensor:
        """The kernel blocks of each request."""
        ratio = self._layer.kernel_blocks_per_block
        tables = [request.block_ids[self._layer.group] for request in self._requests]
        blocks = np.zeros((len(tables), max(map(len, tables))), dtype=np.int64)
        for row, table in zip(blocks, tables, strict=True):
            row[: len(table)] = table
        return self._placed((blocks[:, :, None] * ratio + np.arange(ratio)).reshape(len(tables), -1))

    def _placed(self, numbers: Any) -> torch.Tensor:
        return to_device(np.asarray(numbers, dtype=np.int32), self._layer.bytes.device)


@cache
def metadata_class(*, latent: bool) -> type[Batch]:
    """The class of the metadata of layers with one latent for each token (MLA), or of all other attention layers."""
    kernels = _latent_kernels() if latent else _kernels_of_the_platform()
    return Batch if kernels is None else type("SimulatedAttentionMetadata", (Batch, kernels), {})


def _latent_kernels() -> type[Any] | None:
    # Elsewhere in vLLM, or not there: then nobody can ask for it.
    with contextlib.suppress(ImportError):
        from vllm.model_executor.layers.attention.mla_attention import MLACommonMetadata

        return MLACommonMetadata
    return None


def _kernels_of_the_platform() -> type[Any] | None:
    from vllm.platforms import current_platform

    # The kit's own engine 'embedded' has none.
    with contextlib.suppress(ImportError):
        if current_platform.device_type == "cuda":
            from vllm.v1.attention.backends.triton_attn import TritonAttentionMetadata

            return TritonAttentionMetadata
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadata

        return CPUAttentionMetadata
    return None
