"""Scheduler role of ProducerConsumerConnector: which prefills are kept for whom, and what a decode request loads."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.v1.request import RequestStatus

from ._pd_messages import Grant, HandOff, PairMetadata, Pull, WorkerAddress, prompt_digest, read_hand_off

if TYPE_CHECKING:
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger(__name__)

_NORMAL_ENDS = (RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED)


class PairSchedulerSide:
    """Plans on both ends of the wire; never touches a socket, so no schedule() waits for a peer.

    Args:
        block_size: tokens per block.
        world_size: ranks; each pulls from the producer's rank of the same number.
        kv: digest of everything that the KV of all requests depends on.
        engine_id: this engine's id.
        may_send: whether this engine is a producer.
        may_load: whether it is a consumer.
    """

    def __init__(
        self, block_size: int, world_size: int, kv: str, engine_id: str, *, may_send: bool, may_load: bool
    ) -> None:
        self._block_size = block_size
        self._world_size = world_size
        self._kv = kv
        self._engine_id = engine_id
        self._may_send = may_send
        self._may_load = may_load
        self._addresses: tuple[WorkerAddress, ...] = ()
        self._num_pulls = 0
        # Decode requests: local tokens at the last query, whether the hand-off has been taken up, loads under way.
        self._local: dict[str, int] = {}
        self._settled: set[str] = set()
        self._loading: dict[str, int] = {}
        self._grants: list[Grant] = []
        self._pulls: list[Pull] = []
        self._cancels: set[int] = set()
        self._releases: list[HandOff] = []

    def meet_workers(self, addresses: Mapping[tuple[int, int], Any]) -> None:
        """Where our workers listen, by (pipeline rank, tensor rank); called again after a wake-up."""
        self._addresses = tuple(addresses[rank] for rank in sorted(addresses))

    # ---- Decode requests ----

    def match(self, request: Request, num_computed_tokens: int) -> int:
        """Tokens beyond the local ones that the producer has for us. Changes nothing that matters to a second query."""
        hand_off = read_hand_off(request.kv_transfer_params)
        if hand_off is None or request.request_id in self._settled or not self._is_usable(hand_off, request):
            return 0
        self._local[request.request_id] = num_computed_tokens
        end = min(hand_off.num_tokens, request.num_tokens)
        if end < request.num_tokens:
            # Something follows, such as a first token that the proxy put behind the prompt: whole blocks only.
            end -= end % self._block_size
        # A local hit within a block would have us overwrite its computed slots.
        return 0 if num_computed_tokens % self._block_size else max(0, end - num_computed_tokens)

    def _is_usable(self, hand_off: HandOff, request: Request) -> bool:
        if not self._may_load or request.skip_reading_prefix_cache:
            return False
        return (
            len(hand_off.ports) == self._world_size
            and hand_off.kv == self._kv
            and hand_off.num_tokens <= len(hand_off.block_ids) * self._block_size
            and hand_off.num_tokens <= request.num_prompt_tokens
            and hand_off.prompt == prompt_digest(request, hand_off.num_tokens)
        )

    def allocated(self, request: Request, block_ids: Sequence[int], num_external_tokens: int) -> None:
        """Load what vLLM has found room for, which decides, not what was offered.

        0 tokens of an offer mean that the local cache has everything, or that nobody wants it: then the producer must
        learn that it need not keep it. Later calls for the same request, after the load or a preemption, mean nothing.
        """
        hand_off = read_hand_off(request.kv_transfer_params)
        if hand_off is None or request.request_id in self._settled:
            return
        self._settled.add(request.request_id)
        if num_external_tokens == 0:
            self._releases.append(hand_off)
            return
        local = self._local[request.request_id]
        first, last = local // self._block_size, -(-(local + num_external_tokens) // self._block_size)
        self._num_pulls += 1
        self._loading[request.request_id] = self._num_pulls
        # Both lists begin with the first token of the prompt, so the same index is the same position.
        self._pulls.append(
            Pull(
                self._num_pulls,
                request.request_id,
                hand_off,
                hand_off.block_ids[first:last],
                tuple(block_ids[first:last]),
            )
        )

    # ---- The step ----

    def build_metadata(self) -> PairMetadata:
        metadata = PairMetadata(
            tuple(self._grants), tuple(self._pulls), frozenset(self._cancels), tuple(self._releases)
        )
        self._grants, self._pulls, self._releases = [], [], []
        self._cancels.clear()
        return metadata

    def step_reported(self, output: KVConnectorOutput) -> None:
        for request_id in output.finished_recving or ():
            self._loading.pop(request_id, None)

    # ---- The end of a request ----

    def finished(self, request: Request, block_ids: Sequence[int]) -> tuple[bool, dict[str, Any] | None]:
        """Whether the blocks have to stay for a consumer, and what the front-end is to tell it."""
        self._forget(request)
        if not self._may_send or not (request.kv_transfer_params or {}).get("do_remote_decode"):
            return False, None
        # Nobody would learn of a hand-off for a request that was aborted or failed: vLLM drops its parameters.
        if request.status not in _NORMAL_ENDS:
            return False, None
        # The prompt, and not the slots of sampled tokens: a consumer has no partner for them.
        num_tokens = request.num_prompt_tokens
        num_blocks = -(-num_tokens // self._block_size)
        prompt = prompt_digest(request, num_tokens)
        ready = len(self._addresses) == self._world_size and prompt is not None
        if not ready or request.num_computed_tokens < num_tokens or len(block_ids) < num_blocks:
            return False, None
        assert prompt is not None
        hand_off = HandOff(
            uuid.uuid4().hex,
            self._addresses[0].host,
            tuple(address.port for address in self._addresses),
            tuple(block_ids[:num_blocks]),
            num_tokens,
            self._kv,
            prompt,
        )
        self._grants.append(Grant(hand_off.transfer_id, request.request_id, hand_off.block_ids))
        return True, hand_off.params(self._engine_id, request.request_id)

    def _forget(self, request: Request) -> None:
        """End what this engine still does for the request as a consumer."""
        request_id = request.request_id
        self._local.pop(request_id, None)
        pull_id = self._loading.pop(request_id, None)
        if pull_id is not None:
            # Aborted while it loads. vLLM keeps the blocks until the load is reported, cancelled or not.
            self._cancels.add(pull_id)
        hand_off = read_hand_off(request.kv_transfer_params)
        if hand_off is not None and request_id not in self._settled:
            # It ended before it was ever admitted.
            self._releases.append(hand_off)
        self._settled.discard(request_id)

    def close(self) -> None:
        """Drop everything."""
        for state in (self._local, self._settled, self._loading, self._grants, self._pulls, self._releases):
            state.clear()
        self._cancels.clear()
