"""What a scenario from a file may ask of this machine. The kit's own scenarios stay far below."""

from __future__ import annotations

from kvconform.kvcache.shape import KVCacheShape
from kvconform.scenario.program import Add, HandOff, Program, RequestSpec, Restart, Step
from kvconform.scenario.stretching import stretched

MAX_ACTIONS = 5_000
MAX_STEPS = 100_000
MAX_TOKENS = 1 << 20
MAX_CACHE_BYTES = 1 << 30
MAX_BATCHED_TOKENS = 1 << 20
MAX_DRAFTS = 64
#: Requests on top of each other ("the next turn of").
MAX_TURNS = 20


def program_problem(program: Program) -> str:
    """Why a program is not played, as a clause; empty if nothing speaks against it."""
    return _problem(program) or _problem(stretched(program))


def _problem(program: Program) -> str:
    if len(program.actions) > MAX_ACTIONS:
        return f"it has {len(program.actions):,} actions, and no scenario has more than {MAX_ACTIONS:,}"
    options = [program.options, *(a.options for a in program.actions if isinstance(a, Restart) and a.options)]
    for option in options:
        problem = _cache_problem(option.shape)
        if problem:
            return problem
        for name in ("max_num_batched_tokens", "max_num_seqs"):
            value = getattr(option, name)
            if not 1 <= value <= MAX_BATCHED_TOKENS:
                return f"{name} is {value:,}, and must be between 1 and {MAX_BATCHED_TOKENS:,}"
        if option.drafts > MAX_DRAFTS:
            return f"it has {option.drafts:,} drafts in a step, and no scenario has more than {MAX_DRAFTS}"
    steps = [action.count for action in program.actions if isinstance(action, Step)]
    if any(count < 0 for count in steps) or sum(steps) > MAX_STEPS:
        return f"it runs {sum(steps):,} steps, and no scenario runs more than {MAX_STEPS:,}"
    tokens = 0
    for action in program.actions:
        if isinstance(action, Add | HandOff):
            count = _tokens(action.request)
            if count is None:
                return f"the request {action.request.id[:40]!r} has a prompt or a max_tokens that no request can have"
            tokens += count
    return f"its requests have {tokens:,} tokens, and no scenario has more than {MAX_TOKENS:,}" * (tokens > MAX_TOKENS)


def _cache_problem(shape: KVCacheShape) -> str:
    size = shape.num_blocks * sum(layer.count * (layer.page_bytes + layer.page_padding) for layer in shape.layers)
    if size > MAX_CACHE_BYTES:
        return f"its KV cache has {size:,} bytes, and no scenario has more than {MAX_CACHE_BYTES:,}"
    layers = sum(layer.count for layer in shape.layers)
    return f"its KV cache has {layers:,} layers, and no scenario has more than 1,000" * (layers > 1_000)


def _tokens(request: RequestSpec) -> int | None:
    """Tokens of a request with all its turns; None for numbers that no engine takes."""
    total, turns, turn = 0, 0, request
    while True:
        lengths = [length for _, length in turn.prompt]
        if turn.max_tokens < 1 or any(length < 0 for length in lengths) or any(s < 0 for s, _ in turn.prompt):
            return None
        total, turns = total + sum(lengths) + turn.max_tokens, turns + 1
        if turn.continues is None:
            return total if request.prompt_length >= 1 else None
        turn = turn.continues
        if turns > MAX_TURNS:
            return None
