"""Asking the oracle what a piece of memory is.

Only runs when something is wrong, so it may be slow: it expands the content of everything that was ever computed in the
run (and every poison) into an index of head rows and looks the observed rows up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvconform.kvcache.oracle import U64, Identity, PageContent, TokenChain, expand, poison_seeds, slot_seeds

if TYPE_CHECKING:
    from kvconform.kvcache.memory import KVMemory

Bytes = npt.NDArray[np.uint8]
_SHORT_ROW = 4  # rows of fewer bytes recur by chance and identify nothing
_NAMED = 4  # slots of a mixture that are named
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
    #: The same by id, as every step asks: hashing a prompt costs more than all the rest.
    _seen: dict[tuple[str, int, int], tuple[TokenChain, _Known]] = field(default_factory=dict)
    _memories: list[tuple[KVMemory, str]] = field(default_factory=list)
    _index: dict[tuple[int, bytes], tuple[Origin, int]] = field(default_factory=dict)
    _indexed: tuple[int, ...] = ()

    def know(self, label: str, chain: TokenChain, length: int, taint: int = 0) -> None:
        """``label``'s slots [0, length) were (or will be) computed, with ``taint`` on top of wrong KV."""
        seen = self._seen.get((label, id(chain), taint))
        if seen is None:
            # A label alone is not enough: a second engine or a client may use a request id again for another prompt.
            known = self._known.setdefault((label, chain.prompt, chain.identity, taint), _Known(chain, 0, taint))
            # With the chain, so that no other one can come by its id.
            seen = self._seen[label, id(chain), taint] = chain, known
        seen[1].length = max(seen[1].length, length)

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
        widths = [width for width in (1, 2, 4) if slot.size % width == 0 and slot.size > 2 * _SHORT_ROW]
        for width in widths:
            elements = slot.reshape(slot.size // width, width)
            if (elements == elements[0]).all():
                return Origin("constant", detail=f"the {width}-byte value 0x{elements[0][::-1].tobytes().hex()}")
        found = self._look_up(slot)
        if not found:
            return self._halves(slot)
        first = found[0][0]
        if len(found) < len(slot):
            detail = f"{len(found)} of {len(slot)} heads are those of {_name(first)}, the others unknown"
            return Origin("unknown", detail=detail)
        slots = list(dict.fromkeys(origin for origin, _ in found))
        if len(slots) > 1:
            more = f"; and {len(slots) - _NAMED} more" if len(slots) > _NAMED else ""
            return Origin("unknown", detail=f"a mixture of slots: {'; '.join(map(_name, slots[:_NAMED]))}{more}")
        order = [head for _, head in found]
        if order == list(range(len(slot))):
            return first
        return replace(first, detail=f"heads in the order {', '.join(map(str, order))}")

    def _look_up(self, slot: Bytes) -> list[tuple[Origin, int]]:
        """Slot and head of those head rows that are known."""
        heads = [self._index.get((slot.shape[1], row.tobytes())) for row in slot]
        return [entry for entry in heads if entry is not None]

    def _halves(self, slot: Bytes) -> Origin:
        """K and V swapped is the one rearrangement inside a head row that real connectors produce."""
        for width in range(1, slot.shape[1]):
            found = self._look_up(np.roll(slot, width, axis=1))
            if found and found == [(found[0][0], head) for head in range(len(slot))]:
                return replace(found[0][0], detail="K and V swapped")
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
    notes = _notes(origin, layer, rank)
    return f"{origin.label}'s {span(origin.position, final.position)}" + (f" {', '.join(notes)}" if notes else "")


def _notes(origin: Origin, layer: str, rank: int) -> list[str]:
    """What besides the tokens is not that of ``layer`` on ``rank``."""
    notes = [f"of layer {origin.layer}"] if origin.layer != layer else []
    notes += [f"of rank {origin.rank}"] if origin.rank != rank else []
    notes += [f"with {origin.detail}"] if origin.detail else []
    return notes


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
    notes = _notes(origin, layer, rank)
    notes += ["computed on top of wrong KV"] if origin.kind == "tainted" else []
    return f"{where} {verb} {held}" + (f" ({', '.join(notes)})" if notes else "")
