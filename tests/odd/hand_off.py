"""Legal but odd: other ways to keep the books of a hand-off."""

from __future__ import annotations

from collections import Counter
from typing import Any

from kvconform.reference._pd_messages import read_hand_off
from kvconform.reference.producer_consumer import ProducerConsumerConnector

Completions = tuple[set[str] | None, set[str] | None]


class MarksParameters(ProducerConsumerConnector):
    """Notes in the request's own parameters that its hand-off has been taken up, as connectors of vLLM do."""

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill"):
            params["do_remote_prefill"] = False
            params["_taken_up"] = True


class TakesWholeBlocksOnly(ProducerConsumerConnector):
    """Leaves the last, incomplete block to be computed, and a prompt of less than a block altogether."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        tokens, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        size = self._scheduler_side()._block_size
        tokens -= (num_computed_tokens + tokens) % size
        return max(0, tokens), tokens > 0


class Patient(ProducerConsumerConnector):
    """Nothing odd, but a configuration with time-outs that are longer than anybody watches, and that nobody names."""


class OneAtATime(ProducerConsumerConnector):
    """Has nothing to say of a prompt while the same one is on its way for another request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prompts: dict[str, str] = {}

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        hand_off = read_hand_off(request.kv_transfer_params)
        under_way = {self._prompts[each] for each in self._scheduler_side()._loading}
        if hand_off is not None and hand_off.prompt in under_way:
            return None, False
        if hand_off is not None:
            self._prompts[request.request_id] = hand_off.prompt
        return super().get_num_new_matched_tokens(request, num_computed_tokens)


class TriesAgain(ProducerConsumerConnector):
    """Promises a load that failed twice more before it gives up."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._failures: Counter[str] = Counter()

    def update_connector_output(self, connector_output: Any) -> None:
        super().update_connector_output(connector_output)
        if connector_output.invalid_block_ids:
            for request_id in connector_output.finished_recving or ():
                self._failures[request_id] += 1
                if self._failures[request_id] < 3:
                    self._scheduler_side()._settled.discard(request_id)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        del self._failures[request.request_id]
        return super().request_finished(request, block_ids)


class TellsFailures(ProducerConsumerConnector):
    """``failing`` are requests whose load has just ended, and failed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places: dict[str, frozenset[int]] = {}
        self.failing: set[str] = set()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        pulls = self._get_connector_metadata().pulls  # type: ignore[attr-defined]
        self._places.update({pull.request_id: frozenset(pull.local) for pull in pulls})

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        sent, received = super().get_finished(finished_req_ids)
        errors = set() if self._consumer is None else self._consumer._load_errors
        self.failing = {request_id for request_id in received or () if self._places.pop(request_id) & errors}
        return sent, received


class FailsEarly(TellsFailures):
    """Tells the blocks of a failed load at once, and its end two steps later."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._later: list[set[str]] = [set(), set()]

    def get_finished(self, finished_req_ids: set[str]) -> Completions:
        sent, received = super().get_finished(finished_req_ids)
        self._later.append(set(self.failing))
        return sent, (received or set()) - self.failing | self._later.pop(0)


class FailsByRequest(TellsFailures):
    """Names failed loads by their requests, as models with several KV cache groups need it."""

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        # 0.30.0 on, as the hook is.
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults

        sent, received = self.get_finished(finished_req_ids)
        return KVConnectorTransferResults(sent or set(), received or set(), set(self.failing))

    def get_block_ids_with_load_errors(self) -> set[int]:
        super().get_block_ids_with_load_errors()
        return set()
