"""Answers and failures of request_finished, and wait_for_save without layers, on hand-made histories."""

from __future__ import annotations

from typing import Any

import pytest
from histories import alloc, broken, compared, found, history, raised, witness

from kvconform.checks import CHECKS_BY_RULE
from kvconform.engine.events import HookCall


def finish(result: Any, error: str | None = None, blocks: list[int] | None = None) -> HookCall:
    args = {"request": "r1", "status": "FINISHED_ABORTED", "block_ids": [1, 2] if blocks is None else blocks}
    return HookCall(1, 1, "scheduler", "request_finished", args, result, error, "vendor.py:7 in hook")


@pytest.mark.parametrize("result", [None, True, (False,), (False, None, None), (False, "x"), "<vendor.Answer>"])
def test_answers_that_are_no_pair(result: Any) -> None:
    assert broken(finish(result)) == ["FIN-03"]


@pytest.mark.parametrize("result", [(False, None), (1, {"a": "1"}), (None, None), "<builtins.list>"])
def test_answers_that_vllm_takes(result: Any) -> None:
    assert broken(finish(result)) == []


def test_request_finished_that_raises_is_one_finding() -> None:
    assert broken(finish(None, "KeyError: 'r1'"), raised("request_finished")) == ["FIN-01"]


def test_ways_to_end_are_told_apart() -> None:
    assert witness("FIN-01", finish((False, None)), finish((False, None), blocks=[])) == 2
    assert witness("FIN-01", finish(None, "KeyError: 'r1'")) == 0


def test_blocks_handed_out_again_count_only_with_compared_bytes() -> None:
    assert witness("FIN-09", finish((False, None)), alloc(0)) == 0
    assert witness("FIN-09", finish((False, None)), alloc(0), compared(16)) == 2
    assert witness("FIN-09", finish((True, None)), alloc(0), compared(16)) == 0
    assert witness("SAVE-02", finish((True, None)), alloc(0), compared(16)) == 2


def test_exception_is_told_with_the_request_and_how_it_ended() -> None:
    (finding,) = found("FIN-01", finish(None, "KeyError: 'r1'"), finish(None, "KeyError: 'r2'"))
    assert finding.observed == (
        "for r1, FINISHED_ABORTED with blocks [1, 2], request_finished raised KeyError: 'r1' (vendor.py:7 in hook)"
    )
    assert finding.requests == ("r1",)
    (finding,) = found("FIN-01", finish(None, "KeyError: 'r1'", blocks=[]))
    assert finding.observed.startswith("for r1, FINISHED_ABORTED without blocks, ")
    unknown = HookCall(1, 1, "scheduler", "request_finished", {}, None, "KeyError: 'r1'", "vendor.py:7 in hook")
    (finding,) = found("FIN-01", unknown)
    assert finding.observed.startswith("for a request, ended without blocks, ")


def _seen(rule: str, *events: HookCall) -> dict[str, int]:
    return dict(CHECKS_BY_RULE[rule].witness(history(*events)))


def test_ways_to_end_are_named_and_counted() -> None:
    nested = HookCall(1, 1, "scheduler", "request_finished_all_groups", {"block_ids": [[0], [3]]}, (False, None))
    capped = HookCall(1, 1, "scheduler", "request_finished", {"status": "FINISHED_LENGTH_CAPPED"}, (False, None))
    assert _seen("FIN-01", finish((False, None)), finish((True, None)), nested, capped) == {
        "aborted, with blocks": 2,
        "ended, with blocks": 1,
        "length capped, without blocks": 1,
    }


def test_only_answers_are_answers() -> None:
    assert _seen("FIN-03", finish((False, None)), finish(None, "KeyError: 'r1'"), finish((True, None))) == {
        "answers": 2
    }


def test_answer_that_is_no_pair_is_told_as_it_is() -> None:
    (finding,) = found("FIN-03", finish("no"), finish(None))
    assert finding.observed == "request_finished for r1 returned 'no'"
    assert finding.requests == ("r1",)
    (finding,) = found("FIN-03", finish("<vendor.Answer>"))
    assert finding.observed == "request_finished for r1 returned <vendor.Answer>"


def _again(*events: HookCall) -> int:
    return witness("FIN-09", *events, compared(16))


def test_block_counts_once_for_each_request_that_left_it() -> None:
    left = finish((False, None))
    assert _again(left, alloc(0), alloc(0)) == 2, "the second request found it in use, or shares it"
    assert _again(left, alloc(0), left, alloc(0)) == 4
    assert _again(left, finish((False, None), blocks=[3]), alloc(0)) == 3
    assert _again(finish((False, None), blocks=[1, 9]), alloc(0), finish((False, None), blocks=[2]), alloc(0)) == 2


def test_null_block_is_left_by_nobody() -> None:
    null = HookCall(1, 1, "scheduler", "update_state_after_alloc", {"block_ids": [[0, 1]], "num_external_tokens": 0})
    assert _again(finish((False, None), blocks=[0, 1]), null) == 1
