"""Speculative decoding without a draft model: what is proposed for each request, and what the target makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvconform.engine.vllm_engine.rows import ScheduledRequest
from kvconform.kvcache.oracle import TokenChain, key64


def proposals(requests: Iterable[tuple[str, int]], chains: Mapping[str, TokenChain], drafts: int) -> Any:
    """vLLM's DraftTokenIds for requests of so many tokens: the first few of each are right, how many varies."""
    from vllm.v1.outputs import DraftTokenIds

    ids, tokens = [], []
    for request_id, length in requests:
        right = key64("accepted", request_id, length) % (drafts + 1)
        proposed = chains[request_id].tokens(length + drafts)[length:]
        ids.append(request_id)
        tokens.append([token if index < right else token ^ 1 for index, token in enumerate(proposed)])
    return DraftTokenIds(ids, tokens)


def verified(
    requests: Sequence[ScheduledRequest], proposed: Mapping[str, Sequence[int]], chains: Mapping[str, TokenChain]
) -> list[ScheduledRequest]:
    """The requests of a step with the number of drafts that the target refuses: all behind the first wrong one."""
    if not proposed:
        return list(requests)
    return [
        replace(request, rejected=_rejected(request, proposed[request.request_id], chains[request.request_id]))
        if request.request_id in proposed
        else request
        for request in requests
    ]


def _rejected(request: ScheduledRequest, proposed: Sequence[int], chain: TokenChain) -> int:
    stop = request.computed + request.scheduled
    right = chain.tokens(stop)[stop - len(proposed) :]
    accepted = next((i for i, (a, b) in enumerate(zip(proposed, right, strict=True)) if a != b), len(proposed))
    return len(proposed) - accepted


def sampled(request: ScheduledRequest, chain: TokenChain, proposed: Sequence[int]) -> list[int]:
    """The accepted drafts of a step and the token behind them."""
    stop = request.computed + request.scheduled
    return chain.between(stop - len(proposed), stop - request.rejected + 1)
