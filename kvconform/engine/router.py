"""What a front-end between a producer and a consumer makes up for a hand-off, beside what the producer returns.

Routers of some connectors give each prompt an id of its own before the producer has seen it, and tell the consumer
where the producer is: so does vLLM's for MooncakeConnector
(examples/online_serving/disaggregated_serving/mooncake_connector, 0.32.0). The configuration says what they say.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvconform.placeholders import expand
from kvconform.scenario.program import RequestSpec


@dataclass
class Router:
    """The router's side of one producer.

    Args:
        producer_params: added to the kv_transfer_params of a request whose prompt will be decoded elsewhere.
        consumer_params: added to what the producer returned for it.
        engine_id: the producer's, as in vLLM's KVTransferConfig.
        env: environment variables of the producer alone.
    """

    producer_params: Mapping[str, Any]
    consumer_params: Mapping[str, Any]
    engine_id: str
    env: Mapping[str, str]
    _transfers: dict[str, str] = field(default_factory=dict)

    def to_producer(self, request: RequestSpec) -> RequestSpec:
        """The request as it reaches the producer; only a whole set of a proxy's parameters is added to."""
        params = request.kv_transfer_params or {}
        if not params.get("do_remote_decode") or "remote_engine_id" not in params:
            return request
        self._transfers[request.id] = f"transfer-{uuid.uuid4().hex}"
        return replace(request, kv_transfer_params={**params, **self._filled_in(self.producer_params, request.id)})

    def routed(self, request_id: str) -> bool:
        """Whether the request has an id of the router's."""
        return request_id in self._transfers

    def to_consumer(self, returned: Mapping[str, Any]) -> dict[str, Any]:
        """What goes to consumers, by request that has ended; ``returned`` is what the producer had for them."""
        return {request: self._completed(request, params) for request, params in returned.items()}

    def _completed(self, request: str, params: Any) -> Any:
        if not self.routed(request) or not isinstance(params, dict | None):
            return params
        return {**(params or {}), **self._filled_in(self.consumer_params, request)}

    def _filled_in(self, params: Mapping[str, Any], request: str) -> dict[str, Any]:
        named = {f"producer:{name}": value for name, value in self.env.items()}
        values = {"transfer": self._transfers[request], "producer": self.engine_id, **named}
        filled: dict[str, Any] = expand(params, values)
        return filled
