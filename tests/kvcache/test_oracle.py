"""The oracle's content: a pure function of everything that determines a slot, and of nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvconform.kvcache.oracle import (
    Identity,
    PageContent,
    TokenChain,
    _counters,
    _signed,
    expand,
    expand_tensor,
    key64,
    poison_seeds,
    prompt_tokens,
    slot_seeds,
)

PROMPT = tuple(range(100, 140))
PLAIN = PageContent(heads=2, content_bytes=32)
LAYER = "model.layers.0.self_attn.attn"

identities = st.builds(
    Identity,
    model=st.sampled_from(["model", "other"]),
    lora=st.sampled_from([None, "adapter"]),
    salt=st.sampled_from([None, "", "salt"]),
    extras=st.sampled_from([(), ((3, 9, "image"),), ((0, 2, "image"), (5, 40, "embeds"))]),
)
prompts = st.lists(st.integers(0, 50_000), min_size=1, max_size=70).map(tuple)


def content(
    prompt: tuple[int, ...] = PROMPT,
    identity: Identity = Identity(),  # noqa: B008 - frozen
    *,
    layer: str = LAYER,
    rank: int = 0,
    page: PageContent = PLAIN,
) -> np.ndarray:
    """[tokens, heads, content bytes] of a whole prompt."""
    return expand(slot_seeds(TokenChain(prompt, identity).chain(0, len(prompt)), layer, rank), page).numpy()


# -- purity ----------------------------------------------------------------------------------------------------------

_DIGEST = """
import hashlib
from kvconform.kvcache.oracle import *
identity = Identity("m", "lora", "salt", ((2, 5, "image"),))
chain = TokenChain(prompt_tokens([(1, 30), (2, 9)]), identity)
seeds = slot_seeds(chain.chain(0, 60), "layer", 1)
data = expand(np.concatenate([seeds, poison_seeds(1, 2, 3, 4, "layer")]), PageContent(3, 7)).numpy().tobytes()
print(hashlib.sha256(data + repr(chain.tokens(60)).encode()).hexdigest())
"""


def test_content_is_the_same_in_processes_with_other_hash_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    exec(_DIGEST, {})
    here = capsys.readouterr().out.strip()
    other = str(1 + int(os.environ.get("PYTHONHASHSEED", "random").replace("random", "0")))
    environment = {**os.environ, "PYTHONHASHSEED": other}
    there = subprocess.run(
        [sys.executable, "-c", _DIGEST], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    assert there.stdout.strip() == here
    assert len(here) == 64


def test_keys_do_not_confuse_parts() -> None:
    assert key64("a", "bc") != key64("ab", "c")
    assert key64("a", None) != key64("a", "None")
    assert key64(1) != key64("1")


def test_bytes_are_the_same_on_every_machine_and_in_every_version_of_the_kit() -> None:
    """A case that was saved is played again with the bytes that it had."""
    identity = Identity("m", "lora", "salt", ((2, 5, "image"),))
    chain = TokenChain(prompt_tokens([(1, 30), (2, 9)]), identity)
    assert key64("a", 1) == 12444202034427101082
    assert Identity().root() == key64("root", "model", None, None) == 10374818752128150012
    assert prompt_tokens([(1, 3), (2, 2)]) == (46563, 43115, 35990, 26837, 31431)
    assert chain.tokens(42)[38:] == [29798, 15570, 14829, 29082]
    assert chain.chain(0, 2).tolist() == [24608178497578908, 4895693378591920709]
    assert chain.chain(40, 42).tolist() == [16263720418474175553, 9837128771710620505]
    assert slot_seeds(chain.chain(0, 1), "layer", 1).tolist() == [1601292623487591823]
    assert poison_seeds(1, 2, 3, 2, "layer").tolist() == [9517377707494073660, 1410909119171704973]
    bytes_of_two_heads = [[164, 201, 87, 138, 166], [162, 60, 186, 132, 216]]
    assert expand(np.array([7], dtype=np.uint64), PageContent(2, 5)).tolist() == [bytes_of_two_heads]


# -- the chain -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (3, 5), (4, 9), (8, 12)])
def test_tokens_between_two_positions_are_those_of_the_sequence(start: int, stop: int) -> None:
    asked, whole = TokenChain(tuple(range(100, 105))), TokenChain(tuple(range(100, 105)))
    assert asked.between(start, stop) == whole.tokens(stop)[start:]
    assert asked.known == max(5, stop)


@settings(max_examples=60, deadline=None)
@given(prompt=prompts, identity=identities, generated=st.integers(1, 20))
def test_token_by_token_and_all_at_once_agree(prompt: tuple[int, ...], identity: Identity, generated: int) -> None:
    grown = TokenChain(prompt, identity)
    whole_length = len(prompt) + generated
    tokens = grown.tokens(whole_length)
    whole = TokenChain(tuple(tokens), identity)
    assert (grown.chain(0, whole_length) == whole.chain(0, whole_length)).all()
    assert whole.next_token(len(prompt)) == tokens[len(prompt)]
    assert all(10 <= token < 50_000 for token in tokens[len(prompt) :])


@pytest.mark.parametrize("length", [0, 1, 3, 6, 9])
def test_item_reaches_into_what_is_generated(length: int) -> None:
    """The same tokens as a prompt have the same chain, and another one than without the item."""
    identity = Identity(extras=((2, 6, "image"), (7, 8, "sound")))
    grown = TokenChain(tuple(range(length)), identity)
    whole, plain = TokenChain(tuple(grown.tokens(12)), identity), TokenChain(tuple(grown.tokens(12)))
    assert grown.chain(0, 12).tolist() == whole.chain(0, 12).tolist()
    assert (grown.chain(0, 12) == plain.chain(0, 12)).tolist() == [True, True] + [False] * 10
    assert grown.chain(0, length).dtype == grown.chain(0, 12).dtype == np.uint64


def test_two_items_at_one_position_both_count() -> None:
    one, two = ("image", "sound")
    names = [(one,), (two,), (one, two)]
    chains = [TokenChain(PROMPT, Identity(extras=tuple((5, 9, name) for name in each))) for each in names]
    assert len({int(chain.chain(5, 6)[0]) for chain in chains}) == 3


def test_tokens_are_as_many_as_asked_for_in_any_order() -> None:
    first, later = TokenChain(PROMPT), TokenChain(PROMPT)
    token = first.next_token(len(PROMPT) + 3)
    assert later.tokens(len(PROMPT) + 4)[-1] == token
    assert first.tokens(len(PROMPT) - 1) == list(PROMPT[:-1])


def test_words_cover_a_token_and_no_more() -> None:
    assert [PageContent(heads, width).words for heads, width in ((1, 8), (1, 9), (2, 12), (3, 16))] == [1, 2, 3, 6]


def test_long_prompt_has_the_chain_of_its_parts() -> None:
    """Longer than the powers that are kept at hand for short ones."""
    long = TokenChain(tuple(range(3000)))
    assert long.chain(0, 40).tolist() == TokenChain(tuple(range(40))).chain(0, 40).tolist()
    assert len(set(long.chain(0, 3000).tolist())) == 3000
    grown = TokenChain(tuple(range(1024)))
    whole = TokenChain(tuple(grown.tokens(1027)))
    assert grown.chain(1020, 1027).tolist() == whole.chain(1020, 1027).tolist()


def test_request_without_a_prompt_has_tokens() -> None:
    empty = TokenChain(())
    assert len(empty.chain(0, 0)) == 0
    assert empty.next_token(0) == empty.tokens(1)[0]
    assert empty.next_token(1) == empty.tokens(2)[1]


@pytest.mark.parametrize(("vocabulary", "different"), [(11, 1), (12, 2), (50_000, 35)])
def test_generated_tokens_are_those_of_the_vocabulary_behind_the_first_ten(vocabulary: int, different: int) -> None:
    tokens = TokenChain((1, 2), vocabulary=vocabulary).tokens(40)[2:]
    assert (min(tokens) >= 10, max(tokens) < vocabulary) == (True, True)
    assert len(set(tokens)) >= different
    prompt = prompt_tokens([(1, 40)], vocabulary)
    assert set(prompt) <= set(range(10, vocabulary))


@settings(max_examples=60, deadline=None)
@given(prefix=prompts, first=prompts, second=prompts, identity=identities)
def test_a_common_prefix_has_common_content(
    prefix: tuple[int, ...], first: tuple[int, ...], second: tuple[int, ...], identity: Identity
) -> None:
    one, other = content(prefix + first, identity), content(prefix + second, identity)
    shared = len(prefix)
    assert (one[:shared] == other[:shared]).all()
    for position in range(shared, min(len(one), len(other))):
        same = (prefix + first)[: position + 1] == (prefix + second)[: position + 1]
        assert (one[position] == other[position]).all() == same


@settings(max_examples=60, deadline=None)
@given(prompt=prompts, data=st.data())
def test_one_other_token_changes_everything_behind_it(prompt: tuple[int, ...], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(prompt) - 1))
    token = data.draw(st.integers(0, 50_000).filter(lambda token: token != prompt[at]))
    one, other = content(prompt), content((*prompt[:at], token, *prompt[at + 1 :]))
    changed = (one != other).any(axis=(1, 2))
    assert not changed[:at].any()
    assert changed[at:].all()


def test_the_same_token_at_another_position_has_other_content() -> None:
    repeated = content((7,) * 64)
    assert len({slot.tobytes() for slot in repeated}) == 64


def test_two_tokens_exchanged_have_other_content() -> None:
    one, other = content((1, 2, 3, 4)), content((2, 1, 3, 4))
    assert (one != other).any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    "changed",
    [
        Identity(model="other"),
        Identity(lora="adapter"),
        Identity(lora="other"),
        Identity(salt="salt"),
        Identity(salt="model"),
        Identity(extras=((0, 40, "image"),)),
        Identity(extras=((0, 40, "other image"),)),
    ],
    ids=str,
)
@pytest.mark.parametrize("base", [Identity(), Identity(lora="adapter2", salt="salt2")], ids=["plain", "adapted"])
def test_whatever_changes_the_forward_changes_the_content(base: Identity, changed: Identity) -> None:
    default = Identity()
    names = [name for name in ("model", "lora", "salt", "extras") if getattr(changed, name) != getattr(default, name)]
    other = replace(base, **{name: getattr(changed, name) for name in names})
    assert (content(identity=base) != content(identity=other)).any(axis=(1, 2)).all()


def test_an_item_changes_content_from_its_first_position_on() -> None:
    plain, one = content(), content(identity=Identity(extras=((10, 14, "image"),)))
    moved = content(identity=Identity(extras=((11, 15, "image"),)))
    assert (plain[:10] == one[:10]).all()
    assert (plain[10:] != one[10:]).any(axis=(1, 2)).all()
    assert (one[10:] != moved[10:]).any(axis=(1, 2)).all()


def test_an_empty_salt_is_no_salt() -> None:
    assert (content(identity=Identity(salt="")) == content(identity=Identity(salt=None))).all()


def test_layer_and_rank_change_the_content() -> None:
    places = [content(layer=layer, rank=rank).tobytes() for layer in (LAYER, "other") for rank in (0, 1, 2)]
    assert len(set(places)) == 6


def test_generated_tokens_depend_on_the_identity() -> None:
    plain, salted = (TokenChain(PROMPT, identity).tokens(60) for identity in (Identity(), Identity(salt="s")))
    assert plain[: len(PROMPT)] == salted[: len(PROMPT)]
    assert plain[len(PROMPT) :] != salted[len(PROMPT) :]


# -- bytes -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(heads=st.integers(1, 5), content_bytes=st.integers(1, 40), tokens=st.integers(0, 9))
def test_any_size_is_filled(heads: int, content_bytes: int, tokens: int) -> None:
    seeds = slot_seeds(TokenChain(PROMPT).chain(0, tokens), LAYER)
    data = expand(seeds, PageContent(heads, content_bytes))
    assert data.shape == (tokens, heads, content_bytes)
    assert data.dtype == torch.uint8
    assert data.is_contiguous()
    # A wider page begins with the same bytes: nothing depends on the padding of the last word.
    wider = expand(seeds, PageContent(1, heads * content_bytes + 8))
    assert (data.flatten(1) == wider[:, 0, : heads * content_bytes]).all()


@pytest.mark.parametrize("page", [PageContent(1, 8), PageContent(3, 7), PageContent(16, 128)], ids=str)
def test_many_slots_are_filled_as_each_of_them_alone(page: PageContent) -> None:
    """They are expanded piece by piece, as many words at a time as a processor's cache holds."""
    seeds = slot_seeds(TokenChain(tuple(range(200))).chain(0, 200), LAYER).repeat(200)[:: 1 + page.words // 4]
    together = expand(seeds, page)
    for row in (0, 1, len(seeds) // 2, len(seeds) - 1):
        assert torch.equal(together[row], expand(seeds[row : row + 1], page)[0])


def test_bytes_of_torch_are_those_of_numpy() -> None:
    seeds = np.array([0, 7, (1 << 63) - 1, 1 << 63, (1 << 64) - 1], dtype=np.uint64)
    for page in (PageContent(2, 5), PageContent(1, 8), PageContent(3, 24)):
        assert torch.equal(expand_tensor(torch.from_numpy(seeds.view(np.int64)), page), expand(seeds, page))
    assert expand(seeds, PageContent(2, 5), "meta").device.type == "meta"


def test_what_all_expansions_share_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        _counters(3)[0, 0] = 1


def test_unsigned_numbers_keep_their_bits() -> None:
    for value in (0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        assert _signed(value) % (1 << 64) == value
        assert -(1 << 63) <= _signed(value) < 1 << 63


def test_every_byte_value_occurs_evenly() -> None:
    counts = np.bincount(content(tuple(range(1000))).reshape(-1), minlength=256)
    expected = 1000 * PLAIN.heads * PLAIN.content_bytes / 256
    assert counts.min() > 0.5 * expected
    assert counts.max() < 1.5 * expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_nan_patterns_occur_and_differ(dtype: torch.dtype) -> None:
    data = torch.from_numpy(content(tuple(range(1000)))).contiguous()
    values = data.view(dtype)
    nan = values.isnan()
    assert nan.any()
    integers = data.view({2: torch.int16, 4: torch.int32}[dtype.itemsize])
    assert len(integers[nan].unique()) > 8, "payloads of NaN differ, so a copy through floating point arithmetic shows"
    assert (nan & (integers < 0)).any(), "negative NaN"


def test_heads_and_slots_never_repeat() -> None:
    rows = content(tuple(range(500)), page=PageContent(4, 8)).reshape(-1, 8)
    assert len({row.tobytes() for row in rows}) == len(rows)


def test_poison_names_engine_block_life_and_layer() -> None:
    base = (1, 2, 3, 16, LAYER)
    changes = [(9, 2, 3, 16, LAYER), (1, 9, 3, 16, LAYER), (1, 2, 9, 16, LAYER), (1, 2, 3, 16, "other")]
    seeds = [tuple(poison_seeds(*args).tolist()) for args in (base, *changes)]
    assert len(set(seeds)) == 5
    assert len(set(seeds[0])) == 16


def test_prompts_share_exactly_their_leading_segments() -> None:
    one, other = prompt_tokens([(1, 20), (2, 10)]), prompt_tokens([(1, 20), (3, 10)])
    assert one[:20] == other[:20]
    assert one[20:] != other[20:]
    assert prompt_tokens([(1, 20)]) == one[:20]
    assert prompt_tokens([(2, 20), (1, 10)])[:20] != one[:20]
