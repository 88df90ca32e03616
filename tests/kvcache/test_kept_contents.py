"""What the oracle says of whole requests is kept, and stays what the oracle says."""

from __future__ import annotations

import gc

import pytest

from kvconform.kvcache import kept_contents
from kvconform.kvcache.head_rows import as_tensor
from kvconform.kvcache.kept_contents import KeptContents
from kvconform.kvcache.oracle import PageContent, TokenChain, expand, slot_seeds

LAYERS = ("first", "second")
CONTENT = PageContent(2, 12)
TOKEN_BYTES = len(LAYERS) * CONTENT.heads * CONTENT.content_bytes


def chain(seed: int, length: int = 40) -> TokenChain:
    return TokenChain(tuple(range(seed, seed + length)))


def said(of: TokenChain, stop: int, rank: int = 0) -> list[list[list[list[int]]]]:
    return [expand(slot_seeds(of.chain(0, stop), layer, rank), CONTENT).tolist() for layer in LAYERS]


def kept_as_lists(kept: KeptContents, of: TokenChain, stop: int) -> list[list[list[list[int]]]]:
    contents = kept.of(of, LAYERS, CONTENT, stop)[:, :stop]
    return [as_tensor(layer.copy()).tolist() for layer in contents]


@pytest.mark.parametrize("rank", [0, 3])
def test_kept_contents_are_the_oracles(rank: int) -> None:
    kept, one, other = KeptContents(rank), chain(100), chain(500)
    for of, stop in ((one, 7), (other, 40), (one, 40), (one, 3)):
        assert kept_as_lists(kept, of, stop) == said(of, stop, rank)


def test_a_request_that_grows_is_worked_out_anew_when_it_has_to_be() -> None:
    kept, of = KeptContents(0), chain(100)
    first = kept.of(of, LAYERS, CONTENT, 3)
    assert first.shape == (2, 40, 2), "all tokens that there are"
    assert kept.of(of, LAYERS, CONTENT, 40) is first
    assert kept_as_lists(kept, of, 41) == said(of, 41)
    assert kept.of(of, LAYERS, CONTENT, 41) is not first
    assert kept.of(of, LAYERS, CONTENT, 40) is kept.of(of, LAYERS, CONTENT, 41)


def test_layers_of_two_layouts_are_kept_apart() -> None:
    kept, of = KeptContents(0), chain(100)
    kept.of(of, LAYERS, CONTENT, 40)
    wide = kept.of(of, ("third",), PageContent(1, 5), 40)
    assert (
        as_tensor(wide[0].copy()).tolist() == expand(slot_seeds(of.chain(0, 40), "third"), PageContent(1, 5)).tolist()
    )


def test_what_is_kept_cannot_be_written() -> None:
    contents = KeptContents(0).of(chain(100), LAYERS, CONTENT, 40)
    with pytest.raises(ValueError, match="read-only"):
        contents[0, 0] = contents[0, 1]


def test_another_request_never_gets_what_a_former_one_left() -> None:
    kept = KeptContents(0)
    for seed in range(0, 5000, 50):
        # The chain before is nobody's any more, and its id would be free.
        assert kept_as_lists(kept, chain(seed), 40) == said(chain(seed), 40)
        gc.collect(0)


def test_no_more_is_kept_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_contents, "LIMIT", 100 * TOKEN_BYTES)
    kept, chains = KeptContents(0), [chain(seed) for seed in (100, 200, 300)]
    first, second = (kept.of(each, LAYERS, CONTENT, 40) for each in chains[:2])
    assert kept.of(chains[0], LAYERS, CONTENT, 40) is first
    # The third one does not fit beside them.
    third = kept.of(chains[2], LAYERS, CONTENT, 40)
    assert kept.of(chains[2], LAYERS, CONTENT, 40) is third
    assert kept.of(chains[1], LAYERS, CONTENT, 40) is not second
    assert kept_as_lists(kept, chains[0], 40) == said(chains[0], 40)


@pytest.mark.parametrize(("missing", "both"), [(0, True), (1, False)])
def test_the_limit_is_meant_to_the_byte(missing: int, both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_contents, "LIMIT", 80 * TOKEN_BYTES - missing)
    kept, chains = KeptContents(0), [chain(100), chain(200)]
    first = kept.of(chains[0], LAYERS, CONTENT, 40)
    kept.of(chains[1], LAYERS, CONTENT, 40)
    assert (kept.of(chains[0], LAYERS, CONTENT, 40) is first) is both


def test_what_just_fits_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_contents, "LIMIT", 40 * TOKEN_BYTES)
    kept, of = KeptContents(0), chain(100)
    assert kept.of(of, LAYERS, CONTENT, 40) is kept.of(of, LAYERS, CONTENT, 40)


def test_a_request_that_grows_displaces_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_contents, "LIMIT", 100 * TOKEN_BYTES)
    kept, one, other = KeptContents(0), chain(100), chain(200)
    beside = kept.of(other, LAYERS, CONTENT, 40)
    kept.of(one, LAYERS, CONTENT, 40)
    kept.of(one, LAYERS, CONTENT, 41)
    assert kept.of(other, LAYERS, CONTENT, 40) is beside, "81 tokens, and 121 if it were counted twice"


def test_what_grows_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_contents, "LIMIT", 100 * TOKEN_BYTES)
    kept, one, other = KeptContents(0), chain(100), chain(200)
    kept.of(one, LAYERS, CONTENT, 40)
    grown = [kept.of(one, LAYERS, CONTENT, stop) for stop in range(41, 60)][-1]
    kept.of(other, LAYERS, CONTENT, 40)
    assert kept.of(one, LAYERS, CONTENT, 59) is grown, "59 and 40 tokens"


def test_what_is_larger_than_the_limit_is_said_but_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_contents, "LIMIT", 40 * TOKEN_BYTES - 1)
    kept, of = KeptContents(0), chain(100)
    assert kept_as_lists(kept, of, 40) == said(of, 40)
    assert kept.of(of, LAYERS, CONTENT, 40) is not kept.of(of, LAYERS, CONTENT, 40)
    assert kept_as_lists(kept, chain(7, 39), 39) == said(chain(7, 39), 39)
