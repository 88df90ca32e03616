"""vLLM's process-wide connector slot, shared by the engines that live in this process.

In vLLM a worker process fills the slot once and empties it when it ends (kv_transfer_state,
ensure_kv_transfer_initialized and ensure_kv_transfer_shutdown); only dummy runs empty it in between. Several simulated
engines may live in one process and end in any order: the slot holds the connector of the worker that ran last.
"""

from __future__ import annotations

from typing import Any


class ConnectorSlot:
    """Who is in the slot; class state, because vLLM's slot is a module's."""

    _live: list[Any] = []  # noqa: RUF012
    _before: Any = None

    @classmethod
    def open(cls) -> None:
        """Empty the slot for a worker that is about to be built; vLLM builds none where there is one."""
        state = _state()
        if not cls._live:
            cls._before = state._KV_CONNECTOR_AGENT
        state._KV_CONNECTOR_AGENT = None

    @classmethod
    def enter(cls, connector: Any) -> None:
        """This worker runs now."""
        state = _state()
        if not any(connector is live for live in cls._live):
            if not cls._live and state._KV_CONNECTOR_AGENT is not connector:
                # It had left already: a second shutdown.
                cls._before = state._KV_CONNECTOR_AGENT
            cls._live.append(connector)
        state._KV_CONNECTOR_AGENT = connector

    @classmethod
    def leave(cls, connector: Any) -> None:
        """This worker has ended, or was never built: another live one has the slot, or whoever had it before all."""
        state = _state()
        cls._live = [live for live in cls._live if live is not connector]
        # By identity: what a connector takes for equal is its own affair.
        if state._KV_CONNECTOR_AGENT is None or state._KV_CONNECTOR_AGENT is connector:
            state._KV_CONNECTOR_AGENT = cls._live[-1] if cls._live else cls._before
        if not cls._live:
            cls._before = None


def _state() -> Any:
    from vllm.distributed.kv_transfer import kv_transfer_state

    return kv_transfer_state
