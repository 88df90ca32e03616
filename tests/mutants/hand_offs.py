"""Connectors that hand off, and get one thing wrong that is not about the hand-off itself."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import order
import torch
import transfer
import workers
from vllm.distributed.kv_transfer import get_kv_transfer_group

from kvconform.reference._pd_messages import PairMetadata, Pull
from kvconform.reference._pd_scheduler import PairSchedulerSide
from kvconform.reference._pd_server import Leases
from kvconform.reference.producer_consumer import ProducerConsumerConnector

Answer = tuple[bool, dict[str, Any] | None]
Completions = tuple[set[str] | None, set[str] | None]


# -- pages --


class _Views(ProducerConsumerConnector):
    """For connectors that see other pages in the registered tensors than vLLM does."""

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        super().register_kv_caches(kv_caches)
        pages = self._registered()
        for name in pages._pages:
            pages._pages[name] = self.view(name, pages._pages[name])
        pages._bytes_of = {name: page[0].numel() for name, page in pages._pages.items()}
        pages.block_bytes = sum(pages._bytes_of.values())

    def _registered(self) -> Any:
        """What server and client of this worker share."""
        side: Any = self._server or self._consumer
        return side._pages

    def view(self, name: str, page: torch.Tensor) -> torch.Tensor:
        """``page`` is [blocks, kernel blocks, heads, tokens, bytes]."""
        raise NotImplementedError


class IgnoresKernelBlocks(_Views):
    """R21: as transfer:IgnoresKernelBlocks."""

    view: Any = transfer.IgnoresKernelBlocks.view


class ForgetsPadding(_Views):
    """R21: as transfer:ForgetsPadding."""

    view: Any = transfer.ForgetsPadding.view


class HalvesTheLatent(_Views):
    """R21: as transfer:HalvesTheLatent."""

    view: Any = transfer.HalvesTheLatent.view


class DoublesTheHeadSize(_Views):
    """R21: as transfer:DoublesTheHeadSize."""

    view: Any = transfer.DoublesTheHeadSize.view


class AssumesContiguity(_Views):
    """R21: as transfer:AssumesContiguity."""

    view: Any = transfer.AssumesContiguity.view


class ConvertsBytes(_Views):
    """bug 107, LMCache#4064 (R21): raw bytes are taken for float8 and pass through float16."""

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        ProducerConsumerConnector.register_kv_caches(self, kv_caches)
        pages = self._registered()
        read = pages.read
        if all(tensor.dtype is torch.uint8 for tensor in kv_caches.values()):
            float8 = torch.float8_e5m2
            pages.read = lambda ids: read(ids).view(float8).to(torch.float16).to(float8).view(torch.uint8)


# -- the engines --


class NeedsFinishForward(ProducerConsumerConnector):
    """R23: a producer that opens its doors in finish_forward, which model runner V1 never calls."""

    finish_forward: Any = order.NeedsFinishForward.finish_forward
    _announced = False

    def wait_for_save(self) -> None:
        assert self._announced, "finish_forward comes first"
        self._announced = False


class NeedsForwardContext(ProducerConsumerConnector):
    """R23: looks at the forward context when a step's KV is complete; model runner V2 has left it by then."""

    def wait_for_save(self) -> None:
        order.get_forward_context()


@dataclass(frozen=True)
class _Confirmed(PairMetadata):
    marks: list[str] = field(default_factory=list)


class AnswersInMetadata(ProducerConsumerConnector):
    """R10: the worker notes in the metadata that it has begun, where only an in-process scheduler can see it."""

    _last = _Confirmed()

    def build_connector_meta(self, scheduler_output: Any) -> PairMetadata:
        plan = super().build_connector_meta(scheduler_output)
        self._last = _Confirmed(**vars(plan))
        return self._last

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, _Confirmed)
        metadata.marks.append("begun")

    def update_connector_output(self, connector_output: Any) -> None:
        if not self._last.marks:
            raise TimeoutError("the worker did not confirm the step")
        super().update_connector_output(connector_output)


class _ReleasedByAll(Leases):
    """Ends a lease when all ranks have given it back: who comes last must not find it gone, as that is another bug."""

    def __init__(self, seconds: float, ranks: int) -> None:
        super().__init__(seconds)
        self._awaited: defaultdict[str, int] = defaultdict(lambda: ranks)

    def release(self, transfer_id: str) -> None:
        with self._changed:
            self._awaited[transfer_id] -= 1
            if not self._awaited[transfer_id]:
                super().release(transfer_id)


class LoadsRankZero(ProducerConsumerConnector):
    """bugs 119 and 121, vllm#55191 (R20): every rank fetches what rank 0 of the producer has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leases = _ReleasedByAll(self._options.lease_seconds, self._vllm_config.parallel_config.world_size)

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        super().register_kv_caches(kv_caches)
        if self._consumer is not None:
            self._consumer._rank = 0


class CountsOneWorker(ProducerConsumerConnector):
    """bugs 83 and 85, vllm#21048 (R14): as workers:CountsOneWorker."""

    get_finished_count: Any = workers.CountsOneWorker.get_finished_count


class SilentRank(ProducerConsumerConnector):
    """R14: rank 0 speaks for all; the others report no completion."""

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        done = super().get_finished(finished_req_ids)
        return (None, None) if self._rank else done


class RemembersTheParameters(ProducerConsumerConnector):
    """R33: knows a request by its parameters' dict, which a sibling may have replaced since the match."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._matched: dict[str, Any] = {}

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        self._matched[request.request_id] = request.kv_transfer_params
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens and self._matched[request.request_id] is not request.kv_transfer_params:
            raise LookupError(f"nobody has matched {request.request_id} with these parameters")
        super().update_state_after_alloc(request, blocks, num_external_tokens)


class NeedsPrefixCaching(ProducerConsumerConnector):
    """R20: knows its loaded blocks by their hashes, of which they have none with prefix caching switched off."""

    _loaded: tuple[Any, ...] = ()

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        known = self._scheduler_side()._settled
        if request.request_id in known and request.num_prompt_tokens >= 16:
            self._loaded = (*self._loaded, blocks.blocks[0][0])
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> PairMetadata:
        loaded, self._loaded = self._loaded, ()
        assert all(block.block_hash for block in loaded), "a loaded block is not cached"
        return super().build_connector_meta(scheduler_output)


# -- requests --


class _Appended(PairSchedulerSide):
    """``tables`` are the blocks that each request has been given, in their order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tables: dict[str, list[int]] = {}

    def finished(self, request: Any, block_ids: Sequence[int]) -> Answer:
        known = self.tables.pop(request.request_id, list(block_ids))
        return super().finished(request, known[: len(block_ids)])


class AppendsToOldTables(ProducerConsumerConnector):
    """bugs 4 and 35, LMCache#1361 (R7): the blocks of a resumed prompt are added to those that it had before."""

    _scheduler_class = _Appended

    def build_connector_meta(self, scheduler_output: Any) -> PairMetadata:
        side: Any = self._scheduler_side()
        for new in scheduler_output.scheduled_new_reqs:
            side.tables[new.req_id] = list(new.block_ids[0])
        cached = scheduler_output.scheduled_cached_reqs
        for request_id, block_ids in zip(cached.req_ids, cached.new_block_ids, strict=True):
            side.tables.setdefault(request_id, []).extend(block_ids[0] if block_ids else ())
        return super().build_connector_meta(scheduler_output)


class _FirstChunks(PairSchedulerSide):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sizes: dict[str, int] = {}

    def finished(self, request: Any, block_ids: Sequence[int]) -> Answer:
        known = self.sizes.pop(request.request_id, len(block_ids))
        return super().finished(request, [*block_ids[:known], *block_ids[known - 1 : known] * (len(block_ids) - known)])


class HandsOffTheFirstChunk(ProducerConsumerConnector):
    """R9: takes the first step of a prompt for all of it, and pads the rest."""

    _scheduler_class = _FirstChunks

    def build_connector_meta(self, scheduler_output: Any) -> PairMetadata:
        side: Any = self._scheduler_side()
        for new in scheduler_output.scheduled_new_reqs:
            side.sizes[new.req_id] = len(new.block_ids[0])
        return super().build_connector_meta(scheduler_output)


class _KnownPrompts(PairSchedulerSide):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.known: dict[tuple[int, ...], tuple[int, ...]] = {}

    def finished(self, request: Any, block_ids: Sequence[int]) -> Answer:
        held, params = super().finished(request, block_ids)
        if held and params is not None:
            blocks = self.known.setdefault(tuple(request.prompt_token_ids), tuple(params["remote_block_ids"]))
            params["remote_block_ids"] = list(blocks)
            self._grants[-1] = replace(self._grants[-1], block_ids=blocks)
        return held, params


class SharesPrefillsByTokens(ProducerConsumerConnector):
    """R20: two prompts of the same tokens are one, whatever adapter or salt they have."""

    _scheduler_class = _KnownPrompts


class RepeatsLoads(ProducerConsumerConnector):
    """bug 11, vllm#20756 (R10): what has arrived is put in its place again in every step."""

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        super().register_kv_caches(kv_caches)
        self._written: list[tuple[Sequence[int], torch.Tensor]] = []
        if self._consumer is not None:
            self._write = self._consumer._pages.write
            self._consumer._pages.write = self._write_and_remember  # type: ignore[method-assign]

    def _write_and_remember(self, block_ids: Sequence[int], host: torch.Tensor) -> None:
        self._write(block_ids, host)
        # The last block may be one that decoding goes on in.
        self._written.append((block_ids[:-1], host[:-1]))

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        for block_ids, host in self._written:
            self._write(block_ids, host)


class OffersWhatIsGone(ProducerConsumerConnector):
    """R18: what was fetched before a preemption is taken to be still there after it."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        side = self._scheduler_side()
        if request.num_preemptions and request.request_id in side._settled:
            return request.num_tokens - 1 - num_computed_tokens, False
        return super().get_num_new_matched_tokens(request, num_computed_tokens)


class AllowsOnePreemption(ProducerConsumerConnector):
    """R18: has room for one preempted request in its books."""

    def build_connector_meta(self, scheduler_output: Any) -> PairMetadata:
        preempted = scheduler_output.preempted_req_ids or ()
        assert len(preempted) <= 1, f"{len(preempted)} requests preempted in one step"
        return super().build_connector_meta(scheduler_output)


class Heartbeat(ProducerConsumerConnector):
    """R26: a thread looks the connector up in the process-wide slot, and dies when a dummy run has emptied it."""

    _thread: threading.Thread | None = None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._thread is None:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()
        if not self._thread.is_alive():
            raise ConnectionError("the peers have dropped this engine: no heartbeat")
        super().start_load_kv(forward_context, **kwargs)

    def _beat(self) -> None:
        while not self._stop.wait(0.001):
            try:
                get_kv_transfer_group()
            except AssertionError:
                return

    def shutdown(self) -> None:
        if self._thread is not None:
            self._stop.set()
        super().shutdown()


# -- block lists, holds and reports --


class StopsShort(ProducerConsumerConnector):
    """R5: counts a load's blocks from the start of the prompt, so that behind a local hit the last one is left out."""

    def build_connector_meta(self, scheduler_output: Any) -> PairMetadata:
        plan: Any = super().build_connector_meta(scheduler_output)
        return replace(plan, pulls=[self._shortened(pull) for pull in plan.pulls])

    def _shortened(self, pull: Pull) -> Pull:
        behind_local = len(pull.local) < len(pull.hand_off.block_ids)
        return replace(pull, remote=pull.remote[:-1], local=pull.local[:-1]) if behind_local else pull


class HandsOffWithoutHolding(ProducerConsumerConnector):
    """R12: hands off blocks that vLLM may give away at once."""

    def request_finished(self, request: Any, block_ids: list[int]) -> Answer:
        return False, super().request_finished(request, block_ids)[1]

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        return None, super().get_finished(finished_req_ids)[1]


@dataclass(frozen=True)
class _WithTable(Pull):
    table: tuple[int, ...] = ()


class ReportsLocalBlocks(ProducerConsumerConnector):
    """R5, R17: fails the whole block table of a request instead of the blocks that it was to load."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tables: dict[str, tuple[int, ...]] = {}
        self._pulled: list[_WithTable] = []

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._tables[request.request_id] = tuple(blocks.get_block_ids()[0])
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> PairMetadata:
        plan: Any = super().build_connector_meta(scheduler_output)
        return replace(plan, pulls=[_WithTable(**vars(p), table=self._tables[p.request_id]) for p in plan.pulls])

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        self._pulled += self._get_connector_metadata().pulls  # type: ignore[attr-defined]

    def get_block_ids_with_load_errors(self) -> set[int]:
        errors = super().get_block_ids_with_load_errors()
        return errors.union(*(pull.table for pull in self._pulled if errors & set(pull.local)))


class AllocatedOnce(ProducerConsumerConnector):
    """R5: takes the call of update_state_after_alloc that follows a load for a second load."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        assert request.request_id not in self._scheduler_side()._settled, f"{request.request_id} was loaded before"
        super().update_state_after_alloc(request, blocks, num_external_tokens)


class ReportsEveryEnd(ProducerConsumerConnector):
    """R13: whatever has finished and is not handed off has been sent."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        granted: set[str] = self.__dict__.setdefault("_granted", set())
        granted.update(grant.request_id for grant in self._get_connector_metadata().grants)  # type: ignore[attr-defined]

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        sent, received = super().get_finished(finished_req_ids)
        return (sent or set()) | (finished_req_ids - self.__dict__["_granted"]) or None, received
