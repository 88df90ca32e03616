"""Connectors that get one thing wrong between a producer and a consumer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from vllm.v1.request import RequestStatus

from kvconform.reference._pd_messages import HandOff, PairMetadata
from kvconform.reference._pd_scheduler import PairSchedulerSide
from kvconform.reference._pd_server import Leases
from kvconform.reference.producer_consumer import ProducerConsumerConnector

Answer = tuple[bool, dict[str, Any] | None]


class KeysByOwnId(ProducerConsumerConnector):
    """vllm#42839, vllm#32937, bugs 97 (R16): each side names the transfer by the id that its own request has."""

    def build_connector_meta(self, scheduler_output: Any) -> PairMetadata:
        plan: Any = super().build_connector_meta(scheduler_output)
        return replace(
            plan,
            grants=[replace(grant, transfer_id=grant.request_id) for grant in plan.grants],
            pulls=[replace(pull, hand_off=replace(pull.hand_off, transfer_id=pull.request_id)) for pull in plan.pulls],
        )


class WantsEqualLists(ProducerConsumerConnector):
    """vllm#48471, bugs 68 (R5): takes for granted that both sides have the same number of blocks."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        remote = (request.kv_transfer_params or {}).get("remote_block_ids")
        if remote and num_external_tokens > 0:
            (local,) = blocks.get_unhashed_block_ids_all_groups()
            assert len(local) == len(remote), f"{len(local)} != {len(remote)}"
        super().update_state_after_alloc(request, blocks, num_external_tokens)


class PairsFromTheStart(ProducerConsumerConnector):
    """R5: fills the blocks behind a local hit with the first blocks of the producer."""

    def build_connector_meta(self, scheduler_output: Any) -> PairMetadata:
        plan: Any = super().build_connector_meta(scheduler_output)
        pulls = [replace(pull, remote=pull.hand_off.block_ids[: len(pull.local)]) for pull in plan.pulls]
        return replace(plan, pulls=pulls)


class _WholeTable(PairSchedulerSide):
    """Hands off the block table as it is."""

    def finished(self, request: Any, block_ids: Sequence[int]) -> Answer:
        held, params = super().finished(request, block_ids)
        if held and params is not None:
            params["remote_block_ids"] = list(block_ids)
            self._grants[-1] = replace(self._grants[-1], block_ids=tuple(block_ids))
        return held, params

    def build_metadata(self) -> PairMetadata:
        plan = super().build_metadata()
        pulls = [replace(pull, remote=pull.hand_off.block_ids[-len(pull.local) :]) for pull in plan.pulls]
        return replace(plan, pulls=pulls)


class HandsOffTheWholeTable(ProducerConsumerConnector):
    """vllm-ascend#8908, vllm#55053, bugs 70 and 71 (R5, R9): blocks behind the prompt go along and shift the rest."""

    _scheduler_class = _WholeTable


class RefusesStopTokens(ProducerConsumerConnector):
    """vllm#46008, vllm-ascend#13870, bugs 95 (R15): only prefills that the length limit ends are handed off."""

    def request_finished(self, request: Any, block_ids: list[int]) -> Answer:
        if request.status == RequestStatus.FINISHED_STOPPED:
            return False, None
        return super().request_finished(request, block_ids)


class DeliversAtWill(ProducerConsumerConnector):
    """vllm#48141, bugs 50 (R15): a producer that calls itself a cache."""

    @property
    def requires_kv_delivery(self) -> bool:
        return False


class LetsGoAtOnce(ProducerConsumerConnector):
    """R12, R14: reports the blocks as sent as soon as the consumer may come, and serves them all the same."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        early = {grant.request_id for grant in self._step_grants()}
        _, received = super().get_finished(finished_req_ids)
        return early or None, received

    def _step_grants(self) -> Sequence[Any]:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, PairMetadata)
        return metadata.grants


class NeverGivesUp(ProducerConsumerConnector):
    """R31: leases without an end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leases.seconds = 1e6


class _EndlessLeases(Leases):
    """Remembers what it has given up, and honours it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.late: dict[str, Any] = {}

    def collect(self) -> set[str]:
        before = dict(self._leases)
        ended = super().collect()
        self.late.update({transfer: lease for transfer, lease in before.items() if transfer not in self._leases})
        return ended

    def reading(self, transfer_id: str) -> Any:
        return nullcontext(self.late[transfer_id]) if transfer_id in self.late else super().reading(transfer_id)


class ServesAfterTheEnd(ProducerConsumerConnector):
    """R31: a lease that has ended is honoured when somebody comes late, whoever has the blocks by then."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leases = _EndlessLeases(self._options.lease_seconds)


class _TwofoldLeases(_EndlessLeases):
    """Reports the end of a lease at the time-out, and when somebody has fetched it after that."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.again: set[str] = set()

    def reading(self, transfer_id: str) -> Any:
        if transfer_id in self.late:
            self.again.add(self.late[transfer_id].grant.request_id)
        return super().reading(transfer_id)

    def collect(self) -> set[str]:
        again, self.again = self.again, set()
        return super().collect() | again


class ReportsTheLateEnd(ProducerConsumerConnector):
    """vllm-ascend#5726, bugs 92 (R13, R31): reported as sent at the time-out, and again when the consumer has come."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leases = _TwofoldLeases(self._options.lease_seconds)


class HoldsWhatWasAborted(ProducerConsumerConnector):
    """R15: keeps the blocks of an aborted prefill for a consumer that never learns of them."""

    def request_finished(self, request: Any, block_ids: list[int]) -> Answer:
        answer = super().request_finished(request, block_ids)
        wanted = (request.kv_transfer_params or {}).get("do_remote_decode")
        if wanted and request.status == RequestStatus.FINISHED_ABORTED and block_ids:
            return True, {"do_remote_prefill": True}
        return answer


class ForgetsTheProducer(ProducerConsumerConnector):
    """bugs 22 (R6): a consumer that needs nothing in the end keeps that to itself."""

    def build_connector_meta(self, scheduler_output: Any) -> PairMetadata:
        return replace(super().build_connector_meta(scheduler_output), releases=())  # type: ignore[type-var]


class ForgetsAfterAnAbort(ProducerConsumerConnector):
    """R6: tells the producer of a full local hit, but not of a request that ends before it is admitted."""

    def request_finished(self, request: Any, block_ids: list[int]) -> Answer:
        scheduler = self._scheduler_side()
        before: list[HandOff] = list(scheduler._releases)
        answer = super().request_finished(request, block_ids)
        scheduler._releases = before
        return answer


class IgnoresWhoComputesAll(ProducerConsumerConnector):
    """R6: a request that must not be served from any cache is none of its business, and nobody tells the producer."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if request.skip_reading_prefix_cache:
            self._scheduler_side()._settled.add(request.request_id)
        super().update_state_after_alloc(request, blocks, num_external_tokens)


class PromisesTooMuch(ProducerConsumerConnector):
    """R4: offers prompts of any length, and cannot fetch those of more than two blocks."""

    def build_connector_meta(self, scheduler_output: Any) -> PairMetadata:
        plan: Any = super().build_connector_meta(scheduler_output)
        pulls = [replace(pull, remote=(-1,) * len(pull.local)) if len(pull.local) > 2 else pull for pull in plan.pulls]
        return replace(plan, pulls=pulls)


class WaitsForEver(ProducerConsumerConnector):
    """R31: no time-out on what the producer sends."""

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        super().register_kv_caches(kv_caches)
        if self._consumer is not None:
            self._consumer._timeout = 1e6


class HopesForTheBest(ProducerConsumerConnector):
    """R17: a load that failed is reported as received, and nothing else."""

    def get_block_ids_with_load_errors(self) -> set[int]:
        super().get_block_ids_with_load_errors()
        return set()


class ForgetsAbortedLoads(ProducerConsumerConnector):
    """vllm-ascend#16662, bugs 77 (R13): what was aborted while it loaded is not reported any more."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        gone: set[str] = self.__dict__.setdefault("_gone", set())
        gone |= finished_req_ids
        sent, received = super().get_finished(finished_req_ids)
        return sent, (received or set()) - gone or None


class TakesParametersForGranted(ProducerConsumerConnector):
    """R25: whoever sends parameters is taken to have read the connector's documentation."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        params = request.kv_transfer_params
        if params is not None and params["do_remote_prefill"]:
            assert params["remote_block_ids"]
        return super().get_num_new_matched_tokens(request, num_computed_tokens)
