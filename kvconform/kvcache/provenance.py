"""Asking the oracle what a piece of memory is.

Only runs when something is wrong, so it may be slow: it expands the content of everything that was ever computed in the
run (and every poison) into an index of head rows and looks the observed rows up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvconform.kvcache.oracle import U64, Identity, PageContent, TokenChain, expand, poison_seeds, slot_seeds

if TYPE_CHECKING:
    from kvconform.kvcache.memory import KVMemory

Bytes = npt.NDArray[np.uint8]
_SHORT_ROW = 4  # rows of fewer bytes recur by chance and identify nothing
_EARLIER = "an earlier life of "


@dataclass(frozen=True)
class Origin:
    """What the bytes of one slot are. ``position`` and ``layer`` only where the kind has them."""

    kind: str  # "content", "tainted", "poison", "zero", "constant", "unknown"
    label: str = ""
    position: int = -1
    layer: str = ""
    rank: int = 0
    detail: str = ""


@dataclass
class _Known:
    chain: TokenChain
    length: int
    taint: int


@dataclass
class Provenance:
    """Everything that slots of this run may hold."""

    ranks: tuple[int, ...] = (0,)
    _known: dict[tuple[str, tuple[int, ...], Identity, int], _Known] = field(default_factory=dict)
    _memories: list[tuple[KVMemory, str]] = field(default_factory=list)
    _index: dict[tuple[int, bytes], tuple[Origin, int]] = field(default_factory=dict)
    _indexed: tuple[int, ...] = ()

    def know(self, label: str, chain: TokenChain, length: int, taint: int = 0) -> None:
        """``label``'s slots [0, length) were (or will be) computed, with ``taint`` on top of wrong KV."""
        # A label alone is not enough: a second engine or a client may use a request id again for another prompt.
        known = self._known.setdefault((label, chain.prompt, chain.identity, taint), _Known(chain, 0, taint))
        known.length = max(known.length, length)

    def know_memory(self, memory: KVMemory, label: str) -> None:
        """Another engine's memory, whose poison may turn up."""
        self._memories.append((memory, label))

    def is_of(self, origin: Origin, chain: TokenChain) -> bool:
        """Whether content is that of ``chain``'s tokens: requests with a common prefix share it."""
        at = (origin.position, origin.position + 1)
        return any(
            known.length > origin.position and bool((known.chain.chain(*at) == chain.chain(*at)).all())
            for (label, *_), known in self._known.items()
            if label == origin.label
        )

    def identify(self, observed: Bytes) -> list[Origin]:
        """One origin per slot of ``observed`` [T, heads, content bytes]."""
        self._reindex(PageContent(observed.shape[1], observed.shape[2]))
        return [self._identify_slot(slot) for slot in observed]

    def _identify_slot(self, slot: Bytes) -> Origin:
        if not slot.any():
            return Origin("zero")
        for width in (1, 2, 4):
            elements = slot.reshape(-1, width) if slot.size % width == 0 and slot.size > 2 * _SHORT_ROW else slot[:0]
            if len(elements) and (elements == elements[0]).all():
                return Origin("constant", detail=f"the {width}-byte value 0x{elements[0][::-1].tobytes().hex()}")
        heads = [self._index.get((slot.shape[1], row.tobytes())) for row in slot]
        if all(heads):
            first = heads[0]
            assert first is not None
            origins = {(entry[0], entry[1] - head) for head, entry in enumerate(heads) if entry is not None}
            if origins == {(first[0], first[1])} and first[1] == 0:
                return first[0]
            same_slot = len({entry[0] for entry in heads if entry is not None}) == 1
            order = ", ".join(str(entry[1]) for entry in heads if entry is not None)
            if same_slot:
                return Origin(**{**first[0].__dict__, "detail": f"heads in the order {order}"})
            return Origin(
                "unknown", detail="a mixture of slots: " + "; ".join(_name(e[0]) for e in heads if e is not None)[:200]
            )
        if any(heads):
            found = next(entry for entry in heads if entry is not None)
            right = sum(entry is not None for entry in heads)
            return Origin(
                "unknown", detail=f"{right} of {len(heads)} heads are those of {_name(found[0])}, the others unknown"
            )
        return self._halves(slot)

    def _halves(self, slot: Bytes) -> Origin:
        """K and V swapped is the one rearrangement inside a head row that real connectors produce."""
        width = slot.shape[1]
        for k_width in range(1, width):
            swapped = np.concatenate([slot[:, k_width:], slot[:, :k_width]], axis=1)
            heads = [self._index.get((width, row.tobytes())) for row in swapped]
            first = heads[0]
            if first is not None and all(entry == (first[0], head) for head, entry in enumerate(heads)):
                return Origin(**{**first[0].__dict__, "detail": "K and V swapped"})
        return Origin("unknown")

    def _reindex(self, content: PageContent) -> None:
        signature = (
            content.heads,
            content.content_bytes,
            len(self._memories),
            *(known.length for known in self._known.values()),
            *(memory.life(block) for memory, _ in self._memories for block in range(memory.num_blocks)),
        )
        if signature == self._indexed or content.content_bytes < _SHORT_ROW:
            return
        self._index.clear()
        for memory, label in self._memories:
            self._index_poison(memory, label, content)
        layers = sorted({name for memory, _ in self._memories for name in memory.layers})
        for (label, *_), known in self._known.items():
            chain = known.chain.chain(0, known.length)
            kind = "tainted" if known.taint else "content"
            for layer in layers:
                for rank in self.ranks:
                    seeds: U64 = slot_seeds(chain, layer, rank) ^ np.uint64(known.taint)
                    self._add(expand(seeds, content).numpy(), lambda i: Origin(kind, label, i, layer, rank))  # noqa: B023
        self._indexed = signature

    def _index_poison(self, memory: KVMemory, label: str, content: PageContent) -> None:
        for name, layer in memory.layers.items():
            for block in range(memory.num_blocks):
                for life in range(memory.life(block) + 1):
                    seeds = poison_seeds(memory.engine, block, life, layer.slots_per_block, name)
                    age = "" if life == memory.life(block) else _EARLIER
                    detail = f"{age}block {block}{label}"
                    self._add(expand(seeds, content).numpy(), lambda i: Origin("poison", detail, i, name))  # noqa: B023

    def _add(self, content: Bytes, origin: object) -> None:
        for position, slot in enumerate(content):
            entry = origin(position)  # type: ignore[operator]
            for head, row in enumerate(slot):
                # The first writer keeps the name: requests with a common prefix share its bytes.
                self._index.setdefault((content.shape[2], row.tobytes()), (entry, head))


def _name(origin: Origin) -> str:
    return (
        f"{origin.label} token {origin.position} of {origin.layer}"
        if origin.kind != "poison"
        else f"poison of {origin.label}"
    )


def runs(positions: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted positions as inclusive (first, last) runs."""
    result: list[tuple[int, int]] = []
    for position in sorted(positions):
        if result and position == result[-1][1] + 1:
            result[-1] = (result[-1][0], position)
        else:
            result.append((position, position))
    return result


def span(first: int, last: int, word: str = "token") -> str:
    """ "token 5" or "tokens 5-9"."""
    return f"{word} {first}" if first == last else f"{word}s {first}-{last}"


def describe(positions: Sequence[int], origins: Sequence[Origin], layer: str, rank: int = 0) -> tuple[str, ...]:
    """One sentence per run of slots of ``layer`` on ``rank`` whose bytes come from neighbouring places."""
    return tuple(
        _sentence(positions[first], positions[last], origins[first], origins[last], layer, rank)
        for first, last in stretches(positions, origins)
    )


def stretches(positions: Sequence[int], origins: Sequence[Origin]) -> list[tuple[int, int]]:
    """Runs of slots whose bytes come from neighbouring places: (index of the first, index of the last)."""
    found: list[tuple[int, int]] = []
    start = 0
    for end in range(1, len(positions) + 1):
        if end == len(positions) or not _continues(positions, origins, end):
            found.append((start, end - 1))
            start = end
    return found


def held_kind(origin: Origin, position: int, layer: str, rank: int, *, own: bool) -> str:
    """Which of kvconform.picture.WRONG_KINDS a slot's bytes are; ``own`` tells that they are the same tokens'."""
    if origin.kind == "poison":
        return "stale" if origin.label.startswith(_EARLIER) else "never written"
    if origin.kind == "tainted":
        return "on wrong KV"
    if origin.kind != "content":
        return origin.kind
    if not own:
        return "other request"
    if origin.layer != layer:
        return "other layer"
    if origin.rank != rank:
        return "other rank"
    return "other position" if origin.position != position else "rearranged"


def held_words(origin: Origin, final: Origin, layer: str, rank: int) -> str:
    """What a run of slots of ``layer`` on ``rank`` holds, in a few words."""
    if origin.kind == "zero":
        return "zeros"
    if origin.kind in ("constant", "unknown"):
        return origin.detail or "bytes that nobody computed in this run"
    if origin.kind == "poison":
        return f"poison of {origin.label}"
    notes = [f"of layer {origin.layer}"] if origin.layer != layer else []
    notes += [f"of rank {origin.rank}"] if origin.rank != rank else []
    notes += [f"with {origin.detail}"] if origin.detail else []
    return f"{origin.label}'s {span(origin.position, final.position)}" + (f" {', '.join(notes)}" if notes else "")


def _continues(positions: Sequence[int], origins: Sequence[Origin], end: int) -> bool:
    before, after = origins[end - 1], origins[end]
    if positions[end] != positions[end - 1] + 1:
        return False
    if before.kind in ("content", "tainted", "poison"):
        same = (before.kind, before.label, before.layer, before.rank, before.detail)
        return (
            same == (after.kind, after.label, after.layer, after.rank, after.detail)
            and after.position == before.position + 1
        )
    return (before.kind, before.detail) == (after.kind, after.detail)


def _sentence(first: int, last: int, origin: Origin, final: Origin, layer: str, rank: int) -> str:
    where = span(first, last)
    verb = "holds" if first == last else "hold"
    if origin.kind == "zero":
        return f"{where} {verb} zeros"
    if origin.kind == "constant":
        return f"{where} {verb} {origin.detail} everywhere"
    if origin.kind == "poison":
        other = "" if origin.layer == layer else f" (of layer {origin.layer})"
        return f"{where} {verb} poison of {origin.label}: nothing was written there{other}"
    if origin.kind == "unknown":
        detail = f": {origin.detail}" if origin.detail else ""
        return f"{where} {verb} bytes that nobody computed in this run{detail}"
    held = f"{origin.label}'s {span(origin.position, final.position)}"
    notes = []
    if origin.layer != layer:
        notes.append(f"of layer {origin.layer}")
    if origin.rank != rank:
        notes.append(f"of rank {origin.rank}")
    if origin.detail:
        notes.append(f"with {origin.detail}")
    if origin.kind == "tainted":
        notes.append("computed on top of wrong KV")
    return f"{where} {verb} {held}" + (f" ({', '.join(notes)})" if notes else "")
