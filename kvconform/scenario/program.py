"""A scenario is a program: an engine set-up and a list of actions, all plain data.

Programs are what hypothesis draws and shrinks, what a failure prints, and what a case file stores.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kvconform.engine.options import EngineOptions
from kvconform.kvcache.oracle import Identity, TokenChain, prompt_tokens
from kvconform.kvcache.shape import BLOCK_SIZE, LARGEST_CHUNK

#: The token id that stands for multimodal content, and the seed of segments that consist of it.
PLACEHOLDER_TOKEN = 7
PLACEHOLDERS = 999_999_999


KVRole = Literal["kv_both", "kv_producer", "kv_consumer"]


@dataclass(frozen=True)
class Item:
    """A multimodal item: ``length`` placeholder tokens from position ``start`` on; ``name`` stands for its content."""

    start: int
    length: int
    name: str


@dataclass(frozen=True)
class RequestSpec:
    """One request. ``prompt`` is (seed, length) segments: requests with equal leading segments share a prefix.

    ``continues`` puts another request's prompt and all its generated tokens before the prompt, as the next turn of a
    conversation does. ``kv_transfer_params`` is what a front-end hands to the connector in
    ``sampling_params.extra_args``. With ``embeds`` the prompt is given as embeddings, which follow from its seeds, and
    has no token ids. With ``stops`` its first generated token is one that ends it, before ``max_tokens`` does.
    ``prompt_logprobs`` is that of SamplingParams: how many alternatives to each prompt token are wanted, -1 for all.
    """

    id: str
    prompt: tuple[tuple[int, int], ...]
    max_tokens: int = 1
    lora: str | None = None
    salt: str | None = None
    kv_transfer_params: dict[str, Any] | None = None
    skip_reading_prefix_cache: bool = False
    continues: RequestSpec | None = None
    items: tuple[Item, ...] = ()
    embeds: bool = False
    stops: bool = False
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.prompt_logprobs is not None and self.prompt_logprobs < -1:
            raise ValueError(f"prompt_logprobs of {self.id} is {self.prompt_logprobs}, and must be -1 or more")
        length = sum(length for _, length in self.prompt)
        if any(item.start < 0 or item.length < 1 or item.start + item.length > length for item in self.items):
            raise ValueError(f"the items of {self.id} must lie within its {length} tokens")
        turns = (self, self.continues) if self.continues is not None else ()
        if any(turn.items or turn.embeds for turn in turns):
            raise ValueError(f"{self.id} continues another request; neither may have items or embeddings")

    @property
    def takes_no_cache(self) -> bool:
        """Whether all its tokens have to be computed (SamplingParams.__post_init__, vLLM 0.32.0)."""
        return self.skip_reading_prefix_cache or self.prompt_logprobs is not None

    def identity(self, model: str) -> Identity:
        """What else than tokens determines this request's KV on ``model``."""
        return Identity(model=model, lora=self.lora, salt=self.salt, extras=self._extras())

    def _extras(self) -> tuple[tuple[int, int, str], ...]:
        """What stands at positions whose token ids mean nothing."""
        extras = [(item.start, item.start + item.length, f"item {item.name}") for item in self.items]
        start = 0
        for index, (seed, length) in enumerate(self.prompt if self.embeds else ()):
            extras.append((start, start + length, f"embeddings {index} {seed}"))
            start += length
        return tuple(extras)

    def prompt_ids(self, model: str) -> tuple[int, ...]:
        """The prompt's token ids; on ``model`` because generated tokens of an earlier turn depend on it.

        A prompt of embeddings has zeros, as vLLM's ``Request.all_token_ids`` has.
        """
        own = self._own_ids()
        if self.continues is None:
            return own
        earlier = TokenChain(self.continues.prompt_ids(model), self.continues.identity(model))
        return (*earlier.tokens(self.continues.prompt_length + self.continues.max_tokens), *own)

    def _own_ids(self) -> tuple[int, ...]:
        if self.embeds:
            return (0,) * sum(length for _, length in self.prompt)
        own = list(prompt_tokens(self.prompt))
        start = 0
        for seed, length in self.prompt:
            if seed == PLACEHOLDERS:
                own[start : start + length] = [PLACEHOLDER_TOKEN] * length
            start += length
        for item in self.items:
            own[item.start : item.start + item.length] = [PLACEHOLDER_TOKEN] * item.length
        return tuple(own)

    @property
    def prompt_length(self) -> int:
        """Prompt length in tokens."""
        before = 0 if self.continues is None else self.continues.prompt_length + self.continues.max_tokens
        return before + sum(length for _, length in self.prompt)


#: Added to the seeds of a twin's prompts, so that its requests have the same ids and other tokens.
TWIN_SEEDS = 5000


def twin_of(request: RequestSpec) -> RequestSpec:
    """The request that the second engine of a ``twin`` program gets."""
    prompt = tuple((seed + TWIN_SEEDS, length) for seed, length in request.prompt)
    continues = None if request.continues is None else twin_of(request.continues)
    return replace(request, prompt=prompt, continues=continues)


@dataclass(frozen=True)
class Add:
    """Queue a request."""

    request: RequestSpec


@dataclass(frozen=True)
class Abort:
    """Abort a request by id; one that ended already is left alone."""

    request: str


@dataclass(frozen=True)
class AbortDuringStep:
    """Run one step and abort a request after the workers have run it, before the scheduler takes their results."""

    request: str


@dataclass(frozen=True)
class AbortOnceLoading:
    """Run steps until one promises a load to the request; abort it between that step's execution and its results.

    A connector that puts its answer off is asked again first. Nothing is aborted where no load is promised.
    """

    request: str


@dataclass(frozen=True)
class AbortOnArrival:
    """From here on: abort a request in the step whose results report the end of its load, before they are taken."""

    request: str


@dataclass(frozen=True)
class FailForward:
    """Run steps until a forward raises, which it does after ``layers`` layers; the engine ends with it.

    A new engine on the same store takes over.
    """

    layers: int = 1


@dataclass(frozen=True)
class Step:
    """Run ``count`` engine steps (fewer if the engine becomes idle)."""

    count: int = 1


@dataclass(frozen=True)
class Drain:
    """Step until the engine is idle."""


@dataclass(frozen=True)
class ForgetLocal:
    """Drop vLLM's local prefix cache, so that only the connector can still offer a hit."""


@dataclass(frozen=True)
class PreemptAll:
    """Preempt every running request by ``reset_prefix_cache(reset_running_requests=True)``."""


@dataclass(frozen=True)
class ResetConnector:
    """``reset_prefix_cache(reset_connector=True)``: stored KV must not be offered any more."""


@dataclass(frozen=True)
class Restart:
    """Shut the engine down and start a new one on the same store.

    Without ``drain`` that happens amid whatever is under way. ``twice`` calls shutdown of both roles a second time.
    """

    options: EngineOptions | None = None
    drain: bool = True
    twice: bool = False


@dataclass(frozen=True)
class Kill:
    """The engine's process ends without a shutdown; a new engine on the same store goes on with what follows.

    Everything before it runs in a process of its own. A program has at most one.
    """


@dataclass(frozen=True)
class Turn:
    """In a program with a ``pair``: what follows is done with this engine."""

    engine: Literal["producer", "consumer"] = "consumer"


@dataclass(frozen=True)
class HandOff:
    """Queue a request with the kv_transfer_params that the producer returned for its request ``of``.

    As a router does: the parameters come as JSON; if there are none, the request goes without.
    """

    request: RequestSpec
    of: str


@dataclass(frozen=True)
class FinishRequests:
    """Run steps until no request is unfinished; what the connector holds for others stays held."""


@dataclass(frozen=True)
class Outlast:
    """Step both engines until this one is idle, or for as long as the connector may wait for a peer.

    An engine that is not idle then is left alone from there on; what it still holds is on record.
    """


@dataclass(frozen=True)
class Leave:
    """The engine ends for good: it is shut down, or its process falls silent and is not heard of any more."""

    silent: bool = False


@dataclass(frozen=True)
class DummyRun:
    """A forward without the connector, as for warm-up, graph capture and idle data-parallel ranks."""


@dataclass(frozen=True)
class RepeatHandshake:
    """Collect and deliver the workers' handshake metadata once more, as after a wake-up (0.33.0 on)."""


@dataclass(frozen=True)
class HoldBack:
    """Make the device slow in every step from here on, or no longer with ``nothing``; needs streams, so no CPU.

    With ``kernels`` the engine's kernels of a step run only long after its hooks were called; with ``copies``, copies
    between host and device take long.
    """

    what: Literal["kernels", "copies", "nothing"] = "kernels"


@dataclass(frozen=True)
class Pause:
    """Pause the scheduler: ``new`` admits no new request, ``all`` schedules nothing; steps go on."""

    what: Literal["new", "all"] = "all"


@dataclass(frozen=True)
class Resume:
    """End a pause."""


StoreFault = Literal["removed", "truncated", "emptied", "folders", "unreadable", "silent"]


@dataclass(frozen=True)
class BreakStore:
    """Break what the connector keeps: every file in its directory, or every n-th one.

    Where the configuration names a class for that (:mod:`kvconform.faults`), an entry of the store takes the place of a
    file. Nothing but such a class can make a store ``silent``: what is asked of it is never answered.

    With ``at_load`` that happens in the next step that promises a load, between its scheduling and its execution.
    """

    fault: StoreFault = "removed"
    every: int = 1
    at_load: bool = False


@dataclass(frozen=True)
class RefuseWrites:
    """From here on nothing can be stored: files can't grow (a full disk), or the directory has become a file."""

    how: Literal["full", "no folder"] = "full"


@dataclass(frozen=True)
class MendStore:
    """Undo faults: from here on writes succeed, and reads are answered. What is lost stays lost."""


Action = (
    Add
    | Abort
    | AbortDuringStep
    | AbortOnceLoading
    | AbortOnArrival
    | FailForward
    | Step
    | Drain
    | ForgetLocal
    | PreemptAll
    | ResetConnector
    | Restart
    | Kill
    | DummyRun
    | HoldBack
    | RepeatHandshake
    | BreakStore
    | RefuseWrites
    | MendStore
    | Pause
    | Resume
    | Turn
    | HandOff
    | FinishRequests
    | Outlast
    | Leave
)


@dataclass(frozen=True)
class Program:
    """An engine and what is done with it. ``name`` is the scenario family, for reports.

    With ``twin`` a second engine in the same process, with a store and prompts of its own, does the same with requests
    of the same ids, in lock step: both schedule a step before either executes it.

    With ``pair`` there are two engines of these kv_roles, a producer and a consumer; actions are the producer's until a
    :class:`Turn`. Draining steps the other one, too.

    ``chunk_size`` are the tokens of a chunk of the connector that the program is for: with more than those of a block,
    what is played is the program as :func:`kvconform.scenario.stretching.stretched` makes it.
    """

    name: str
    options: EngineOptions = field(default_factory=EngineOptions)
    actions: tuple[Action, ...] = ()
    twin: bool = False
    pair: tuple[KVRole, KVRole] | None = None
    chunk_size: int = BLOCK_SIZE

    def __post_init__(self) -> None:
        if not 0 < self.chunk_size <= LARGEST_CHUNK or self.chunk_size % BLOCK_SIZE:
            raise ValueError(
                f"chunk_size is {self.chunk_size}, and must be a multiple of {BLOCK_SIZE}, {LARGEST_CHUNK} at most"
            )
