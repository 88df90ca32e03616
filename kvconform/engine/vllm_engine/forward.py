"""The forward pass that only writes KV, and compares what it would have read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from kvconform.engine.byte_events import Compared, WrongBytes
from kvconform.engine.history import History
from kvconform.engine.vllm_engine.guard import PlannedFailure
from kvconform.engine.vllm_engine.rows import Rows, ScheduledRequest, gather
from kvconform.engine.vllm_engine.wrong_slots import Contents, block_table, contents
from kvconform.kvcache.comparison import differing, same_arrays
from kvconform.kvcache.head_rows import as_tensor
from kvconform.kvcache.kept_contents import KeptContents
from kvconform.kvcache.memory import KVMemory
from kvconform.kvcache.oracle import TokenChain, expand, key64, slot_seeds
from kvconform.kvcache.provenance import Provenance

if TYPE_CHECKING:
    from kvconform.kvcache.memory import LayerMemory


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
    ``checkpoint`` is called where the connector has just been at work, with the name of the phase; ``kept`` is of the
    worker. After ``fail_after`` layers the forward raises.
    """

    memory: KVMemory
    provenance: Provenance
    chains: dict[str, TokenChain]
    windows: dict[str, int]
    external: dict[str, tuple[int, int]]
    checkpoint: Callable[[str], None]
    hooked: Callable[[Callable[[str], None]], Callable[[str], None]]
    kept: KeptContents
    fail_after: int | None = None
    taints: dict[str, int] = field(default_factory=dict)
    findings: list[_Finding] = field(default_factory=list)
    _rows: dict[tuple[object, ...], Rows | None] = field(default_factory=dict)

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
        if layer.recurrent:
            self._compare(layer, requests)
            self._write(layer, requests)
        else:
            self._write(layer, requests)
            self._compare(layer, requests)

    def _fail_if_planned(self, name: str) -> None:
        if self.fail_after is not None and list(self.memory.layers).index(name) >= self.fail_after:
            raise PlannedFailure(f"the scenario lets the forward fail in layer {name}")

    def _first_needed(self, layer: LayerMemory, request: ScheduledRequest) -> int:
        """Sliding-window layers read only the window, recurrent ones the last state; older blocks may be null."""
        if layer.recurrent:
            return max(0, request.computed - 1)
        window = self.windows.get(layer.name)
        return 0 if window is None else max(0, request.computed - window + 1)

    def _read_rows(self, layer: LayerMemory, requests: list[ScheduledRequest]) -> Rows | None:
        """What the layer reads of tokens that were computed before the step."""
        # Once for all layers that have their slots at the same places, as in _written_rows.
        key = ("read", layer.layout, self.windows.get(layer.name))
        if key not in self._rows:
            ranges = [(self._first_needed(layer, request), request.computed) for request in requests]
            self._rows[key] = gather(layer, requests, self.chains, ranges)
        return self._rows[key]

    def _written_rows(self, layer: LayerMemory, requests: list[ScheduledRequest]) -> Rows | None:
        """What the step leaves in the layer."""
        key = ("written", layer.layout)
        if key not in self._rows:
            ranges = [(request.first_written(layer), request.computed + request.scheduled) for request in requests]
            self._rows[key] = gather(layer, requests, self.chains, ranges)
        return self._rows[key]

    def _compare(self, layer: LayerMemory, requests: list[ScheduledRequest]) -> None:
        rows = self._read_rows(layer, requests)
        if rows is None:
            return
        heads = self.memory.head_rows[layer.name]
        if heads is None:
            observed = self.memory.get(layer.name, rows.slots)
        else:
            taken = heads.take(rows.index(heads))
            if same_arrays(taken, rows.contents(self.kept)[layer.place]):
                return
            observed = as_tensor(taken)
        wrong = differing(observed, self._expected(layer, rows))
        if wrong is not None:
            self._judge(layer, rows, observed, wrong)

    def _expected(self, layer: LayerMemory, rows: Rows) -> torch.Tensor:
        """What these slots must hold."""
        return expand(slot_seeds(rows.chain, layer.name, self.memory.rank), layer.content, self.memory.raw.device)

    def _judge(self, layer: LayerMemory, rows: Rows, observed: torch.Tensor, wrong: torch.Tensor) -> None:
        """Take the result of a comparison from the device, and only the slots that are wrong."""
        marks = wrong.cpu().numpy()
        for part in rows.parts:
            found = np.flatnonzero(marks[part.rows])
            if not len(found):
                continue
            name, positions, at = part.request.request_id, found + part.start, found + part.rows.start
            held = observed[torch.from_numpy(at).to(observed.device)].cpu().numpy()
            explained = contents(
                self.provenance, self.chains[name], positions.tolist(), held, layer.name, self.memory.rank
            )
            self.findings.append(_Finding(part.request, layer, positions, rows.places[0][at], explained))
            # The first wrong layer decides: what later layers write must be known under one taint per step.
            self.taints.setdefault(name, key64("taint", name, int(positions[0])))

    def _write(self, layer: LayerMemory, requests: list[ScheduledRequest]) -> None:
        rows = self._written_rows(layer, requests)
        if rows is None:
            return
        heads = self.memory.head_rows[layer.name]
        if heads is None or self.taints or any(part.request.rejected for part in rows.parts):
            self.memory.put(layer.name, rows.slots, self._computed(layer, rows))
        else:
            heads.put(rows.index(heads), rows.contents(self.kept)[layer.place])

    def _computed(self, layer: LayerMemory, rows: Rows) -> torch.Tensor:
        """What this step's forward computes."""
        seeds = slot_seeds(rows.chain, layer.name, self.memory.rank)
        for part in rows.parts:
            request = part.request
            taint = self.taints.get(request.request_id)
            if taint is not None:
                seeds[part.rows] ^= np.uint64(taint)
            if request.rejected:
                # Their KV is that of other tokens.
                key = key64("rejected draft", request.request_id, request.computed + request.scheduled)
                seeds[part.rows][-request.rejected :] ^= np.uint64(key)
        return expand(seeds, layer.content, self.memory.raw.device)

    def _done(self, requests: list[ScheduledRequest]) -> None:
        for request in requests:
            # What is computed on right KV was made known before the step.
            taint = self.taints.get(request.request_id)
            if taint is not None:
                length = request.computed + request.scheduled
                self.provenance.know(request.request_id, self.chains[request.request_id], length, taint)

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
