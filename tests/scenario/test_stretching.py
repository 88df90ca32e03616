"""Programs in which a block is a chunk of many blocks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvconform.cases.limits import program_problem
from kvconform.engine.options import EngineOptions
from kvconform.isolation.codec import dump_program, load_program
from kvconform.kvcache.shape import LARGEST_CHUNK, KVCacheShape, LayerShape
from kvconform.scenario import transfer
from kvconform.scenario.hybrid import WINDOWED
from kvconform.scenario.identity import LOOK_ALIKES, LookAlike
from kvconform.scenario.program import Add, Drain, HandOff, Item, Program, RequestSpec, Restart
from kvconform.scenario.stretching import stretched
from kvconform.scenario.wording import program_lines

SIZES = st.sampled_from([32, 48, 64, 256, 1024])


def request_of(request: RequestSpec, size: int = 256) -> RequestSpec:
    (action,) = stretched(Program("p", EngineOptions(), (Add(request),), chunk_size=size)).actions
    assert isinstance(action, Add)
    return action.request


def length_of(length: int, size: int = 256) -> int:
    return request_of(RequestSpec("r", ((1, length),)), size).prompt_length


def test_programs_for_connectors_without_chunks_are_played_as_they_are() -> None:
    program = transfer.reload().examples[0]
    assert stretched(program) is program


@pytest.mark.parametrize(
    ("length", "long"),
    [(1, 1), (15, 15), (16, 256), (17, 257), (18, 258), (19, 256 + 243), (31, 511), (32, 512), (33, 513), (40, 760)],
)
def test_prompts_end_as_far_from_the_end_of_a_chunk_as_they_did_from_the_end_of_a_block(length: int, long: int) -> None:
    assert length_of(length) == long


@given(st.integers(1, 400), st.integers(1, 400), SIZES)
def test_a_longer_prompt_stays_the_longer_one_and_has_as_many_whole_chunks_as_it_had_blocks(
    one: int, other: int, size: int
) -> None:
    assert (length_of(one, size) < length_of(other, size)) == (one < other)
    assert length_of(one, size) // size == one // 16
    assert length_of(one, size) % 16 == one % 16


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), SIZES)
def test_segments_end_where_such_a_prompt_does_or_within_the_same_block(lengths: list[int], size: int) -> None:
    prompt = tuple(enumerate(lengths))
    parts = request_of(RequestSpec("r", prompt), size).prompt
    assert [seed for seed, _ in parts] == [seed for seed, _ in prompt]
    before = after = 0
    for length, (_, long) in zip(lengths, parts, strict=True):
        end = before + length
        expected = long == length if before // 16 == end // 16 else after + long == length_of(end, size)
        assert expected
        before, after = end, after + long


def test_what_is_generated_stays_as_long_and_the_next_turn_comes_behind_it() -> None:
    first = RequestSpec("first", ((1, 27),), 5)
    turn = request_of(RequestSpec("second", ((2, 20),), 2, continues=first))
    assert turn.continues == replace(first, prompt=((1, 507),))
    assert turn.prompt == ((2, 4 * 256 - 12 - 512),), "52 tokens were 12 short of four blocks"
    assert turn.max_tokens == 2


@pytest.mark.parametrize("pair", LOOK_ALIKES, ids=lambda pair: pair.what)
def test_look_alikes_still_look_alike_and_differ(pair: LookAlike) -> None:
    first, second = request_of(pair.first), request_of(pair.second)
    assert first.prompt_length == second.prompt_length
    assert replace(first, id="second") != replace(second, id="second")


def test_items_keep_their_order_and_their_distance_from_a_border() -> None:
    items = (Item(8, 12, "cat"), Item(20, 8, "dog"), Item(32, 1, "cow"))
    long = request_of(RequestSpec("r", ((1, 53),), items=items)).items
    assert [(item.start, item.start + item.length) for item in long] == [(8, 500), (500, 508), (512, 513)]
    assert all(before.start + before.length <= item.start for before, item in pairwise(long))


def test_pools_windows_and_token_budgets_grow_alike() -> None:
    options = EngineOptions(WINDOWED, max_num_batched_tokens=24)
    long = stretched(Program("p", options, (Restart(options),), chunk_size=64))
    assert long.options.shape.num_blocks == (WINDOWED.num_blocks - 1) * 4 + 1
    assert [layer.sliding_window for layer in long.options.shape.layers] == [None, 160]
    assert [layer.block_size for layer in long.options.shape.layers] == [16, 16]
    assert long.options.max_num_batched_tokens == 120
    assert long.actions == (Restart(long.options),)


def test_a_program_is_stretched_once() -> None:
    program = Program("p", EngineOptions(), (Add(RequestSpec("r", ((1, 20),))), Drain()), chunk_size=64)
    assert stretched(stretched(program)) == stretched(program)


def test_requests_that_are_handed_off_are_stretched() -> None:
    hand_off = HandOff(RequestSpec("d", ((1, 20),)), of="p")
    (action,) = stretched(Program("p", actions=(hand_off,), chunk_size=64)).actions
    assert action == HandOff(RequestSpec("d", ((1, 116),)), of="p")


def test_the_words_are_those_of_what_is_played() -> None:
    program = Program("p", EngineOptions(), (Add(RequestSpec("r", ((1, 33),))), Drain()), chunk_size=256)
    text = "\n".join(program_lines(program))
    assert "497 blocks" in text
    assert "513 tokens" in text


def test_a_program_keeps_its_chunk_size_in_a_file() -> None:
    program = Program("p", EngineOptions(), (Drain(),), chunk_size=48)
    assert load_program(dump_program(program)) == program


@pytest.mark.parametrize("size", [0, -16, 8, 17, 2 * LARGEST_CHUNK])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"chunk_size is {size}, and must be a multiple of 16, 4096 at most"):
        Program("p", chunk_size=size)


def test_what_a_program_asks_for_is_measured_as_it_is_played() -> None:
    shape = KVCacheShape((LayerShape(64, num_kv_heads=8, head_size=64),), num_blocks=100)
    assert program_problem(Program("p", EngineOptions(shape))) == ""
    assert "its KV cache has" in program_problem(Program("p", EngineOptions(shape), chunk_size=4096))
    endless = tuple(Add(RequestSpec(f"r{index}", ((1, 100),))) for index in range(60))
    assert program_problem(Program("p", actions=endless)) == ""
    assert "its requests have" in program_problem(Program("p", actions=endless, chunk_size=4096))
