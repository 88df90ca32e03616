"""KV tensors whose bytes tell which token of which request they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from kvconform.kvcache.memory import KVMemory
from kvconform.kvcache.oracle import TokenChain, expand, slot_seeds
from kvconform.kvcache.provenance import Provenance, describe
from kvconform.kvcache.shape import ShapeError
from kvconform.scenario.program import RequestSpec
from kvconform.testing.cache import KVCachePlan, allocate_views
from kvconform.testing.connector import ConnectorFactory

Fill = Literal["poison", "zeros"]


class KVTensors(dict[str, torch.Tensor]):
    """Layer name -> [B, H, N, C] view, as vLLM hands it to ``register_kv_caches``, and what its bytes mean.

    B counts blocks (rows of ``kernel_block_size`` tokens where blocks are split), H head slots, N tokens of a block,
    C elements of K and V, or of an MLA latent. All views lie in one allocation of ``kv_cache_tensors[0].size`` bytes.

    :meth:`write` stores what a model would have computed for a request, :meth:`differences` compares. The bytes of a
    slot depend on the layer, the position, and everything that a request's KV depends on: all tokens up to it, the
    model, LoRA adapter and cache salt.
    """

    def __init__(self, cache: KVCachePlan, views: dict[str, torch.Tensor], fill: Fill, number: int) -> None:
        super().__init__(views)
        self.cache = cache
        self._provenance = Provenance()
        self._memory = KVMemory(views, cache.worker, number)
        if fill == "zeros":
            self._memory.raw.zero_()
        self._provenance.know_memory(self._memory, "")

    def write(
        self, request: RequestSpec, block_ids: Any, first: int = 0, last: int | None = None, *, model: str = "model"
    ) -> None:
        """Store the KV of the request's positions [first, last), in every layer of every group.

        Args:
            request: whose KV; positions behind the prompt are those of generated tokens.
            block_ids: the request's block table from position 0 on: block ids, or one list of them per KV cache group.
            first: first position, in tokens.
            last: one past the last position; by default the length of the prompt.
            model: name of the model that computes.

        Raises:
            ShapeError: a block table that is too short, or ids that the cache does not have.
        """
        chain, stop = self._chain(request, first, last, model)
        for name, layer in self._memory.layers.items():
            blocks, offsets = self._places(block_ids, layer.group, first, stop)
            seeds = slot_seeds(chain.chain(first, stop), name)
            self._memory.write(name, blocks, offsets, expand(seeds, layer.content, self._memory.raw.device))
        self._provenance.know(request.id, chain, stop)

    def differences(
        self, request: RequestSpec, block_ids: Any, first: int = 0, last: int | None = None, *, model: str = "model"
    ) -> tuple[str, ...]:
        """What does not hold the request's KV: one sentence per run of tokens, with what is there instead.

        Arguments and errors are those of :meth:`write`; an empty result means that every byte is right. A sentence is
        "LAYER: tokens 16-31 hold r1's tokens 0-15".
        """
        chain, stop = self._chain(request, first, last, model)
        self._provenance.know(request.id, chain, stop)
        found: list[str] = []
        for name, layer in self._memory.layers.items():
            blocks, offsets = self._places(block_ids, layer.group, first, stop)
            observed = self._memory.read(name, blocks, offsets)
            expected = expand(slot_seeds(chain.chain(first, stop), name), layer.content, observed.device)
            wrong = (observed != expected).reshape(stop - first, -1).any(dim=1).cpu()
            if bool(wrong.any()):
                positions = [first + int(row) for row in wrong.nonzero().reshape(-1)]
                origins = self._provenance.identify(observed.cpu()[wrong].numpy())
                found.extend(f"{name}: {sentence}" for sentence in describe(positions, origins, name))
        return tuple(found)

    def poison(self, block_ids: Any) -> None:
        """Overwrite whole blocks with bytes that no request has; ``block_ids`` as for :meth:`write`."""
        for group in range(len(self.cache.groups)):
            self._memory.poison([int(block) for block in self._table(block_ids, group)], group)

    def _chain(self, request: RequestSpec, first: int, last: int | None, model: str) -> tuple[TokenChain, int]:
        stop = request.prompt_length if last is None else last
        if not 0 <= first < stop:
            raise ShapeError(f"positions [{first}, {stop}) of {request.id} are none: expected 0 <= first < last")
        return TokenChain(request.prompt_ids(model), request.identity(model)), stop

    def _places(self, block_ids: Any, group: int, first: int, last: int) -> tuple[Any, Any]:
        """Block ids and token offsets of positions [first, last) in one group."""
        size = self.cache.block_sizes[group]
        table = self._table(block_ids, group)
        if len(table) * size < last:
            raise ShapeError(
                f"{len(table)} blocks of {size} tokens hold no {last} tokens: give {-(-last // size)} block ids"
                + (f" for group {group}" if len(self.cache.groups) > 1 else "")
            )
        positions = np.arange(first, last, dtype=np.int64)
        return np.asarray(table, dtype=np.int64)[positions // size], positions % size

    def _table(self, block_ids: Any, group: int) -> Sequence[int]:
        """One group's part of a block table."""
        groups = len(self.cache.groups)
        nested = len(block_ids) > 0 and not isinstance(block_ids[0], int)
        if (nested and len(block_ids) != groups) or (not nested and groups > 1):
            expected = "a list of block ids" if groups == 1 else f"{groups} lists of them, one per KV cache group"
            raise ShapeError(f"block_ids is {block_ids!r}: expected {expected}")
        table: Sequence[int] = block_ids[group] if nested else block_ids
        if not all(0 <= block < self.cache.num_blocks for block in table):
            raise ShapeError(
                f"block ids {list(table)} are not all in [0, {self.cache.num_blocks}), this cache's blocks"
            )
        return table


@dataclass(repr=False)
class KVTensorsFactory:
    """Allocates KV tensors; what the fixture ``make_kv_tensors`` returns."""

    make_connector: ConnectorFactory
    device: str
    _made: int = 0

    def __call__(self, cache: KVCachePlan | None = None, *, fill: Fill = "poison") -> KVTensors:
        """Tensors from vLLM's own allocate_kv_cache, on the device of the run.

        Args:
            cache: a plan of ``make_test_kv_cache_config``; by default that of ``make_connector``.
            fill: "poison" makes every slot of every block different, and different from every request's KV; "zeros"
                leaves the memory as vLLM allocates it.

        The layers of ``cache.vllm_config.compilation_config.static_forward_context`` hold these tensors afterwards.

        Raises:
            ShapeError: a cache with other layers than attention layers; an unknown ``fill``.
        """
        from kvconform.engine.vllm_engine.layers import bind_layers, place_layers

        if fill not in get_args(Fill):
            raise ShapeError(f"fill is {fill!r}: it has to be 'poison' or 'zeros'")
        plan = self.make_connector.default_cache if cache is None else cache
        views = allocate_views(plan, self.device)
        for name, spec in plan.specs.items():
            view = views[name]
            if view.dim() != 4 or view.shape[0] * view.shape[2] != plan.num_blocks * spec.block_size:
                raise ShapeError(
                    f"layer {name} of {type(spec).__name__} has no slot per token: "
                    "only attention layers have KV tensors here"
                )
        self._made += 1
        tensors = KVTensors(plan, views, fill, self._made)
        place_layers(plan.vllm_config, plan.worker)
        bind_layers(plan.vllm_config, views)
        return tensors
