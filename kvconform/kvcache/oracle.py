"""The KV oracle: what every slot must hold, as a pure function of what determines it.

A model computes the KV of a token from the whole prefix and from everything else that changes its forward pass. The
oracle does the same with integers: a 64-bit *chain* value per token position folds in the model, the LoRA adapter, the
cache salt, every token id up to that position and the multimodal item or prompt embedding at each of them; the bytes of
a slot are a counter-mode expansion of (chain, layer, group, rank). No two slots that may differ in a real model share
bytes, every bit pattern occurs (NaNs included), and no comparison needs a tolerance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

U64 = npt.NDArray[np.uint64]

# Words that are expanded at a time: 128 KiB, which stay in a core's cache.
_CACHED_WORDS = 1 << 14
_CHAIN_FACTOR = np.uint64(0x9E3779B97F4A7C15 | 1)
_CHAIN_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15 | 1, -1, 1 << 64))


def key64(*parts: object) -> int:
    """A 64-bit key of plain values, equal in every process (unlike ``hash``)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


# The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
_MIX_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_MIX_LAST_SHIFT = 31
_COUNTER_FACTOR = 0xD1B54A32D192ED03
# The same for numpy, made once: most arrays are so short that making them would cost as much as the arithmetic.
_STEPS = tuple((np.uint64(shift), np.uint64(factor)) for shift, factor in _MIX_STEPS)
_LAST_SHIFT = np.uint64(_MIX_LAST_SHIFT)


def _mix(x: U64) -> U64:
    """splitmix64's finaliser."""
    for shift, factor in _STEPS:
        x = (x ^ (x >> shift)) * factor
    return x ^ (x >> _LAST_SHIFT)


def _mix_in_place(x: U64) -> None:
    """:func:`_mix` without temporaries but one; ``x`` should fit into a processor's cache."""
    shifted = np.empty_like(x)
    for shift, factor in _STEPS:
        np.right_shift(x, shift, out=shifted)
        x ^= shifted
        x *= factor
    np.right_shift(x, _LAST_SHIFT, out=shifted)
    x ^= shifted


@lru_cache(maxsize=4)
def _powers(length: int) -> tuple[U64, U64]:
    """Powers of the chain factor and of its inverse modulo 2**64, 0 .. length."""
    factor = np.full(length + 1, _CHAIN_FACTOR)
    inverse = np.full(length + 1, _CHAIN_INVERSE)
    factor[0] = inverse[0] = np.uint64(1)
    return np.cumprod(factor), np.cumprod(inverse)


@dataclass(frozen=True)
class Identity:
    """Everything besides the tokens that changes the KV of a request.

    ``extras`` are (first position, one past the last, name): multimodal items or prompt embeddings that replace what
    the token ids at those positions mean.
    """

    model: str = "model"
    lora: str | None = None
    salt: str | None = None
    extras: tuple[tuple[int, int, str], ...] = ()

    def root(self) -> int:
        """The chain value before the first token; an empty salt is no salt."""
        return key64("root", self.model, self.lora, self.salt or None)


@dataclass
class TokenChain:
    """The token ids of one request and the chain value at each position.

    Generated tokens are a pure function of the prefix, as with greedy sampling, so the sequence can be extended on
    demand and a recomputation yields the same tokens again.
    """

    prompt: tuple[int, ...]
    identity: Identity = field(default_factory=Identity)
    vocabulary: int = 50_000
    _tokens: list[int] = field(init=False, repr=False)
    _chain: U64 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tokens = list(self.prompt)
        self._chain = self._fold(np.asarray(self.prompt, dtype=np.uint64), 0, self.identity.root())

    def _fold(self, tokens: U64, start: int, before: int) -> U64:
        """Chain values of ``tokens`` from position ``start`` on: h[i] = factor * (h[i-1] + token[i]), vectorised."""
        n = len(tokens)
        extra = np.zeros(n, dtype=np.uint64)
        for first, last, name in self.identity.extras:
            lo, hi = max(first, start), min(last, start + n)
            if lo < hi:
                # The offset inside the item matters: position 3 of an image is not its position 0.
                offsets = np.arange(lo - first, hi - first, dtype=np.uint64)
                extra[lo - start : hi - start] += _mix(offsets + np.uint64(key64("extra", name)))
        terms = _mix(tokens + np.uint64(1)) ^ extra
        factor, inverse = _powers(max(1024, 1 << (n - 1).bit_length()))
        return (np.cumsum(terms * inverse[:n]) + np.uint64(before)) * factor[1 : n + 1]

    @property
    def known(self) -> int:
        """How many tokens there are by now; more follow when they are asked for."""
        return len(self._tokens)

    def tokens(self, length: int) -> list[int]:
        """The first ``length`` token ids, generated ones included."""
        self._extend(length)
        return self._tokens[:length]

    def between(self, start: int, stop: int) -> list[int]:
        """The token ids of positions [start, stop)."""
        self._extend(stop)
        return self._tokens[start:stop]

    def chain(self, start: int, stop: int) -> U64:
        """Chain values of positions [start, stop)."""
        self._extend(stop)
        return self._chain[start:stop]

    def next_token(self, length: int) -> int:
        """What the model samples after ``length`` tokens."""
        self._extend(length)
        before = int(self._chain[length - 1]) if length else self.identity.root()
        return 10 + key64("sample", before) % (self.vocabulary - 10)

    def _extend(self, length: int) -> None:
        while len(self._tokens) < length:
            n = len(self._tokens)
            token = self.next_token(n)
            before = int(self._chain[n - 1]) if n else self.identity.root()
            self._tokens.append(token)
            self._chain = np.concatenate([self._chain, self._fold(np.array([token], dtype=np.uint64), n, before)])


@dataclass(frozen=True)
class PageContent:
    """The shape of one token's content in one layer: [heads, content bytes]."""

    heads: int
    content_bytes: int

    @property
    def words(self) -> int:
        """64-bit words that cover one token."""
        return -(-self.heads * self.content_bytes // 8)


@lru_cache(maxsize=1024)
def _place(layer: str, rank: int) -> np.uint64:
    return np.uint64(key64("place", layer, rank))


@lru_cache(maxsize=64)
def _counters(words: int) -> U64:
    """What is added to a token's seed, word by word; read only."""
    counters = np.arange(1, words + 1, dtype=np.uint64) * np.uint64(_COUNTER_FACTOR)
    counters.flags.writeable = False
    return counters[None, :]


def slot_seeds(chain: U64, layer: str, rank: int = 0) -> U64:
    """One 64-bit seed per slot from the chain values and the place (layer name, worker rank)."""
    return _mix(chain + _place(layer, rank))


def poison_seeds(engine: int, block: int, life: int, num_slots: int, layer: str) -> U64:
    """Seeds of the poison in block ``block`` of ``layer`` during its ``life``-th life in engine ``engine``."""
    return poison_of_blocks(engine, [(block, life)], num_slots, layer)


def poison_of_blocks(engine: int, lives: Sequence[tuple[int, int]], num_slots: int, layer: str) -> U64:
    """:func:`poison_seeds` of several (block, life), one behind the other."""
    blocks, times = (np.array(numbers, dtype=np.uint64) for numbers in zip(*lives, strict=True))
    keys = _mix(_mix(blocks + _poisoned(engine, layer)) + times)
    return _mix(keys[:, None] + np.arange(num_slots, dtype=np.uint64)).ravel()


@lru_cache(maxsize=1024)
def _poisoned(engine: int, layer: str) -> np.uint64:
    return np.uint64(key64("poison", engine, layer))


def expand(seeds: U64, content: PageContent, device: torch.device | str = "cpu") -> torch.Tensor:
    """Seeds [T] -> bytes [T, heads, content bytes] as uint8 on ``device``.

    On another device than the CPU only the seeds are copied there; the bytes are computed where they are needed.
    """
    # Late: suites import this module through the scenario programs, and collecting tests must stay light.
    import torch

    if (place := torch.device(device)).type != "cpu":
        from kvconform.kvcache.placing import to_device

        return expand_tensor(to_device(seeds, place), content)
    words = np.empty((len(seeds), content.words), dtype=np.uint64)
    counters = _counters(content.words)
    rows = max(1, _CACHED_WORDS // content.words)
    for first in range(0, len(seeds), rows):
        np.add(seeds[first : first + rows, None], counters, out=words[first : first + rows])
        _mix_in_place(words[first : first + rows])
    raw = words.view(np.uint8).reshape(len(seeds), content.words * 8)
    raw = np.ascontiguousarray(raw[:, : content.heads * content.content_bytes])
    return torch.from_numpy(raw).view(len(seeds), content.heads, content.content_bytes)


def expand_tensor(seeds: torch.Tensor, content: PageContent) -> torch.Tensor:
    """:func:`expand` in torch, on the device of ``seeds`` [T], int64 with the bits of the unsigned seeds.

    torch has no arithmetic on uint64 on every device. Sums and products of int64 wrap to the same bits; a right shift
    needs the sign's copies cleared. Like numpy's view, the bytes are in the order of a little-endian machine.
    """
    import torch

    counters = torch.arange(1, content.words + 1, device=seeds.device) * _signed(_COUNTER_FACTOR)
    x = seeds[:, None] + counters[None, :]
    for shift, factor in _MIX_STEPS:
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    x = x ^ _shifted(x, _MIX_LAST_SHIFT)
    raw = x.view(torch.uint8)[:, : content.heads * content.content_bytes]
    return raw.reshape(len(seeds), content.heads, content.content_bytes)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    return value - (1 << 64) if value >= 1 << 63 else value


def prompt_tokens(segments: Sequence[tuple[int, int]], vocabulary: int = 50_000) -> tuple[int, ...]:
    """Token ids of a prompt given as (seed, length) segments; equal leading segments make equal prefixes."""
    tokens: list[int] = []
    for position, (seed, length) in enumerate(segments):
        tokens += _segment(position, seed, length, vocabulary)
    return tuple(tokens)


@lru_cache(maxsize=4096)
def _segment(position: int, seed: int, length: int, vocabulary: int) -> tuple[int, ...]:
    rng = np.random.default_rng(key64("segment", position, seed))
    return tuple(rng.integers(10, vocabulary, size=length).tolist())
