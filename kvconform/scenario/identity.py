"""Scenario families for the identity of cached KV: requests and engines that look alike and must not share.

In each family one request's KV is stored and then asked for by another that differs in a single respect; the control is
the same program without that difference, where the KV has to be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st
from packaging.version import Version

from kvconform.api import vllm_version
from kvconform.engine.options import EngineOptions, Runner
from kvconform.kvcache.shape import KVCacheShape, LayerShape
from kvconform.scenario.family import BLOCK, RUNNERS, Family, if_wrong_bytes, store_then_reload
from kvconform.scenario.program import (
    PLACEHOLDERS,
    Action,
    Add,
    Drain,
    ForgetLocal,
    Item,
    Program,
    RequestSpec,
    Restart,
)

# Ending inside a block: how to count the blocks of a prompt that fills them is no matter of identity.
_PROMPT = ((1, 3 * BLOCK + 5),)
_MARKED = ((1, 8), (PLACEHOLDERS, 32), (2, 13))
_OPTIONS = st.builds(lambda runner: EngineOptions(runner=runner), st.sampled_from(RUNNERS))


@dataclass(frozen=True)
class LookAlike:
    """Two requests that differ in ``what`` and are the same in all else, most of them in all token ids.

    ``tagged`` tells that vLLM's own hashes tell them apart from 0.31.0 on only.
    """

    what: str
    first: RequestSpec
    second: RequestSpec
    tagged: bool = False

    @property
    def told_apart(self) -> bool:
        """Whether the installed vLLM itself tells them apart."""
        return not self.tagged or Version(vllm_version() or "0.31.0") >= Version("0.31.0")


def _pair(what: str, first: RequestSpec, *, tagged: bool = False, **changes: object) -> LookAlike:
    return LookAlike(what, first, replace(first, **changes), tagged)  # type: ignore[arg-type]


_PLAIN = RequestSpec("first", _PROMPT, 2)
_PICTURE = RequestSpec("first", _MARKED, 2, items=(Item(8, 16, "cat"),))
_PICTURES = RequestSpec("first", _MARKED, 2, items=(Item(16, 8, "cat"), Item(24, 8, "dog")))

#: Some with letters that a connector may not want in the name of a file. No connector meets one with @, /, a backslash
#: or NUL: vLLM's front-end refuses them (validate_cache_salt, vllm/entrypoints/generate/base/protocol.py, 0.32.0).
SALTS = (None, "", "a", "a:b", "a%b")

LOOK_ALIKES: tuple[LookAlike, ...] = (
    _pair("a LoRA adapter", _PLAIN, lora="tuned"),
    _pair("another LoRA adapter", replace(_PLAIN, lora="tuned"), lora="other"),
    _pair("the path of a LoRA adapter", replace(_PLAIN, lora="tuned@/v1"), lora="tuned@/v2", tagged=True),
    _pair("a cache salt", _PLAIN, salt="tenant"),
    _pair("another cache salt", replace(_PLAIN, salt="a:b"), salt="a%b"),
    _pair("a salt with the name of an adapter", replace(_PLAIN, lora="tuned"), lora=None, salt="tuned", tagged=True),
    _pair("a multimodal item", _PICTURE, items=(Item(8, 16, "dog"),)),
    _pair("the position of a multimodal item", _PICTURE, items=(Item(12, 16, "cat"),)),
    _pair("the order of multimodal items", _PICTURES, items=(Item(16, 8, "dog"), Item(24, 8, "cat"))),
    _pair("tokens of an earlier block", RequestSpec("first", ((1, 16), (9, 37)), 2), prompt=((2, 16), (9, 37))),
    _pair("the last tokens of a block", RequestSpec("first", ((1, 28), (2, 25)), 2), prompt=((1, 28), (3, 25))),
)


def _ask_each_twice(name: str, requests: Sequence[RequestSpec], options: EngineOptions) -> Program:
    """Each request computed or loaded, one after the other; then each again, now that the others have been there."""
    actions: list[Action] = []
    for again in ("", "-again"):
        for request in requests:
            actions += [Add(replace(request, id=request.id + again)), Drain(), ForgetLocal()]
    return Program(name, options, tuple(actions))


def _all_alike(program: Program) -> Program:
    """Every request is the first one, under its own id, and given as tokens."""
    first = next(action.request for action in program.actions if isinstance(action, Add))
    alike = tuple(
        Add(replace(first, id=action.request.id, embeds=False)) if isinstance(action, Add) else action
        for action in program.actions
    )
    return replace(program, actions=alike)


def look_alike(pair: LookAlike) -> Family:
    """Two requests of the same tokens, whose KV differs."""
    name, first, second = "look-alikes", pair.first, replace(pair.second, id="second")
    examples = (_ask_each_twice(name, (first, second), EngineOptions()),)
    drawn = st.builds(
        lambda options, turned: _ask_each_twice(name, (second, first) if turned else (first, second), options),
        _OPTIONS,
        st.booleans(),
    )
    sort = if_wrong_bytes("MATCH-17")
    return Family(name, "MATCH-17", examples, drawn, f"a difference in {pair.what}", _all_alike, sort=sort)


@st.composite
def _several(draw: st.DrawFn) -> Program:
    count = draw(st.integers(2, 4))
    requests = [
        RequestSpec(
            f"r{number}",
            _MARKED,
            draw(st.integers(1, 2)),
            lora=draw(st.sampled_from([None, "tuned", "other"])),
            salt=draw(st.sampled_from(SALTS)),
            items=draw(st.sampled_from([(), (Item(8, 16, "cat"),), (Item(8, 16, "dog"),), (Item(9, 16, "cat"),)])),
        )
        for number in range(count)
    ]
    stored: list[Action] = [Add(request) for request in requests]
    again: list[Action] = [Add(replace(request, id=f"{request.id}-again")) for request in requests]
    return Program("many look-alikes", draw(_OPTIONS), (*stored, Drain(), ForgetLocal(), *again, Drain()))


def many_look_alikes() -> Family:
    """Requests of the same tokens in one step, with any mixture of adapters, salts and items."""
    situation, sort = "differences in adapters, salts and items", if_wrong_bytes("MATCH-17")
    return Family("many look-alikes", "MATCH-17", (), _several(), situation, _all_alike, sort=sort)


def embeddings() -> Family:
    """Prompts given as embeddings: no token ids, and zeros where they would be."""
    first = RequestSpec("first", ((1, 16), (3, 33)), 2, embeds=True)
    name = "prompt embeddings"
    drawn = st.builds(
        lambda lengths, options: _ask_each_twice(
            name,
            [RequestSpec(f"r{i}", ((1, 16), (5 + i, n)), 2, embeds=True) for i, n in enumerate(lengths)],
            options,
        ),
        st.lists(st.integers(1, 3 * BLOCK), min_size=2, max_size=3),
        _OPTIONS,
    )
    second = RequestSpec("second", ((1, 16), (4, 33)), 2, embeds=True)
    examples = (_ask_each_twice(name, (first, second), EngineOptions()),)
    return Family(name, "MATCH-25", examples, drawn, "prompts given as embeddings", _all_alike)


def without_local_cache() -> Family:
    """Block hashes are there with prefix caching switched off, and nothing is ever found locally."""
    name, prompts = "no prefix caching", [((1, 3 * BLOCK + 1),), ((1, BLOCK), (2, 2 * BLOCK))]

    def build(lengths: Sequence[int], runner: Runner) -> Program:
        actions = store_then_reload([*prompts, *(((7 + i, n),) for i, n in enumerate(lengths))], 2)
        return Program(name, EngineOptions(runner=runner, enable_prefix_caching=False), tuple(actions))

    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, enable_prefix_caching=True))

    drawn = st.builds(build, st.lists(st.integers(1, 4 * BLOCK), max_size=2), st.sampled_from(RUNNERS))
    return Family(name, "MATCH-20", (build((), "v2"),), drawn, "prefix caching switched off", control)


# -- engines --

_SHAPE = KVCacheShape()
#: What the second engine on a store has different: name -> its options.
SET_UPS: dict[str, EngineOptions] = {
    "another model": EngineOptions(model="other-model"),
    "another dtype": EngineOptions(shape=replace(_SHAPE, layers=(LayerShape(dtype="bfloat16"),))),
    "another layout": EngineOptions(shape=replace(_SHAPE, layout="LBHNC")),
    "another block size": EngineOptions(shape=replace(_SHAPE, layers=(LayerShape(block_size=8),))),
    # The heads of the same model are split over the ranks.
    "another number of ranks": EngineOptions(workers=2, shape=replace(_SHAPE, layers=(LayerShape(num_kv_heads=2),))),
}
_ONE_RANK = EngineOptions(shape=replace(_SHAPE, layers=(LayerShape(num_kv_heads=4),)))


def _one_after_the_other(length: int, first: EngineOptions, second: EngineOptions) -> Program:
    """The same prompt on an engine, on one of another set-up, and on one like the first, all on one store."""
    requests = [RequestSpec(name, ((1, length),), 2) for name in ("store", "other", "again")]
    actions: list[Action] = [
        Add(requests[0]), Drain(), Restart(options=second),
        Add(requests[1]), Drain(), Restart(options=first), Add(requests[2]), Drain(),
    ]  # fmt: skip
    return Program("one store", first, tuple(actions))


def _same_set_up(program: Program) -> Program:
    actions = tuple(Restart() if isinstance(action, Restart) else action for action in program.actions)
    return replace(program, actions=actions)


def other_set_up(what: str) -> Family:
    """Two engines that agree in all but one respect, one after the other on the same store."""
    name, second = "one store", SET_UPS[what]
    first = EngineOptions() if second.workers == 1 else _ONE_RANK
    examples = (_one_after_the_other(3 * BLOCK + 1, first, second),)
    drawn = st.builds(
        lambda length, turned: _one_after_the_other(length, *((second, first) if turned else (first, second))),
        st.sampled_from([2 * BLOCK, 4 * BLOCK + 1]),
        st.booleans(),
    )
    sort = if_wrong_bytes("MATCH-18")
    return Family(name, "MATCH-18", examples, drawn, f"{what} in between", _same_set_up, sort=sort)


def stored_and_asked_for() -> tuple[Program, Program]:
    """What one process stores, and what others ask for; with everything that goes into a key."""
    requests = [replace(_PLAIN, id="plain"), replace(_PICTURE, id="adapted", lora="tuned", salt="tenant")]
    actions: list[Action] = []
    for request in requests:
        actions += [Add(request), Drain()]
    program = Program("another process", EngineOptions(), tuple(actions))
    return program, program
