"""Connectors that get one thing wrong about transfers between two engines that are under way, ended or failed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hand_off

from kvconform.reference._pd_messages import PairMetadata, Pull
from kvconform.reference.producer_consumer import ProducerConsumerConnector

Answer = tuple[bool, dict[str, Any] | None]
Completions = tuple[set[str] | None, set[str] | None]


class LoadsAPromptOnce(ProducerConsumerConnector):
    """R6: a prompt that is on its way for one request is not fetched for another, whose blocks stay empty."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prompts: dict[str, str] = {}

    def build_connector_meta(self, scheduler_output: Any) -> PairMetadata:
        plan: Any = super().build_connector_meta(scheduler_output)
        return replace(plan, pulls=[self._only_once(pull) for pull in plan.pulls])

    def _only_once(self, pull: Pull) -> Pull:
        known = {self._prompts[each] for each in self._scheduler_side()._loading if each in self._prompts}
        self._prompts[pull.request_id] = pull.hand_off.prompt
        return replace(pull, remote=(), local=()) if pull.hand_off.prompt in known else pull

    def request_finished(self, request: Any, block_ids: list[int]) -> Answer:
        self._prompts.pop(request.request_id, None)
        return super().request_finished(request, block_ids)


class ReportsTransfers(ProducerConsumerConnector):
    """vllm#43226, bugs 80 (R13): reports a load by the name that it has between the engines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names: dict[str, str] = {}

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        for pull in self._get_connector_metadata().pulls:  # type: ignore[attr-defined]
            self._names[pull.request_id] = pull.hand_off.transfer_id

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        sent, received = super().get_finished(finished_req_ids)
        return sent, {self._names.pop(request_id) for request_id in received or ()} or None


class KnowsWhoLoads(ProducerConsumerConnector):
    """Looks up each received request among those that have not ended (R13, R15), as order:KnowsWhoLoads."""

    _ending: str | None = None

    def request_finished(self, request: Any, block_ids: list[int]) -> Answer:
        self._ending = request.request_id
        return super().request_finished(request, block_ids)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        self._ending = None
        return super().build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        if self._ending in (connector_output.finished_recving or ()):
            raise KeyError(self._ending)
        super().update_connector_output(connector_output)


class NeverForgetsAborts(ProducerConsumerConnector):
    """R16: an id that was aborted once is taken for aborted ever after."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gone: set[str] = set()

    def request_finished(self, request: Any, block_ids: list[int]) -> Answer:
        if request.status.name == "FINISHED_ABORTED":
            self._gone.add(request.request_id)
        return super().request_finished(request, block_ids)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if request.request_id not in self._gone:
            super().update_state_after_alloc(request, blocks, num_external_tokens)


class ReportsAnIdOnce(ProducerConsumerConnector):
    """R16: so that nothing is reported twice, an id that was sent once is never reported as sent again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sent: set[str] = set()

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        sent, received = super().get_finished(finished_req_ids)
        new = (sent or set()) - self._sent
        self._sent |= new
        return new or None, received


class PromisesWhatFailed(ProducerConsumerConnector):
    """bug 104 (R17): a hand-off whose load has failed is promised again, as often as it is asked for."""

    def update_connector_output(self, connector_output: Any) -> None:
        super().update_connector_output(connector_output)
        if connector_output.invalid_block_ids:
            self._scheduler_side()._settled -= connector_output.finished_recving or set()


class ForgetsFailedRequests(hand_off.FailsEarly):
    """R14, R17: a request whose load has failed is over once it has ended: nobody waits for the rest."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._failed: set[str] = set()

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        sent, received = super().get_finished(finished_req_ids)
        self._failed |= self.failing
        over = self._failed & finished_req_ids
        for later in self._later:
            later -= over
        return sent, (received or set()) - over


class FailsWithoutAnEnd(hand_off.FailsByRequest):
    """R17: a failed load is in failed_recving, and its request waits on."""

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        # Within: 0.29.0 has no such class.
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults

        sent, received = self.get_finished(finished_req_ids)
        return KVConnectorTransferResults(sent or set(), (received or set()) - self.failing, set(self.failing))


class EndsLoadsThatItNeverBegan(ProducerConsumerConnector):
    """R13, R33: whatever it has offered becomes a load, one of no block if it was not chosen, and is reported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._offers: dict[str, bool] = {}

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        tokens, asynchronous = super().get_num_new_matched_tokens(request, num_computed_tokens)
        self._offers[request.request_id] = tokens > 0
        return tokens, asynchronous

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        passed_over = self._offers.pop(request.request_id, False) and not num_external_tokens
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        side = self._scheduler_side()
        if passed_over:
            side._num_pulls += 1
            side._pulls.append(Pull(side._num_pulls, request.request_id, side._releases.pop(), (), ()))
