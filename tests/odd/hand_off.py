"""Legal but odd: other ways to keep the books of a hand-off."""

from __future__ import annotations

from typing import Any

from kvconform.reference.producer_consumer import ProducerConsumerConnector


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
