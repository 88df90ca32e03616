"""Legal but odd: a producer and a consumer that find each other by what a router made up, and return nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kvconform.reference.producer_consumer import ProducerConsumerConnector


class Routed(ProducerConsumerConnector):
    """The producer leaves what a consumer needs under its own name, its port and the router's id of the hand-off."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._registry = Path(self._kv_transfer_config.kv_connector_extra_config["registry"])
        self._me = f"{self._kv_transfer_config.engine_id}-{os.environ['ROUTED_PORT']}"

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        held, params = super().request_finished(request, block_ids)
        if params:
            name = f"{self._me}-{request.kv_transfer_params['transfer_id']}"
            (self._registry / name).write_text(json.dumps(params))
        return held, None

    def on_new_request(self, request: Any) -> None:
        params = request.kv_transfer_params or {}
        entry = self._registry / f"{params.get('where')}-{params.get('transfer_id')}"
        if params.get("do_remote_prefill") and entry.exists():
            request.kv_transfer_params = json.loads(entry.read_text())
        super().on_new_request(request)
