"""Answers and failures of request_finished, and wait_for_save without layers, on hand-made histories."""

from __future__ import annotations

from typing import Any

import pytest
from histories import alloc, broken, compared, raised, witness

from kvconform.engine.history import HookCall


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
