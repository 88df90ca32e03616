"""From a finding and the history to a picture of the block table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kvconform.checks.model import Finding
from kvconform.engine.byte_events import Arrived, BlockTable, Stray, WrongBytes
from kvconform.engine.events import Event, HookCall
from kvconform.engine.history import History
from kvconform.kvcache.provenance import runs
from kvconform.picture import MAX_BLOCKS, MAX_WRONG, STRAY, Group, Picture, Wrong


def picture_of(finding: Finding, history: History) -> Picture | None:
    """The picture of wrong bytes, of a load that was not there, or of a stray write; None for any other finding."""
    match finding.at:
        case WrongBytes() as wrong:
            place = (wrong.engine, wrong.step, wrong.request, wrong.rank)
            all_wrong = [w for w in history.of(WrongBytes) if (w.engine, w.step, w.request, w.rank) == place]
            return _table(wrong, all_wrong, history)
        case Arrived(wrong=wrong_slots) as arrived if wrong_slots:
            return _table(arrived, [arrived], history)
        case Stray() as stray if stray.block >= 0 and stray.block_size:
            return _stray(stray)
        case _:
            return None


def pictures_of(findings: Sequence[Finding], history: History) -> dict[str, tuple[Picture, ...]]:
    """Rule id -> pictures of its findings, each once; at most two of a rule."""
    found: dict[str, list[Picture]] = {}
    for finding in findings:
        picture = picture_of(finding, history)
        known = found.setdefault(finding.rule, [])
        if picture is not None and picture not in known and len(known) < 2:
            known.append(picture)
    return {rule: tuple(pictures) for rule, pictures in found.items()}


def _table(wrong: WrongBytes | Arrived, all_wrong: Sequence[WrongBytes | Arrived], history: History) -> Picture | None:
    """The block table at a finding, with everything that was found ``all_wrong`` in it."""
    place = (wrong.engine, wrong.step, wrong.request, wrong.rank)
    table = next((t for t in history.of(BlockTable) if (t.engine, t.step, t.request, t.rank) == place), None)
    if table is None:
        return None
    if wrong.layer:  # the layer that the finding is about goes first
        all_wrong = sorted(all_wrong, key=lambda w: w.layer != wrong.layer)
    return Picture(
        "block table",
        table.engine,
        table.step,
        table.rank,
        table.request,
        _local(table, history),
        table.computed,
        table.scheduled,
        table.external_first,
        table.external_last,
        tuple(
            _group(number, table.block_sizes[number], table.blocks[number], all_wrong)
            for number in range(len(table.blocks))
            if table.block_sizes[number]
        ),
    )


def _group(number: int, block_size: int, blocks: tuple[int, ...], all_wrong: Sequence[WrongBytes | Arrived]) -> Group:
    own = [wrong for wrong in all_wrong if wrong.group == number]
    held = [Wrong(one.first, one.last, one.kind, one.what) for one in (own[0].held if own else ())]
    return Group(
        number,
        block_size,
        blocks[:MAX_BLOCKS],
        max(0, len(blocks) - MAX_BLOCKS),
        own[0].layer if own else "",
        len({wrong.layer for wrong in own}),
        tuple(held[:MAX_WRONG]),
        max(0, len(held) - MAX_WRONG),
    )


def _local(table: BlockTable, history: History) -> int:
    """Tokens of the local hit: what the scheduler told the connector when it asked for the last time."""
    if table.external_last > table.external_first:
        return table.external_first
    asked = 0
    for event in history.events:
        if event is table:
            break
        if isinstance(event, HookCall) and event.hook == "get_num_new_matched_tokens" and _is_of(event, table):
            asked = event.args["num_computed_tokens"]
    return int(asked)


def _is_of(call: HookCall, table: Event) -> bool:
    return call.engine == table.engine and call.args.get("request") == getattr(table, "request", None)


def _stray(stray: Stray) -> Picture:
    held = (re.sub(r"^tokens? \S+ holds? ", "", sentence) for sentence in stray.observed)
    what = "; ".join(held)[:500] or "other bytes than before"
    changed = runs(slot for slot in stray.slots if slot >= 0)
    wrong = [Wrong(first, last, STRAY, f"{what}, written {stray.phase}") for first, last in changed]
    group = Group(
        0, stray.block_size, (stray.block,), 0, stray.layer, 1, tuple(wrong[:MAX_WRONG]), max(0, len(wrong) - MAX_WRONG)
    )
    return Picture("stray write", stray.engine, stray.step, 0, " and ".join(stray.owners), 0, 0, 0, 0, 0, (group,))
