"""Programs for connectors that keep KV in chunks of several blocks.

Scenarios are written for blocks of 16 tokens. A connector whose chunks have 256 finds nothing of their prompts, so
for such a connector a program is stretched: wherever it has a block of a prompt there is a chunk of as many blocks as
it takes, and pools, windows and token budgets grow alike. What is generated does not: a prompt's distance from the end
of its last chunk is what its distance from the end of its last block was, so that generation still gets there.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from kvconform.engine.options import EngineOptions
from kvconform.kvcache.shape import BLOCK_SIZE, KVCacheShape, LayerShape
from kvconform.scenario.program import Action, Add, HandOff, Item, Program, RequestSpec, Restart

#: So many tokens behind a border stay just behind it: the first ones of a block and of a chunk are the odd ones.
_BEHIND = 2


def stretched(program: Program) -> Program:
    """The program as it is played: with prompts in which a block is a chunk of ``program.chunk_size`` tokens."""
    size = program.chunk_size
    if size == BLOCK_SIZE:
        return program
    return replace(
        program,
        options=_options(program.options, size),
        actions=tuple(_action(action, size) for action in program.actions),
        chunk_size=BLOCK_SIZE,
    )


def _position(tokens: int, size: int) -> int:
    """Where a position of an unstretched prompt lies, by the border before it or by the one behind it."""
    blocks, rest = divmod(tokens, BLOCK_SIZE)
    return blocks * size + (rest if rest <= _BEHIND else size - BLOCK_SIZE + rest)


def _end(start: int, stretched_start: int, end: int, size: int) -> int:
    """Where a run of tokens ends; within one block nothing is stretched."""
    if start // BLOCK_SIZE == end // BLOCK_SIZE:
        return stretched_start + end - start
    return _position(end, size)


def _request(request: RequestSpec, size: int) -> RequestSpec:
    continues = None if request.continues is None else _request(request.continues, size)
    before = 0 if request.continues is None else request.continues.prompt_length + request.continues.max_tokens
    stretched_before = 0 if continues is None else continues.prompt_length + continues.max_tokens
    # Pairs of borders: between two of them a position is placed as the end of a run from the first one.
    borders = [(before, stretched_before)]
    for _, length in request.prompt:
        start, stretched_start = borders[-1]
        borders.append((start + length, _end(start, stretched_start, start + length, size)))
    lengths = (end - start for (_, start), (_, end) in pairwise(borders))
    prompt = tuple((seed, length) for (seed, _), length in zip(request.prompt, lengths, strict=True))
    items = tuple(_item(item, borders, size) for item in request.items)
    return replace(request, prompt=prompt, continues=continues, items=items)


def _item(item: Item, borders: list[tuple[int, int]], size: int) -> Item:
    """Only requests that continue none have items, so that positions count from 0."""

    def place(position: int) -> int:
        start, stretched_start = max(border for border in borders if border[0] <= position)
        return _end(start, stretched_start, position, size)

    start, end = place(item.start), place(item.start + item.length)
    return replace(item, start=start, length=end - start)


def _layer(layer: LayerShape, size: int) -> LayerShape:
    if layer.sliding_window is None:
        return layer
    return replace(layer, sliding_window=layer.sliding_window * size // BLOCK_SIZE)


def _shape(shape: KVCacheShape, size: int) -> KVCacheShape:
    layers = tuple(_layer(layer, size) for layer in shape.layers)
    # Block 0 is the null block.
    return replace(shape, layers=layers, num_blocks=(shape.num_blocks - 1) * size // BLOCK_SIZE + 1)


def _options(options: EngineOptions, size: int) -> EngineOptions:
    budget = _position(options.max_num_batched_tokens, size)
    return replace(options, shape=_shape(options.shape, size), max_num_batched_tokens=budget)


def _action(action: Action, size: int) -> Action:
    match action:
        case Add(request) | HandOff(request):
            return replace(action, request=_request(request, size))
        case Restart(EngineOptions() as options):
            return replace(action, options=_options(options, size))
        case _:
            return action
