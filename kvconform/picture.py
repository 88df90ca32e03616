"""The picture of a finding: a request's block table, which of it the connector promised, and what is wrong in it.

Plain data, as it travels from the test that found something to every form of the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Literal

Kind = Literal["block table", "stray write"]
State = Literal["local", "external", "computed", "step", "unused", "null", "owned", "free"]

#: What the tokens of a block are, for a reader.
STATES: dict[State, str] = {
    "local": "local hit",
    "external": "from the connector",
    "computed": "computed before",
    "step": "computed in this step",
    "unused": "not used yet",
    "null": "null block",
    "owned": "belongs to a request",
    "free": "nobody's",
}
STRAY = "stray write"
#: What wrong tokens hold, as a reader tells it apart.
WRONG_KINDS = {
    "other request": "another request's KV",
    "other position": "the same tokens' KV of other positions",
    "other layer": "KV of another layer",
    "other rank": "KV of another worker",
    "rearranged": "the right bytes in another order",
    "on wrong KV": "computed on top of wrong KV",
    "never written": "never written since the block was handed out",
    "stale": "what the block held in an earlier life",
    "zero": "zeros",
    "constant": "one value everywhere",
    "unknown": "bytes that nobody computed in this run",
    STRAY: "",
}
#: Bounds of one picture: no scenario of the suites comes near them.
MAX_BLOCKS, MAX_WRONG = 128, 64


@dataclass(frozen=True)
class Wrong:
    """A run of tokens (slots of the block, for a stray write) that hold something else."""

    first: int
    last: int
    #: One of :data:`WRONG_KINDS`.
    kind: str
    #: What they hold, in a few words.
    what: str


@dataclass(frozen=True)
class Group:
    """One KV cache group of the request."""

    group: int
    #: Tokens per block.
    block_size: int
    #: Block ids in the table's order; 0 is the null block.
    blocks: tuple[int, ...]
    #: How many more there were.
    blocks_cut: int
    #: The first layer with wrong bytes, which ``wrong`` is about, and how many layers have some; empty and 0 if none.
    layer: str
    layers: int
    wrong: tuple[Wrong, ...]
    wrong_cut: int


@dataclass(frozen=True)
class Picture:
    """One request at the moment in which wrong bytes were found."""

    kind: Kind
    engine: int
    step: int
    rank: int
    #: For a stray write those whose KV it hit, or nobody.
    request: str
    #: Tokens [0, local) were a hit in the local prefix cache, tokens [0, computed) believed to be computed.
    local: int
    computed: int
    #: Tokens that the step computes after them.
    scheduled: int
    #: Tokens [external_first, external_last) were promised by the connector.
    external_first: int
    external_last: int
    groups: tuple[Group, ...]

    def state(self, position: int) -> State:
        """What the token at a position is."""
        if self.kind == "stray write":
            return "owned" if self.request else "free"
        if position >= self.computed:
            return "step" if position < self.computed + self.scheduled else "unused"
        if self.external_first <= position < self.external_last:
            return "external"
        return "local" if position < self.local else "computed"

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Picture:
        """The inverse of :meth:`to_data`, tuples being lists or not."""
        groups = []
        for group in data["groups"]:
            wrong = tuple(Wrong(**one) for one in group["wrong"])
            groups.append(Group(**{**group, "blocks": tuple(group["blocks"]), "wrong": wrong}))
        return cls(**{**data, "groups": tuple(groups)})


@dataclass(frozen=True)
class Segment:
    """Neighbouring tokens of one block that are of the same kind."""

    first: int
    last: int
    state: State
    wrong: Wrong | None

    @property
    def tokens(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Block:
    """One block of the table, cut into segments."""

    id: int
    first: int
    last: int
    segments: tuple[Segment, ...]

    @property
    def is_wrong(self) -> bool:
        return any(segment.wrong is not None for segment in self.segments)

    @property
    def states(self) -> tuple[State, ...]:
        return tuple(dict.fromkeys(segment.state for segment in self.segments))


def blocks_of(picture: Picture, group: Group) -> tuple[Block, ...]:
    """A group's blocks, ready to be drawn."""
    return tuple(_block(picture, group, index) for index in range(len(group.blocks)))


def _block(picture: Picture, group: Group, index: int) -> Block:
    size, number = group.block_size, group.blocks[index]
    first, stop = index * size, (index + 1) * size
    used = picture.computed + picture.scheduled
    cuts = {picture.local, picture.computed, picture.external_first, picture.external_last, used}
    cuts |= {at for wrong in group.wrong for at in (wrong.first, wrong.last + 1)}
    starts = [first, *sorted(at for at in cuts if first < at < stop)]
    is_null = number == 0 and picture.kind == "block table"
    segments: list[Segment] = []
    for start, end in zip(starts, [*starts[1:], stop], strict=True):
        state = "null" if is_null else picture.state(start)
        wrong = next((one for one in group.wrong if one.first <= start <= one.last), None)
        if segments and (segments[-1].state, segments[-1].wrong) == (state, wrong):
            segments[-1] = replace(segments[-1], last=end - 1)
        else:
            segments.append(Segment(start, end - 1, state, wrong))
    return Block(number, first, stop - 1, tuple(segments))


def lines_of(picture: Picture) -> Iterator[str]:
    """The picture as text, without indentation: neighbouring blocks of the same kind share a line."""
    at = f"engine {picture.engine} step {picture.step}" + (f", worker {picture.rank}" if picture.rank else "")
    yield f"{title_of(picture)} ({at}):"
    for group in picture.groups:
        yield f"  {about_group(group, picture)}"
        runs = list(_runs(blocks_of(picture, group)))
        rows = [_row(run, picture) for run in runs]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for run, row in zip(runs, rows, strict=True):
            cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield f"    {cells}".rstrip()
            wrong = dict.fromkeys(segment.wrong for block in run for segment in block.segments if segment.wrong)
            for one in wrong:
                what = WRONG_KINDS.get(one.kind, one.kind)
                note = "" if what in (one.what, "") else f" ({what})"
                yield f"      WRONG{_where(one, run)}: {one.what}{note}"
        if group.blocks_cut:
            yield f"    ({group.blocks_cut} more blocks)"


def title_of(picture: Picture) -> str:
    """What is shown."""
    if picture.kind == "block table":
        return f"Block table of {picture.request}"
    return "A block that the connector changed" + (f", of {picture.request}" if picture.request else "")


def about_group(group: Group, picture: Picture) -> str:
    """One line over a group's blocks."""
    others = group.layers - 1
    more = f" and {others} more layer{'s' if others > 1 else ''}" if others > 0 else ""
    about = f"group {group.group}, " if picture.kind == "block table" else ""
    found = f"wrong in {group.layer}{more}" if group.layer else "no wrong bytes"
    return f"{about}{group.block_size} tokens a block, {found}"


def _runs(blocks: tuple[Block, ...]) -> Iterator[list[Block]]:
    for _, run in groupby(blocks, lambda block: (block.states, tuple(s.wrong for s in block.segments if s.wrong))):
        yield list(run)


def _row(run: list[Block], picture: Picture) -> tuple[str, str, str]:
    ids = ", ".join(str(block.id) for block in run)
    word = "token" if picture.kind == "block table" else "slot"
    states = " + ".join(STATES[state] for state in run[0].states)
    return f"block{'s' if len(run) > 1 else ''} {ids}", f"{word}s {run[0].first}-{run[-1].last}", states


def _where(wrong: Wrong, run: list[Block]) -> str:
    first, last = max(wrong.first, run[0].first), min(wrong.last, run[-1].last)
    if (first, last) == (run[0].first, run[-1].last):
        return ""
    return f" {first}" if first == last else f" {first}-{last}"
