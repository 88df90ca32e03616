"""Pictures of block tables: from wrong bytes in a history to every form of a report."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from making import MUSTS, as_data, entry, make, result, sealed

from kvconform.checks.model import Finding
from kvconform.engine.byte_events import Arrived, BlockTable, Held, Stray, WrongBytes
from kvconform.engine.events import HookCall
from kvconform.engine.history import History
from kvconform.isolation.codec import dump_history, load_history
from kvconform.kvcache.provenance import Origin, held_kind, held_words
from kvconform.picture import STATES, WRONG_KINDS, Picture, blocks_of, lines_of
from kvconform.report import html, markdown
from kvconform.report.failure_text import failure_text, trace
from kvconform.report.json_report import from_data, report_schema, schema_problems
from kvconform.report.picturing import picture_of, pictures_of
from kvconform.report.verify import verify
from kvconform.rules import load_catalogue
from kvconform.verdicts import RuleResult, Verdict

LAYER, OTHER = "layers.0", "layers.1"
NASTY = "<img src=x onerror=y>'\"&\u202e\x1b[31m"


def wrong(layer: str = LAYER, group: int = 0, step: int = 4) -> WrongBytes:
    held = (Held(20, 31, "other request", "r3's tokens 4-15"), Held(32, 32, "zero", "zeros"))
    return WrongBytes(1, step, "r1", layer, group, tuple(range(20, 33)), (6, 7), True, ("x",), held=held)


def history(*more: object) -> History:
    """r1: blocks 5, 6, 7, 8 of 16 tokens; 16 of a local hit, 32 promised, 1 computed in the step; 2 groups."""
    table = BlockTable(1, 4, "r1", (16, 32), ((5, 6, 7, 8), (0, 9)), 48, 1, 16, 48)
    return History([table, wrong(), wrong(OTHER), *more])  # type: ignore[list-item]


def finding(at: object) -> Finding:
    return Finding("LOAD-01", "right bytes", "wrong bytes", at, requests=("r1",), symptom=True)  # type: ignore[arg-type]


def picture() -> Picture:
    known = history()
    found = picture_of(finding(known.events[1]), known)
    assert found is not None
    return found


def test_the_picture_tells_local_external_computed_and_wrong_tokens_apart() -> None:
    shown = picture()
    assert [shown.state(p) for p in (0, 15, 16, 47, 48, 49)] == [
        "local", "local", "external", "external", "step", "unused",
    ]  # fmt: skip
    first, second = shown.groups
    assert (first.blocks, first.layer, first.layers) == ((5, 6, 7, 8), LAYER, 2)
    assert (second.blocks, second.layer, second.wrong) == ((0, 9), "", ())
    parts = [[(s.first, s.last, s.state, bool(s.wrong)) for s in block.segments] for block in blocks_of(shown, first)]
    assert parts == [
        [(0, 15, "local", False)],
        [(16, 19, "external", False), (20, 31, "external", True)],
        [(32, 32, "external", True), (33, 47, "external", False)],
        [(48, 48, "step", False), (49, 63, "unused", False)],
    ]
    assert [block.states for block in blocks_of(shown, second)] == [("null",), ("external", "step", "unused")]


def test_tokens_that_no_load_brought_are_local_as_far_as_the_scheduler_said() -> None:
    asked = {"request": "r1", "num_computed_tokens": 32}
    call = HookCall(1, 3, "scheduler", "get_num_new_matched_tokens", asked, (0, False))
    table = BlockTable(1, 4, "r1", (16,), ((5, 6, 7, 8),), 48, 1, 0, 0)
    known = History([call, table, wrong()])
    shown = picture_of(finding(known.events[2]), known)
    assert shown is not None
    assert [shown.state(p) for p in (0, 31, 32, 47)] == ["local", "local", "computed", "computed"]


def test_the_text_form_is_short_and_says_the_same() -> None:
    assert list(lines_of(picture())) == [
        "Block table of r1 (engine 1 step 4):",
        "  group 0, 16 tokens a block, wrong in layers.0 and 1 more layer",
        "    block 5  tokens 0-15   local hit",
        "    block 6  tokens 16-31  from the connector",
        "      WRONG 20-31: r3's tokens 4-15 (another request's KV)",
        "    block 7  tokens 32-47  from the connector",
        "      WRONG 32: zeros",
        "    block 8  tokens 48-63  computed in this step + not used yet",
        "  group 1, 32 tokens a block, no wrong bytes",
        "    block 0  tokens 0-31   null block",
        "    block 9  tokens 32-63  from the connector + computed in this step + not used yet",
    ]
    known = history()
    text = failure_text([finding(known.events[1])], known, None, target="x:Y", reproduce="pytest")
    assert "Block table of r1" in text


def test_a_stray_write_shows_the_block_that_it_hit() -> None:
    stray = Stray(1, 2, "while saving", LAYER, 7, (3, 4, 9), ("r1", "r2"), ("token 3 holds zeros",), False, 16)
    shown = picture_of(finding(stray), History([stray]))
    assert shown is not None
    assert list(lines_of(shown)) == [
        "A block that the connector changed, of r1 and r2 (engine 1 step 2):",
        "  16 tokens a block, wrong in layers.0",
        "    block 7  slots 0-15  belongs to a request",
        "      WRONG 3-4: zeros, written while saving",
        "      WRONG 9: zeros, written while saving",
    ]
    guard = replace(stray, block=-1, slots=(-1,))
    assert picture_of(finding(guard), History([guard])) is None


def test_a_load_that_was_reported_too_early_shows_its_block_table() -> None:
    table = BlockTable(1, 4, "r1", (16,), ((5, 6, 7),), 48, 0, 16, 48)
    held = (Held(20, 22, "never written", "poison of block 6 (engine 1)"),)
    arrived = Arrived(1, 4, "r1", 32, LAYER, 3, (6, 7), observed=("tokens 20-22 hold poison",), held=held)
    known = History([table, arrived])
    shown = picture_of(finding(arrived), known)
    assert shown is not None
    assert list(lines_of(shown)) == [
        "Block table of r1 (engine 1 step 4):",
        "  group 0, 16 tokens a block, wrong in layers.0",
        "    block 5  tokens 0-15   local hit",
        "    block 6  tokens 16-31  from the connector",
        "      WRONG 20-22: poison of block 6 (engine 1) (never written since the block was handed out)",
        "    block 7  tokens 32-47  from the connector",
    ]
    assert trace(known, [finding(arrived)], {"r1"}) == [
        "engine 1 step  4  LOAD REPORTED AS COMPLETE with 3 tokens wrong in layers.0 for r1"
    ]
    whole = replace(arrived, wrong=0, layer="", held=())
    assert picture_of(finding(whole), History([table, whole])) is None


def test_findings_of_other_kinds_have_no_picture_and_equal_ones_share_it() -> None:
    known = history()
    assert picture_of(finding(HookCall(1, 1, "worker", "shutdown")), known) is None
    assert picture_of(finding(wrong(step=5)), known) is None, "no table was recorded for that step"
    same = finding(known.events[1])
    assert pictures_of([same, same], known) == {"LOAD-01": (picture(),)}


@pytest.mark.parametrize(
    ("origin", "own", "kind", "words"),
    [
        (Origin("content", "r3", 4, LAYER), False, "other request", "r3's tokens 4-5"),
        (Origin("content", "r1", 4, LAYER), True, "other position", "r1's tokens 4-5"),
        (Origin("content", "r1", 9, OTHER), True, "other layer", "r1's tokens 9-5 of layer layers.1"),
        (Origin("content", "r1", 9, LAYER, 1), True, "other rank", "r1's tokens 9-5 of rank 1"),
        (Origin("content", "r1", 9, LAYER, detail="K and V swapped"), True, "rearranged", "r1's tokens 9-5 with K and"),
        (Origin("tainted", "r1", 9, LAYER), True, "on wrong KV", "r1's tokens 9-5"),
        (Origin("poison", "block 7 (engine 1)", 0, LAYER), False, "never written", "poison of block 7 (engine 1)"),
        (Origin("poison", "an earlier life of block 7"), False, "stale", "poison of an earlier life of block 7"),
        (Origin("zero"), False, "zero", "zeros"),
        (Origin("unknown"), False, "unknown", "bytes that nobody computed"),
    ],
)
def test_every_origin_has_a_kind(origin: Origin, own: bool, kind: str, words: str) -> None:
    assert held_kind(origin, 9, LAYER, 0, own=own) == kind
    assert held_words(origin, replace(origin, position=5), LAYER, 0).startswith(words)
    assert kind in WRONG_KINDS


def test_a_picture_travels_between_processes() -> None:
    known = history()
    assert load_history(json.loads(json.dumps(dump_history(known)))).events == known.events
    shown = picture()
    told = RuleResult("LOAD-01", "x:Y", Verdict.FAIL, pictures=(shown,))
    assert RuleResult.from_dict(json.loads(json.dumps(told.to_dict()))) == told


def test_the_report_has_it_and_the_page_draws_it() -> None:
    document = make([result(MUSTS[0], Verdict.FAIL, message="text", pictures=(picture(),))])
    assert entry(document, MUSTS[0]).pictures == (picture(),)
    data = as_data(document)
    assert schema_problems(data) == []
    assert from_data(data) == document
    assert verify(data, load_catalogue(), frozenset()).problems == ()
    page = html.render(document)
    assert "Block table of r1" in page
    assert page.count('<li class="block wrong">') == 2
    assert page.count('<li class="block">') == 4
    assert "<b>tokens 20–31</b>: r3&#39;s tokens 4-15" in page
    assert '<i class="s-external bad" style="flex: 12" title="tokens 20-31: from the connector; wrong: r3' in page


def test_the_schema_knows_every_kind_and_bounds_the_numbers() -> None:
    schema = report_schema()["$defs"]["picture"]["properties"]
    kinds = schema["groups"]["items"]["properties"]["wrong"]["items"]["properties"]["kind"]["enum"]
    assert kinds == list(WRONG_KINDS)
    data = as_data(make([result(MUSTS[0], Verdict.FAIL, pictures=(picture(),))]))
    group = data["targets"][0]["rules"][0]["pictures"][0]["groups"][0]
    for key, value in (("block_size", 0), ("block_size", 10**12), ("blocks", [1] * 129), ("wrong", "x")):
        assert schema_problems({**data, "targets": _with(data, {**group, key: value})})


def _with(data: dict[str, list[dict[str, list[dict[str, list[dict[str, object]]]]]]], group: object) -> object:
    targets = json.loads(json.dumps(data["targets"]))
    targets[0]["rules"][0]["pictures"][0]["groups"][0] = group
    return targets


def test_whatever_stands_in_a_picture_is_only_text_and_secrets_are_masked() -> None:
    shown = picture()
    groups = tuple(replace(g, layer=NASTY, wrong=tuple(replace(w, what=NASTY) for w in g.wrong)) for g in shown.groups)
    nasty = replace(shown, request=NASTY + " hunter2", groups=groups)
    document = make([result(MUSTS[0], Verdict.FAIL, message="x", pictures=(nasty,))], secrets=frozenset({"hunter2"}))
    page = html.render(document)
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "hunter2" not in page
    assert "hunter2" not in json.dumps(as_data(document))
    assert verify(sealed(as_data(document)), load_catalogue(), frozenset()).problems == ()


def test_a_forged_picture_is_drawn_without_harm() -> None:
    forged = replace(picture(), external_last=10**9, computed=10**9)
    (first, *_) = forged.groups
    forged = replace(forged, groups=(replace(first, block_size=10**9, blocks=tuple(range(128))),))
    page = html.render(make([result(MUSTS[0], Verdict.FAIL, message="x", pictures=(forged,))]))
    assert page.count('<li class="block') == 128
    assert set(STATES) >= {block.states[0] for block in blocks_of(forged, forged.groups[0])}


def test_markdown_shows_the_text_form() -> None:
    known = history()
    text = failure_text([finding(known.events[1])], known, None, target="x:Y", reproduce="pytest")
    shown = markdown.render(make([result(MUSTS[0], Verdict.FAIL, message=text)]))
    assert "WRONG 20-31: r3's tokens 4-15 (another request's KV)" in shown
