"""ProducerConsumerConnector: one engine computes prompts, another one fetches their KV over TCP and decodes.

Disaggregated prefill by the convention of vLLM's NixlConnector. A proxy sends a prompt to the producer with
``kv_transfer_params = {"do_remote_decode": true}`` and ``max_tokens=1``; the answer's kv_transfer_params say where the
KV is; the proxy puts them into the decode request for the consumer. Read it in this order:

- this module: which hook does what, on which side;
- ``_pd_messages``: what the two engines and their roles tell each other;
- ``_pd_scheduler``: what is kept, what is loaded, who has to be told what;
- ``_pd_server``: leases, and the producer's end of the wire;
- ``_pd_client``: the consumer's end, and what becomes of a load when the producer is gone;
- ``_pd_wire``: framing.

The life of a hand-off. The producer's request_finished answers ``(True, parameters)``: vLLM keeps the blocks. The next
step's metadata grants the workers a lease; a consumer may be at the door before. The consumer's match query answers
``(n, True)``; start_load_kv starts to fetch; when all is in place it tells the producer, whose get_finished then
reports the request as sent, and vLLM frees the blocks. What may come in between:

- the consumer has all of it in its own cache, or its request ends before it is admitted: it says so to the producer;
- its request is aborted while it loads: the load stops, is reported, and the producer is told;
- the producer's request is aborted: nothing is kept, since vLLM would pass the parameters on to nobody;
- the consumer never comes: the lease ends, and the request is reported as sent;
- the producer is gone or silent: the load is reported as failed after ``peer_timeout``, and vLLM computes the prompt.

Configuration of either engine::

    --kv-transfer-config '{
        "kv_connector": "ProducerConsumerConnector",
        "kv_connector_module_path": "kvconform.reference.producer_consumer",
        "kv_role": "kv_producer",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"host": "10.0.0.1"}
    }'

with ``kv_role`` "kv_consumer" on the other one, or "kv_both". Options: ``host``, the address that a producer listens on
(default 127.0.0.1; the port is the system's choice); ``lease_seconds``, how long a producer waits for signs of life of
a consumer (30); ``peer_timeout``, how long a consumer waits for those of a producer (10); ``threads`` (4).

What it leaves out, on purpose: engines with different numbers of ranks or block sizes, hybrid models, multimodal
prompts, and any protection of the port. Real transports read memory without the producer's help (RDMA), which changes
``_pd_server`` and ``_pd_client`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole

from ._async_transfers import StreamOrder
from ._compat import block_granularity, peer_hit_source
from ._kv_identity import describe
from ._kv_pages import KVPages
from ._pd_client import ConsumerSide
from ._pd_messages import PairMetadata, WorkerAddress
from ._pd_scheduler import PairSchedulerSide
from ._pd_server import HandOffServer, Leases
from ._requirements import only_group

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata, KVConnectorMetadata
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


@dataclass(frozen=True)
class PairOptions:
    """What ``kv_connector_extra_config`` may set; see the module's text."""

    host: str = "127.0.0.1"
    lease_seconds: float = 30.0
    peer_timeout: float = 10.0
    threads: int = 4

    @classmethod
    def read(cls, extra_config: Mapping[str, Any]) -> PairOptions:
        """Raises ValueError for values that make no sense; options of other connectors are ignored."""
        options = cls(**{f.name: extra_config[f.name] for f in fields(cls) if f.name in extra_config})
        for name in ("lease_seconds", "peer_timeout", "threads"):
            value = getattr(options, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise ValueError(f"kv_connector_extra_config[{name!r}] is {value!r}; it must be a positive number.")
        return options


class ProducerConsumerConnector(KVConnectorBase_V1):
    """Disaggregated prefill over TCP; one class for both sides."""

    # How vLLM's metrics label our hits, from 0.32.0 on.
    _cache_hit_source = peer_hit_source()
    _scheduler_class = PairSchedulerSide

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Raises ValueError for unusable options and for a KV cache that this connector can't transfer."""
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = self._kv_transfer_config
        self._options = PairOptions.read(transfer.kv_connector_extra_config)
        self._group = only_group(type(self).__name__, kv_cache_config)
        self._rank = vllm_config.parallel_config.rank
        self._scheduler: PairSchedulerSide | None = None
        # The workers' ends of the wire; there is nothing to send or to fill before tensors are registered.
        self._leases = Leases(self._options.lease_seconds)
        self._server: HandOffServer | None = None
        self._consumer: ConsumerSide | None = None
        self._device = torch.device("cpu")
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler = self._scheduler_class(
                block_granularity(vllm_config, kv_cache_config)[0],
                vllm_config.parallel_config.world_size,
                describe(vllm_config, kv_cache_config).digest,
                str(transfer.engine_id),
                may_send=transfer.is_kv_producer,
                may_load=transfer.is_kv_consumer,
            )

    def shutdown(self) -> None:
        """Called on both roles, possibly twice, possibly before anything was registered."""
        server, self._server = self._server, None
        consumer, self._consumer = self._consumer, None
        if server is not None:
            server.close()
        if consumer is not None:
            consumer.close()
        if self._scheduler is not None:
            self._scheduler.close()

    # ---- Worker role ----

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Open for business. Raises ValueError for tensors that are not attention pages of this KV cache."""
        pages = KVPages(kv_caches, self._group.layer_names, self._kv_cache_config.num_blocks)
        self._device = next(iter(kv_caches.values())).device
        transfer, options = self._kv_transfer_config, self._options
        if transfer.is_kv_producer:
            self._server = HandOffServer(options.host, pages, self._leases)
        if transfer.is_kv_consumer:
            self._consumer = ConsumerSide(self._rank, pages, self._device, options.peer_timeout, options.threads)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """Where consumers find this rank. Collected once all workers are up, and again after a wake-up."""
        return None if self._server is None else self._server.address

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Hand this step's plans to the threads; nothing is waited for, in steps without a forward neither."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, PairMetadata)
        for grant in metadata.grants:
            self._leases.grant(grant, StreamOrder(self._device))
        if self._consumer is not None:
            for pull in metadata.pulls:
                self._consumer.start(pull)
            for pull_id in metadata.cancels:
                self._consumer.cancel(pull_id)
            for hand_off in metadata.releases:
                self._consumer.release(hand_off)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: a request is not scheduled before its load has been reported."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        """Nothing to save: consumers read the producer's KV cache itself."""

    def wait_for_save(self) -> None:
        """Nothing to save."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests as (sent, received), each of them once; leases that have expired count as sent."""
        received = set() if self._consumer is None else self._consumer.collect()
        return self._leases.collect() or None, received or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return set() if self._consumer is None else self._consumer.take_load_errors()

    # ---- Scheduler role ----

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Each pipeline stage has layers of its own, so every worker's address is needed."""
        self._scheduler_side().meet_workers(
            {rank: address for rank, address in metadata.items() if isinstance(address, WorkerAddress)}
        )

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        tokens = self._scheduler_side().match(request, num_computed_tokens)
        return tokens, tokens > 0

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        (block_ids,) = blocks.get_block_ids()
        self._scheduler_side().allocated(request, block_ids, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self._scheduler_side().build_metadata()

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._scheduler_side().step_reported(connector_output)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """True while a consumer may fetch the blocks; vLLM keeps them until get_finished says "sent"."""
        return self._scheduler_side().finished(request, block_ids)

    def _scheduler_side(self) -> PairSchedulerSide:
        assert self._scheduler is not None, "a scheduler-role hook was called on the worker role"
        return self._scheduler
