"""What kernels of multi-head latent attention know of a batch; by name only, so that connectors can ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vllm.v1.attention.backend import AttentionMetadata


@dataclass
class MLACommonMetadata(AttentionMetadata):
    """Never made here: the simulated forward has no kernels."""

    num_reqs: int
    max_query_len: int
    max_seq_len: int
    num_actual_tokens: int
    query_start_loc: torch.Tensor
    slot_mapping: torch.Tensor
    num_decodes: int
    num_decode_tokens: int
    num_prefills: int
    causal: bool = True
    head_dim: int | None = None
    prefill: Any = None
    decode: Any = None
