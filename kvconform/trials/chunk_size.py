"""How many tokens of a prompt a connector has to be given before it keeps any: the size of its chunks.

Many keep KV in chunks of several blocks, 256 tokens by default, and find nothing of a shorter prompt. For them
scenarios are stretched (:mod:`kvconform.scenario.stretching`). The configuration may say the size; else it is found by
trial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kvconform.engine.options import EngineOptions
from kvconform.kvcache.shape import BLOCK_SIZE, KVCacheShape
from kvconform.scenario.family import store_then_reload
from kvconform.scenario.program import Program

#: Chunks that are tried, in tokens. Between two of them the smallest prompt that is found tells the size.
SIZES = (16, 32, 64, 128, 256, 512, 1024)

# Plays the trial's program, waiting so many seconds for what was stored; request id -> tokens offered.
Offers = Callable[[float], Mapping[str, int]]


def trial(first_seed: int = 0) -> Program:
    """A prompt of each size and two tokens more, stored and asked for again; their seeds count from ``first_seed``.

    One has to be computed after a load anyway; the other is for connectors that take off that one twice, as vLLM's
    ExampleConnector does (0.32.0).
    """
    blocks = sum(SIZES) // BLOCK_SIZE + 2 * len(SIZES)
    prompts = [((first_seed + index, size + 2),) for index, size in enumerate(SIZES)]
    options = EngineOptions(KVCacheShape(num_blocks=blocks))
    return Program("prompts of growing length", options, tuple(store_then_reload(prompts)))


def find_chunk_size(offers: Offers, delays: Sequence[float]) -> int:
    """Tokens of the smallest hit, as a multiple of a block; 0 if nothing is found at all.

    Args:
        offers: plays the trial.
        delays: seconds to wait for what was stored, one trial after the other until one finds a single block.
    """
    found: list[int] = []
    for delay in delays:
        offered = offers(delay)
        hits = ((size, offered.get(f"reload{index}", 0)) for index, size in enumerate(SIZES))
        # Who counts in tokens and not in chunks offers more than the prompt is about.
        found += [min(size, tokens) for size, tokens in hits if tokens > 0]
        if found and min(found) <= BLOCK_SIZE:
            break
    blocks = -(-min(found, default=0) // BLOCK_SIZE)
    return blocks * BLOCK_SIZE
