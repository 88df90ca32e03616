"""The forward pass that only writes KV, and compares what it would have read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvconform.engine.history import Compared, History, WrongBytes
from kvconform.engine.vllm_engine.guard import PlannedFailure
from kvconform.engine.vllm_engine.wrong_slots import Contents, block_table, contents
from kvconform.kvcache.memory import KVMemory, differing
from kvconform.kvcache.oracle import TokenChain, expand, key64, slot_seeds
from kvconform.kvcache.provenance import Provenance

if TYPE_CHECKING:
    import torch

    from kvconform.kvcache.memory import LayerMemory


@dataclass(frozen=True)
class ScheduledRequest:
    """One request of a step: its block table per group, computed tokens before the step, tokens of the step.

    The last ``rejected`` tokens of the step are drafts that the target model refuses.
    """

    request_id: str
    block_ids: list[list[int]]
    computed: int
    scheduled: int
    rejected: int = 0

    def places(
        self, group: int, block_size: int, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Block ids and token offsets of positions [start, stop)."""
        positions = np.arange(start, stop, dtype=np.int64)
        table = np.asarray(self.block_ids[group], dtype=np.int64)
        return table[positions // block_size], positions % block_size

    def first_written(self, layer: LayerMemory) -> int:
        """The first position of which the step leaves something: a recurrent layer keeps the last state only.

        vLLM ends the steps of a prompt where a state is to be kept (Scheduler._mamba_block_aligned_split, 0.32.0).
        """
        return self.computed + self.scheduled - 1 if layer.recurrent else self.computed

    def slots(self, group: int, block_size: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        """vLLM's slot mapping of positions [start, stop): block id * block size + offset."""
        blocks, offsets = self.places(group, block_size, start, stop)
        return blocks * block_size + offsets


@dataclass
class _Finding:
    request: ScheduledRequest
    layer: LayerMemory
    positions: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]
    contents: Contents


@dataclass
class LayerForward:
    """Runs the layers of one step.

    ``external`` maps a request to the [first, last) positions that the connector promised for it in this residency;
    ``checkpoint`` is called where the connector has just been at work, with the name of the phase. After ``fail_after``
    layers the forward raises.
    """

    memory: KVMemory
    provenance: Provenance
    chains: dict[str, TokenChain]
    windows: dict[str, int]
    external: dict[str, tuple[int, int]]
    checkpoint: Callable[[str], None]
    hooked: Callable[[Callable[[str], None]], Callable[[str], None]]
    fail_after: int | None = None
    taints: dict[str, int] = field(default_factory=dict)
    findings: list[_Finding] = field(default_factory=list)
    verified: set[str] = field(default_factory=set)

    def run(self, requests: list[ScheduledRequest]) -> None:
        """All layers inside vLLM's layer-hook decorator."""
        attention = self.hooked(lambda layer_name: self._layer(layer_name, requests))
        for name, layer in self.memory.layers.items():
            # vLLM's mixers call no hook (maybe_transfer_kv_layer is the attention layers' alone, 0.32.0).
            if layer.recurrent:
                self._layer(name, requests)
            else:
                attention(name)
        self._done(requests)

    def run_without_hooks(self, requests: list[ScheduledRequest]) -> None:
        """All layers of a replayed full CUDA graph: no Python runs between them."""
        for name in self.memory.layers:
            self._layer(name, requests)
        self._done(requests)

    def _layer(self, name: str, requests: list[ScheduledRequest]) -> None:
        self._fail_if_planned(name)
        self.checkpoint(f"before layer {name} was computed")
        layer = self.memory.layers[name]
        # As in attention: the step's keys and values are written first, then everybody reads. A request may already
        # share blocks that another one computes in this very step. A recurrent layer reads the state that it replaces.
        first, then = (self._compare, self._write) if layer.recurrent else (self._write, self._compare)
        for request in requests:
            first(layer, request)
        for request in requests:
            then(layer, request)

    def _fail_if_planned(self, name: str) -> None:
        if self.fail_after is not None and list(self.memory.layers).index(name) >= self.fail_after:
            raise PlannedFailure(f"the scenario lets the forward fail in layer {name}")

    def _first_needed(self, layer: LayerMemory, request: ScheduledRequest) -> int:
        """Sliding-window layers read only the window, recurrent ones the last state; older blocks may be null."""
        if layer.recurrent:
            return max(0, request.computed - 1)
        window = self.windows.get(layer.name)
        return 0 if window is None else max(0, request.computed - window + 1)

    def _compare(self, layer: LayerMemory, request: ScheduledRequest) -> None:
        start = self._first_needed(layer, request)
        if start >= request.computed:
            return
        blocks, offsets = request.places(layer.group, layer.block_size, start, request.computed)
        observed = self.memory.read(layer.name, blocks, offsets)
        expected = self._expected(layer, request, start)
        self._judge(layer, request, start, blocks, observed, differing(observed, expected))

    def _expected(self, layer: LayerMemory, request: ScheduledRequest, start: int) -> torch.Tensor:
        """What the slots from position ``start`` up to the computed tokens must hold."""
        chain = self.chains[request.request_id]
        seeds = slot_seeds(chain.chain(start, request.computed), layer.name, self.memory.rank)
        return expand(seeds, layer.content, self.memory.raw.device)

    def _judge(
        self,
        layer: LayerMemory,
        request: ScheduledRequest,
        start: int,
        blocks: npt.NDArray[np.int64],
        observed: torch.Tensor,
        wrong: torch.Tensor | None,
    ) -> None:
        """Take the result of a comparison from the device: one boolean, and the slots only if some are wrong."""
        if wrong is None:
            return
        chain = self.chains[request.request_id]
        rows = wrong.nonzero().reshape(-1).cpu().numpy()
        positions = rows + start
        found = contents(
            self.provenance, chain, positions.tolist(), observed[wrong].cpu().numpy(), layer.name, self.memory.rank
        )
        self.findings.append(_Finding(request, layer, positions, blocks[rows], found))
        # The first wrong layer decides: what later layers write must be known under one taint per step.
        self.taints.setdefault(request.request_id, key64("taint", request.request_id, int(positions[0])))

    def _write(self, layer: LayerMemory, request: ScheduledRequest) -> None:
        stop = request.computed + request.scheduled
        blocks, offsets = request.places(layer.group, layer.block_size, request.first_written(layer), stop)
        self.memory.write(layer.name, blocks, offsets, self._computed(layer, request))

    def _computed(self, layer: LayerMemory, request: ScheduledRequest) -> torch.Tensor:
        """What this step's forward computes for the request."""
        stop = request.computed + request.scheduled
        taint = self.taints.get(request.request_id, 0)
        chain = self.chains[request.request_id].chain(request.first_written(layer), stop)
        seeds = slot_seeds(chain, layer.name, self.memory.rank) ^ np.uint64(taint)
        if request.rejected:
            # Their KV is that of other tokens.
            seeds[-request.rejected :] ^= np.uint64(key64("rejected draft", request.request_id, stop))
        return expand(seeds, layer.content, self.memory.raw.device)

    def _done(self, requests: list[ScheduledRequest]) -> None:
        for request in requests:
            taint = self.taints.get(request.request_id, 0)
            length = request.computed + request.scheduled
            self.provenance.know(request.request_id, self.chains[request.request_id], length, taint)
            self.verified.add(request.request_id)

    def report(
        self, history: History, engine: int, step: int, requests: list[ScheduledRequest], failed: set[int]
    ) -> None:
        """Write what was compared into the history; ``failed`` are blocks whose load was reported as failed by now."""
        layers = len(self.memory.layers)
        for request in requests:
            first, last = self.external.get(request.request_id, (0, 0))
            external = max(0, min(last, request.computed) - first)
            history.add(
                Compared(engine, step, request.request_id, max(0, request.computed - external), external, layers)
            )
        for request in {finding.request.request_id: finding.request for finding in self.findings}.values():
            place = (engine, step, request.request_id)
            external_part = self.external.get(request.request_id, (0, 0))
            history.add(
                block_table(place, self.memory, request.block_ids, request.computed, request.scheduled, external_part)
            )
        for finding in self.findings:
            request, layer = finding.request, finding.layer
            first, last = self.external.get(request.request_id, (0, 0))
            history.add(
                WrongBytes(
                    engine,
                    step,
                    request.request_id,
                    layer.name,
                    layer.group,
                    tuple(int(p) for p in finding.positions),
                    tuple(dict.fromkeys(int(b) for b in finding.blocks)),
                    bool(((finding.positions >= first) & (finding.positions < last)).any()),
                    finding.contents.observed,
                    reported_failed=self._covered_by_failure(finding, failed),
                    rank=self.memory.rank,
                    held=finding.contents.held,
                )
            )

    @staticmethod
    def _covered_by_failure(finding: _Finding, failed: set[int]) -> bool:
        """Whether every wrong slot lies in or behind a block that was reported: the engine recomputes from there."""
        table = finding.request.block_ids[finding.layer.group]
        reported = [index for index, block in enumerate(table) if block in failed]
        return bool(reported) and int(finding.positions[0]) >= min(reported) * finding.layer.block_size
