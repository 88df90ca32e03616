"""Measuring one case in the connector's own process: store a prompt, drop the local prefix cache, load it again.

What counts as moved is what was seen to arrive: before each load the blocks are spoilt, and afterwards compared with
what was stored. A save is believed once its bytes have come back.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kvconform.bench.busy import Busyness
from kvconform.bench.clock import Allocation, Call, overhead
from kvconform.bench.content import Arrived, Content
from kvconform.bench.engine import BenchEngine, Stepped
from kvconform.bench.figures import FEWEST_ROUNDS, Cost, Measured, Rate, When, cost, rate
from kvconform.bench.plan import HYBRID, Case
from kvconform.config import RunConfig
from kvconform.engine.events import FINISH_HOOKS
from kvconform.engine.instrument import describe_error
from kvconform.engine.model_names import fresh_models, name_suffix
from kvconform.engine.options import ConnectorSpec
from kvconform.scenario.program import RequestSpec

#: Rounds of one case: not fewer unless time is up, not more, and no new one beyond these seconds or bytes.
MIN_ROUNDS, MAX_ROUNDS = FEWEST_ROUNDS, 15
ROUND_SECONDS = 1.5
ROUND_BYTES = 256 << 20
#: Requests that only decode, and steps of each that do not count: what the prompt left behind is done in them.
DECODING, SKIPPED_STEPS = 5, 4
#: What a store that nobody holds a request for may take to be there for a load.
SETTLE_SECONDS = 0.5

SAVE_HOOKS = ("save_kv_layer", "wait_for_save")
RESULT_HOOKS = ("get_transfer_results", "get_finished")
REQUEST_HOOKS = ("get_num_new_matched_tokens", "update_state_after_alloc", *FINISH_HOOKS)
STEP_HOOK = "build_connector_meta"

NO_HIT = (
    "nothing to measure: the connector offered no token of a prompt that it was given before "
    "(hand-offs from one engine to another, by kv_transfer_params, are not measured)"
)
NOTHING_CAME = "nothing to measure: tokens were offered, and no block of theirs changed"
NOT_KNOWN = "nothing to measure: nothing that was saved came back, so it is not known what was saved"
MADE_UP = "what came back is not what was stored"


class Stuck(Exception):
    """A transfer does not end."""


@dataclass(frozen=True)
class _Load:
    """One load: its bytes and seconds; None where nothing was offered."""

    arrived: Arrived
    seconds: float
    asynchronous: bool


@dataclass
class _Samples:
    """Seconds of all rounds."""

    saves: list[float] = field(default_factory=list)
    loads: list[_Load] = field(default_factory=list)
    #: The memcpy before each save and each load.
    before_saves: list[float] = field(default_factory=list)
    before_loads: list[float] = field(default_factory=list)
    held: bool = False
    steps: dict[When, list[float]] = field(default_factory=lambda: defaultdict(list))
    hooks: dict[tuple[str, When], list[float]] = field(default_factory=lambda: defaultdict(list))

    def note(self, stepped: Stepped, when: When, *, transfer: bool) -> None:
        """The hooks of one step; only a step with the ``transfer`` itself, or of decoding, counts as one."""
        if transfer:
            self.steps[when].append(stepped.worker_seconds)
        for call in stepped.calls:
            if (call.hook in REQUEST_HOOKS and when != "decode") or (call.hook == STEP_HOOK and transfer):
                self.hooks[call.hook, when].append(call.seconds)


class Measuring:
    """The rounds of one case on one engine.

    Args:
        engine: fresh.
        case: what to measure.
        patience: seconds for one transfer.
        until: ``time.monotonic()`` after which no further round is begun.
        lossy: whether the connector is declared to bring back other bytes than were stored.
        suffix: what ids of requests end with.
    """

    def __init__(
        self, engine: BenchEngine, case: Case, patience: float, until: float, *, lossy: bool, suffix: str = ""
    ) -> None:
        self._engine, self._case, self._patience, self._until = engine, case, patience, until
        self._lossy, self._suffix = lossy, suffix
        self._content = Content(engine.memory, case.blocks, seed=case.blocks)
        self._numbers = iter(range(1, 1 << 20))
        self._settling = 0.0
        self._samples = _Samples()

    def measured(self) -> Measured:
        """Warm up, go through all rounds, and make figures of them.

        Raises:
            Stuck: a transfer did not end.
        """
        if not self._warm_up():
            # A store that takes a while to be seen is legal.
            self._settling = SETTLE_SECONDS
            if not self._warm_up():
                self._settling = 0.0
        self._samples = _Samples()
        begun, rounds = time.monotonic(), 0
        most = max(MIN_ROUNDS, min(MAX_ROUNDS, ROUND_BYTES // self._content.copied))
        while rounds < most and (rounds < MIN_ROUNDS or time.monotonic() - begun < ROUND_SECONDS):
            if rounds and time.monotonic() > self._until:
                break
            self._round()
            rounds += 1
        for _ in range(DECODING):
            self._decode()
        return self._figures()

    def _warm_up(self) -> bool:
        """One round that does not count; whether anything was offered."""
        before = len(self._samples.loads)
        self._round()
        return len(self._samples.loads) > before

    def _request(self, kind: str, number: int, length: int, max_tokens: int = 1) -> RequestSpec:
        return RequestSpec(f"{kind}{number}{self._suffix}", ((number, length),), max_tokens)

    def _round(self) -> None:
        number = next(self._numbers)
        gc.collect()
        self._samples.before_saves.append(self._memcpy())
        self._samples.saves.append(self._save(self._request("store", number, self._case.prompt), number))
        time.sleep(self._settling)
        if not self._engine.forget():
            raise Stuck("blocks were still held after all requests had ended, so nothing could be loaded again")
        copied = self._memcpy()
        loaded = self._load(self._request("load", number, self._case.prompt), number)
        if loaded is not None:
            self._samples.before_loads.append(copied)
            self._samples.loads.append(loaded)
        self._engine.forget()

    def _memcpy(self) -> float:
        self._engine.settle()
        start = time.perf_counter_ns()
        self._content.copy()
        self._engine.settle()
        return (time.perf_counter_ns() - start) / 1e9

    def _steps(self, request_id: str, scheduled: Callable[[Any], None] = lambda _: None) -> Iterator[Stepped]:
        """Step until idle. Patience is for waiting only: a hook that takes its time has the process' limit."""
        limit = time.monotonic() + self._patience
        while self._engine.busy():
            if time.monotonic() > limit:
                raise Stuck(f"the transfers of {request_id} did not end within {self._patience:g} s")
            stepped = self._engine.step(scheduled)
            if stepped.scheduled:
                limit = time.monotonic() + self._patience
            yield stepped

    def _settled(self, call: Call) -> int:
        """When a call's work was done: on a device, once that has caught up."""
        if self._engine.device.type == "cpu":
            return call.end
        self._engine.settle()
        return time.perf_counter_ns()

    def _save(self, spec: RequestSpec, number: int) -> float:
        """Seconds from the first save hook until the engine is told that all is saved.

        That is when wait_for_save returns, unless the connector keeps the request, its blocks or its work beyond that.
        """
        self._engine.add(spec)
        start = end = 0
        waiting = False

        def fill(output: Any) -> None:
            for new in output.scheduled_new_reqs:
                self._content.write(new.block_ids, number)

        for stepped in self._steps(spec.id, fill):
            computes = spec.id in stepped.scheduled
            self._samples.note(stepped, "store", transfer=computes)
            if computes:
                saves = stepped.of(*SAVE_HOOKS)
                start = min(call.start for call in saves)
                end = self._settled(saves[-1])
                waiting = self._engine.saving(spec.id)
                self._samples.held |= waiting
            elif waiting:
                end = self._settled(stepped.calls[-1])
                waiting = self._engine.saving(spec.id)
        return (end - start) / 1e9

    def _load(self, spec: RequestSpec, number: int) -> _Load | None:
        """From start_load_kv until the last layer may be read, or until the load is reported."""
        allocated = self._engine.clock.allocated
        offered: Allocation | None = None
        failed: frozenset[int] = frozenset()
        start = end = 0
        asynchronous = False
        arrived = Arrived(0, 0, 0)

        def spoil(_: Any) -> None:
            nonlocal offered
            allocation = allocated.get(spec.id)
            if offered is None and allocation is not None and allocation.external:
                offered = self._external(allocation)
                self._content.spoil(offered.blocks, number)

        self._engine.add(spec)
        for stepped in self._steps(spec.id, spoil):
            begins = offered is not None and not start and bool(stepped.of("start_load_kv"))
            self._samples.note(stepped, "load", transfer=begins)
            if offered is None:
                continue
            failed |= stepped.failed_blocks
            if begins:
                start = stepped.of("start_load_kv")[0].start
                asynchronous = spec.id not in stepped.scheduled
                if not asynchronous:
                    end = self._settled(stepped.of("start_load_kv", "wait_for_layer_load")[-1])
            if asynchronous and not end and spec.id in stepped.finished_recving:
                end = self._settled(stepped.of(*RESULT_HOOKS)[-1])
            if end and not arrived.expected:
                arrived = self._content.arrived(offered.blocks, number)
        if offered is None:
            return None
        if failed:
            raise Stuck(f"the connector reported that the load of {len(failed)} blocks failed")
        return _Load(arrived, (end - start) / 1e9, asynchronous)

    def _external(self, allocation: Allocation) -> Allocation:
        """Only the blocks whose tokens the connector promised; the last of the prompt may be computed."""
        full = allocation.external // self._case.block_size
        return Allocation(tuple(group[:full] for group in allocation.blocks), allocation.external)

    def _decode(self) -> None:
        """A request that computes one token a step in a block that does not become full."""
        number = next(self._numbers)
        size = self._case.block_size
        spec = self._request("decode", number, size + 1, size - 1)
        self._engine.add(spec)
        steps = [stepped for stepped in self._steps(spec.id) if spec.id in stepped.scheduled]
        for stepped in steps[SKIPPED_STEPS:]:
            self._samples.note(stepped, "decode", transfer=True)
        self._engine.forget()

    # -- from samples to figures -----------------------------------------------------------------------------------

    def _figures(self) -> Measured:
        samples, copied = self._samples, self._content.copied
        copies = [copied / seconds for seconds in (*samples.before_saves, *samples.before_loads)]
        moved, note = self._moved()
        loads = samples.loads if moved else []
        beside = [copied / seconds for seconds in samples.before_loads[: len(loads)]]
        load = rate([m / one.seconds for m, one in zip(moved, loads, strict=True)], moved, beside, note)
        return Measured(
            self._case.layout,
            self._case.blocks,
            self._content.bytes_per_block,
            asynchronous_load=any(one.asynchronous for one in loads),
            held_for_save=samples.held,
            save=self._saved(moved),
            load=load,
            memcpy=rate(copies, [copied] * len(copies)),
            steps=tuple(cost("worker hooks", when, seconds) for when, seconds in samples.steps.items()),
            hooks=_by_hook(samples.hooks),
        )

    def _saved(self, moved: list[int]) -> Rate:
        """A save is believed as far as its bytes came back, in every round."""
        samples = self._samples
        proven = moved if self._lossy else [one.arrived.right for one in samples.loads]
        if len(proven) < len(samples.saves) or not all(proven):
            return Rate(note=NOT_KNOWN)
        saves = [m / seconds for m, seconds in zip(proven, samples.saves, strict=True)]
        beside = [self._content.copied / seconds for seconds in samples.before_saves]
        return rate(saves, proven, beside, self._few(proven))

    def _few(self, moved: list[int]) -> str:
        """What to say if a round moved less than the whole prompt; of a sliding window nobody needs it."""
        fewest = min(moved) // self._content.bytes_per_block
        if fewest == self._case.blocks or self._case.layout == HYBRID:
            return ""
        return f"{fewest} of {self._case.blocks} blocks came back, and only these count"

    def _moved(self) -> tuple[list[int], str]:
        """Bytes that changed in each load, and what to say of them."""
        loads = self._samples.loads
        if not loads:
            return [], NO_HIT
        moved = [one.arrived.changed for one in loads]
        if not all(moved):
            return [], NOTHING_CAME
        wrong = any(one.arrived.right < one.arrived.changed for one in loads)
        return moved, "; ".join(filter(None, (MADE_UP * wrong, self._few(moved))))


def _by_hook(samples: dict[tuple[str, When], list[float]]) -> tuple[Cost, ...]:
    return tuple(
        cost(hook, when, samples[hook, when])
        for hook in (*REQUEST_HOOKS[:2], STEP_HOOK, *FINISH_HOOKS)
        for when in ("store", "load", "decode")
        if (hook, when) in samples
    )


def measure(connect: Callable[[Path], ConnectorSpec], case: Case, config: RunConfig) -> tuple[Measured, dict[str, Any]]:
    """Measure one case with a fresh engine and store; and facts on the process: threads, cores, clock, others.

    Args:
        connect: the connector in vLLM's terms, its store in the folder that it is given.
        case: what to measure.
        config: the run's; no further round is begun once half of its time limit for a scenario is over.
    """
    directory = Path(tempfile.mkdtemp(prefix="kvconform-"))
    until = time.monotonic() + config.timeout / 2
    busyness = _busyness()
    try:
        # What one server may have kept of another case is of another model's.
        with fresh_models() as models:
            measured = _measured(replace(connect(directory), models=models), case, config, until)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    others = None if busyness is None else busyness.others()
    facts = {
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "clock": overhead(),
        "others": others,
    }
    return measured, facts


def _busyness() -> Busyness | None:
    try:
        return Busyness()
    except OSError:  # no Linux
        return None


def _measured(spec: ConnectorSpec, case: Case, config: RunConfig, until: float) -> Measured:
    try:
        engine = BenchEngine(case, spec, config.resolved_device)
    except Exception as error:
        return Measured(case.layout, case.blocks, problem=f"the engine does not start: {describe_error(error)[0]}")
    suffix = name_suffix(spec.models)
    # Collections are made between rounds; what has been there before need not be looked at each time.
    collecting = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        if case.layout == HYBRID and len({layer.group for layer in engine.memory.layers.values()}) == 1:
            sentence = "the class does not support several KV cache groups (SupportsHMA), so vLLM gives it one"
            return Measured(case.layout, case.blocks, problem=sentence)
        lossy = "lossy" in config.capabilities
        return Measuring(engine, case, config.transfer_timeout, until, lossy=lossy, suffix=suffix).measured()
    except Exception as error:
        text = (str(error) if isinstance(error, Stuck) else describe_error(error)[0]).replace(suffix, "")
        return Measured(case.layout, case.blocks, problem=text)
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
        with contextlib.suppress(Exception):
            engine.shutdown()


__all__: Sequence[str] = ("Measuring", "Stuck", "measure")
