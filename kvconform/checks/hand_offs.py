"""What a producer computed for a consumer, followed through the history of both engines.

Engine 1 is the producer and engine 2 the consumer; "hand off" says which request of the consumer was given what came
back for which request of the producer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kvconform.checks.calls import is_held
from kvconform.checks.model import Finding
from kvconform.checks.transfer import external_tokens
from kvconform.engine.byte_events import Arrived
from kvconform.engine.events import FINISH_HOOKS, Event, HookCall, Outlasted, ProgramAction, Tokens
from kvconform.engine.history import History

PRODUCER, CONSUMER = 1, 2


@dataclass
class Decode:
    """A request of the consumer that was given a hand-off. ``at`` are positions of events in the history."""

    request: str
    given: bool
    peer_gone: bool
    local: int = 0
    num_tokens: int = 0
    load: HookCall | None = None
    load_at: int = 0
    arrived: Arrived | None = None
    ended: HookCall | None = None


@dataclass
class Prefill:
    """A request of the producer that is to be decoded elsewhere."""

    request: str
    num_tokens: int = 0
    generated: int = 0
    ended: HookCall | None = None
    ended_at: int = 0
    handed_off: bool = False
    #: Whether a router tells the consumer what it needs, so that a producer that keeps the blocks has handed off.
    routed: bool = False
    sent_at: int | None = None
    decodes: list[Decode] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether the producer was asked to keep the blocks."""
        return self.ended is not None and is_held(self.ended)

    @property
    def status(self) -> str:
        """How it ended."""
        return "" if self.ended is None else str(self.ended.args["status"])


@dataclass
class _Follower:
    """Follows a history event by event."""

    prefills: dict[str, Prefill] = field(default_factory=dict)
    decodes: dict[str, Decode] = field(default_factory=dict)
    gone: bool = False

    def follow(self, at: int, event: Event) -> None:
        if isinstance(event, ProgramAction):
            self._action(event)
        elif isinstance(event, HookCall):
            if event.engine == PRODUCER:
                self._produce(at, event)
            else:
                self._consume(at, event)
        elif isinstance(event, Tokens) and event.engine == PRODUCER and event.request in self.prefills:
            self.prefills[event.request].generated += len(event.token_ids)
        elif isinstance(event, Arrived) and event.engine == CONSUMER and event.request in self.decodes:
            self.decodes[event.request].arrived = event

    def _action(self, event: ProgramAction) -> None:
        detail = event.detail
        params = detail.get("kv_transfer_params") or {}
        if event.action == "add" and event.engine == PRODUCER and params.get("do_remote_decode"):
            self.prefills[detail["request"]] = Prefill(detail["request"], routed=bool(detail.get("routed")))
        elif event.action == "leave":
            self.gone = True
        elif event.action == "hand off":
            decode = self.decodes[detail["request"]] = Decode(detail["request"], detail["delivered"], self.gone)
            # A producer that fell silent has left no history.
            self.prefills.setdefault(detail["of"], Prefill(detail["of"])).decodes.append(decode)

    def _produce(self, at: int, call: HookCall) -> None:
        if call.hook == "update_connector_output":
            for request in call.args["finished_sending"]:
                if request in self.prefills:
                    self.prefills[request].sent_at = at
            return
        prefill = self.prefills.get(call.args.get("request", ""))
        if prefill is None:
            return
        if call.hook == "get_num_new_matched_tokens":
            prefill.num_tokens = prefill.num_tokens or call.args["num_tokens"]
        elif call.hook in FINISH_HOOKS and call.error is None:
            prefill.ended, prefill.ended_at = call, at
            result = call.result
            pair = isinstance(result, tuple) and len(result) == 2
            prefill.handed_off = pair and bool(result[1] or (prefill.routed and result[0]))

    def _consume(self, at: int, call: HookCall) -> None:
        decode = self.decodes.get(call.args.get("request", ""))
        if decode is None:
            return
        if call.hook == "get_num_new_matched_tokens" and decode.load is None:
            decode.local, decode.num_tokens = call.args["num_computed_tokens"], call.args["num_tokens"]
        elif call.hook == "update_state_after_alloc" and call.args["num_external_tokens"] > 0:
            decode.load, decode.load_at = call, at
        elif call.hook in FINISH_HOOKS:
            decode.ended = call


def _followed(history: History) -> tuple[Prefill, ...]:
    follower = _Follower()
    if any(event.action in ("hand off", "leave") for event in history.of(ProgramAction)) or any(
        True for _ in history.of(Outlasted)
    ):
        for at, event in enumerate(history.events):
            follower.follow(at, event)
    return tuple(follower.prefills.values())


def prefills(history: History) -> tuple[Prefill, ...]:
    """The requests of the producer that are to be decoded elsewhere, in their order; none where there is no pair."""
    return history.derived(_followed)


def of_decodes(what: str, counts: Callable[[History, Prefill, Decode], bool]) -> Callable[[History], Mapping[str, int]]:
    """A witness: hand-offs of which ``counts`` is true, in runs in which loaded bytes were compared."""

    def witness(history: History) -> Mapping[str, int]:
        pairs = [(prefill, decode) for prefill in prefills(history) for decode in prefill.decodes]
        compared = bool(pairs) and external_tokens(history) > 0
        return {what: sum(compared and counts(history, prefill, decode) for prefill, decode in pairs)}

    return witness


def kept_rule(history: History, _: Finding) -> str:
    """The rule of a symptom that shows when the producer goes on: whether it was asked to keep the blocks."""
    fetched = [prefill for prefill in prefills(history) if prefill.handed_off and prefill.decodes]
    return "FIN-09" if fetched and not any(prefill.held for prefill in fetched) else "ASYNC-08"


def arrived(decode: Decode) -> bool:
    """Whether what was handed off is in the consumer's blocks."""
    return decode.arrived is not None and not decode.arrived.reported_failed
