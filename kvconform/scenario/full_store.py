"""A store of bounded size: it is filled, and whatever was promised on the way must not stay in it for ever.

Programs come in pairs that differ in one thing. Which of the prompts are offered at the end tells what became of it.
"""

from __future__ import annotations

from typing import Literal

from kvconform.engine.options import EngineOptions
from kvconform.kvcache.shape import KVCacheShape
from kvconform.scenario.family import BLOCK, Prompt
from kvconform.scenario.program import Abort, Action, Add, Drain, ForgetLocal, Program, RequestSpec, Step

#: Prompts of three blocks each; a store of fewer blocks than all of them is full in the end.
ROUNDS = 20
_BLOCKS = 3
#: How many of the newest prompts are asked for in the end.
NEWEST = 3

#: What happens to each prompt once it is stored: nothing; somebody else takes the room in the engine; a request asks
#: for it meanwhile, is not admitted and leaves; it is loaded, and loaded for a request that leaves.
Promises = Literal["none", "no room", "never admitted", "loaded"]


def _prompt(index: int) -> Prompt:
    return ((100 + index, _BLOCKS * BLOCK + 1),)


def filled(rounds: int = ROUNDS, promises: Promises = "none") -> Program:
    """Store ``rounds`` prompts, and then ask for the newest ones and for the oldest."""
    actions: list[Action] = []
    for index in range(rounds):
        actions += [Add(RequestSpec(f"store{index}", _prompt(index))), Drain(), ForgetLocal()]
        if promises in ("no room", "never admitted"):
            # It takes so many blocks for so long that nobody else is admitted beside it.
            actions += [Add(RequestSpec(f"big{index}", ((500 + index, 6 * BLOCK),), 4)), Step(1)]
            if promises == "never admitted":
                asks = RequestSpec(f"asks{index}", _prompt(index))
                actions += [Add(asks), Step(2), Abort(asks.id)]
            actions += [Drain(), ForgetLocal()]
        elif promises == "loaded":
            leaves = RequestSpec(f"leaves{index}", _prompt(index), 4)
            actions += [
                Add(RequestSpec(f"loads{index}", _prompt(index))), Drain(), ForgetLocal(),
                Add(leaves), Step(1), Abort(leaves.id), Drain(), ForgetLocal(),
            ]  # fmt: skip
    for index in reversed(range(rounds - NEWEST, rounds)):
        actions += [Add(RequestSpec(f"newest{index}", _prompt(index))), Drain(), ForgetLocal()]
    actions += [Add(RequestSpec("oldest", _prompt(0))), Drain()]
    return Program("full store", EngineOptions(KVCacheShape(num_blocks=10)), tuple(actions))
