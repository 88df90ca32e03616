"""Statistics of measurements, and what is measured: numbers that can be worked out by hand."""

from __future__ import annotations

import pytest

from kvconform.bench.figures import LARGE_SPREAD, Rate, cost, not_measured, rate, spread
from kvconform.bench.plan import DEFAULT_BLOCKS, DEFAULT_LAYOUTS, HYBRID, Case, parse_blocks, parse_layouts
from kvconform.errors import UsageError


def test_a_rate_is_the_median_of_its_rounds_and_its_share_that_of_each_round_beside_its_own_memcpy() -> None:
    found = rate([2e9, 1e9, 4e9], [100, 100, 90], [4e9, 4e9, 4e9])
    assert found == Rate(3, 100, 2e9, spread([2e9, 1e9, 4e9]), 0.5, "")
    assert found.gb_per_second == 2.0
    # The second round was slow for both: beside each other they are as fast as ever.
    assert rate([8e9, 1e9], [1, 1], [16e9, 2e9]).share_of_memcpy == 0.5


def test_a_rate_without_rounds_has_no_figure_and_says_why() -> None:
    found = rate([], [], [], "no hit")
    assert (found.rounds, found.bytes_per_second, found.share_of_memcpy, found.note) == (0, 0.0, 0.0, "no hit")
    assert not found.doubtful


@pytest.mark.parametrize(
    ("rates", "expected"), [([5.0], 0.0), ([4.0, 4.0, 4.0], 0.0), ([1.0, 2.0, 3.0, 4.0, 5.0], 2 / 3)]
)
def test_spread_is_the_distance_of_the_quartiles_over_the_median(rates: list[float], expected: float) -> None:
    assert spread(rates) == pytest.approx(expected)


def test_a_large_spread_makes_a_figure_doubtful_and_one_wild_round_does_not() -> None:
    steady = [1e9, 1.01e9, 0.99e9, 1e9, 1.02e9]
    assert not rate(steady, [1] * 5).doubtful
    assert not rate([*steady, 9e9], [1] * 6).doubtful
    assert rate([1e9, 2e9, 3e9], [1] * 3).doubtful
    assert rate([1e9, 1e9], [1] * 2).doubtful
    assert not rate([1e9] * 3, [1] * 3).doubtful
    assert rate([1e9, 2e9, 3e9], [1] * 3).spread > LARGE_SPREAD


def test_what_is_faster_than_memory_is_doubtful() -> None:
    found = rate([60e9, 60e9, 60e9], [1, 1, 1], [4e9, 4e9, 4e9])
    assert found.too_fast
    assert found.doubtful
    assert not rate([5e9] * 3, [1] * 3, [4e9] * 3).doubtful


def test_a_cost_has_the_median_and_the_value_that_95_of_100_calls_do_not_exceed() -> None:
    found = cost("start_load_kv", "load", [float(value) for value in range(100, 0, -1)])
    assert (found.count, found.median, found.p95) == (100, 50.5, 95.0)
    assert cost("start_load_kv", "load", [3.0]).p95 == 3.0


def test_nothing_measured_is_not_busy() -> None:
    assert not not_measured("why", "cpu").busy


def test_blocks_are_counted_in_order_and_once() -> None:
    assert parse_blocks("64, 8,64") == (8, 64)
    assert parse_blocks(None) == DEFAULT_BLOCKS


@pytest.mark.parametrize("text", ["", "0", "-8", "8,,64", "many", "8 64", "99999", "²", "1e3"])
def test_other_blocks_are_refused_in_one_sentence_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"numbers of blocks from 1 to 16384, .* such as 8,64,256,1024\.$"):
        parse_blocks(text)


def test_layouts_are_those_of_vllm_and_hybrid() -> None:
    assert parse_layouts("BLHNC, hybrid,BLHNC") == ("BLHNC", HYBRID)
    assert parse_layouts(None) == DEFAULT_LAYOUTS
    with pytest.raises(UsageError, match=r"'NHD' is no layout; the layouts are LBNHC, .* and hybrid"):
        parse_layouts("LBNHC,NHD")


@pytest.mark.parametrize("layout", DEFAULT_LAYOUTS)
def test_a_cache_has_room_for_a_prompt_of_two_tokens_more_than_its_full_blocks(layout: str) -> None:
    case = Case(layout, 8)
    assert case.prompt == 8 * 16 + 2
    groups = len(case.shape.layers)
    # Null block beside it; each group has the whole prompt before a window lets go of blocks.
    assert case.shape.num_blocks - 1 >= groups * 9
    assert sum(layer.count for layer in case.shape.layers) == 4
